"""Names of the released HiFi-GAN and BigVGAN files, to and from the names here.

Layouts are `torch_layout`'s business. BigVGAN's generator has its released names already, without
the filters of its anti-aliased activations, which are computed.
"""

import re

import numpy as np


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
    """Returns a released multi-period discriminator's parameters as they are named here.

    The original convolves images [time / period, period] with kernels one pixel wide; here each
    column is a sequence of its own, so the kernels lose that axis.
    """
    return {k: v[..., 0] if v.ndim == 4 else v for k, v in released.items()}


def released_mpd_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Inverse of `mpd_tensors`."""
    return {k: v[..., None] if v.ndim == 3 else v for k, v in tensors.items()}
