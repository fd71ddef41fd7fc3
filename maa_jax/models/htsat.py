"""HTSAT, the audio tower of LAION's CLAP (Chen et al. 2022, "HTS-AT"; Wu et al. 2023).

A Swin transformer over log-mels, with the names of transformers' `ClapAudioModel`. The spectrogram
is cut in time into pieces that, stacked, form a square image. With "fusion", recordings longer than
the clip enter twice: as a whole, shrunk to the clip's length, and as three crops, whose patches are
mixed into those of the whole.
"""

import dataclasses
import re
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.kernels import attention
from maa_jax.models.layers import Conv

# Keys of config.json that change the network's result, with the only value implemented here.
_FIXED = {
    "model_type": "clap_audio_model",
    "hidden_act": "gelu",
    "patch_embed_input_channels": 1,
    "flatten_patch_embeds": True,
    "enable_patch_layer_norm": True,
    "qkv_bias": True,
}


@dataclasses.dataclass(frozen=True)
class HtsatConfig:
    """Sizes of an HTSAT, named as in transformers; the defaults are those of clap-htsat-unfused.

    `spec_size` is the side of the square image in pixels, `window_size` that of a window of
    attention in patches, `depths` the blocks of each stage. `hidden_size` is the result's width,
    twice `patch_embeds_hidden_size` for every stage but the first.
    """

    num_mel_bins: int = schema.size(64, most=1024)
    spec_size: int = schema.size(256, most=4096)
    patch_size: int = schema.size(4, most=64)
    patch_stride: tuple[int, int] = schema.size((4, 4), most=64)
    window_size: int = schema.size(8, most=64)
    patch_embeds_hidden_size: int = schema.size(96)
    hidden_size: int = schema.size(768)
    depths: tuple[int, ...] = schema.size((2, 2, 6, 2), most=32, length=(1, 6))
    num_attention_heads: tuple[int, ...] = schema.size((4, 8, 16, 32), length=(1, 6))
    mlp_ratio: float = schema.field(4.0, least=0.1, most=64)
    enable_fusion: bool = False
    aff_block_r: int = schema.size(4, most=1024)
    layer_norm_eps: float = schema.epsilon(1e-5)

    def __post_init__(self):
        schema.check(self)
        problems = []
        need = lambda good, text: None if good else problems.append(text)
        stages = len(self.depths)
        need(
            len(self.num_attention_heads) == stages,
            f"num_attention_heads={self.num_attention_heads}: one for each of depths={self.depths}",
        )
        need(
            self.patch_stride[0] == self.patch_stride[1] <= self.patch_size,
            f"patch_stride={self.patch_stride}: one number twice, up to patch_size="
            f"{self.patch_size}",
        )
        smallest = self.patch_stride[0] * 2 ** (stages - 1) * self.window_size
        need(
            self.spec_size % smallest == 0 and self.spec_size % self.num_mel_bins == 0,
            f"spec_size={self.spec_size}: a multiple of {smallest} (whole windows in the last "
            f"stage) and of num_mel_bins={self.num_mel_bins}",
        )
        need(
            self.hidden_size == self.width(stages - 1),
            f"hidden_size={self.hidden_size}: {self.width(stages - 1)}, the last stage's width",
        )
        for i, heads in enumerate(self.num_attention_heads[:stages]):
            need(
                self.width(i) % heads == 0,
                f"num_attention_heads={self.num_attention_heads}: {heads} do not divide the width"
                f" {self.width(i)} of stage {i + 1}",
            )
        if problems:
            raise ValueError("HTSAT needs other sizes: " + "; ".join(problems))

    @property
    def ratio(self) -> int:
        """Pieces that the time axis is cut into."""
        return self.spec_size // self.num_mel_bins

    @property
    def frames(self) -> int:
        """Frames of a clip; shorter ones are stretched to it."""
        return self.spec_size * self.ratio

    @property
    def channels(self) -> int:
        """Number of spectrograms per recording that the network takes."""
        return 4 if self.enable_fusion else 1

    def width(self, stage: int) -> int:
        """Returns the width of a stage."""
        return self.patch_embeds_hidden_size * 2**stage

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json, which transformers' ClapAudioModel opens."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return {**_FIXED, "architectures": ["ClapAudioModel"], **plain}

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file has a setting that this network does not support.
        """
        config = hf_config.build(cls, d, fixed=_FIXED, ignored=None)
        if d.get("fusion_type") == "channel_map":
            raise ValueError("fusion_type='channel_map' is not supported by HTSAT: use 'aff_2d'.")
        return config


class _Bottleneck(nnx.Module):
    """Two 1 x 1 convolutions with batch norm, numbered from `first` in the files."""

    def __init__(self, channels: int, inner: int, first: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.first = first
        for i, (n, m) in ((first, (channels, inner)), (first + 3, (inner, channels))):
            setattr(self, str(i), Conv(n, m, 1, dtype=dtype, rngs=rngs))
            setattr(self, str(i + 1), _batch_norm(m, dtype, rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, channels] to the same shape."""
        conv1, norm1, conv2, norm2 = (getattr(self, str(self.first + i)) for i in (0, 1, 3, 4))
        return norm2(conv2(nnx.relu(norm1(conv1(x)))))


class AttentionalFusion(nnx.Module):
    """Mixes the patches of the crops into those of the whole, with learned weights."""

    def __init__(self, config: HtsatConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        channels = config.patch_embeds_hidden_size
        inner = channels // config.aff_block_r
        self.local_att = _Bottleneck(channels, inner, 0, dtype=dtype, rngs=rngs)
        self.global_att = _Bottleneck(channels, inner, 1, dtype=dtype, rngs=rngs)

    def __call__(self, whole: jax.Array, crops: jax.Array) -> jax.Array:
        """Maps two [b, h, w, channels] to one."""
        both = whole + crops
        context = self.local_att(both) + self.global_att(both.mean((1, 2), keepdims=True))
        share = nnx.sigmoid(context)
        return 2 * whole * share + 2 * crops * (1 - share)


class PatchEmbed(nnx.Module):
    """Linear patch embeddings of the image, with those of the crops mixed in."""

    def __init__(self, config: HtsatConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, stride = config.patch_size, config.patch_stride[0]
        width, padding = config.patch_embeds_hidden_size, (size - stride) // 2
        conv = lambda wide: Conv(
            1, width, (size, size * wide), stride=(stride, stride * wide), padding=padding,
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.proj = conv(1)
        self.norm = _layer_norm(width, 1e-5, dtype, rngs)
        if config.enable_fusion:
            self.fusion_model = AttentionalFusion(config, dtype=dtype, rngs=rngs)
            self.mel_conv2d = conv(3)  # a crop's patches are three times as wide

    def __call__(self, images: jax.Array, is_longer: jax.Array | None) -> jax.Array:
        """Maps images [b, spec_size, spec_size, channels] to [b, h, w, width]."""
        x = self.proj(images[..., :1])
        if is_longer is not None:
            b, side = images.shape[:2]
            crops = images[..., 1:].transpose(0, 3, 1, 2).reshape(-1, side, side, 1)
            crops = self.mel_conv2d(crops)
            h, w, width = crops.shape[1:]
            crops = crops.reshape(b, -1, h, w, width).swapaxes(1, 2).reshape(b, h, -1, width)
            crops = jnp.pad(crops, ((0, 0), (0, 0), (0, x.shape[2] - crops.shape[2]), (0, 0)))
            longer = is_longer.reshape(b, 1, 1, 1) != 0
            x = jnp.where(longer, self.fusion_model(x, crops), x)
        return self.norm(x)


class SelfAttention(nnx.Module):
    """Attention within windows, with a bias for each relative position."""

    def __init__(self, window: int, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.heads, self.window = heads, window
        linear = lambda: nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = (linear() for _ in range(3))
        self.relative_position_bias_table = nnx.Param(
            jnp.zeros(((2 * window - 1) ** 2, heads), jnp.float32)
        )

    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """Maps [windows, n, width] to the same shape.

        `mask` [windows of an image, n, n] is added to the scores.
        """
        split = lambda f: f(x).reshape(*x.shape[:2], self.heads, -1)
        query, key, value = split(self.query), split(self.key), split(self.value)
        table = self.relative_position_bias_table[...]
        bias = table[_relative_positions(self.window)].transpose(2, 0, 1)[None]
        if mask is not None:
            images = x.shape[0] // len(mask)
            bias = bias + jnp.tile(mask[:, None], (images, 1, 1, 1))
        return attention(query, key, value, bias).reshape(x.shape)


class _Dense(nnx.Module):
    """A linear layer under the name `dense`."""

    def __init__(self, in_size: int, out_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dense = nnx.Linear(in_size, out_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.dense(x)


class Attention(nnx.Module):
    """Attention with its output projection; `self` is transformers' name for the former."""

    def __init__(self, window: int, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.self = SelfAttention(window, width, heads, dtype=dtype, rngs=rngs)
        self.output = _Dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: np.ndarray | None) -> jax.Array:
        """Maps [windows, n, width] to the same shape."""
        return self.output(self.self(x, mask))


class Layer(nnx.Module):
    """One block; every second one shifts the windows by half their size."""

    def __init__(
        self, config: HtsatConfig, stage: int, shift: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        width, heads = config.width(stage), config.num_attention_heads[stage]
        inner = int(config.mlp_ratio * width)
        self.window, self.shift = config.window_size, shift
        self.layernorm_before = _layer_norm(width, config.layer_norm_eps, dtype, rngs)
        self.attention = Attention(self.window, width, heads, dtype=dtype, rngs=rngs)
        self.layernorm_after = _layer_norm(width, config.layer_norm_eps, dtype, rngs)
        self.intermediate = _Dense(width, inner, dtype=dtype, rngs=rngs)
        self.output = _Dense(inner, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to the same shape."""
        b, h, w, width = x.shape
        # An image of a single window cannot be shifted.
        shift = self.shift if min(h, w) > self.window else 0
        y = jnp.roll(self.layernorm_before(x), (-shift, -shift), (1, 2))
        windows = _windows(y, self.window).reshape(-1, self.window**2, width)
        mask = _shift_mask(h, w, self.window, shift) if shift else None
        y = self.attention(windows, mask)
        y = y.reshape(b, h // self.window, w // self.window, self.window, self.window, width)
        y = y.swapaxes(2, 3).reshape(x.shape)
        x = x + jnp.roll(y, (shift, shift), (1, 2))
        y = nnx.gelu(self.intermediate(self.layernorm_after(x)), approximate=False)
        return x + self.output(y)


class Downsample(nnx.Module):
    """Joins 2 x 2 neighbours: half the height and width, twice the channels."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = _layer_norm(4 * width, 1e-5, dtype, rngs)
        self.reduction = nnx.Linear(4 * width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to [b, h / 2, w / 2, 2 * width]."""
        parts = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(jnp.concatenate(parts, axis=-1)))


class Stage(nnx.Module):
    """The blocks of one resolution."""

    def __init__(self, config: HtsatConfig, stage: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        half = config.window_size // 2
        self.blocks = nnx.List(
            [
                Layer(config, stage, half * (i % 2), dtype=dtype, rngs=rngs)
                for i in range(config.depths[stage])
            ]
        )
        last = stage == len(config.depths) - 1
        self.downsample = None if last else Downsample(config.width(stage), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, width] to the next stage's shape."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class HtsatEncoder(nnx.Module):
    """The network itself, which transformers nests one level below its class."""

    def __init__(self, config: HtsatConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.batch_norm = _batch_norm(config.num_mel_bins, jnp.float32, rngs)
        self.patch_embed = PatchEmbed(config, dtype=dtype, rngs=rngs)
        self.layers = nnx.List(
            [Stage(config, i, dtype=dtype, rngs=rngs) for i in range(len(config.depths))]
        )
        self.norm = _layer_norm(config.hidden_size, 1e-5, dtype, rngs)

    def _image(self, mels: jax.Array) -> jax.Array:
        """Maps [b, channels, frames, mels] to square images [b, side, side, channels]."""
        b, channels, frames, bins = mels.shape
        if frames < self.config.frames:
            matrix = _bicubic(frames, self.config.frames)
            highest = jax.lax.Precision.HIGHEST
            mels = jnp.einsum("bcfm,gf->bcgm", mels, matrix, precision=highest)
        mels = mels.reshape(b, channels, self.config.ratio, -1, bins)
        return mels.transpose(0, 2, 4, 3, 1).reshape(b, self.config.ratio * bins, -1, channels)

    def __call__(self, mels: jax.Array, is_longer: jax.Array | None) -> jax.Array:
        """Returns embeddings [b, hidden_size]; see `Htsat`."""
        config = self.config
        expected = (config.channels, config.num_mel_bins)
        if mels.ndim != 4 or (mels.shape[1], mels.shape[3]) != expected:
            raise ValueError(
                f"log-mels of shape {mels.shape} do not fit: need [b, {config.channels}, frames, "
                f"{config.num_mel_bins}] (enable_fusion={config.enable_fusion})."
            )
        if mels.shape[2] > config.frames:
            raise ValueError(
                f"{mels.shape[2]} frames exceed the {config.frames} of spec_size="
                f"{config.spec_size}: cut the recording (maa_jax.audio.clap_features does)."
            )
        if config.enable_fusion and is_longer is None:
            raise ValueError("is_longer is missing: with enable_fusion give bool [b].")
        x = self._image(self.batch_norm(mels.astype(jnp.float32))).astype(self.dtype)
        x = self.patch_embed(x, is_longer if config.enable_fusion else None)
        for stage in self.layers:
            x = stage(x)
        return self.norm(x).mean((1, 2))


class Htsat(nnx.Module):
    """Log-mels to embeddings, without dropout: the network is used frozen."""

    # Indices and counters, which are computed here or have no effect.
    UNUSED = re.compile(r".*\.(relative_position_index|num_batches_tracked)")

    def __init__(self, config: HtsatConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.audio_encoder = HtsatEncoder(config, dtype=dtype, rngs=rngs)

    def __call__(self, mels: jax.Array, is_longer: jax.Array | None = None) -> jax.Array:
        """Returns embeddings [b, hidden_size].

        Args:
          mels: mels in decibels [b, config.channels, frames, num_mel_bins], of up to
            `config.frames` frames, from `maa_jax.audio.clap_features`.
          is_longer: whether to mix the crops in, bool [b]; read only with fusion.
        """
        return self.audio_encoder(mels, is_longer)


def _windows(x: jax.Array, window: int) -> jax.Array:
    """Cuts [b, h, w, c] into [b * windows, window, window, c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.swapaxes(2, 3).reshape(-1, window, window, c)


def _relative_positions(window: int) -> np.ndarray:
    """Returns the row of the table for each pair of a window's positions, [n, n]."""
    row, column = (i.reshape(-1) for i in np.indices((window, window)))
    apart = lambda i: i[:, None] - i[None, :] + window - 1
    return apart(row) * (2 * window - 1) + apart(column)


def _shift_mask(h: int, w: int, window: int, shift: int) -> np.ndarray:
    """Returns the mask [windows, n, n] between positions that only the shift made neighbours."""
    region = lambda n: (np.arange(n) >= n - window).astype(int) + (np.arange(n) >= n - shift)
    regions = (3 * region(h)[:, None] + region(w)[None, :]).reshape(
        h // window, window, w // window, window
    )
    regions = regions.swapaxes(1, 2).reshape(-1, window**2)
    apart = regions[:, :, None] != regions[:, None, :]
    return np.where(apart, np.float32(-100), np.float32(0))


def _bicubic(size: int, new_size: int) -> np.ndarray:
    """Returns the matrix [new_size, size] of PyTorch's bicubic interpolation, with aligned corners.

    Keys' kernel with a = -0.75; the first and last values are repeated beyond the ends.
    """
    a = np.float32(-0.75)
    # In float32, as in PyTorch: the weights depend on small differences of large positions.
    step = np.float32(size - 1) / np.float32(new_size - 1)
    position = step * np.arange(new_size, dtype=np.float32)
    first = np.floor(position).astype(int)
    t = position - first
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1
    far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    matrix = np.zeros((new_size, size), np.float32)
    for offset, weight in ((-1, far(t + 1)), (0, near(t)), (1, near(1 - t)), (2, far(2 - t))):
        index = np.clip(first + offset, 0, size - 1)
        np.add.at(matrix, (np.arange(new_size), index), weight)
    return matrix


def _batch_norm(channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels,
        use_running_average=True,
        epsilon=1e-5,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )


def _layer_norm(size: int, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(size, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)
