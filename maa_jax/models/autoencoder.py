"""The spectrogram autoencoder (paper Table 6): diffusers' AutoencoderKL, names and weights."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.kernels import attention
from maa_jax.models.layers import (
    Conv,
    GroupNorm,
    PreciseConv,
    UpsampleConv,
    default_init,
    remat,
)


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the autoencoder; the defaults are the paper's (69.0 M parameters).

    Attributes:
      in_channels: channels of the mel image.
      out_channels: channels of the reconstruction.
      latent_channels: channels of the latents.
      block_out_channels: width of each level; each level but the last halves the image, and the two
        deepest have attention.
      layers_per_block: residual blocks at each level of the encoder; one more in the decoder.
      norm_num_groups: number of groups of every group normalisation.
      scaling_factor: factor of the latents for the U-Net, 1 / their standard deviation; `encode`
        and `decode` do not apply it.
    """

    in_channels: int = schema.size(1, most=1)
    out_channels: int = schema.size(1, most=1)
    latent_channels: int = schema.size(4)
    block_out_channels: tuple[int, ...] = schema.size((128, 256, 256, 512), length=(1, 8))
    layers_per_block: int = schema.size(2, most=8)
    norm_num_groups: int = schema.size(32)
    scaling_factor: float = schema.field(1.0, least=1e-6, most=1e6)

    def __post_init__(self):
        schema.check(self)
        hf_config.check_widths(self, "norm_num_groups")

    @property
    def downscale(self) -> int:
        """Downsampling factor from the mel image to the latents, on each axis."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of the config.json that diffusers opens."""
        sizes = dataclasses.asdict(self) | {"block_out_channels": list(self.block_out_channels)}
        return {**_fixed(len(self.block_out_channels)), **sizes}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Reads a diffusers config.json.

        Raises:
          ValueError: keys or values that this network does not support; all are named.
        """
        fixed = _fixed(hf_config.levels(config))
        return hf_config.build(cls, config, fixed=fixed, ignored=("sample_size", "force_upcast"))


def _with_attention(level: int, levels: int) -> bool:
    return level >= levels - 2


def _fixed(levels: int) -> dict[str, Any]:
    """Returns the constant entries of this autoencoder's config.json."""
    attends = [_with_attention(level, levels) for level in range(levels)]
    return {
        "_class_name": "AutoencoderKL",
        "down_block_types": [
            "AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)
        ],
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }


class Autoencoder(nnx.Module):
    """Encodes mel images as diagonal Gaussians over latents, and decodes latents.

    Args:
      config: sizes of the network.
      dtype: type of the computation between the first and the last convolutions of encoder and
        decoder, which are in float32, as are parameters.
      remat: whether the backward pass recomputes the blocks from their inputs.
    """

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        latent = config.latent_channels
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.config = config
        self.encoder = Encoder(config, remat=remat, **common)
        self.decoder = Decoder(config, remat=remat, **common)
        self.quant_conv = PreciseConv(2 * latent, 2 * latent, 1, rngs=rngs)
        self.post_quant_conv = PreciseConv(latent, latent, 1, rngs=rngs)

    def encode(self, mel_image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the Gaussian's mean and log-variance, [b, h / 8, w / 8, latent_channels] each.

        Args:
          mel_image: mel image [b, h, w, 1], with h mel bands and w frames, both multiples of
            `config.downscale`.
        """
        factor = self.config.downscale
        if mel_image.shape[1] % factor or mel_image.shape[2] % factor:
            raise ValueError(
                f"mel image of shape {mel_image.shape}: mel bands and frames must be multiples of "
                f"{factor}; pad or crop it"
            )
        moments = self.quant_conv(self.encoder(mel_image))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Returns the mel image [b, 8 h, 8 w, 1] of latents [b, h, w, latent_channels]."""
        return self.decoder(self.post_quant_conv(latents))


class ResnetBlock(nnx.Module):
    """Two convolutions around a skip connection."""

    def __init__(
        self,
        width_in: int,
        width: int,
        *,
        config: AutoencoderConfig,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        norm: dict[str, Any] = dict(num_groups=config.norm_num_groups, epsilon=1e-6, **common)
        self.norm1 = GroupNorm(width_in, **norm)
        self.conv1 = Conv(width_in, width, 3, padding=1, **common)
        self.norm2 = GroupNorm(width, **norm)
        self.conv2 = Conv(width, width, 3, padding=1, **common)
        self.conv_shortcut = Conv(width_in, width, 1, **common) if width_in != width else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, in] to [b, h, w, width]."""
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = self.conv2(nnx.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class Attention(nnx.Module):
    """Attention with one head over all positions, around a skip connection."""

    def __init__(self, width: int, *, config: AutoencoderConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        dense = lambda: nnx.Linear(width, width, kernel_init=default_init, dtype=dtype, rngs=rngs)
        self.group_norm = GroupNorm(
            width, num_groups=config.norm_num_groups, epsilon=1e-6, dtype=dtype, rngs=rngs
        )
        self.to_q, self.to_k, self.to_v = dense(), dense(), dense()
        self.to_out = nnx.List([dense()])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to the same shape."""
        h = self.group_norm(x).reshape(x.shape[0], -1, 1, x.shape[-1])
        h = self.to_out[0](attention(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + h.reshape(x.shape)


class Downsample(nnx.Module):
    """Downsamples by 2, with zero padding only at the end of each axis."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        padding = ((0, 1), (0, 1))
        self.conv = Conv(width, width, 3, stride=2, padding=padding, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to [b, h / 2, w / 2, width]."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour 2x upsampling and a convolution."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = UpsampleConv(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to [b, 2 h, 2 w, width]."""
        return self.conv(x)


class Block(nnx.Module):
    """Residual blocks, each followed by attention in some levels, then down- or upsampling."""

    def __init__(
        self,
        width_in: int,
        width: int,
        layers: int,
        *,
        attends: bool,
        downsample: bool = False,
        upsample: bool = False,
        config: AutoencoderConfig,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        plain: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        ins = [width_in] + [width] * (layers - 1)
        self.resnets = nnx.List([ResnetBlock(i, width, config=config, **plain) for i in ins])
        self.attentions = (
            nnx.List([Attention(width, config=config, **plain) for _ in ins]) if attends else None
        )
        self.downsamplers = nnx.List([Downsample(width, **plain)]) if downsample else None
        self.upsamplers = nnx.List([Upsample(width, **plain)]) if upsample else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, in] to [b, h', w', width]."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x)
            if self.attentions is not None:
                x = self.attentions[i](x)
        for resample in (self.downsamplers, self.upsamplers):
            if resample is not None:
                x = resample[0](x)
        return x


class MidBlock(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, width: int, **common: Any):
        self.resnets = nnx.List([ResnetBlock(width, width, **common) for _ in range(2)])
        self.attentions = nnx.List([Attention(width, **common)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to the same shape."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nnx.Module):
    """Mel image to twice the latent channels."""

    def __init__(self, config: AutoencoderConfig, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        widths = config.block_out_channels
        plain: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        common: dict[str, Any] = dict(config=config, **plain)
        self.conv_in = PreciseConv(config.in_channels, widths[0], 3, padding=1, rngs=rngs)
        width, blocks = widths[0], []
        for level, out in enumerate(widths):
            blocks.append(
                Block(
                    width,
                    out,
                    config.layers_per_block,
                    attends=_with_attention(level, len(widths)),
                    downsample=level < len(widths) - 1,
                    **common,
                )
            )
            width = out
        self.down_blocks = nnx.List(blocks)
        self.mid_block = MidBlock(width, **common)
        self.conv_norm_out = GroupNorm(
            width, num_groups=config.norm_num_groups, epsilon=1e-6, **plain
        )
        self.conv_out = PreciseConv(width, 2 * config.latent_channels, 3, padding=1, rngs=rngs)
        self.remat, self.dtype = remat, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, in_channels] to [b, h / 8, w / 8, 2 latent_channels], float32."""
        x = self.conv_in(x).astype(self.dtype)
        for block in (*self.down_blocks, self.mid_block):
            x = remat(block, x) if self.remat else block(x)
        return self.conv_out(nnx.silu(self.conv_norm_out(x)))


class Decoder(nnx.Module):
    """Latents to a mel image."""

    def __init__(self, config: AutoencoderConfig, *, dtype: jnp.dtype, remat: bool, rngs: nnx.Rngs):
        widths = config.block_out_channels
        plain: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        common: dict[str, Any] = dict(config=config, **plain)
        width, blocks = widths[-1], []
        self.conv_in = PreciseConv(config.latent_channels, width, 3, padding=1, rngs=rngs)
        self.mid_block = MidBlock(width, **common)
        for level, out in reversed(list(enumerate(widths))):
            blocks.append(
                Block(
                    width,
                    out,
                    config.layers_per_block + 1,
                    attends=_with_attention(level, len(widths)),
                    upsample=level > 0,
                    **common,
                )
            )
            width = out
        self.up_blocks = nnx.List(blocks)
        self.conv_norm_out = GroupNorm(
            width, num_groups=config.norm_num_groups, epsilon=1e-6, **plain
        )
        self.conv_out = PreciseConv(width, config.out_channels, 3, padding=1, rngs=rngs)
        self.remat, self.dtype = remat, dtype

    def features(self, x: jax.Array) -> jax.Array:
        """Returns the input of the last convolution, [b, 8 h, 8 w, width]."""
        x = self.conv_in(x).astype(self.dtype)
        for block in (self.mid_block, *self.up_blocks):
            x = remat(block, x) if self.remat else block(x)
        return nnx.silu(self.conv_norm_out(x))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, latent_channels] to [b, 8 h, 8 w, out_channels], float32."""
        return self.conv_out(self.features(x))
