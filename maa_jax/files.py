"""Files and folders that are written atomically: whole or not at all."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

# A local path, or a path in a bucket.
Path = TypeVar("Path", bound=pathlib.Path)


def user_path(path: str | os.PathLike[str]) -> str:
    """Returns a user's path as an absolute one, with `~` expanded.

    Orbax requires absolute paths, and a shell does not expand `~` after `--workdir=`. Addresses
    ("gs://bucket/folder") and the name of the model inside this package ("bundled") stay as they
    are.
    """
    text = os.fspath(path)
    if "://" in text or text == "bundled":
        return text
    return os.path.abspath(os.path.expanduser(text))


REMEDY = "write the folder again (python -m maa_jax.convert), or give a complete one"


class FolderError(ValueError):
    """A model folder that cannot be read; the message names the file, the fault and the remedy."""


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a JSON file of a model folder.

    Raises:
      FolderError: the file is missing or broken.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise FolderError(f"{path} is missing; {REMEDY}") from None
    except ValueError as e:
        raise FolderError(f"{path} is not JSON ({e}); {REMEDY}") from e


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it is moved to `path` on success, removed on failure.

    Args:
      path: path of the file, local or in a bucket (`etils.epath`), in an existing folder.
    """
    new = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


# The files of a part of a model folder (a network, the tokenizer, the scheduler), as this package
# and Hugging Face's libraries name them. Anything else in its folder is the user's.
PART_FILE = re.compile(
    r"(config|scheduler_config|preprocessor_config|special_tokens_map|tokenizer|tokenizer_config)"
    r"\.json|vocab\.txt|(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


@contextlib.contextmanager
def replace_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder whose content replaces that of a part of a model folder.

    On failure nothing is changed. On success the part's own files, `PART_FILE`, are replaced, and
    other files in the folder stay. If `target` is a symbolic link, the folder that it points to is
    written.

    Raises:
      FolderError: `target` is a file.
    """
    target = pathlib.Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise FolderError(f"{target} is a file: move it away, or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield new
        if target.exists():
            # The old files are removed first: a kill from here on leaves a folder that is refused,
            # not one that mixes two networks.
            remove_part_files(target)
            _move_content(new, target)
        else:
            new.chmod(0o755)  # mkdtemp makes it private
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_part_files(folder: pathlib.Path) -> None:
    """Removes the files of a part of a model folder, and no others."""
    for path in folder.iterdir():
        if PART_FILE.fullmatch(path.name):
            path.unlink()


def _move_content(source: pathlib.Path, target: pathlib.Path) -> None:
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _move_content(path, there)
        else:
            path.replace(there)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with replace_file(path) as new:
        new.write_text(json.dumps(content, indent=2) + "\n")


def write_array(
    path: pathlib.Path,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    batch_size: int,
    dtype: Any = np.float16,
) -> None:
    """Writes the encodings of texts as one array, one row per text, whole or not at all.

    Args:
      path: path of the .npy file; rows are written to disk as they are computed.
      texts: texts to encode, at least one.
      encode: function from up to `batch_size` texts to rows [n, ...].
      batch_size: number of texts encoded at a time.
      dtype: dtype of the rows on disk.
    """
    with replace_file(path) as new:
        rows: np.memmap | None = None
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            got = np.asarray(encode(batch))
            if rows is None:
                shape = (len(texts), *got.shape[1:])
                rows = np.lib.format.open_memmap(new, "w+", dtype, shape)
            rows[start : start + len(batch)] = got
        if rows is not None:
            rows.flush()


_SLUG_LENGTH = 48  # characters of the prompt in a file's name, which may have up to 255 bytes


def file_names(prompts: Sequence[str]) -> list[str]:
    """Returns a readable, unique, numbered file name for each prompt."""
    digits = max(3, len(str(len(prompts) - 1)))
    return [
        f"{i:0{digits}d}_{_slug(prompt) or 'unconditional'}.wav" for i, prompt in enumerate(prompts)
    ]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_SLUG_LENGTH].strip("-")


def make_folder(path: str) -> pathlib.Path:
    """Makes a folder and its parents, and checks that files can be written into it.

    Raises:
      ValueError: the folder cannot be made or written to.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise ValueError(f"--out={path}: cannot be written ({e}); give another folder") from e
    return folder
