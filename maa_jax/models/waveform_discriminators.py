"""Discriminators of waveforms: HiFi-GAN's and BigVGAN's.

A call returns a list with one pair (logits, features) for each sub-discriminator: logits of any
shape, high for recordings, and the list of inner activations for feature matching.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from maa_jax import schema
from maa_jax.models import kernels
from maa_jax.models.layers import conv2d
from maa_jax.models.layers1d import Conv1d, NormConv

Outputs = list[tuple[jax.Array, list[jax.Array]]]


class Conv2d(NormConv):
    """Two-dimensional convolution with weight norm, as torch.nn.Conv2d; its bias starts uniform."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: tuple[int, int],
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_features, out_features)
        super().__init__(shape, out_features, True, True, dtype, rngs)
        self.stride, self.padding = stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x [b, h, w, in]."""
        y = conv2d(x.astype(self.dtype), self._kernel(), self.stride, self.padding)
        return self._add_bias(y)


class SpectralState(nnx.Variable):
    """The left singular vector that spectral norm keeps from call to call."""


class SpectralConv1d(NormConv):
    """Conv1d whose kernel is divided by its largest singular value (Miyato et al. 2018).

    Each call takes one step of power iteration, whose vector is stored in `u`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, in_features // groups, out_features)
        super().__init__(shape, out_features, True, False, dtype, rngs)
        u = jax.random.normal(rngs.params(), (out_features,))
        self.u = SpectralState(u / jnp.linalg.norm(u))
        self.stride, self.padding, self.groups = stride, padding, groups

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x [b, t, in] and updates `u` by one power iteration."""
        kernel = self.kernel[...]
        matrix = kernel.reshape(-1, kernel.shape[-1])
        frozen = lax.stop_gradient(matrix)
        v = frozen @ self.u[...]
        v /= jnp.linalg.norm(v) + 1e-12
        u = v @ frozen
        u /= jnp.linalg.norm(u) + 1e-12
        self.u[...] = u
        kernel = (kernel / (v @ matrix @ u)).astype(self.dtype)
        x = x.astype(self.dtype)
        y = kernels.conv1d(x, kernel, stride=self.stride, padding=self.padding, groups=self.groups)
        return self._add_bias(y)


@dataclasses.dataclass(frozen=True)
class MultiPeriodConfig:
    """Multi-period discriminator (HiFi-GAN section 2.3); the defaults are HiFi-GAN's."""

    periods: tuple[int, ...] = schema.size((2, 3, 5, 7, 11), length=(1, 16))
    channels: tuple[int, ...] = schema.size((32, 128, 512, 1024, 1024), length=(1, 16))

    def __post_init__(self):
        schema.check(self)


class PeriodDiscriminator(nnx.Module):
    """Convolutions over every `period`-th sample: each phase is a separate sequence."""

    def __init__(self, period: int, channels: tuple[int, ...], **kwargs: Any):
        widths = (1, *channels)
        self.convs = nnx.List(
            Conv1d(
                widths[i],
                widths[i + 1],
                5,
                # The original's last layer does not stride.
                stride=3 if i < len(channels) - 1 else 1,
                padding=2,
                weight_norm=True,
                **kwargs,
            )
            for i in range(len(channels))
        )
        self.conv_post = Conv1d(channels[-1], 1, 3, padding=1, weight_norm=True, **kwargs)
        self.period = period

    def __call__(self, wav: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Returns logits of waveforms [b, samples], and features [b * period, t, channels]."""
        batch, length = wav.shape
        wav = jnp.pad(wav, ((0, 0), (0, -length % self.period)), mode="reflect")
        x = (
            wav.reshape(batch, -1, self.period)
            .transpose(0, 2, 1)
            .reshape(-1, wav.shape[1] // self.period, 1)
        )
        features = []
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x), 0.1)
            features.append(x)
        x = self.conv_post(x)
        # [b, t * period], as the original flattens its images [t, period].
        logits = x.reshape(batch, self.period, -1).transpose(0, 2, 1).reshape(batch, -1)
        return logits, [*features, x]


class MultiPeriodDiscriminator(nnx.Module):
    """A PeriodDiscriminator for each period, with the names of the original.

    The original's kernels have one more axis.
    """

    def __init__(
        self,
        config: MultiPeriodConfig = MultiPeriodConfig(),
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.discriminators = nnx.List(
            PeriodDiscriminator(period, config.channels, dtype=dtype, rngs=rngs)
            for period in config.periods
        )

    def __call__(self, wav: jax.Array, *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates waveforms [b, samples]; nothing is random."""
        return [discriminator(wav) for discriminator in self.discriminators]


@dataclasses.dataclass(frozen=True)
class MultiScaleConfig:
    """Multi-scale discriminator (HiFi-GAN section 2.3, after MelGAN); defaults are HiFi-GAN's.

    Attributes:
      scales: number of sub-discriminators, each at half the rate of the one before.
      channels: output channels of each convolution.
      kernel_sizes: kernel size of each convolution.
      strides: stride of each convolution.
      groups: number of groups of channels of each convolution.
    """

    scales: int = schema.size(3, most=16)
    channels: tuple[int, ...] = schema.size((128, 128, 256, 512, 1024, 1024, 1024), length=(1, 16))
    kernel_sizes: tuple[int, ...] = schema.size((15, 41, 41, 41, 41, 41, 5), length=(1, 16))
    strides: tuple[int, ...] = schema.size((1, 2, 2, 4, 4, 1, 1), length=(1, 16))
    groups: tuple[int, ...] = schema.size((1, 4, 16, 16, 16, 16, 1), length=(1, 16))

    def __post_init__(self):
        schema.check(self)
        lists = (self.channels, self.kernel_sizes, self.strides, self.groups)
        if len({len(values) for values in lists}) > 1:
            raise ValueError(
                f"channels = {self.channels}, kernel_sizes = {self.kernel_sizes}, strides ="
                f" {self.strides}, groups = {self.groups}: give lists of one length."
            )
        for before, after, groups in zip(
            (1, *self.channels), self.channels, self.groups, strict=False
        ):
            if before % groups or after % groups:
                raise ValueError(
                    f"groups = {self.groups}: {groups} do not divide {before} and {after} channels."
                )


class ScaleDiscriminator(nnx.Module):
    """Grouped, strided convolutions over the waveform."""

    def __init__(self, config: MultiScaleConfig, conv: Callable[..., NormConv]):
        widths = (1, *config.channels)
        self.convs = nnx.List(
            conv(
                widths[i],
                widths[i + 1],
                size,
                stride=config.strides[i],
                padding=size // 2,
                groups=config.groups[i],
            )
            for i, size in enumerate(config.kernel_sizes)
        )
        self.conv_post = conv(widths[-1], 1, 3, padding=1)

    def __call__(self, wav: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Returns logits of waveforms [b, samples], and features [b, t, channels]."""
        x, features = wav[..., None], []
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x), 0.1)
            features.append(x)
        x = self.conv_post(x)
        return x[..., 0], [*features, x]


class MultiScaleDiscriminator(nnx.Module):
    """The raw waveform with spectral norm, and averages of it with weight norm."""

    def __init__(
        self,
        config: MultiScaleConfig = MultiScaleConfig(),
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def spectral(*args: Any, **kwargs: Any) -> SpectralConv1d:
            return SpectralConv1d(*args, **kwargs, dtype=dtype, rngs=rngs)

        def weight(*args: Any, **kwargs: Any) -> Conv1d:
            return Conv1d(*args, **kwargs, weight_norm=True, dtype=dtype, rngs=rngs)

        self.discriminators = nnx.List(
            ScaleDiscriminator(config, conv) for conv in [spectral] + [weight] * (config.scales - 1)
        )

    def __call__(self, wav: jax.Array, *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates waveforms [b, samples]; nothing is random."""
        outputs = []
        for i, discriminator in enumerate(self.discriminators):
            if i:
                # torch.nn.AvgPool1d(4, 2, padding=2), which counts its padding.
                wav = lax.reduce_window(wav, 0.0, lax.add, (1, 4), (1, 2), ((0, 0), (2, 2))) / 4
            outputs.append(discriminator(wav))
        return outputs


@dataclasses.dataclass(frozen=True)
class MultiResolutionConfig:
    """Multi-resolution discriminator (BigVGAN, after UnivNet); the defaults are BigVGAN's.

    Attributes:
      resolutions: tuple (n_fft, hop_length, window_length) for each spectrogram.
      channels: width of all convolutions.
    """

    resolutions: tuple[tuple[int, int, int], ...] = schema.size(
        ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240)), length=(1, 16)
    )
    channels: int = schema.size(32)

    def __post_init__(self):
        schema.check(self)
        for n_fft, hop, window in self.resolutions:
            if not hop <= window <= n_fft:
                raise ValueError(
                    f"resolutions: ({n_fft}, {hop}, {window}) is no (n_fft, hop_length, "
                    "window_length): give a window from hop_length to n_fft."
                )


class ResolutionDiscriminator(nnx.Module):
    """Convolutions over short-time Fourier magnitudes, an image [bins, frames]."""

    def __init__(self, resolution: tuple[int, int, int], channels: int, **kwargs: Any):
        wide = {"kernel_size": (3, 9), "padding": (1, 4), **kwargs}
        self.convs = nnx.List(
            [
                Conv2d(1, channels, **wide),
                *(Conv2d(channels, channels, stride=(1, 2), **wide) for _ in range(3)),
                Conv2d(channels, channels, (3, 3), padding=(1, 1), **kwargs),
            ]
        )
        self.conv_post = Conv2d(channels, 1, (3, 3), padding=(1, 1), **kwargs)
        self.resolution = resolution

    def __call__(self, wav: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Returns logits of waveforms [b, samples], and features [b, bins, frames, channels]."""
        x, features = magnitudes(wav, *self.resolution).swapaxes(1, 2)[..., None], []
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x), 0.1)
            features.append(x)
        x = self.conv_post(x)
        return x[..., 0], [*features, x]


def magnitudes(wav: jax.Array, n_fft: int, hop_length: int, window_length: int) -> jax.Array:
    """Returns the magnitudes of a short-time Fourier transform, [b, frames, n_fft / 2 + 1].

    As in BigVGAN: reflect padding of (n_fft - hop_length) / 2 samples, and a rectangular window.
    """
    pad = (n_fft - hop_length) // 2
    wav = jnp.pad(wav, ((0, 0), (pad, pad)), mode="reflect")
    # A window shorter than n_fft is centred in it; only the window's samples are read.
    start = (n_fft - window_length) // 2
    count = (wav.shape[1] - n_fft) // hop_length + 1
    index = start + hop_length * jnp.arange(count)[:, None] + jnp.arange(window_length)
    # The window's position in the transform changes only the phase.
    spectrum = jnp.fft.rfft(wav[:, index], n=n_fft)
    # The offset keeps the gradient finite at silence.
    return jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-9)


class MultiResolutionDiscriminator(nnx.Module):
    """A ResolutionDiscriminator for each resolution."""

    def __init__(
        self,
        config: MultiResolutionConfig = MultiResolutionConfig(),
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.discriminators = nnx.List(
            ResolutionDiscriminator(resolution, config.channels, dtype=dtype, rngs=rngs)
            for resolution in config.resolutions
        )

    def __call__(self, wav: jax.Array, *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates waveforms [b, samples]; nothing is random."""
        return [discriminator(wav) for discriminator in self.discriminators]
