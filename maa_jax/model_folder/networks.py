"""Model folders in Hugging Face's layout, read and written strictly and without pickle.

A model folder holds `model_index.json` and one folder per network, with a `config.json` and a
safetensors file in PyTorch's names and layouts, so that diffusers and transformers can open it:

    unet/ vae/                             diffusers
    vocoder/ text_encoder/ tokenizer/      transformers (a BigVGAN vocoder: its released layout)
    text_projection/ audio_encoder/ audio_projection/    layouts of their own
    scheduler/                             a diffusers DDIMScheduler configuration
"""

import functools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import save_file

from maa_jax.checks import differences
from maa_jax.files import (
    REMEDY,
    FolderError,
    check_part_file,
    read_json,
    replace_folder,
    write_json,
)
from maa_jax.model_folder import torch_layout
from maa_jax.model_folder.hub import fetch, missing_weights, resolve, weight_map, weights_file
from maa_jax.model_folder.registry import PARTS, class_of, lookup
from maa_jax.models.rngs import InitRngs

# Types of safetensors that a weight may have; the others ("I8", "F8_E4M3") keep their names.
_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
}


class _Stored:
    """A tensor in an open file, which is read when numpy asks for its values."""

    def __init__(self, file: Any, name: str):
        self._file, self._name = file, name
        there = file.get_slice(name)
        self.shape = tuple(there.get_shape())
        self.dtype = _DTYPES.get(there.get_dtype(), there.get_dtype())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._file.get_tensor(self._name), dtype)


def open_weights(where: pathlib.Path, library: str) -> dict[str, _Stored]:
    """Returns the tensors of a network's folder, in one file or in shards with an index.

    Only headers are read, so that sizes are compared before memory is taken.
    """
    missing = missing_weights(where, library)
    if missing:
        raise FolderError(f"{', '.join(str(where / m) for m in missing)} is missing; {REMEDY}")
    index = weight_map(where, library)
    tensors: dict[str, _Stored] = {}
    for name in sorted(set(index.values())) if index else [weights_file(library)]:
        path = where / name
        try:
            check_part_file(path)
            file = safetensors.safe_open(path, "numpy")
            found = {key: _Stored(file, key) for key in file.keys()}
        except (safetensors.SafetensorError, OSError, ValueError) as e:
            raise FolderError(f"{path} is broken or truncated ({e}); {REMEDY}") from e
        elsewhere = [key for key in found if index and index.get(key) != name]
        if elsewhere:
            raise FolderError(
                f"{path} holds {', '.join(elsewhere[:3])}, which {weights_file(library)}.index.json"
                f" has elsewhere; {REMEDY}"
            )
        tensors |= found
    lost = sorted(index.keys() - tensors.keys())
    if lost:
        raise FolderError(f"{where}: no file has {', '.join(lost[:3])} of the index; {REMEDY}")
    return tensors


def save_network(
    folder: str | os.PathLike[str],
    name: str,
    config: Any,
    params: Mapping[str, Any],
    dtype: Any = np.float32,
) -> None:
    """Writes `folder/name/`: config.json and one safetensors file, both or neither.

    Args:
      folder: path of the model folder; created if it does not exist.
      name: name of the network's subfolder, such as "unet".
      config: configuration of the network, with `to_hf`.
      params: nested dict of all arrays, batch statistics included.
      dtype: type in which floating-point arrays are stored, float32 or float16.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"dtype={dtype}: weights are stored as float32 or float16")
    content = config.to_hf()
    library, kind, _ = lookup(content, pathlib.Path(folder, name))
    tensors = torch_layout.to_torch(jax.device_get(params))
    try:
        # Written is what can be read: the layout holds these settings, and they these weights.
        if kind.from_hf(json.loads(json.dumps(content))) != config:
            raise ValueError("config.json cannot hold its settings")
        torch_layout.from_torch(define(config)[1], tensors)
    except ValueError as e:
        raise ValueError(f"{name}: {e}; not written") from e
    tensors |= getattr(config, "unused_tensors", dict)()
    with np.errstate(over="ignore"):  # reported below, by name
        tensors = {
            k: v.astype(dtype, copy=False) if v.dtype.kind == "f" else v for k, v in tensors.items()
        }
    overflowed = [k for k, v in tensors.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if overflowed:
        raise ValueError(f"{name}: not finite as {dtype}: {', '.join(overflowed)}; not written")
    with replace_folder(pathlib.Path(folder, name)) as new:
        # Both libraries reject a file that does not state the framework of its layout.
        save_file(tensors, new / weights_file(library), metadata={"format": "pt"})
        write_json(new / "config.json", content)


@functools.lru_cache(maxsize=64)
def define(config: Any, dtype: Any = jnp.float32) -> tuple[nnx.GraphDef, nnx.State]:
    """Returns the graph of `abstract(config)` and its state, with shapes instead of arrays."""
    return nnx.split(abstract(config, dtype))


def abstract(config: Any, dtype: Any = jnp.float32) -> nnx.Module:
    """Returns the network of a configuration, with shapes instead of arrays."""
    network = lookup(config.to_hf(), pathlib.Path("config.json"))[2]
    return nnx.eval_shape(lambda: network(config, dtype=dtype, rngs=InitRngs(0)))


def load_network(
    folder: str | os.PathLike[str],
    name: str,
    *,
    dtype: Any = jnp.float32,
    kind: str | None = None,
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Reads `folder/name/` strictly.

    Args:
      folder: path of the model folder.
      name: name of the network's subfolder, such as "unet", or "." for the folder itself.
      dtype: compute dtype; parameters are float32 regardless of their stored type.
      kind: name of the class to read, by default the one that config.json states. With
        "CLIPTextModel" the text tower is read from the folder of a whole CLIP.

    Returns:
      (graphdef, params): `build(graphdef, params)` is the module, and params a nested dict of
      numpy arrays, batch statistics included.

    Raises:
      FolderError: files are missing or broken; the class or a value of the configuration is not
        supported; or names, shapes, types or values of weights do not fit it, which are all listed.
    """
    where = pathlib.Path(folder, name)
    library, config, network = _read_config(folder, name, kind)
    stored = open_weights(where, library)
    unused = getattr(network, "UNUSED", None)
    try:
        tensors = getattr(network, "from_file", dict)(stored)
        tensors = {k: v for k, v in tensors.items() if not (unused and unused.fullmatch(k))}
        graphdef, state = define(config, dtype)
        params = torch_layout.from_torch(state, tensors)
    except ValueError as e:
        raise FolderError(f"{where}: {e}") from e
    return graphdef, params


def _read_config(
    folder: str | os.PathLike[str], name: str, kind: str | None
) -> tuple[str, Any, Any]:
    """Returns (library, configuration, module class) of the network in `folder/name/`."""
    path = pathlib.Path(folder, name, "config.json")
    content = read_json(path)
    library, config_class, network = lookup(content, path, kind)
    takes = PARTS.get(name)
    if kind is None and takes and class_of(content) not in takes:
        raise FolderError(
            f"{path}: class {class_of(content)!r}, but {name}/ takes {' or '.join(takes)}; {REMEDY}"
        )
    try:
        return library, config_class.from_hf(content), network
    except ValueError as e:
        raise FolderError(f"{path}: {e}") from e


def load_pretrained(
    model: str | os.PathLike[str], *, dtype: Any = jnp.float32, kind: str | None = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Reads a single network from its own folder or from the Hugging Face hub.

    Args:
      model: path of the folder or a hub id, such as "laion/clap-htsat-unfused"; see `fetch`.
      dtype: compute dtype, as in `load_network`.
      kind: name of the class to read, as in `load_network`.

    Returns:
      (graphdef, params) as from `load_network`; the module's `config` is its configuration.
    """
    return load_network(fetch(model), ".", dtype=dtype, kind=kind)


def load_config(folder: str | os.PathLike[str], name: str, *, kind: str | None = None) -> Any:
    """Returns the configuration of the network in `folder/name/`, without its weights.

    Raises:
      FolderError: the file is missing or broken, or a value is not supported.
    """
    return _read_config(folder, name, kind)[1]


def start_weights(
    folder: str | os.PathLike[str],
    name: str,
    config: Any,
    *,
    key: str = "init_from",
    free: tuple[str, ...] = ("scaling_factor",),
) -> dict[str, dict[str, Any]]:
    """Returns {name: weights in `folder/name/`} that training starts from; {} without a folder.

    Args:
      folder: path of the model folder, "bundled", a hub id, or "" for none.
      name: name of the network's subfolder, or "." for the folder itself.
      config: configuration that the network must have.
      key: key of the run's config that names the folder, for errors.
      free: fields of `config` that may differ.

    Raises:
      ValueError: there is no such folder, or its network has other sizes; all are listed.
    """
    if not folder:
        return {}
    try:
        path = fetch(folder) if name == "." else resolve(folder)
        given = vars(load_config(path, name))
    except ValueError as e:
        raise ValueError(f"config.{key}: {e}") from e
    wanted = {
        field: value
        for field, value in vars(config).items()
        if field not in free and given[field] is not None  # None is "not known"
    }
    different = differences(given, wanted)
    if different:
        raise ValueError(
            f"config.{key}={str(folder)!r}: another {type(config).__name__}, {'; '.join(different)}"
        )
    return {name: load_network(path, name)[1]}


def build(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """Returns the module of a graph and weights; cheap, also under `jax.jit`."""
    return nnx.merge(graphdef, params)
