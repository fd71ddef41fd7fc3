"""Vocos' generator (Siuzdak 2023), mel to waveform by an inverse Fourier transform.

All its layers work at the rate of the frames, so that it takes a small part of the time of
HiFi-GAN, whose last layers work at the rate of the samples. Names are those of its release.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import LOGS, MelConfig
from maa_jax.models import hf_config
from maa_jax.models.hifigan import check_mel
from maa_jax.models.layers import zeros_init
from maa_jax.models.layers1d import Conv1d

_EPSILON = 1e-6  # of the normalisations


@dataclasses.dataclass(frozen=True)
class VocosConfig:
    """Sizes of the generator; the defaults are those of the release's mel vocoder, at 16 kHz.

    Attributes:
      model_in_dim: mel bins.
      sampling_rate: sampling rate of the output in Hz.
      hop_length: samples per frame.
      n_fft: length of the inverse transform and of its window, a multiple of `hop_length`.
      dim: channels between the blocks.
      intermediate_dim: channels inside a block.
      num_layers: number of blocks.
      log: logarithm of the mels that the weights expect, "log10" or "log".
      mel: whole front end of the mels, where it is known.
    """

    model_in_dim: int = schema.size(80, most=1024)
    sampling_rate: int = schema.field(16000, least=1000, most=768_000)
    hop_length: int = schema.field(256, least=1, most=16_384)
    n_fft: int = schema.field(1024, least=16, most=16_384)
    dim: int = schema.size(512)
    intermediate_dim: int = schema.size(1536)
    num_layers: int = schema.size(8, most=256)
    log: str = schema.field("log10", choices=LOGS)
    mel: MelConfig | None = None

    def __post_init__(self):
        schema.check(self)
        if self.n_fft % self.hop_length or self.n_fft < 2 * self.hop_length:
            raise ValueError(
                f"n_fft = {self.n_fft}: give a multiple of hop_length = {self.hop_length}, at least"
                " twice as long"
            )
        check_mel(self)

    def to_hf(self) -> dict:
        """Returns the content of config.json; the layout is this project's own."""
        return {"_class_name": "Vocos", **dataclasses.asdict(self)}

    @classmethod
    def from_hf(cls, d: dict) -> "VocosConfig":
        """Reads config.json.

        Raises:
          ValueError: the file belongs to another network, or lacks a size.
        """
        return hf_config.build(cls, d, fixed={"_class_name": "Vocos"})


class DepthwiseConv1d(Conv1d):
    """A convolution of each channel by itself, as a sum of shifted inputs."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x [b, t, channels]."""
        kernel, length = self._kernel(), x.shape[1]
        x = jnp.pad(x.astype(self.dtype), ((0, 0), (self.padding, self.padding), (0, 0)))
        return self._add_bias(sum(tap * x[:, i : i + length] for i, tap in enumerate(kernel)))


class ConvNeXtBlock(nnx.Module):
    """A depthwise convolution and two layers at each position, with a scaled residual."""

    def __init__(self, config: VocosConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        dim, inner = config.dim, config.intermediate_dim
        self.dwconv = DepthwiseConv1d(dim, dim, 7, padding=3, groups=dim, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.pwconv1 = _linear(dim, inner, dtype, rngs)
        self.pwconv2 = _linear(inner, dim, dtype, rngs)
        self.gamma = nnx.Param(jnp.full((dim,), 1 / config.num_layers))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, t, dim] to the same shape."""
        y = self.norm(self.dwconv(x))
        y = self.pwconv2(nnx.gelu(self.pwconv1(y), approximate=False))
        return x + self.gamma[...].astype(y.dtype) * y


class Backbone(nnx.Module):
    """Mels to features of each frame."""

    def __init__(self, config: VocosConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embed = Conv1d(config.model_in_dim, config.dim, 7, padding=3, dtype=dtype, rngs=rngs)
        norm = lambda: nnx.LayerNorm(config.dim, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.norm = norm()
        self.convnext = nnx.List(
            ConvNeXtBlock(config, dtype, rngs) for _ in range(config.num_layers)
        )
        self.final_layer_norm = norm()

    def __call__(self, mel: jax.Array) -> jax.Array:
        """Returns features [b, frames, dim] of mels [b, frames, n_mels]."""
        x = self.norm(self.embed(mel))
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x)


class Head(nnx.Module):
    """Features to a complex spectrum, and that to a waveform."""

    def __init__(self, config: VocosConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.out = _linear(config.dim, config.n_fft + 2, dtype, rngs)
        self.n_fft, self.hop_length = config.n_fft, config.hop_length

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns magnitudes and phases, float32 [b, frames, n_fft / 2 + 1], of features.

        The magnitudes' bound is twice that of a tone at full scale. (The release's, 100, cuts tones
        above -8 dB.)
        """
        magnitude, phase = jnp.split(self.out(x).astype(jnp.float32), 2, axis=-1)
        return jnp.minimum(jnp.exp(magnitude), self.n_fft / 2), phase


class Vocos(nnx.Module):
    """Vocos' generator: ConvNeXt blocks, whose results are magnitudes and phases of the frames."""

    def __init__(
        self,
        config: VocosConfig,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          config: sizes of the network.
          dtype: type of the computation; parameters are float32.
          rngs: source of the initial weights.
        """
        self.backbone = Backbone(config, dtype, rngs)
        self.head = Head(config, dtype, rngs)
        self.config = config

    def __call__(self, mel: jax.Array) -> jax.Array:
        """Returns the waveform [b, frames * hop_length] of a mel [b, frames, n_mels].

        Full scale is 1, and loud sounds may exceed it.
        """
        magnitude, phase = self.head(self.backbone(mel))
        spectrum = jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))
        return inverse_stft(spectrum, self.config.n_fft, self.config.hop_length)


def inverse_stft(spectrum: jax.Array, n_fft: int, hop_length: int) -> jax.Array:
    """Returns the waveforms [b, frames * hop_length] whose transform comes nearest to a spectrum.

    The frames are those of `audio.mel.stft_magnitude`, not centred.

    Args:
      spectrum: [b, frames, n_fft / 2 + 1].
      n_fft: length of the transform and of its periodic Hann window, a multiple of `hop_length`.
      hop_length: samples from one frame to the next.
    """
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    frames = jnp.fft.irfft(spectrum, n_fft) * window
    weights = jnp.broadcast_to(jnp.square(window), (1, *frames.shape[1:]))
    padding = (n_fft - hop_length) // 2
    add = lambda frames: _overlap_add(frames, hop_length)[:, padding:-padding]
    return add(frames) / add(weights)


def _overlap_add(frames: jax.Array, hop_length: int) -> jax.Array:
    """Returns the sums [b, (t - 1) * hop_length + n] of frames [b, t, n], n a multiple of hop."""
    batch, count, size = frames.shape
    parts = frames.reshape(batch, count, size // hop_length, hop_length)
    last = parts.shape[2] - 1
    shifted = (jnp.pad(parts[:, :, i], ((0, 0), (i, last - i), (0, 0))) for i in range(last + 1))
    return sum(shifted, jnp.zeros(())).reshape(batch, -1)


def _linear(in_size: int, out_size: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.truncated_normal(0.02)
    return nnx.Linear(
        in_size, out_size, kernel_init=init, bias_init=zeros_init, dtype=dtype, rngs=rngs
    )
