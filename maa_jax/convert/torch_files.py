"""Files of weights from others, read as arrays: PyTorch's and safetensors; needs the extra `torch`.

A PyTorch file is a pickle, which can run code when it is opened, and both it and its zip archive
can ask for far more memory than they hold. All of that is refused before PyTorch opens the file.
"""

import os
import pickletools
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

from maa_jax.files import check_regular

Tensors = dict[str, np.ndarray]

# What a pickle of tensors and plain values refers to; anything else could run code, or, as
# `bytearray` does, fill the memory.
_HARMLESS = re.compile(
    r"collections\.(OrderedDict|Counter)|_codecs\.encode|(builtins|__builtin__)\.(set|complex)"
    r"|torch\.(storage\.)?\w+Storage|torch\.(Size|device|bool|b?float\w*|double|half|u?int\d+|long)"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\._utils\._rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
)
# What numpy's numbers and arrays in a pickle refer to. Training keeps some beside the weights, such
# as a score or the order of examples; they are not made, since they too could fill the memory.
_NUMPY = tuple(
    f"numpy.{name}"
    for name in (
        "core.multiarray.scalar",
        "core.multiarray._reconstruct",
        "_core.multiarray.scalar",
        "_core.multiarray._reconstruct",
        "ndarray",
        "dtype",
    )
)
# Pickles at the start of a PyTorch file from before version 1.6; storages follow them.
_OLD_PICKLES = 5
_AGAIN = "copy or download it again"
_LFS = b"version https://git-lfs"
_MOST_HEADER = 100_000_000  # of a safetensors file, by its specification


class NumpyValue:
    """Stands for a number or an array of numpy, and forgets what it is made of."""

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def read_tensors(path: str | os.PathLike[str], key: str = "state_dict") -> Tensors:
    """Returns the named tensors of a PyTorch or safetensors file.

    Args:
      path: path of the file, whose content tells its format.
      key: entry of the file that holds the tensors, unless it is `state_dict` or the whole file.

    Returns:
      {name: array}, memory-mapped where the format allows; halves become float32.

    Raises:
      ValueError: there is no such file; or it is broken, holds anything else than named tensors, or
        holds more than tensors and plain values, which could run code.
    """
    content = _content(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, not named tensors")
    state = next((content[k] for k in (key, "state_dict") if k in content), content)
    if not isinstance(state, Mapping) or not state:
        what = "nothing" if not state else f"a {type(state).__name__}"
        raise ValueError(f"{path}: holds {what} in place of named tensors")
    faults = [f"{name}: {fault}" for name, value in state.items() if (fault := _fault(name, value))]
    if faults:
        raise ValueError(f"{path}: not only named tensors: {listed(faults)}")
    size, most = sum(4 * value.numel() for value in state.values()), 8 * os.path.getsize(path)
    if size > most:  # views of the same numbers
        raise ValueError(f"{path}: refused, its tensors would fill {size >> 20} MiB")
    return {name: _array(value) for name, value in state.items()}


def listed(names: list[str]) -> str:
    """Returns names in a row, the first of very many."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _fault(name: Any, value: Any) -> str:
    """Returns why an entry is no tensor of numbers, "" if it is one."""
    import torch

    if not isinstance(name, str):
        return "its name is not a string"
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_complex():
        return f"a {value.dtype} tensor ({value.layout}, {value.device.type})"
    return ""


def _array(value: Any) -> np.ndarray:
    value = value.detach()
    small = value.is_floating_point() and value.element_size() < 4
    return (value.float() if small else value).numpy()


def _content(path: str | os.PathLike[str]) -> Any:
    """Returns the content of a PyTorch or safetensors file, its tensors on the CPU."""
    import safetensors.torch
    import torch

    try:
        check_regular(path)
        with open(path, "rb") as file:
            head = file.read(1024)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
    if head.startswith(_LFS):
        raise ValueError(
            f"{path}: a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"
        )
    try:
        if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MOST_HEADER:
            return safetensors.torch.load_file(path)
        zipped = head.startswith(b"PK")
        refused = (_zip_fault if zipped else _pickle_fault)(path)
        if not refused:
            # Older files cannot be mapped.
            with torch.serialization.safe_globals([(NumpyValue, name) for name in _NUMPY]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # any at all, of three libraries
        cause = str(error).split("\n")[0]
        cause = f" ({cause})" if cause and "weights_only" not in cause else ""
        raise ValueError(f"{path}: broken or truncated{cause}; {_AGAIN}") from error
    raise ValueError(f"{path}: {refused}")


def _zip_fault(path: str | os.PathLike[str]) -> str:
    """Returns why a zip archive must not be opened, "" if nothing speaks against it."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        size, most = sum(entry.file_size for entry in entries), os.path.getsize(path)
        # PyTorch stores its entries as they are, and maps them into memory.
        if size > most or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return (
                f"refused, a compressed archive, whose {most >> 10} KiB would fill "
                f"{size >> 10} KiB: if it is an archive of checkpoints, unpack it"
            )
        names = [entry.filename for entry in entries]
        pickles = [name for name in names if name.endswith("data.pkl")]
        if not pickles or any(name.endswith("constants.pkl") for name in names):
            return "an archive, but not of tensors that PyTorch saved: give the file of its weights"
        for name in pickles:
            with archive.open(name) as file:
                if found := _unsafe(file):
                    return found
        if broken := archive.testzip():
            return f"broken: {broken} does not match its checksum; {_AGAIN}"
    return ""


def _pickle_fault(path: str | os.PathLike[str]) -> str:
    """Returns why an old PyTorch file must not be opened, "" if nothing speaks against it."""
    with open(path, "rb") as file:
        for i in range(_OLD_PICKLES):
            start = file.tell()
            if not file.read(1):
                return f"broken or truncated; {_AGAIN}" if i else "empty"
            file.seek(start)
            try:
                found = _unsafe(file)
            except Exception:
                if i:
                    raise
                file.seek(0)
                begin = file.read(16)
                return f"neither a PyTorch nor a safetensors file: it begins with {begin!r}"
            if found:
                return found
    return ""


def _unsafe(file: IO[bytes]) -> str:
    """Returns why the pickle at the file's position must not be opened, "" for a harmless one."""
    for name in _globals(file):
        if not (_HARMLESS.fullmatch(name) or name in _NUMPY):
            return (
                f"refused, it holds more than tensors and plain values: {name}, which could run "
                "code. Ask for a file of its state_dict alone"
            )
    return ""


def _globals(file: IO[bytes]) -> Iterator[str]:
    """Yields the dotted names that the pickle at the file's position refers to."""
    strings: list[Any] = ["?", "?"]
    for code, argument, _ in pickletools.genops(file):
        if code.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif code.name == "STACK_GLOBAL":  # its names are the last strings
            yield f"{strings[-2]}.{strings[-1]}"
        elif code.name.startswith("EXT"):
            yield code.name
        elif "UNICODE" in code.name or "STRING" in code.name:
            strings = [strings[-1], argument]


def shapes_of(
    tensors: Mapping[str, np.ndarray], axes: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that tell a network's sizes.

    Raises:
      ValueError: tensors are missing or have another number of axes; all are listed.
    """
    problems = [f"missing: {name}" for name in axes if name not in tensors]
    shapes = {name: tensors[name].shape for name in axes if name in tensors}
    problems += [
        f"shape of {name}: {shape}, expected {axes[name]} axes"
        for name, shape in shapes.items()
        if len(shape) != axes[name]
    ]
    if problems:
        raise ValueError(listed(problems))
    return shapes
