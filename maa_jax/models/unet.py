"""The denoising U-Net (paper section 3.3): diffusers' UNet2DConditionModel, names and weights."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.kernels import attention
from maa_jax.models.layers import Conv, GroupNorm, Linear, UpsampleConv, remat, zeros_init


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net; the defaults are the paper's (160.2 M parameters).

    Attributes:
      in_channels: channels of the noisy latents.
      out_channels: channels of the prediction.
      block_out_channels: width of each level; every level has spatial transformers.
      layers_per_block: residual blocks at each level on the way down; one more on the way up.
      num_heads: number of heads of every attention, or of those of each level.
      cross_attention_dim: width of the context.
      norm_num_groups: number of groups of every group normalisation.
    """

    in_channels: int = schema.size(4)
    out_channels: int = schema.size(4)
    block_out_channels: tuple[int, ...] = schema.size((320, 640), length=(1, 8))
    layers_per_block: int = schema.size(2, most=8)
    num_heads: tuple[int, ...] | int = schema.size(8, length=(1, 8))
    cross_attention_dim: int = schema.size(1024)
    norm_num_groups: int = schema.size(32)

    def __post_init__(self):
        schema.check(self)
        hf_config.check_widths(self, "norm_num_groups")
        widths = self.block_out_channels
        levels = len(self.heads) == len(widths)
        if not levels or any(w % n for w, n in zip(widths, self.heads, strict=True)):
            raise ValueError(
                f"num_heads={self.num_heads}: give a divisor of all of block_out_channels={widths},"
                " or of each"
            )
        if self.block_out_channels[0] % 2:
            raise ValueError(
                f"block_out_channels={self.block_out_channels}: the first is that of the timestep's"
                " sines and cosines; make it even"
            )

    @property
    def heads(self) -> tuple[int, ...]:
        """Number of heads at each level; the middle block has those of the last."""
        heads, levels = self.num_heads, len(self.block_out_channels)
        return heads if isinstance(heads, tuple) else (heads,) * levels

    @property
    def downscale(self) -> int:
        """Number that height and width of the latents must be multiples of."""
        return 2 ** (len(self.block_out_channels) - 1)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of the config.json that diffusers opens."""
        sizes = dataclasses.asdict(self)
        # diffusers' attention_head_dim is, for this class, the number of heads.
        heads = sizes.pop("num_heads")
        sizes["attention_head_dim"] = list(heads) if isinstance(heads, tuple) else heads
        sizes["block_out_channels"] = list(self.block_out_channels)
        return {**_fixed(len(self.block_out_channels)), "sample_size": None, **sizes}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Reads a diffusers config.json.

        Raises:
          ValueError: keys or values that this network does not support; all are named.
        """
        return hf_config.build(
            cls,
            config,
            fixed=_fixed(hf_config.levels(config)),
            names={"num_heads": "attention_head_dim"},
            ignored=("sample_size", "upcast_attention", "addition_embed_type_num_heads"),
        )


def _fixed(levels: int) -> dict[str, Any]:
    """Returns the constant entries of this U-Net's config.json."""
    return {
        "_class_name": "UNet2DConditionModel",
        "down_block_types": ["CrossAttnDownBlock2D"] * levels,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "up_block_types": ["CrossAttnUpBlock2D"] * levels,
        "act_fn": "silu",
        "attention_type": "default",
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dropout": 0.0,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "resnet_out_scale_factor": 1.0,
        "resnet_time_scale_shift": "default",
        "time_embedding_type": "positional",
        "transformer_layers_per_block": 1,
        "use_linear_projection": False,
    }


class UNet(nnx.Module):
    """Predicts the noise in latents, given the timestep and a context.

    Args:
      config: sizes of the network.
      dtype: type of the computation; parameters are float32.
      remat: whether the backward pass recomputes the blocks from their inputs.
    """

    def __init__(
        self,
        config: UNetConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        widths = config.block_out_channels
        common: dict[str, Any] = dict(config=config, dtype=dtype, remat=remat, rngs=rngs)
        self.config, self.dtype = config, dtype
        self.conv_in = Conv(config.in_channels, widths[0], 3, padding=1, dtype=dtype, rngs=rngs)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], dtype=dtype, rngs=rngs)

        skips, width, down_blocks, up_blocks = [widths[0]], widths[0], [], []
        for level, out in enumerate(widths):
            last = level == len(widths) - 1
            ins = [width] + [out] * (config.layers_per_block - 1)
            down_blocks.append(
                DownBlock(ins, out, num_heads=config.heads[level], downsample=not last, **common)
            )
            skips += [out] * (config.layers_per_block + (not last))
            width = out
        self.down_blocks = nnx.List(down_blocks)
        self.mid_block = MidBlock(width, num_heads=config.heads[-1], **common)
        for level, out in reversed(list(enumerate(widths))):
            outs = [width] + [out] * config.layers_per_block
            ins = [w + skips.pop() for w in outs]
            up_blocks.append(
                UpBlock(ins, out, num_heads=config.heads[level], upsample=level > 0, **common)
            )
            width = out
        self.up_blocks = nnx.List(up_blocks)
        self.conv_norm_out = GroupNorm(
            width, num_groups=config.norm_num_groups, epsilon=1e-5, dtype=dtype, rngs=rngs
        )
        self.conv_out = Conv(
            width, config.out_channels, 3, padding=1, kernel_init=zeros_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, latents: jax.Array, timesteps: jax.Array, context: jax.Array) -> jax.Array:
        """Returns the predicted noise.

        Args:
          latents: noisy latents [b, h, w, in_channels], h and w multiples of `config.downscale`.
          timesteps: timesteps [b], whole or fractional, in 0..999.
          context: context [b, tokens, cross_attention_dim].

        Returns:
          [b, h, w, out_channels] in float32.
        """
        factor = self.config.downscale
        if latents.shape[1] % factor or latents.shape[2] % factor:
            raise ValueError(
                f"latents of shape {latents.shape}: height and width must be multiples of {factor}"
            )
        context = context.astype(self.dtype)
        time = timestep_embedding(timesteps, self.config.block_out_channels[0])
        time = nnx.silu(self.time_embedding(time.astype(self.dtype)))
        x = self.conv_in(latents)
        skips = [x]
        for block in self.down_blocks:
            x, made = block(x, time, context)
            skips += made
        x = self.mid_block(x, time, context)
        for up_block in self.up_blocks:
            x = up_block(x, skips, time, context)
        return self.conv_out(nnx.silu(self.conv_norm_out(x))).astype(jnp.float32)


def timestep_embedding(timesteps: jax.Array, features: int) -> jax.Array:
    """Returns [b, features] in float32: cosines, then sines, of wavelengths 2 pi to 20000 pi."""
    half = features // 2
    rates = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = timesteps.astype(jnp.float32)[:, None] * rates
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimestepEmbedding(nnx.Module):
    """Two dense layers over the sinusoids of the timestep."""

    def __init__(self, features: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dense = lambda i: Linear(i, width, dtype=dtype, rngs=rngs)
        self.linear_1, self.linear_2 = dense(features), dense(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, features] to [b, width]."""
        return self.linear_2(nnx.silu(self.linear_1(x)))


class ResnetBlock(nnx.Module):
    """Two convolutions with the time embedding added between them, around a skip connection."""

    def __init__(
        self, width_in: int, width: int, *, config: UNetConfig, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        norm: dict[str, Any] = dict(
            num_groups=config.norm_num_groups, epsilon=1e-5, dtype=dtype, rngs=rngs
        )
        self.norm1 = GroupNorm(width_in, **norm)
        self.conv1 = Conv(width_in, width, 3, padding=1, dtype=dtype, rngs=rngs)
        self.time_emb_proj = Linear(
            4 * config.block_out_channels[0],
            width,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = GroupNorm(width, **norm)
        self.conv2 = Conv(
            width, width, 3, padding=1, kernel_init=zeros_init, dtype=dtype, rngs=rngs
        )
        self.conv_shortcut = (
            Conv(width_in, width, 1, dtype=dtype, rngs=rngs) if width_in != width else None
        )

    def __call__(self, x: jax.Array, time: jax.Array) -> jax.Array:
        """Maps [b, h, w, in] and the activated time embedding [b, t] to [b, h, w, width]."""
        h = self.conv1(nnx.silu(self.norm1(x)))
        h = h + self.time_emb_proj(time)[:, None, None]
        h = self.conv2(nnx.silu(self.norm2(h)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + h


class CrossAttention(nnx.Module):
    """Attention of one sequence to another, or to itself."""

    def __init__(
        self, width: int, context_width: int, *, num_heads: int, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        dense = lambda i, bias: Linear(i, width, use_bias=bias, dtype=dtype, rngs=rngs)
        self.to_q, self.to_k, self.to_v = (
            dense(i, False) for i in (width, context_width, context_width)
        )
        self.to_out = nnx.List([dense(width, True)])
        self.num_heads = num_heads

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps [b, q, width] and [b, k, context_width] to [b, q, width]."""
        heads = lambda y: y.reshape(*y.shape[:2], self.num_heads, -1)
        y = attention(heads(self.to_q(x)), heads(self.to_k(context)), heads(self.to_v(context)))
        return self.to_out[0](y.reshape(x.shape))


class GEGLU(nnx.Module):
    """A dense layer, one half of which is gated by the GELU of the other."""

    def __init__(self, width: int, inner: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.proj = Linear(width, 2 * inner, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., width] to [..., inner]."""
        x, gate = jnp.split(self.proj(x), 2, axis=-1)
        return x * jax.nn.gelu(gate, approximate=False)


class FeedForward(nnx.Module):
    """The transformer's feed-forward part; `net.1` is a dropout of rate 0 in diffusers."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.net = nnx.Dict(
            {
                "0": GEGLU(width, 4 * width, dtype=dtype, rngs=rngs),
                "2": Linear(4 * width, width, dtype=dtype, rngs=rngs),
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, n, width] to the same shape."""
        return self.net["2"](self.net["0"](x))


class TransformerBlock(nnx.Module):
    """Self-attention, cross-attention and feed-forward, each pre-normalised with a residual."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        config: UNetConfig,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        norm = lambda: nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        common: dict[str, Any] = dict(num_heads=num_heads, dtype=dtype, rngs=rngs)
        self.norm1, self.norm2, self.norm3 = norm(), norm(), norm()
        self.attn1 = CrossAttention(width, width, **common)
        self.attn2 = CrossAttention(width, config.cross_attention_dim, **common)
        self.ff = FeedForward(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps [b, n, width] and [b, tokens, context_width] to [b, n, width]."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nnx.Module):
    """A transformer block over the positions of a map, around a skip connection."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        config: UNetConfig,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.norm = GroupNorm(width, num_groups=config.norm_num_groups, epsilon=1e-6, **common)
        self.proj_in = Conv(width, width, 1, **common)
        self.transformer_blocks = nnx.List(
            [TransformerBlock(width, num_heads=num_heads, config=config, **common)]
        )
        self.proj_out = Conv(width, width, 1, kernel_init=zeros_init, **common)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] and [b, tokens, context_width] to [b, h, w, width]."""
        h = self.proj_in(self.norm(x))
        h = self.transformer_blocks[0](h.reshape(x.shape[0], -1, x.shape[-1]), context)
        return x + self.proj_out(h.reshape(x.shape))


class Downsample(nnx.Module):
    """A convolution of stride 2."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.conv = Conv(width, width, 3, stride=2, padding=1, dtype=dtype, rngs=rngs)

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


class _Block(nnx.Module):
    """Residual blocks and spatial transformers of one level."""

    def __init__(
        self,
        ins: list[int],
        out: int,
        attentions: int,
        *,
        num_heads: int,
        config: UNetConfig,
        dtype: jnp.dtype,
        remat: bool,
        rngs: nnx.Rngs,
    ):
        common: dict[str, Any] = dict(config=config, dtype=dtype, rngs=rngs)
        self.resnets = nnx.List([ResnetBlock(i, out, **common) for i in ins])
        self.attentions = nnx.List(
            [SpatialTransformer(out, num_heads=num_heads, **common) for _ in range(attentions)]
        )
        self.remat = remat

    def run(self, block: nnx.Module, *args: jax.Array) -> jax.Array:
        """Applies a part of this block, optionally with remat."""
        return remat(block, *args) if self.remat else block(*args)


class DownBlock(_Block):
    """A level on the way down."""

    def __init__(
        self,
        ins: list[int],
        out: int,
        *,
        downsample: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        **common: Any,
    ):
        super().__init__(ins, out, len(ins), dtype=dtype, rngs=rngs, **common)
        self.downsamplers = (
            nnx.List([Downsample(out, dtype=dtype, rngs=rngs)]) if downsample else None
        )

    def __call__(
        self, x: jax.Array, time: jax.Array, context: jax.Array
    ) -> tuple[jax.Array, list[jax.Array]]:
        """Returns the map for the next level and all maps for the skip connections."""
        skips = []
        for resnet, transformer in zip(self.resnets, self.attentions, strict=True):
            x = self.run(transformer, self.run(resnet, x, time), context)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(_Block):
    """The lowest level: residual block, transformer, residual block."""

    def __init__(self, width: int, **common: Any):
        super().__init__([width, width], width, 1, **common)

    def __call__(self, x: jax.Array, time: jax.Array, context: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to the same shape."""
        x = self.run(self.resnets[0], x, time)
        x = self.run(self.attentions[0], x, context)
        return self.run(self.resnets[1], x, time)


class UpBlock(_Block):
    """A level on the way up."""

    def __init__(
        self,
        ins: list[int],
        out: int,
        *,
        upsample: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        **common: Any,
    ):
        super().__init__(ins, out, len(ins), dtype=dtype, rngs=rngs, **common)
        self.upsamplers = nnx.List([Upsample(out, dtype=dtype, rngs=rngs)]) if upsample else None

    def __call__(
        self, x: jax.Array, skips: list[jax.Array], time: jax.Array, context: jax.Array
    ) -> jax.Array:
        """Maps the map from below to the one above; pops its skip connections off the list."""
        for resnet, transformer in zip(self.resnets, self.attentions, strict=True):
            x = jnp.concatenate([x, skips.pop()], axis=-1)
            x = self.run(transformer, self.run(resnet, x, time), context)
        if self.upsamplers is not None:
            x = self.upsamplers[0](x)
        return x
