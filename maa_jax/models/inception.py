"""Melception: Inception v3 on mel spectrograms, the network behind the paper's FID and KL.

Iashin and Rahtu 2021, "Taming visually guided sound generation" (v-iashin/SpecVQGAN:
evaluation/feature_extractors/melception.py, feature_extraction/extract_mel_spectrogram.py). It is
torchvision's `Inception3` with one input channel and without the two max poolings of its stem.
"""

import dataclasses
import re
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import MelConfig, centred_power, mel_filters
from maa_jax.models import hf_config
from maa_jax.models.cnn14 import check_labels
from maa_jax.models.layers import Conv, Linear

# Frames, and mels, of which the last block leaves one.
LEAST_FRAMES = 23


@dataclasses.dataclass(frozen=True)
class MelceptionConfig:
    """Front end and widths; the defaults are those of the published network.

    Attributes:
      sample_rate: sample rate of the waveform, in Hz.
      n_fft: length of the transform and of its window, in samples.
      hop_length: samples from one frame to the next.
      n_mels: number of mel bins.
      fmin: lower edge of the lowest mel bin, in Hz.
      fmax: upper edge of the highest mel bin, in Hz.
      samples: length that waveforms are cut, or filled up with zeros, to.
      first_frame: first frame that the network hears; with the defaults the frames are the middle
        of the first 860.
      frames: number of frames that it hears.
      width: a sixteenth of Inception v3's channels is so many channels here.
      dropout: rate of dropout before the last layer.
      num_classes: number of classes.
      labels: names of the classes; None if they are not known.
      published: name of the released weights (see `maa_jax.convert.classifiers`); None for others.
    """

    sample_rate: int = schema.field(22_050, least=1000, most=768_000)
    n_fft: int = schema.field(1024, least=16, most=16_384)
    hop_length: int = schema.field(256, least=16, most=16_384)
    n_mels: int = schema.field(80, least=LEAST_FRAMES, most=1024)
    fmin: float = schema.field(125.0, least=0, most=384_000)
    fmax: float = schema.field(7600.0, least=0, most=384_000)
    samples: int = schema.field(220_500, least=1, most=10**9)
    first_frame: int = schema.field(6, least=0, most=65_536)
    frames: int = schema.field(848, least=LEAST_FRAMES, most=65_536)
    width: int = schema.size(16, most=64)
    dropout: float = schema.rate(0.5)
    num_classes: int = schema.size(309)
    labels: tuple[str, ...] | None = schema.field(None, length=(1, 65_536))
    published: str | None = None

    def __post_init__(self):
        schema.check(self)
        check_labels(self)
        self.mel()  # checks its settings
        if self.samples <= self.n_fft // 2:
            raise ValueError(f"samples={self.samples}: give more than half of n_fft={self.n_fft}")

    def scaled(self, channels: int) -> int:
        """Returns the number of channels for one of Inception v3, a multiple of 16."""
        return channels // 16 * self.width

    def mel(self) -> MelConfig:
        """Returns the settings of the mel filters."""
        return MelConfig(
            sample_rate=self.sample_rate,
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            n_mels=self.n_mels,
            fmin=self.fmin,
            fmax=self.fmax,
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": ["Melception"],
            "model_type": "melception",
            **{k: v for k, v in dataclasses.asdict(self).items() if v is not None},
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file belongs to another network, or settings are invalid or missing.
        """
        fixed = {"architectures": ["Melception"], "model_type": "melception"}
        return hf_config.build(cls, d, fixed=fixed)


def melception_mel(wav: jax.Array, config: MelceptionConfig) -> jax.Array:
    """Returns the mels that the network normalises, [b, frames, n_mels] in 0..1, float32.

    Centred frames with reflected ends (librosa 0.8, which the published weights were made with),
    magnitudes, Slaney's mel filters, 20 decibels a decade, of which -80 to 20 become 0 to 1.

    Args:
      wav: waveforms [b, samples] in [-1, 1] at `config.sample_rate`, of any length.
      config: settings of the front end.
    """
    c = config
    wav = jnp.pad(wav[:, : c.samples], ((0, 0), (0, max(0, c.samples - wav.shape[1]))))
    magnitude = jnp.sqrt(centred_power(wav, c.n_fft, c.hop_length))
    magnitude = magnitude[:, c.first_frame : c.first_frame + c.frames]
    mel = jnp.matmul(magnitude, mel_filters(c.mel()), precision=jax.lax.Precision.HIGHEST)
    return jnp.clip((20 * jnp.log10(jnp.maximum(mel, 1e-5)) + 80) / 100, 0, 1)


class ConvNorm(nnx.Module):
    """A convolution without bias, batch norm and ReLU, torchvision's `BasicConv2d`.

    Args:
      in_channels: input channels.
      channels: output channels.
      kernel_size: size of the kernel over mels and frames.
      stride: stride of the convolution.
      padded: whether the input is padded so that a stride of 1 keeps its size.
      dtype: type of the computation; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: int = 1,
        padded: bool = True,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        high, wide = kernel_size
        self.conv = Conv(
            in_channels,
            channels,
            kernel_size,
            stride=stride,
            padding=(high // 2, wide // 2) if padded else 0,
            use_bias=False,
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = nnx.BatchNorm(
            channels, momentum=0.9, epsilon=1e-3, use_fast_variance=False, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, running: bool) -> jax.Array:
        """Maps [b, h, w, in] to [b, h', w', out]; `running`: normalise by running statistics."""
        return nnx.relu(self.bn(self.conv(x), use_running_average=running))


# (name, channels, height and width of the kernel) of convolutions that follow one another.
Chain = tuple[tuple[str, int, int, int], ...]


class Mixed(nnx.Module):
    """One of Inception's blocks: chains of convolutions and a pooling, side by side in the result.

    Args:
      in_channels: input channels of Inception v3.
      chains: the chains; a name is that of the convolution's attribute.
      pool: channels of the convolution after an average pooling. Without it the block halves mels
        and frames: the last convolutions have a stride of 2, and the pooling takes the maximum.
      forked: whether the last two convolutions of a longer chain hear the same, and stand side by
        side.
      config: settings of the network.
      **how: `dtype` and `rngs` of the convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        chains: tuple[Chain, ...],
        *,
        pool: int = 0,
        forked: bool = False,
        config: MelceptionConfig,
        **how: Any,
    ):
        self.names = tuple(tuple(name for name, *_ in chain) for chain in chains)
        self.forked = forked
        for chain in chains:
            size = in_channels
            for i, (name, channels, high, wide) in enumerate(chain, 1):
                last = i == len(chain) and not pool
                layer = ConvNorm(
                    config.scaled(size),
                    config.scaled(channels),
                    (high, wide),
                    stride=2 if last else 1,
                    padded=not last,
                    **how,
                )
                setattr(self, name, layer)
                if not (forked and i == len(chain) - 1):
                    size = channels
        self.branch_pool = (
            ConvNorm(config.scaled(in_channels), config.scaled(pool), (1, 1), **how)
            if pool
            else None
        )

    def __call__(self, x: jax.Array, running: bool) -> jax.Array:
        """Maps [b, h, w, in] to [b, h', w', out]; see `ConvNorm`."""
        parts = []
        for names in self.names:
            y, ends = x, 2 if self.forked and len(names) > 1 else 1
            for name in names[:-ends]:
                y = getattr(self, name)(y, running)
            parts += [getattr(self, name)(y, running) for name in names[-ends:]]
        if self.branch_pool is None:
            parts.append(nnx.max_pool(x, (3, 3), strides=(2, 2)))
        else:
            parts.append(self.branch_pool(_averaged(x), running))
        return jnp.concatenate(parts, axis=-1)


def _averaged(x: jax.Array) -> jax.Array:
    """Average pooling over 3 x 3 of [b, h, w, c], zeros around it included.

    It adds slices: on a CPU the gradient of XLA's window reduction is several times slower.
    """
    h, w = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x[:, :h] + x[:, 1 : h + 1] + x[:, 2:]
    return (x[:, :, :w] + x[:, :, 1 : w + 1] + x[:, :, 2:]) / 9


# The chains of torchvision's InceptionA to InceptionE, channels before `width`.
_A: tuple[Chain, ...] = (
    (("branch1x1", 64, 1, 1),),
    (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 5)),
    (
        ("branch3x3dbl_1", 64, 1, 1),
        ("branch3x3dbl_2", 96, 3, 3),
        ("branch3x3dbl_3", 96, 3, 3),
    ),
)
_B: tuple[Chain, ...] = (
    (("branch3x3", 384, 3, 3),),
    (
        ("branch3x3dbl_1", 64, 1, 1),
        ("branch3x3dbl_2", 96, 3, 3),
        ("branch3x3dbl_3", 96, 3, 3),
    ),
)
_D: tuple[Chain, ...] = (
    (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 3)),
    (
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, 1, 7),
        ("branch7x7x3_3", 192, 7, 1),
        ("branch7x7x3_4", 192, 3, 3),
    ),
)
_E: tuple[Chain, ...] = (
    (("branch1x1", 320, 1, 1),),
    (
        ("branch3x3_1", 384, 1, 1),
        ("branch3x3_2a", 384, 1, 3),
        ("branch3x3_2b", 384, 3, 1),
    ),
    (
        ("branch3x3dbl_1", 448, 1, 1),
        ("branch3x3dbl_2", 384, 3, 3),
        ("branch3x3dbl_3a", 384, 1, 3),
        ("branch3x3dbl_3b", 384, 3, 1),
    ),
)


def _c(inner: int) -> tuple[Chain, ...]:
    return (
        (("branch1x1", 192, 1, 1),),
        (
            ("branch7x7_1", inner, 1, 1),
            ("branch7x7_2", inner, 1, 7),
            ("branch7x7_3", 192, 7, 1),
        ),
        (
            ("branch7x7dbl_1", inner, 1, 1),
            ("branch7x7dbl_2", inner, 7, 1),
            ("branch7x7dbl_3", inner, 1, 7),
            ("branch7x7dbl_4", inner, 7, 1),
            ("branch7x7dbl_5", 192, 1, 7),
        ),
    )


_STEM = (
    "Conv2d_1a_3x3",
    "Conv2d_2a_3x3",
    "Conv2d_2b_3x3",
    "Conv2d_3b_1x1",
    "Conv2d_4a_3x3",
)
# (name, input channels, chains, channels after the average pooling) of every block.
_BLOCKS: tuple[tuple[str, int, tuple[Chain, ...], int], ...] = (
    ("Mixed_5b", 192, _A, 32),
    ("Mixed_5c", 256, _A, 64),
    ("Mixed_5d", 288, _A, 64),
    ("Mixed_6a", 288, _B, 0),
    ("Mixed_6b", 768, _c(128), 192),
    ("Mixed_6c", 768, _c(160), 192),
    ("Mixed_6d", 768, _c(160), 192),
    ("Mixed_6e", 768, _c(192), 192),
    ("Mixed_7a", 768, _D, 0),
    ("Mixed_7b", 1280, _E, 192),
    ("Mixed_7c", 2048, _E, 192),
)


class Melception(nnx.Module):
    """Waveform to embeddings and to logits of classes."""

    # The auxiliary head, which the published training did not train; a counter that nothing reads.
    UNUSED = re.compile(r"AuxLogits\..*|.*\.num_batches_tracked")

    def __init__(self, config: MelceptionConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        there = 1 + config.samples // config.hop_length
        if there < config.first_frame + config.frames:
            raise ValueError(
                f"frames={config.frames} from first_frame={config.first_frame}: "
                f"samples={config.samples} have {there}; hear fewer frames, or longer clips"
            )
        self.config = config
        self.dtype = dtype
        how: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        # Mean and variance of each mel bin, which the release keeps in a file of their own.
        self.mel_norm = nnx.BatchNorm(
            config.n_mels,
            momentum=0.9,
            epsilon=1e-8,
            use_bias=False,
            use_scale=False,
            use_fast_variance=False,
            rngs=rngs,
        )
        c32, c64, c80, c192 = map(config.scaled, (32, 64, 80, 192))
        self.Conv2d_1a_3x3 = ConvNorm(1, c32, (3, 3), stride=2, padded=False, **how)
        self.Conv2d_2a_3x3 = ConvNorm(c32, c32, (3, 3), padded=False, **how)
        self.Conv2d_2b_3x3 = ConvNorm(c32, c64, (3, 3), **how)
        self.Conv2d_3b_1x1 = ConvNorm(c64, c80, (1, 1), **how)
        self.Conv2d_4a_3x3 = ConvNorm(c80, c192, (3, 3), padded=False, **how)
        for name, size, chains, pool in _BLOCKS:
            block = Mixed(size, chains, pool=pool, forked=chains is _E, config=config, **how)
            setattr(self, name, block)
        self.fc = Linear(config.scaled(2048), config.num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """Classifies waveforms [b, samples]; for the rest see `melception_mel` and `classify`."""
        mel = melception_mel(wav, self.config)
        mel = self.mel_norm(mel, use_running_average=use_running_average)
        return self.classify(mel, use_running_average=use_running_average, rngs=rngs)

    def classify(
        self,
        mel: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """Classifies mels.

        Args:
          mel: normalised mels [b, frames, n_mels].
          use_running_average: whether to normalise by the running statistics; if not, as in
            training, by the batch's, which also update the running ones.
          rngs: random streams; dropout is active if given, with `dropout`.

        Returns:
          With the default width: `embedding` [b, 2048] and `embedding_768` [b, 768], features
          averaged over mels and frames; `logits` [b, num_classes]; and `logits_unbiased`, without
          the bias, of which SpecVQGAN's inception score is computed. All are float32.
        """
        x = jnp.swapaxes(mel, 1, 2)[..., None].astype(self.dtype)  # [b, mels, frames, 1]
        found = {}
        names = [name for name, *_ in _BLOCKS]
        for name in (*_STEM, *names):
            x = getattr(self, name)(x, use_running_average)
            if name == "Mixed_6e":
                found["embedding_768"] = x.astype(jnp.float32).mean((1, 2))
        found["embedding"] = x.astype(jnp.float32).mean((1, 2))
        x = self.dropout(found["embedding"], deterministic=rngs is None, rngs=rngs)
        return found | {"logits": self.fc(x), "logits_unbiased": x @ self.fc.kernel[...]}
