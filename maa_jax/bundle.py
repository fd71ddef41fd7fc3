"""Model folders: the Hugging Face layout, read and written strictly and without pickle.

A model folder holds `model_index.json` and one folder a network, each a `config.json` and a
safetensors file in the names and layouts of PyTorch, so diffusers and transformers open it:

    unet/ vae/                             diffusers
    vocoder/ text_encoder/ tokenizer/      transformers (a BigVGAN vocoder: its released layout)
    text_projection/ audio_encoder/ audio_projection/    layouts of their own
    scheduler/                             a diffusers DDIMScheduler configuration
"""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx
from safetensors.numpy import load_file, save_file

from maa_jax.interop import torch_layout

INDEX = "model_index.json"
BUNDLED = pathlib.Path(__file__).parent / "bundled_model"
# Files of a model on the Hugging Face hub that are read here; its other formats are left there.
_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt")
_MODEL_FILES = (INDEX, "*/*.json", "*/*.safetensors", "*/vocab.txt")
# Not "models/...": there the documentation writes folders, and one that is missing must never be
# looked for, and found, under somebody's name on the hub.
_HUB_ID = re.compile(r"(?!models/)[\w-][\w.-]*/[\w-][\w.-]*")

# Class name in config.json -> (library of that class, module here, configuration, network).
# Modules are imported when a folder asks for them, so that sampling never loads what it lacks.
NETWORKS = {
    "UNet2DConditionModel": ("diffusers", "maa_jax.models.unet", "UNetConfig", "UNet"),
    "AutoencoderKL": (
        "diffusers",
        "maa_jax.models.autoencoder",
        "AutoencoderConfig",
        "Autoencoder",
    ),
    "SpeechT5HifiGan": ("transformers", "maa_jax.models.hifigan", "HifiGanConfig", "HifiGan"),
    "BertModel": ("transformers", "maa_jax.models.bert", "BertConfig", "Bert"),
    "T5EncoderModel": ("transformers", "maa_jax.models.t5", "T5Config", "T5Encoder"),
    "CLIPTextModel": ("transformers", "maa_jax.models.clip", "ClipTextConfig", "ClipTextModel"),
    "CLIPVisionModel": (
        "transformers",
        "maa_jax.models.clip",
        "ClipVisionConfig",
        "ClipVisionModel",
    ),
    "CLIPModel": ("transformers", "maa_jax.models.clip", "ClipConfig", "ClipModel"),
    "ClapModel": ("transformers", "maa_jax.models.clap", "LaionClapConfig", "LaionClap"),
    "BigVGAN": ("maa_jax", "maa_jax.models.bigvgan", "BigVGANConfig", "BigVGAN"),
    "Captioner": ("maa_jax", "maa_jax.models.captioner", "CaptionerConfig", "Captioner"),
    "Cnn10": ("maa_jax", "maa_jax.models.cnn10", "Cnn10Config", "Cnn10"),
    "Cnn14": ("maa_jax", "maa_jax.models.cnn14", "Cnn14Config", "Cnn14"),
    "Projection": ("maa_jax", "maa_jax.models.clap", "ProjectionConfig", "Projection"),
}
# Classes whose files hold one of these networks and more, which is left out.
_ALIASES = {
    "BertForMaskedLM": "BertModel",
    "BertForPreTraining": "BertModel",
    "T5Model": "T5EncoderModel",
    "T5ForConditionalGeneration": "T5EncoderModel",
    "T5WithLMHeadModel": "T5EncoderModel",
    "CLIPTextModelWithProjection": "CLIPTextModel",
    "CLIPVisionModelWithProjection": "CLIPVisionModel",
}
# Folders that hold no network: (class for model_index.json, files they must have).
_OTHERS = {
    "tokenizer": (("transformers", "BertTokenizer"), ("tokenizer.json",)),
    "scheduler": (("diffusers", "DDIMScheduler"), ("scheduler_config.json",)),
}
_REMEDY = "write the folder again (python -m maa_jax.convert), or point to a whole one"


class InitRngs:
    """Stands in for `nnx.Rngs` where the making of a network is traced, eight times faster.

    `nnx.Rngs` counts in a traced array and asks it, at every key, for a sharding it does not have;
    the error message of that grows with the program, and is most of the time (flax 0.12: 2.2 s of
    2.5 for the full-size U-Net). This one counts in Python. Any stream gives the next key.
    """

    def __init__(self, seed: int | jax.Array):
        self._key = jax.random.key(seed) if isinstance(seed, int) else seed
        self._count = 0

    def __getattr__(self, stream: str) -> "InitRngs":
        if stream.startswith("_"):
            raise AttributeError(stream)
        return self

    def __call__(self) -> jax.Array:
        """Returns the next key."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


class BundleError(ValueError):
    """A model folder that cannot be read: what is wrong, in which file, and the remedy."""


def resolve(model: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a model folder; "bundled" is the one inside this package.

    Raises:
      BundleError: there is no such folder, or it is not a model folder.
    """
    path = BUNDLED if str(model) == "bundled" else pathlib.Path(model)
    if not path.is_dir():
        raise BundleError(
            f"model={str(model)!r}: no folder {path}; give the path of a model folder "
            f'(with {INDEX}) or "bundled"'
        )
    return path


def fetch(model: str | os.PathLike[str], files: tuple[str, ...] = ()) -> pathlib.Path:
    """Returns a local folder of `model`: a folder, "bundled", or a model of the Hugging Face hub.

    A hub id ("google-t5/t5-large") is downloaded into the hub's local cache, unless it is there.

    Args:
      model: the folder's path, "bundled" or a hub id.
      files: that a hub id's folder must have besides config.json and the weights.

    Raises:
      BundleError: no such folder or model; or, where the hub cannot be reached, files that the
        cache lacks: all are named, with how to bring them.
    """
    if pathlib.Path(model).is_dir() or not _HUB_ID.fullmatch(str(model)):
        return resolve(model)
    folder, cause = _snapshot(str(model), _HUB_FILES, ["*/*"])
    if folder is None:
        missing = ["config.json", _weights_file("transformers"), *files]
        where = "the hub cannot be reached and the local cache"
    else:
        missing = [f for f in ("config.json", *files) if not (folder / f).exists()]
        missing += _missing_weights(folder, "transformers")
        where = str(folder)
    if missing:
        included = " ".join(f"--include {pattern!r}" for pattern in _HUB_FILES)
        raise BundleError(
            f"model={str(model)!r}: {where} lacks {', '.join(missing)}. To bring them: where there "
            f"is a network, run `hf download {model} {included} --local-dir DIR`, copy DIR here, "
            f"and give its path in place of {str(model)!r}. A model without safetensors "
            "(pytorch_model.bin alone) is not read: choose another"
        ) from cause
    return folder


def fetch_model(model: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the local folder of a whole model: a folder, "bundled", or one of the hub.

    Raises:
      BundleError: there is no such folder or model, or the hub cannot be reached.
    """
    if pathlib.Path(model).is_dir() or not _HUB_ID.fullmatch(str(model)):
        return resolve(model)
    folder, cause = _snapshot(str(model), _MODEL_FILES, None)
    if folder is None:
        raise BundleError(
            f"model={str(model)!r}: no such folder here, and the Hugging Face hub cannot be "
            f"reached. Where there is a network, run `hf download {model} --local-dir DIR`, copy "
            f"DIR here, and give its path in place of {str(model)!r}"
        ) from cause
    return folder


def _snapshot(
    model: str, patterns: tuple[str, ...], ignored: list[str] | None
) -> tuple[pathlib.Path | None, Exception | None]:
    """Returns the local copy of a hub's repository, or None and why it could not be had."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=list(patterns), ignore_patterns=ignored
        )
    except errors.RepositoryNotFoundError as e:
        raise BundleError(
            f"model={model!r}: neither a folder here nor a model of the Hugging Face hub; "
            "look for a mistake in the name, or log in (`hf auth login`) if it is private"
        ) from e
    except (errors.HfHubHTTPError, OSError) as e:
        return None, e
    return pathlib.Path(folder), None


def class_of(config: Mapping[str, Any]) -> str:
    """Returns the class name that a config.json states, in diffusers' or transformers' way.

    Of a class that only adds heads to a network known here, that network's.
    """
    name = config.get("_class_name") or (config.get("architectures") or ["(none)"])[0]
    return _ALIASES.get(name, name)


def _weights_file(library: str) -> str:
    return "diffusion_pytorch_model.safetensors" if library == "diffusers" else "model.safetensors"


def _missing_weights(where: pathlib.Path, library: str) -> list[str]:
    """Returns the files of weights that a network's folder lacks."""
    name = _weights_file(library)
    index = where / f"{name}.index.json"
    if (where / name).exists() or not index.exists():
        return [] if (where / name).exists() else [name]
    shards = sorted(set(read_json(index).get("weight_map", {}).values()))
    return [shard for shard in shards if not (where / shard).exists()]


def _read_weights(where: pathlib.Path, library: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a network's folder, in one file or in shards with an index."""
    missing = _missing_weights(where, library)
    if missing:
        raise BundleError(f"{', '.join(str(where / m) for m in missing)} is missing; {_REMEDY}")
    name = _weights_file(library)
    files = [name]
    if not (where / name).exists():
        index = read_json(where / f"{name}.index.json")
        files = sorted(set(index.get("weight_map", {}).values()))
    tensors = {}
    for file in files:
        try:
            tensors |= load_file(where / file)
        except (safetensors.SafetensorError, ValueError) as e:
            raise BundleError(f"{where / file} is broken or cut short ({e}); {_REMEDY}") from e
    return tensors


def _lookup(
    config: Mapping[str, Any], where: pathlib.Path, kind: str | None = None
) -> tuple[str, type, type]:
    """Returns (library, configuration class, module class) for a config.json's content."""
    name = kind or class_of(config)
    if name not in NETWORKS:
        raise BundleError(
            f"{where}: class {name!r} is not known here; known: {', '.join(NETWORKS)}"
        )
    library, module, config_class, network = NETWORKS[name]
    module = importlib.import_module(module)
    return library, getattr(module, config_class), getattr(module, network)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a JSON file of a model folder.

    Raises:
      BundleError: the file is missing or broken.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BundleError(f"{path} is missing; {_REMEDY}") from None
    except ValueError as e:
        raise BundleError(f"{path} is not JSON ({e}); {_REMEDY}") from e


@contextlib.contextmanager
def replace_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary folder that becomes `target` on success and vanishes on failure."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield new
        new.chmod(0o755)  # mkdtemp makes it private
        old = new.with_name(new.name + ".old")
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def save_network(
    folder: str | os.PathLike[str],
    name: str,
    config: Any,
    params: Mapping[str, Any],
    dtype: Any = np.float32,
) -> None:
    """Writes `folder/name/`: config.json and one safetensors file, both or neither.

    Args:
      folder: the model folder; made if it does not exist.
      name: the network's place, such as "unet".
      config: the network's configuration, with `to_hf`.
      params: nested dict of all arrays, batch statistics included.
      dtype: how floating-point arrays are stored, float32 or float16.
    """
    dtype = np.dtype(dtype)
    if dtype not in (np.float32, np.float16):
        raise ValueError(f"dtype={dtype}: weights are stored as float32 or float16")
    content = config.to_hf()
    library = _lookup(content, pathlib.Path(folder, name))[0]
    tensors = torch_layout.to_torch(jax.device_get(params))
    tensors |= getattr(config, "unused_tensors", dict)()
    with np.errstate(over="ignore"):  # reported below, by name
        tensors = {
            k: v.astype(dtype, copy=False) if v.dtype.kind == "f" else v for k, v in tensors.items()
        }
    overflowed = [k for k, v in tensors.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    if overflowed:
        raise ValueError(f"{name}: not finite as {dtype}: {', '.join(overflowed)}; not written")
    with replace_folder(pathlib.Path(folder, name)) as new:
        # Both libraries refuse a file that does not say which framework's layout it holds.
        save_file(tensors, new / _weights_file(library), metadata={"format": "pt"})
        _write_json(new / "config.json", content)


def abstract(config: Any, dtype: Any = jnp.float32) -> nnx.Module:
    """Returns the network of a configuration, with shapes in the place of arrays."""
    network = _lookup(config.to_hf(), pathlib.Path("config.json"))[2]
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
      folder: the model folder.
      name: the network's place, such as "unet"; "." where it is the folder itself.
      dtype: the compute dtype; parameters are float32 however they are stored.
      kind: the class to read, by default the one that config.json states: "CLIPTextModel" is the
        text tower out of a folder with a whole CLIP.

    Returns:
      (graphdef, params): `build(graphdef, params)` is the module, and params a nested dict of
      numpy arrays, batch statistics included.

    Raises:
      BundleError: missing or broken files, an unknown class.
      ValueError: a configuration or names and shapes that do not fit; all are listed.
    """
    where = pathlib.Path(folder, name)
    config = read_json(where / "config.json")
    library, config_class, network = _lookup(config, where, kind)
    tensors = _read_weights(where, library)
    tensors = getattr(network, "from_file", dict)(tensors)
    try:
        graphdef, state = nnx.split(abstract(config_class.from_hf(config), dtype))
        unused = getattr(network, "UNUSED", None)
        tensors = {
            k: v.astype(np.float32, copy=False) if v.dtype.kind not in "iub" else v
            for k, v in tensors.items()
            if not (unused and unused.fullmatch(k))
        }
        params = torch_layout.from_torch(state, tensors)
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e
    return graphdef, params


def load_pretrained(
    model: str | os.PathLike[str], *, dtype: Any = jnp.float32, kind: str | None = None
) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """Reads one network as Hugging Face keeps it: a folder of its own, or a model of the hub.

    Args:
      model: the folder's path or a hub id, such as "laion/clap-htsat-unfused"; see `fetch`.
      dtype: as in `load_network`.
      kind: as in `load_network`.

    Returns:
      (graphdef, params) as `load_network` does; the module's `config` is its configuration.
    """
    return load_network(fetch(model), ".", dtype=dtype, kind=kind)


def load_config(folder: str | os.PathLike[str], name: str, *, kind: str | None = None) -> Any:
    """Returns the configuration of the network in `folder/name/`, without its weights."""
    where = pathlib.Path(folder, name)
    config = read_json(where / "config.json")
    return _lookup(config, where, kind)[1].from_hf(config)


def start_weights(
    folder: str | os.PathLike[str],
    name: str,
    config: Any,
    *,
    key: str = "init_from",
    free: tuple[str, ...] = ("scaling_factor",),
) -> dict[str, dict[str, Any]]:
    """Returns {name: weights in `folder/name/`} for training to go on from; {} without a folder.

    Args:
      folder: the model folder, "bundled", a hub id, or "" for none.
      name: the network's place, "." where it is the folder itself.
      config: what its configuration must be.
      key: of the run's config that names the folder, for errors.
      free: the fields of `config` in which it may differ.

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
    different = [
        f"{field}: {given.get(field)!r} there, {value!r} here"
        for field, value in vars(config).items()
        if given.get(field) != value and field not in free
    ]
    if different:
        raise ValueError(
            f"config.{key}={str(folder)!r}: another {type(config).__name__}, {'; '.join(different)}"
        )
    return {name: load_network(path, name)[1]}


def build(graphdef: nnx.GraphDef, params: Mapping[str, Any]) -> Any:
    """Returns the module of `load_network`'s two parts; cheap, and may be called under jit."""
    return nnx.merge(graphdef, params)


def networks(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Returns {name: class name} of the networks in a folder, whatever its index says."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("[!.]*/config.json")):
        kind = class_of(read_json(path))
        if kind in NETWORKS:
            found[path.parent.name] = kind
    return found


def save_scheduler(folder: str | os.PathLike[str], schedule: Any) -> None:
    """Writes `folder/scheduler/`, the configuration that diffusers' DDIMScheduler opens."""
    with replace_folder(pathlib.Path(folder, "scheduler")) as new:
        _write_json(new / "scheduler_config.json", schedule.to_hf())


def save_index(folder: str | os.PathLike[str], **meta: Any) -> None:
    """Writes model_index.json: every part found in the folder, and `meta` beside them.

    Entries of an index already there are kept unless `meta` names them, so stages may export
    into one folder one after another.
    """
    folder = pathlib.Path(folder)
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    parts = {name: list(part) for name, (part, _) in _OTHERS.items() if (folder / name).is_dir()}
    if (folder / "tokenizer" / "tokenizer_config.json").exists():
        tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
        parts["tokenizer"][1] = tokenizer.get("tokenizer_class", parts["tokenizer"][1])
    for name, kind in networks(folder).items():
        parts[name] = [NETWORKS[kind][0], kind]
    _write_json(folder / INDEX, {"_class_name": "MaaPipeline"} | parts | _meta(index) | meta)


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _meta(index: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in index.items() if k != "_class_name" and not _is_part(v)}


def load_index(
    folder: str | os.PathLike[str], *, parts: tuple[str, ...] = (), meta: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Reads model_index.json and checks that every file of every part it lists is there.

    Args:
      folder: the model folder.
      parts: parts that the caller needs, such as "unet".
      meta: other keys that the caller needs, such as "sample_rate".

    Raises:
      BundleError: naming every missing file and key.
    """
    folder = pathlib.Path(folder)
    index = read_json(folder / INDEX)
    missing = []
    for name in dict.fromkeys([k for k, v in index.items() if _is_part(v)] + list(parts)):
        files = _OTHERS[name][1] if name in _OTHERS else ("config.json",)
        missing += [f"{name}/{f}" for f in files if not (folder / name / f).exists()]
        if name in index and name not in _OTHERS:
            weights = _missing_weights(folder / name, index[name][0])
            missing += [f"{name}/{f}" for f in weights]
        if name not in index and (folder / name).is_dir():
            missing.append(f"{name!r} in {INDEX}")
    missing += [f"{key!r} in {INDEX}" for key in meta if key not in index]
    if missing:
        raise BundleError(f"{folder} is not a whole model folder: missing {', '.join(missing)}; "
                          f"{_REMEDY}")  # fmt: skip
    return index


def content_hash(folder: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a model folder's files, names and contents, in hex."""
    folder, total = pathlib.Path(folder), hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        total.update(f"{relative.as_posix()} {digest}\n".encode())
    return total.hexdigest()


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second run starts at once.

    In JAX_COMPILATION_CACHE_DIR, or else $XDG_CACHE_HOME/maa_jax/jax, or else
    ~/.cache/maa_jax/jax. Entry points call this; a library that imports maa_jax decides itself.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "maa_jax", "jax"))
    # The default leaves out programs that compile in under a second; together those are most of
    # what a small model waits for.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
