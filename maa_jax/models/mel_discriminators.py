"""Discriminators of mel images, for the autoencoder's adversarial loss.

A call returns a list with one pair (logits, features) for each sub-discriminator, as those of
waveforms do.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from maa_jax import schema
from maa_jax.models.layers import Conv

Outputs = list[tuple[jax.Array, list[jax.Array]]]


@dataclasses.dataclass(frozen=True)
class MultiWindowConfig:
    """Sizes of the multi-window discriminator (paper, Table 6).

    Attributes:
      windows: lengths of the crops in frames.
      channels: width of the convolutions.
      layers: number of strided 3 x 3 convolutions for each window.
      dropout: rate of dropout after each convolution.
    """

    windows: tuple[int, ...] = schema.size((32, 64, 128), length=(1, 16))
    channels: int = schema.size(128)
    layers: int = schema.size(3, most=16)
    dropout: float = schema.rate(0.25)

    def __post_init__(self):
        schema.check(self)


class WindowDiscriminator(nnx.Module):
    """Strided convolutions over one crop of a mel image."""

    def __init__(self, config: MultiWindowConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.convs = nnx.List(
            Conv(
                config.channels if i else 1,
                config.channels,
                3,
                stride=2,
                padding=1,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(config.layers)
        )
        self.conv_post = Conv(config.channels, 1, 3, padding=1, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, list[jax.Array]]:
        """Returns logits of images [b, n_mels, frames, 1], and features."""
        features = []
        for conv in self.convs:
            x = nnx.leaky_relu(conv(x), 0.2)
            features.append(x)
            x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return self.conv_post(x)[..., 0], features


class MultiWindowDiscriminator(nnx.Module):
    """A sub-discriminator of random crops of mel images for each length."""

    def __init__(
        self,
        config: MultiWindowConfig = MultiWindowConfig(),
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.discriminators = nnx.List(
            WindowDiscriminator(config, dtype, rngs) for _ in config.windows
        )
        self.config = config

    def __call__(self, mel: jax.Array, *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates mel images [b, n_mels, frames, 1].

        Crops and dropout are drawn from the stream "dropout" of `rngs`: two calls with equal keys
        take the same crops of a recording and its reconstruction. Without `rngs` the crops are
        central and there is no dropout. A window longer than the image covers all of it.
        """
        return self.judge(self.crops(mel, rngs=rngs), rngs=rngs)

    def crops(self, mel: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Returns what each sub-discriminator sees, begun at one frame for the whole batch."""
        crops = []
        for window in self.config.windows:
            room = max(mel.shape[2] - window, 0)
            start = room // 2
            if rngs is not None:
                start = jax.random.randint(rngs.dropout(), (), 0, room + 1)
            crops.append(lax.dynamic_slice_in_dim(mel, start, min(window, mel.shape[2]), axis=2))
        return crops

    def judge(self, crops: list[jax.Array], *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates the result of `crops`."""
        pairs = zip(self.discriminators, crops, strict=True)
        return [discriminator(crop, rngs) for discriminator, crop in pairs]


@dataclasses.dataclass(frozen=True)
class PatchConfig:
    """Sizes of the release's PatchGAN discriminator (latent diffusion's NLayerDiscriminator)."""

    channels: int = schema.size(64)
    layers: int = schema.size(3, most=16)

    def __post_init__(self):
        schema.check(self)


class PatchDiscriminator(nnx.Module):
    """PatchGAN: logits of overlapping patches, with batch norm by the batch's own statistics."""

    def __init__(
        self, config: PatchConfig = PatchConfig(), *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        init = nnx.initializers.normal(0.02)
        kwargs: dict[str, Any] = {"padding": 1, "kernel_init": init, "dtype": dtype, "rngs": rngs}
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        convs = [Conv(1, widths[0], 4, stride=2, **kwargs)]
        norms = []
        for i in range(1, config.layers + 1):
            stride = 2 if i < config.layers else 1
            convs.append(Conv(widths[i - 1], widths[i], 4, stride=stride, use_bias=False, **kwargs))
            norms.append(
                nnx.BatchNorm(
                    widths[i],
                    use_running_average=False,
                    momentum=0.9,
                    epsilon=1e-5,
                    scale_init=lambda key, shape, dtype: 1 + 0.02 * jax.random.normal(key, shape),
                    dtype=dtype,
                    rngs=rngs,
                )
            )
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.conv_post = Conv(widths[-1], 1, 4, **kwargs)

    def __call__(self, mel: jax.Array, *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates mel images [b, n_mels, frames, 1]; nothing is random."""
        return self.judge(self.crops(mel, rngs=rngs), rngs=rngs)

    def crops(self, mel: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Returns the whole images."""
        del rngs
        return [mel]

    def judge(self, crops: list[jax.Array], *, rngs: nnx.Rngs | None = None) -> Outputs:
        """Discriminates the result of `crops`."""
        del rngs
        x = nnx.leaky_relu(self.convs[0](crops[0]), 0.2)
        features = [x]
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = nnx.leaky_relu(norm(conv(x)), 0.2)
            features.append(x)
        return [(self.conv_post(x)[..., 0], features)]
