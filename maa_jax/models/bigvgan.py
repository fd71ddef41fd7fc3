"""BigVGAN's generator (Lee et al. 2023), mel to waveform, with the names of its release.

HiFi-GAN's architecture with periodic activations, each applied at twice the sample rate to avoid
aliasing of the harmonics that it creates.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import LOGS, MelConfig
from maa_jax.models import hf_config
from maa_jax.models.hifigan import check_vocoder
from maa_jax.models.kernels import filter1d
from maa_jax.models.layers1d import Conv1d, ConvTranspose1d, dilated_pairs, mean_of


@dataclasses.dataclass(frozen=True)
class BigVGANConfig:
    """Sizes of the generator; the defaults are those of the released 16 kHz vocoder.

    Attributes:
      model_in_dim: mel bins.
      sampling_rate: sampling rate of the output in Hz.
      upsample_initial_channel: channels before the first upsampling; each halves them.
      upsample_rates: rate of each upsampling; their product is the number of samples per frame.
      upsample_kernel_sizes: kernel of each upsampling; kernel - rate must be even.
      resblock_kernel_sizes: kernel sizes of the residual blocks that follow every upsampling, whose
        results are averaged.
      resblock_dilation_sizes: dilations of each residual block's convolutions.
      log: logarithm of the mels that the weights expect, "log10" or "log".
      mel: whole front end of the mels, where it is known.
    """

    model_in_dim: int = schema.size(80, most=1024)
    sampling_rate: int = schema.field(16000, least=1000, most=768_000)
    upsample_initial_channel: int = schema.size(1536)
    upsample_rates: tuple[int, ...] = schema.size((4, 4, 2, 2, 2, 2), most=1024, length=(1, 8))
    upsample_kernel_sizes: tuple[int, ...] = schema.size(
        (8, 8, 4, 4, 4, 4), most=1024, length=(1, 8)
    )
    resblock_kernel_sizes: tuple[int, ...] = schema.size((3, 7, 11), most=1023, length=(1, 8))
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = schema.size(
        ((1, 3, 5),) * 3, most=1024, length=(1, 8)
    )
    log: str = schema.field("log10", choices=LOGS)
    mel: MelConfig | None = None

    def __post_init__(self):
        check_vocoder(self)

    @property
    def hop_length(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsample_rates)

    def to_hf(self) -> dict:
        """Returns the content of config.json; the layout is this project's own."""
        return {"_class_name": "BigVGAN", "snake": "snakebeta", **dataclasses.asdict(self)}

    @classmethod
    def from_hf(cls, d: dict) -> "BigVGANConfig":
        """Reads config.json.

        Raises:
          ValueError: the file belongs to another network, or lacks a size.
        """
        fixed = {"_class_name": "BigVGAN", "snake": "snakebeta"}
        return hf_config.build(cls, d, fixed=fixed)


def kaiser_sinc(cutoff: float, half_width: float, size: int) -> np.ndarray:
    """Returns a low-pass filter of even `size` and unit sum, a sinc under a Kaiser window.

    Args:
      cutoff: cutoff frequency in cycles per sample, at most 0.5.
      half_width: half of the transition band's width in cycles per sample.
      size: number of taps.
    """
    attenuation = 2.285 * (size // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation >= 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    time = np.arange(-size // 2, size // 2) + 0.5
    taps = 2 * cutoff * np.kaiser(size, beta) * np.sinc(2 * cutoff * time)
    return (taps / taps.sum()).astype(np.float32)


# Cutoff at half the Nyquist frequency of the higher rate, as in BigVGAN for ratio 2.
_TAPS = kaiser_sinc(0.25, 0.3, 12)


# Even polynomial of sin^2 between -pi/2 and pi/2, least squares, within 3e-8.
_SIN_SQUARED = (
    9.99999991e-01,
    -3.33333068e-01,
    4.44431828e-02,
    -3.17240458e-03,
    1.39352290e-04,
    -3.63156785e-06,
)


def sin_squared(x: jax.Array) -> jax.Array:
    """Returns sin(x)^2 by a polynomial, because XLA's sine is not vectorised on every processor."""
    turns = jnp.round(x * (1 / np.pi))
    # pi in two parts, the first with few bits, so that products with it are exact.
    x = (x - turns * 3.140625) - turns * (np.pi - 3.140625)
    square = jnp.square(x)
    total = jnp.full_like(square, _SIN_SQUARED[-1])
    for coefficient in _SIN_SQUARED[-2::-1]:
        total = total * square + coefficient
    return total * square


class SnakeBeta(nnx.Module):
    """x + sin^2(exp(alpha) x) / exp(beta), for each channel."""

    def __init__(self, channels: int):
        self.alpha = nnx.Param(jnp.zeros(channels))
        self.beta = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., channels] to the same shape."""
        alpha = jnp.exp(self.alpha[...]).astype(x.dtype)
        gain = (1 / (jnp.exp(self.beta[...]) + 1e-9)).astype(x.dtype)
        return x + gain * sin_squared(alpha * x)


class AntiAliased(nnx.Module):
    """SnakeBeta at twice the rate: upsample by 2, activate, low-pass, keep every second sample.

    The even and the odd samples at the higher rate are kept as two arrays (polyphase form): each is
    a filter with half the taps over x, and the output is the sum of a filter over each. So nothing
    is multiplied by the zeros between samples, and no sample is computed only to be dropped.
    """

    def __init__(self, channels: int):
        self.act = SnakeBeta(channels)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, t, channels] to the same shape."""
        length, half = x.shape[1], len(_TAPS) // 2
        even, odd = (2 * _TAPS[i::2] for i in (0, 1))
        padded = jnp.pad(x, ((0, 0), (half // 2, half // 2), (0, 0)), mode="edge")
        # High-rate sample 2 t is sum_j taps[2 j + 1] x[t + 2 - j], and 2 t + 1 is
        # sum_j taps[2 j] x[t + 3 - j].
        first = self.act(filter1d(padded, odd[::-1], 0, length))
        second = self.act(filter1d(padded, even[::-1], 1, length))
        # Output t is sum_k taps[k] y[2 t + k - 5], with y extended by its first and last sample.
        lead, tail = first[:, :1], second[:, -1:]
        first = jnp.concatenate([*[lead] * 2, first, *[tail] * 3], axis=1)
        second = jnp.concatenate([*[lead] * 3, second, *[tail] * 2], axis=1)
        of_even = filter1d(second, _TAPS[0::2], 0, length)
        return of_even + filter1d(first, _TAPS[1::2], 0, length)


class ResidualBlock(nnx.Module):
    """BigVGAN's AMPBlock1: pairs of a dilated and a plain convolution, each after an activation."""

    def __init__(self, channels: int, kernel_size: int, dilations: tuple[int, ...], **kwargs: Any):
        self.convs1, self.convs2 = dilated_pairs(channels, kernel_size, dilations, **kwargs)
        self.activations = nnx.List(AntiAliased(channels) for _ in range(2 * len(dilations)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, t, channels] to the same shape."""
        for i, (conv1, conv2) in enumerate(zip(self.convs1, self.convs2, strict=True)):
            y = conv1(self.activations[2 * i](x))
            x = x + conv2(self.activations[2 * i + 1](y))
        return x


class BigVGAN(nnx.Module):
    """BigVGAN generator."""

    def __init__(
        self,
        config: BigVGANConfig,
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
        ups, resblocks = [], []
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            padding = (kernel - rate) // 2
            up = ConvTranspose1d(
                channels, channels // 2, kernel, stride=rate, padding=padding, **kwargs
            )
            ups.append(nnx.List([up]))  # the release wraps each in a list
            channels //= 2
            resblocks += [
                ResidualBlock(channels, size, dilations, **kwargs)
                for size, dilations in zip(
                    config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
                )
            ]
        self.ups = nnx.List(ups)
        self.resblocks = nnx.List(resblocks)
        self.activation_post = AntiAliased(channels)
        self.conv_post = Conv1d(channels, 1, 7, padding=3, **kwargs)
        self.config = config

    def __call__(self, mel: jax.Array) -> jax.Array:
        """Returns the waveform [b, frames * hop_length] in [-1, 1] of a mel [b, frames, n_mels]."""
        x = self.conv_pre(mel)
        kinds = len(self.config.resblock_kernel_sizes)
        for i, (upsample,) in enumerate(self.ups):
            x = upsample(x)
            x = mean_of(self.resblocks[kinds * i : kinds * (i + 1)], x)
        x = self.conv_post(self.activation_post(x))
        return jnp.tanh(x[..., 0].astype(jnp.float32))
