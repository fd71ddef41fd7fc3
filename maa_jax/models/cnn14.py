"""Cnn14, the audio network of PANNs (Kong et al. 2020, Table 1) and of Microsoft's CLAP."""

import dataclasses
import functools
import re
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax import schema
from maa_jax.audio.mel import MelConfig, centred_power, mel_filters
from maa_jax.models import hf_config
from maa_jax.models.layers import Conv


@dataclasses.dataclass(frozen=True)
class CnnConfig:
    """Front end and convolutions of a network of PANNs.

    `channels` has one entry for each block of two convolutions. `fmin` and `fmax` are in Hz.
    SpecAugment drops `stripes` stripes of up to `time_stripe` frames and `mel_stripe` mels each, in
    training mode.
    """

    NAME: ClassVar[str]

    sample_rate: int = schema.field(16000, least=1000, most=768_000)
    n_fft: int = schema.field(512, least=16, most=16_384)
    hop_length: int = schema.field(160, least=16, most=16_384)
    n_mels: int = schema.size(64, most=1024)
    fmin: float = schema.field(50.0, least=0, most=384_000)
    fmax: float = schema.field(8000.0, least=0, most=384_000)
    channels: tuple[int, ...] = schema.size((), length=(1, 12))
    block_dropout: float = schema.rate(0.2)
    stripes: int = schema.field(2, least=0, most=1000)
    time_stripe: int = schema.field(64, least=0, most=65_536)
    mel_stripe: int = schema.field(8, least=0, most=65_536)

    def __post_init__(self):
        schema.check(self)
        if not self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(
                f"fmin={self.fmin}, fmax={self.fmax}: they must rise, up to half of "
                f"sample_rate={self.sample_rate}"
            )
        if self.n_mels < self.reduction:
            raise ValueError(
                f"n_mels={self.n_mels} is too few for the {len(self.channels)} blocks of "
                f"channels={self.channels}: give at least {self.reduction}, or fewer blocks."
            )

    @property
    def halvings(self) -> int:
        """Number of blocks, from the first, after which time and mels are halved."""
        return len(self.channels)

    @property
    def reduction(self) -> int:
        """Factor by which the blocks shrink time and mels."""
        return 2**self.halvings

    @property
    def min_samples(self) -> int:
        """Samples of the shortest clip that yields a frame after the last block."""
        return max((self.reduction - 1) * self.hop_length, self.n_fft // 2 + 1)

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

    def frames(self, samples: int) -> int:
        """Returns the number of frames after the last block for a clip of `samples`."""
        return (1 + samples // self.hop_length) // self.reduction

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": [self.NAME],
            "model_type": self.NAME.lower(),
            **{k: v for k, v in dataclasses.asdict(self).items() if v is not None},
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file belongs to another network, or settings are invalid or missing.
        """
        return hf_config.build(
            cls, d, fixed={"architectures": [cls.NAME], "model_type": cls.NAME.lower()}
        )


@dataclasses.dataclass(frozen=True)
class Cnn14Config(CnnConfig):
    """Front end and widths; the defaults are PANNs' Cnn14_16k.

    Every block but the last halves time and mels. `labels` are the names of the classes, and
    `published` that of the released weights (see `maa_jax.convert.classifiers`); None: not known,
    or others.
    """

    NAME = "Cnn14"

    channels: tuple[int, ...] = schema.size((64, 128, 256, 512, 1024, 2048), length=(1, 12))
    num_classes: int = schema.size(527)
    head_dropout: float = schema.rate(0.5)
    labels: tuple[str, ...] | None = schema.field(None, length=(1, 65_536))
    published: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_labels(self)

    @classmethod
    def panns_32k(cls) -> Self:
        """PANNs' Cnn14 at 32 kHz (qiuqiangkong/audioset_tagging_cnn, README.md)."""
        return cls(sample_rate=32000, n_fft=1024, hop_length=320, fmax=14000.0)

    @classmethod
    def clap_2022(cls) -> Self:
        """The audio tower of Microsoft's CLAP of 2022, at 44.1 kHz."""
        return cls(sample_rate=44100, n_fft=1024, hop_length=320, fmax=14000.0)

    @property
    def halvings(self) -> int:
        """Number of blocks, from the first, after which time and mels are halved."""
        return len(self.channels) - 1


def check_labels(config: Any) -> None:
    """Raises a ValueError if a classifier's `labels` are not as many as its `num_classes`."""
    if config.labels is not None and len(config.labels) != config.num_classes:
        raise ValueError(
            f"labels: {len(config.labels)} names of num_classes={config.num_classes} classes; give"
            " as many, or none"
        )


class ConvBlock(nnx.Module):
    """Two 3 x 3 convolutions, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        conv = functools.partial(
            Conv, kernel_size=(3, 3), padding=1, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.conv1 = conv(in_channels, channels)
        self.bn1 = _batch_norm(channels, dtype, rngs)
        self.conv2 = conv(channels, channels)
        self.bn2 = _batch_norm(channels, dtype, rngs)

    def __call__(self, x: jax.Array, *, use_running_average: bool) -> jax.Array:
        """Maps [b, frames, mels, in_channels] to [b, frames, mels, channels]."""
        x = nnx.relu(self.bn1(self.conv1(x), use_running_average=use_running_average))
        return nnx.relu(self.bn2(self.conv2(x), use_running_average=use_running_average))


class Cnn14Frames(nnx.Module):
    """The front end and the convolutions: waveform to features over time."""

    def __init__(self, config: CnnConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.dtype = dtype
        self.bn0 = _batch_norm(config.n_mels, jnp.float32, rngs)
        for i, (n, m) in enumerate(zip((1, *config.channels), config.channels, strict=False), 1):
            setattr(self, f"conv_block{i}", ConvBlock(n, m, dtype=dtype, rngs=rngs))
        self.block_dropout = nnx.Dropout(config.block_dropout)

    def frames(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns features over time, [b, config.frames(samples), channels[-1]].

        Args:
          wav: waveforms [b, samples] in [-1, 1] at `config.sample_rate`.
          use_running_average: whether to normalise by the running statistics; if not, as in
            training, by the batch's, which also update the running ones.
          rngs: random streams; dropout and SpecAugment are active if given, with `dropout`.
        """
        if wav.shape[1] < self.config.min_samples:
            raise ValueError(
                f"a clip of {wav.shape[1]} samples is too short for this {self.config.NAME}: "
                f"pad it to {self.config.min_samples} samples or more."
            )
        x = decibel_mel(wav, self.config)  # [b, frames, mels]
        x = self.bn0(x, use_running_average=use_running_average)
        if rngs is not None:
            x = _drop_stripes(x, 1, self.config.time_stripe, self.config.stripes, rngs.dropout())
            x = _drop_stripes(x, 2, self.config.mel_stripe, self.config.stripes, rngs.dropout())
        x = x[..., None].astype(self.dtype)
        drop = functools.partial(self.block_dropout, deterministic=rngs is None, rngs=rngs)
        for i in range(1, len(self.config.channels) + 1):
            block = getattr(self, f"conv_block{i}")
            x = block(x, use_running_average=use_running_average)
            if i <= self.config.halvings:
                x = _halve(x)
            x = drop(x)
        return jnp.mean(x, axis=2)


class Cnn14(Cnn14Frames):
    """Waveform to an embedding and to probabilities of AudioSet's classes."""

    # Fourier and mel matrices of the front end, which are computed; a counter that nothing reads.
    UNUSED = re.compile(r"(spectrogram|logmel)_extractor\..*|.*\.num_batches_tracked")

    def __init__(self, config: Cnn14Config, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        width = config.channels[-1]
        self.fc1 = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.fc_audioset = nnx.Linear(width, config.num_classes, dtype=dtype, rngs=rngs)
        self.head_dropout = nnx.Dropout(config.head_dropout)

    def __call__(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """Embeds recordings; for the arguments see `frames`.

        Returns:
          `embedding` [b, channels[-1]]; `logits` and `clipwise`, probabilities, of each class on
          its own, [b, num_classes], float32.
        """
        x = self.frames(wav, use_running_average=use_running_average, rngs=rngs)
        x = jnp.max(x, axis=1) + jnp.mean(x, axis=1)
        drop = functools.partial(self.head_dropout, deterministic=rngs is None, rngs=rngs)
        x = nnx.relu(self.fc1(drop(x)))
        logits = self.fc_audioset(x).astype(jnp.float32)
        return {"embedding": drop(x), "logits": logits, "clipwise": nnx.sigmoid(logits)}


def decibel_mel(wav: jax.Array, config: CnnConfig) -> jax.Array:
    """Returns the mel power spectrogram in decibels, [b, 1 + samples // hop, n_mels], float32.

    The front end of PANNs (torchlibrosa): centred frames with reflected ends, a periodic Hann
    window, Slaney mel filters, 10 log10 with a floor of 1e-10.
    """
    power = centred_power(wav, config.n_fft, config.hop_length)
    return 10 * jnp.log10(jnp.maximum(power @ mel_filters(config.mel()), 1e-10))


def _halve(x: jax.Array) -> jax.Array:
    """Average pooling over 2 x 2 of [b, h, w, c], without an odd last row or column.

    It reshapes: on a CPU the gradient of XLA's window reduction is several times slower.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


def _drop_stripes(x: jax.Array, axis: int, width: int, count: int, key: jax.Array) -> jax.Array:
    """Zeroes `count` random stripes along `axis`, narrower than `width`, for each example."""
    size = x.shape[axis]
    k_width, k_start = jax.random.split(key)
    shape = (x.shape[0], count, 1)
    widths = jax.random.randint(k_width, shape, 0, min(width, size))
    starts = jnp.floor(jax.random.uniform(k_start, shape) * (size - widths)).astype(jnp.int32)
    position = jnp.arange(size)
    dropped = jnp.any((position >= starts) & (position < starts + widths), axis=1)  # [b, size]
    return jnp.where(jnp.expand_dims(dropped, 3 - axis), 0, x)


def _batch_norm(channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(
        channels, momentum=0.9, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs
    )
