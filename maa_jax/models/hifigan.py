"""HiFi-GAN's generator (Kong et al. 2020), mel to waveform.

Names are those of transformers' SpeechT5HifiGan: without weight norm, a parameter's path is its
name in a folder that `SpeechT5HifiGan.from_pretrained` opens.
"""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import LOGS, MelConfig
from maa_jax.models import hf_config
from maa_jax.models.layers1d import (
    Conv1d,
    ConvTranspose1d,
    dilated_pairs,
    fold_weight_norm,
    mean_of,
)

# Fields of a vocoder's configuration, and those of its front end that they repeat.
MEL_FIELDS = {
    "model_in_dim": "n_mels",
    "sampling_rate": "sample_rate",
    "hop_length": "hop_length",
    "log": "log",
}

__all__ = ["HifiGan", "HifiGanConfig", "fold_weight_norm"]


@dataclasses.dataclass(frozen=True)
class HifiGanConfig:
    """Sizes of the generator; the defaults are HiFi-GAN V1 at 256 samples per frame.

    Attributes:
      model_in_dim: mel bins.
      sampling_rate: sampling rate of the output in Hz.
      upsample_initial_channel: channels before the first upsampling; each halves them.
      upsample_rates: rate of each upsampling; their product is the number of samples per frame.
      upsample_kernel_sizes: kernel of each upsampling; kernel - rate must be even.
      resblock_kernel_sizes: kernel sizes of the residual blocks that follow every upsampling, whose
        results are averaged.
      resblock_dilation_sizes: dilations of each residual block's convolutions.
      leaky_relu_slope: slope of all activations but the last, which has 0.01.
      log: logarithm of the mels that the weights expect, "log10" or "log".
      mel: whole front end of the mels, where it is known.
    """

    model_in_dim: int = schema.size(80, most=1024)
    sampling_rate: int = schema.field(16000, least=1000, most=768_000)
    upsample_initial_channel: int = schema.size(512)
    upsample_rates: tuple[int, ...] = schema.size((8, 8, 2, 2), most=1024, length=(1, 8))
    upsample_kernel_sizes: tuple[int, ...] = schema.size((16, 16, 4, 4), most=1024, length=(1, 8))
    resblock_kernel_sizes: tuple[int, ...] = schema.size((3, 7, 11), most=1023, length=(1, 8))
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = schema.size(
        ((1, 3, 5),) * 3, most=1024, length=(1, 8)
    )
    leaky_relu_slope: float = schema.field(0.1, least=0, most=1)
    log: str = schema.field("log10", choices=LOGS)
    mel: MelConfig | None = None

    def __post_init__(self):
        check_vocoder(self)

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsample_rates)

    def to_hf(self) -> dict:
        """Returns the content of config.json, as transformers writes it."""
        return {
            **dataclasses.asdict(self),
            "architectures": ["SpeechT5HifiGan"],
            "model_type": "speecht5_hifigan",
            "initializer_range": 0.01,
            "normalize_before": False,
        }

    def unused_tensors(self) -> dict[str, np.ndarray]:
        """Returns the tensors that transformers' class requires although nothing reads them."""
        return {
            "mean": np.zeros(self.model_in_dim, np.float32),
            "scale": np.ones(self.model_in_dim, np.float32),
        }

    @classmethod
    def from_hf(cls, d: dict) -> "HifiGanConfig":
        """Reads config.json.

        Raises:
          ValueError: the file belongs to another network, or the network normalizes its input.
        """
        kind = d.get("model_type", "speecht5_hifigan")
        if kind != "speecht5_hifigan":
            raise ValueError(f"model_type = {kind!r}: expected 'speecht5_hifigan' (HiFi-GAN).")
        if d.get("normalize_before", True):
            raise ValueError(
                "normalize_before = True: this vocoder normalizes its mels, which is not supported;"
                " fold `mean` and `scale` into conv_pre and set it to false."
            )
        # For absent keys transformers' defaults apply, which are not V1's.
        d = {"upsample_rates": (4,) * 4, "upsample_kernel_sizes": (8,) * 4} | d
        return hf_config.build(cls, d, fixed={}, ignored=None)


def check_vocoder(config: Any) -> None:
    """Raises a ValueError unless a vocoder's configuration is valid and consistent."""
    schema.check(config)
    rates, kernels = config.upsample_rates, config.upsample_kernel_sizes
    if len(rates) != len(kernels):
        raise ValueError(
            f"upsample_rates = {rates} and upsample_kernel_sizes = {kernels}: give as many kernels"
            " as rates."
        )
    for rate, kernel in zip(rates, kernels, strict=True):
        if kernel < rate or (kernel - rate) % 2:
            raise ValueError(
                f"upsample_kernel_sizes = {kernels}: kernel {kernel} for rate {rate} must be at"
                " least the rate and differ from it by an even number."
            )
    if len(config.resblock_kernel_sizes) != len(config.resblock_dilation_sizes):
        raise ValueError(
            f"resblock_kernel_sizes = {config.resblock_kernel_sizes} and resblock_dilation_sizes ="
            f" {config.resblock_dilation_sizes}: give one list of dilations for each kernel."
        )
    if config.upsample_initial_channel % 2 ** len(rates):
        raise ValueError(
            f"upsample_initial_channel = {config.upsample_initial_channel}: it is halved"
            f" {len(rates)} times, so give a multiple of {2 ** len(rates)}."
        )
    if not all(kernel % 2 for kernel in config.resblock_kernel_sizes):
        raise ValueError(
            f"resblock_kernel_sizes = {config.resblock_kernel_sizes}: give odd numbers, whose"
            " convolutions keep the length."
        )
    check_mel(config)


def check_mel(config: Any) -> None:
    """Raises a ValueError unless a vocoder's configuration agrees with its front end, if known."""
    if config.mel is not None:
        for ours, theirs in MEL_FIELDS.items():
            value, other = getattr(config, ours), getattr(config.mel, theirs)
            if value != other:
                raise ValueError(f"{ours} = {value!r}, but mel.{theirs} = {other!r}: make them one")


class ResidualBlock(nnx.Module):
    """Pairs of a dilated and a plain convolution, each pair with a residual."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        dilations: tuple[int, ...],
        slope: float,
        **kwargs: Any,
    ):
        self.convs1, self.convs2 = dilated_pairs(channels, kernel_size, dilations, **kwargs)
        self.slope = slope

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, t, channels] to the same shape."""
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            y = conv1(nnx.leaky_relu(x, self.slope))
            x = x + conv2(nnx.leaky_relu(y, self.slope))
        return x


class HifiGan(nnx.Module):
    """HiFi-GAN generator: transposed convolutions, each followed by residual blocks."""

    # Statistics by which transformers' class would normalise its input, if configured to.
    UNUSED = re.compile("mean|scale")

    def __init__(
        self,
        config: HifiGanConfig,
        *,
        weight_norm: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          config: sizes of the network.
          weight_norm: whether weights are `weight_g`, `weight_v` pairs, as in training; a model
            folder holds them folded into kernels.
          dtype: type of the computation; parameters are float32.
          rngs: source of the initial weights.
        """
        kwargs: dict[str, Any] = {"weight_norm": weight_norm, "dtype": dtype, "rngs": rngs}
        channels = config.upsample_initial_channel
        self.conv_pre = Conv1d(config.model_in_dim, channels, 7, padding=3, **kwargs)
        upsampler, resblocks = [], []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            upsampler.append(
                ConvTranspose1d(
                    channels,
                    channels // 2,
                    kernel,
                    stride=rate,
                    padding=(kernel - rate) // 2,
                    **kwargs,
                )
            )
            channels //= 2
            resblocks += [
                ResidualBlock(channels, size, dilations, config.leaky_relu_slope, **kwargs)
                for size, dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
                )
            ]
        self.upsampler = nnx.List(upsampler)
        self.resblocks = nnx.List(resblocks)
        self.conv_post = Conv1d(channels, 1, 7, padding=3, **kwargs)
        self.config = config

    def __call__(self, mel: jax.Array) -> jax.Array:
        """Returns the waveform [b, frames * hop_length] in [-1, 1] of a mel [b, frames, n_mels]."""
        x = self.conv_pre(mel)
        kinds = len(self.config.resblock_kernel_sizes)
        for i, upsample in enumerate(self.upsampler):
            x = upsample(nnx.leaky_relu(x, self.config.leaky_relu_slope))
            x = mean_of(self.resblocks[kinds * i : kinds * (i + 1)], x)
        x = self.conv_post(nnx.leaky_relu(x, 0.01))
        return jnp.tanh(x[..., 0].astype(jnp.float32))
