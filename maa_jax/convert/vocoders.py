"""Names of released HiFi-GAN and BigVGAN files to ours, and back; `torch_layout` converts layouts.

BigVGAN's generator keeps its released names, without the fixed filters of its anti-aliased
activations, which are computed.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from maa_jax import schema
from maa_jax.convert import released
from maa_jax.model_folder import torch_layout
from maa_jax.models.bigvgan import BigVGANConfig
from maa_jax.models.hifigan import HifiGanConfig
from maa_jax.models.layers1d import fold_weight_norm, split_weight_norm

# Files with a released vocoder's sizes: that of Make-An-Audio's BigVGAN, then both projects' own.
_SIZES = ("args.yml", "config.json")
_WEIGHTS = ("best_netG.pt", "generator*", "g_*")
_SHARED = (
    "upsample_initial_channel",
    "upsample_rates",
    "upsample_kernel_sizes",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)


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
    folder: str | os.PathLike[str], *, log: str = "log10"
) -> tuple[HifiGanConfig | BigVGANConfig, dict[str, np.ndarray]]:
    """Reads a released vocoder: sizes in args.yml or config.json, and a generator's weights.

    Args:
      folder: folder of both files.
      log: logarithm of the vocoder's training mels, which the files do not state.

    Returns:
      The configuration, and {name here: array in PyTorch's layout}, with weight norm.

    Raises:
      ValueError: files or sizes are missing, or the generator is of another kind.
    """
    folder = pathlib.Path(folder)
    sizes_files = [folder / name for name in _SIZES if (folder / name).is_file()]
    weights = [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not sizes_files or not weights:
        raise ValueError(
            f"{folder}: no released vocoder; expected {' or '.join(_SIZES)}, and "
            f"{' or '.join(_WEIGHTS)}"
        )
    sizes = yaml.safe_load(sizes_files[0].read_text())  # JSON is YAML too
    sizes = sizes if isinstance(sizes, Mapping) else {}
    tensors = released.read_pickle(weights[0])
    tensors = released.numpy_tensors(tensors.get("generator", tensors))
    missing = [name for name in _SHARED if name not in sizes]
    if missing:
        raise ValueError(f"{sizes_files[0]}: {', '.join(missing)} missing")
    shared: dict[str, Any] = {name: sizes[name] for name in _SHARED}
    for ours, theirs in (("model_in_dim", "num_mels"), ("sampling_rate", "sampling_rate")):
        if theirs in sizes:
            shared[ours] = sizes[theirs]
    shared["log"] = log
    if any(name.endswith(".act.beta") for name in tensors):
        if not sizes.get("snake_logscale", True):
            raise ValueError(f"{sizes_files[0]}: snake_logscale=False is not supported, only True")
        config = schema.build(BigVGANConfig, shared, str(sizes_files[0]))
        return config, bigvgan_tensors(tensors)
    if any(name.startswith("activation_post") for name in tensors):
        raise ValueError(f"{weights[0]}: BigVGAN with plain snake; only snakebeta is supported")
    config = schema.build(HifiGanConfig, shared, str(sizes_files[0]))
    return config, {hifigan_name(k): v for k, v in tensors.items()}


def folded(network: Any, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns parameters without weight norm for `network`, an abstract module without it.

    Args:
      network: abstract module of the parameters, made with weight_norm=False.
      tensors: parameters in PyTorch's names and layouts, with weight norm or without.
    """
    kernels: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if name.endswith(".weight_v"):
            stem = name.removesuffix("_v")
            pair = {"weight_v": value, "weight_g": tensors[f"{stem}_g"]}
            # The norm is over all axes but the last here, and all but the first in PyTorch.
            pair = {k: np.moveaxis(v, 0, -1) for k, v in pair.items()}
            kernels[stem] = np.moveaxis(np.asarray(fold_weight_norm(pair)["kernel"]), -1, 0)
        elif not name.endswith(".weight_g"):
            kernels[name] = value
    return torch_layout.from_torch(network, kernels)


def write_vocoder(
    folder: str | os.PathLike[str],
    config: HifiGanConfig | BigVGANConfig,
    params: dict[str, Any],
) -> None:
    """Writes a vocoder as it was released: sizes, and `generator` with weight norm.

    Args:
      folder: folder of the vocoder, made if it does not exist.
      config: configuration of the vocoder.
      params: parameters of the vocoder, without weight norm.
    """
    import torch

    tensors = torch_layout.to_torch(split_weight_norm(params))
    sizes = {name: getattr(config, name) for name in _SHARED}
    sizes |= {
        "num_mels": config.model_in_dim,
        "sampling_rate": config.sampling_rate,
        "resblock": "1",
    }
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(config, BigVGANConfig):
        sizes |= {"activation": "snakebeta", "snake_logscale": True}
    else:
        tensors = {released_hifigan_name(k): v for k, v in tensors.items()}
    generator = {k: torch.from_numpy(np.array(v)) for k, v in tensors.items()}
    torch.save({"generator": generator}, folder / "best_netG.pt")
    (folder / "args.yml").write_text(yaml.safe_dump(json.loads(json.dumps(sizes))))
