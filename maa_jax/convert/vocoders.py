"""Names of released HiFi-GAN and BigVGAN files to ours, and back; `torch_layout` converts layouts.

BigVGAN's generator keeps its released names, without the fixed filters of its anti-aliased
activations, which are computed.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import yaml

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.convert import released, torch_files
from maa_jax.files import check_regular, replace_file
from maa_jax.model_folder import torch_layout
from maa_jax.models.bigvgan import BigVGANConfig
from maa_jax.models.hifigan import HifiGanConfig
from maa_jax.models.layers1d import split_weight_norm, weight_norm

# Files with a released vocoder's sizes: that of Make-An-Audio's BigVGAN, then both projects' own.
_SIZES = ("args.yml", "config.json")
_MOST_SIZES = 2**20  # bytes of such a file
_WEIGHTS = ("best_netG.pt", "generator*", "g_*")
_SHARED = (
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)
# {setting: the values that the networks here have, the default first}.
_FIXED = {
    "resblock": ("1", 1),
    "snake_logscale": (True,),
    "use_tanh_at_final": (True,),
    "use_bias_at_final": (True,),
}
# {field of MelConfig: its names in the files of HiFi-GAN, BigVGAN and their relatives}.
_FRONT_END = {
    "sample_rate": ("sampling_rate", "sample_rate"),
    "n_fft": ("n_fft", "fft_size", "filter_length"),
    "win_length": ("win_size", "win_length"),
    "hop_length": ("hop_size", "hop_length"),
    "n_mels": ("num_mels", "n_mels", "n_mel_channels"),
    "fmin": ("fmin", "mel_fmin"),
    "fmax": ("fmax", "mel_fmax"),
}
# Newer names of a pair of weight norm.
_PARAMETRIZED = re.compile(r"\.parametrizations\.weight\.original([01])$")


def hifigan_name(released: str) -> str:
    """Returns the name here (and in transformers) of an original HiFi-GAN generator's parameter."""
    return re.sub(r"^ups\.", "upsampler.", released)


def released_hifigan_name(name: str) -> str:
    """Inverse of `hifigan_name`."""
    return re.sub(r"^upsampler\.", "ups.", name)


def bigvgan_tensors(released: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a released BigVGAN generator's parameters without its fixed filters."""
    return {name: value for name, value in released.items() if not name.endswith(".filter")}


def mpd_tensors(released: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a released multi-period discriminator's parameters under our names.

    The original convolves images [time / period, period] with kernels one pixel wide; here each
    column is a separate sequence, so the kernels lose that axis.
    """
    return {k: v[..., 0] if v.ndim == 4 else v for k, v in released.items()}


def released_mpd_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `mpd_tensors`."""
    return {k: v[..., None] if v.ndim == 3 else v for k, v in tensors.items()}


def read_vocoder(
    folder: str | os.PathLike[str], mel: MelConfig = MelConfig()
) -> tuple[HifiGanConfig | BigVGANConfig, dict[str, np.ndarray]]:
    """Reads a released vocoder: sizes in args.yml or config.json, and a generator's weights.

    Args:
      folder: folder of both files; of several numbered weights, the last are read.
      mel: front end that the vocoder must have been trained with; the files do not state its
        logarithm.

    Returns:
      The configuration, and {name here: array in PyTorch's layout}, without weight norm.

    Raises:
      ValueError: files or sizes are missing, the weights are not those of the sizes, or the vocoder
        has another front end or is of another kind.
    """
    folder = pathlib.Path(folder)
    sizes_files = [folder / name for name in _SIZES if (folder / name).exists()]
    weights = sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})
    if not sizes_files or not weights:
        raise ValueError(
            f"{folder}: no released vocoder; expected {' or '.join(_SIZES)}, and "
            f"{' or '.join(_WEIGHTS)}"
        )
    sizes, where, file = _read_sizes(sizes_files[0]), sizes_files[0], _newest(folder, weights)
    _check_front_end(where, sizes, mel)
    tensors = torch_files.read_tensors(file, "generator")
    big = any(name.endswith(".act.beta") for name in tensors)
    if not big and any(name.startswith("activation_post") for name in tensors):
        raise ValueError(f"{file}: BigVGAN with plain snake; only snakebeta is supported")
    problems = [f"{name} is missing" for name in _SHARED if name not in sizes]
    for name, values in _FIXED.items():
        if sizes.get(name, values[0]) not in values:
            problems.append(f"{name}={sizes[name]!r} is not supported, only {values[0]!r}")
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}")
    kind: Any = BigVGANConfig if big else HifiGanConfig
    given = {"model_in_dim": mel.n_mels, "sampling_rate": mel.sample_rate, "log": mel.log}
    config = schema.build(kind, given | {name: sizes[name] for name in _SHARED}, str(where))
    if config.hop_length != mel.hop_length:
        raise ValueError(
            f"{where}: upsample_rates={config.upsample_rates} make {config.hop_length} samples per "
            f"frame, but the front end here has {mel.hop_length}"
        )
    tensors = bigvgan_tensors(tensors) if big else tensors
    tensors, problems = _folded(tensors)
    back = dict if big else _to_released_hifigan
    if problems := problems + released.misfits(config, tensors, back=back):
        raise ValueError(f"{file}: not the weights of its sizes: {torch_files.listed(problems)}")
    tensors = tensors if big else {hifigan_name(k): v for k, v in tensors.items()}
    return dataclasses.replace(config, mel=mel), tensors


def _read_sizes(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns the content of args.yml or config.json."""
    kind, parse = ("JSON", json.loads) if path.suffix == ".json" else ("YAML", yaml.safe_load)
    try:
        check_regular(path)
        if path.stat().st_size > _MOST_SIZES:
            raise ValueError(f"more than {_MOST_SIZES >> 20} MiB")
        sizes = parse(path.read_bytes())
    except Exception as error:  # any at all, of a parser
        cause = str(error).split("\n")[0]
        raise ValueError(f"{path}: not {kind} ({cause})") from error
    if not isinstance(sizes, dict):
        raise ValueError(f"{path}: expected keys and values, such as upsample_rates")
    return sizes


def _newest(folder: pathlib.Path, files: list[pathlib.Path]) -> pathlib.Path:
    """Returns the only file of weights, or of several numbered ones that of the last step."""
    if len(files) == 1:
        return files[0]
    steps = {int(m[1]): path for path in files if (m := re.fullmatch(r"g_(\d{1,18})", path.name))}
    if len(steps) < len(files):
        raise ValueError(
            f"{folder}: several files of weights, {', '.join(path.name for path in files)}: leave "
            "the one to convert"
        )
    print(f"Reading {steps[max(steps)].name}, the last of {len(steps)}", flush=True)
    return steps[max(steps)]


def _check_front_end(path: pathlib.Path, sizes: Mapping[str, Any], mel: MelConfig) -> None:
    """Raises a ValueError if the file states another front end than `mel`."""
    wanted = vars(mel) | {"win_length": mel.n_fft}
    different = []
    for field, names in _FRONT_END.items():
        for name in names:
            value = sizes.get(name)
            # Without an upper edge, filters reach half of the sample rate.
            if value is None and (name not in sizes or wanted[field] == mel.sample_rate / 2):
                continue
            if value != wanted[field]:
                different.append(f"{name}={value!r} there, {wanted[field]!r} here")
    if different:
        raise ValueError(
            f"{path}: a vocoder of another front end, {', '.join(different)}: it would turn the "
            "mels here into wrong sounds; train or find one for this front end"
        )


def _to_released_hifigan(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {released_hifigan_name(name): value for name, value in tensors.items()}


def _folded(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns tensors whose weight norm has become plain weights, and what is wrong with it."""
    named = {_PARAMETRIZED.sub(_plain_name, name): value for name, value in tensors.items()}
    plain, problems = {}, []
    for name, value in named.items():
        stem = name.removesuffix("_v").removesuffix("_g")
        if not name.endswith((".weight_v", ".weight_g")):
            plain[name] = value
            continue
        v, g = named.get(f"{stem}_v"), named.get(f"{stem}_g")
        if v is None or g is None:
            problems.append(f"missing: {stem}_{'v' if v is None else 'g'}")
            plain[stem] = value  # of the shape expected, if only the norms are missing
        elif g.shape != (*v.shape[:1], *(1,) * (v.ndim - 1)):
            problems.append(f"shape of {stem}_g: {g.shape} beside {v.shape} of {stem}_v")
        else:
            # The norm is over all axes but the last here, and all but the first in PyTorch.
            kernel = weight_norm(*(jnp.moveaxis(x, 0, -1) for x in (v, g)))
            plain[stem] = np.moveaxis(np.asarray(kernel), -1, 0)
    return plain, problems


def _plain_name(match: re.Match) -> str:
    return ".weight_g" if match[1] == "0" else ".weight_v"


def write_vocoder(
    folder: str | os.PathLike[str],
    config: HifiGanConfig | BigVGANConfig,
    params: dict[str, Any],
    mel: MelConfig = MelConfig(),
) -> None:
    """Writes a vocoder as it was released: sizes, and `generator` with weight norm.

    Args:
      folder: folder of the vocoder, made if it does not exist.
      config: configuration of the vocoder.
      params: parameters of the vocoder, without weight norm.
      mel: front end that the vocoder was trained with.

    Raises:
      ValueError: the files cannot hold all of the configuration.
    """
    import torch

    shared = {name: getattr(config, name) for name in _SHARED}
    front_end = {"model_in_dim": mel.n_mels, "sampling_rate": mel.sample_rate, "log": mel.log}
    kind: Any = type(config)
    read = kind(**shared, **front_end, mel=mel if config.mel else None)
    released.check_same("vocoder", config, read)
    tensors = torch_layout.to_torch(split_weight_norm(params))
    wanted = vars(mel) | {"win_length": mel.n_fft}
    sizes = shared | {names[0]: wanted[field] for field, names in _FRONT_END.items()}
    sizes |= {"resblock": "1"}
    if isinstance(config, BigVGANConfig):
        sizes |= {"activation": "snakebeta", "snake_logscale": True}
    else:
        tensors = _to_released_hifigan(tensors)
    generator = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replace_file(folder / "best_netG.pt") as new:
        torch.save({"generator": generator}, new)
    with replace_file(folder / "args.yml") as new:
        new.write_text(yaml.safe_dump(json.loads(json.dumps(sizes))))
