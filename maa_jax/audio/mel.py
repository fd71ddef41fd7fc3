"""The log-mel front end in JAX, the same for training, evaluation and parity tests.

Frames are not centred: reflect padding of (n_fft - hop) / 2 samples on each side gives exactly
`samples // hop` frames, so that a vocoder of total stride `hop` lines up with them. This is
HiFi-GAN's `mel_spectrogram` (Kong et al., 2020) with the paper's decimal logarithm.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax import schema
from maa_jax.audio.io import SAMPLE_RATE

# Added to the power before the square root, as in HiFi-GAN, for a finite gradient at silence.
_POWER_FLOOR = 1e-9
LOGS = ("log10", "log")
# Transforms of the log-spectral distance, and the smallest magnitude that it hears.
SPECTRAL_SIZES = (512, 1024, 2048)
_SPECTRAL_FLOOR = 1e-4


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """Settings of the front end; the defaults are the paper's.

    Attributes:
      sample_rate: sample rate of the waveform, in Hz.
      n_fft: length of the transform and of its periodic Hann window, in samples.
      hop_length: samples from one frame to the next.
      n_mels: number of mel filters (Slaney's scale and area normalisation).
      fmin: lower edge of the lowest filter, in Hz.
      fmax: upper edge of the highest filter, in Hz.
      log: "log10", the paper's, or "log", HiFi-GAN's natural logarithm.
      floor: smallest mel magnitude; smaller ones, as in silence, are raised to it.
    """

    sample_rate: int = schema.field(SAMPLE_RATE, least=1000, most=768_000)
    n_fft: int = schema.field(1024, least=16, most=16_384)
    hop_length: int = schema.field(256, least=16, most=16_384)
    n_mels: int = schema.size(80, most=1024)
    fmin: float = schema.field(0.0, least=0, most=384_000)
    fmax: float = schema.field(8000.0, least=0, most=384_000)
    log: str = schema.field("log10", choices=LOGS)
    floor: float = schema.field(1e-5, least=1e-20, most=1)

    def __post_init__(self):
        schema.check(self)
        if self.hop_length > self.n_fft:
            raise ValueError(
                f"MelConfig.hop_length is {self.hop_length}; use 1 to n_fft ({self.n_fft})"
            )
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise ValueError(
                f"MelConfig.fmin, fmax are {self.fmin}, {self.fmax} Hz; they must rise and stay"
                f" within 0 to sample_rate / 2 ({self.sample_rate / 2} Hz)"
            )

    @property
    def silence(self) -> float:
        """Value of a log mel where there is no sound."""
        return float(getattr(np, self.log)(self.floor))


def mel_frequencies(count: int, fmin: float, fmax: float, *, htk: bool = False) -> np.ndarray:
    """Returns frequencies in Hz, float64 [count], evenly spaced in mels from fmin to fmax.

    Args:
      count: number of frequencies.
      fmin: lowest frequency, in Hz.
      fmax: highest frequency, in Hz.
      htk: whether to use HTK's mel scale, not Slaney's (linear up to 1 kHz, then logarithmic).
    """
    if htk:
        low, high = (2595.0 * np.log10(1.0 + f / 700.0) for f in (fmin, fmax))
        return 700.0 * (10.0 ** (np.linspace(low, high, count) / 2595.0) - 1.0)
    hz_per_mel, corner, step = 200.0 / 3, 1000.0, np.log(6.4) / 27.0
    low, high = (
        f / hz_per_mel if f < corner else corner / hz_per_mel + np.log(f / corner) / step
        for f in (fmin, fmax)
    )
    mels = np.linspace(low, high, count)
    above = corner * np.exp(step * (mels - corner / hz_per_mel))
    return np.where(mels < corner / hz_per_mel, hz_per_mel * mels, above)


def triangular_filters(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float, *, htk: bool = False
) -> np.ndarray:
    """Returns a mel filter bank, float64 [n_fft // 2 + 1, n_mels], as librosa computes it.

    Args:
      sample_rate: sample rate of the waveform, in Hz.
      n_fft: length of the transform, in samples.
      n_mels: number of filters.
      fmin: lower edge of the lowest filter, in Hz.
      fmax: upper edge of the highest filter, in Hz.
      htk: whether the filters are HTK's, of unit height, instead of Slaney's, of unit area.
    """
    edges = mel_frequencies(n_mels + 2, fmin, fmax, htk=htk)
    bins = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    if not htk:
        filters *= 2.0 / (edges[2:, None] - edges[:-2, None])
    return filters.T


@functools.lru_cache(maxsize=32)
def mel_filters(config: MelConfig = MelConfig()) -> np.ndarray:
    """Returns the front end's filters, float32 [n_fft // 2 + 1, n_mels], on Slaney's scale."""
    c = config
    bank = triangular_filters(c.sample_rate, c.n_fft, c.n_mels, c.fmin, c.fmax)
    return np.ascontiguousarray(bank, np.float32)


def stft_magnitude(wav: jax.Array, n_fft: int = 1024, hop_length: int = 256) -> jax.Array:
    """Returns magnitudes of the short-time Fourier transform (periodic Hann window, uncentred).

    Args:
      wav: waveforms [b, samples], of more than (n_fft - hop_length) / 2 samples.
      n_fft: length of the transform and of its window, in samples.
      hop_length: samples from one frame to the next.

    Returns:
      [b, frames, n_fft // 2 + 1], frames = samples // hop_length where hop_length divides n_fft.

    Raises:
      ValueError: the waveform is not [b, samples], or too short for the reflect padding.
    """
    padding = (n_fft - hop_length) // 2
    if wav.ndim != 2 or wav.shape[1] <= padding or wav.shape[1] < hop_length:
        raise ValueError(
            f"waveform of shape {wav.shape}: need [b, samples] with more than"
            f" {max(padding, hop_length - 1)} samples; pad it with zeros"
        )
    wav = jnp.pad(wav, ((0, 0), (padding, padding)), mode="reflect")
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(_frames(wav, n_fft, hop_length) * window)
    return jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + _POWER_FLOOR)


def centred_power(wav: jax.Array, n_fft: int, hop_length: int) -> jax.Array:
    """Returns power spectra of centred frames with reflected ends, periodic Hann window, float32.

    Args:
      wav: waveforms [b, samples], of more than n_fft / 2 samples.
      n_fft: length of the transform and of its window, in samples.
      hop_length: samples from one frame to the next.

    Returns:
      [b, 1 + samples // hop_length, n_fft // 2 + 1].
    """
    half = n_fft // 2
    wav = jnp.pad(wav.astype(jnp.float32), ((0, 0), (half, half)), mode="reflect")
    frames = 1 + (wav.shape[1] - n_fft) // hop_length
    starts = np.arange(frames)[:, None] * hop_length
    window = np.hanning(n_fft + 1)[:-1].astype(np.float32)
    spectrum = jnp.fft.rfft(wav[:, starts + np.arange(n_fft)] * window)
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


def _frames(wav: jax.Array, length: int, hop_length: int) -> jax.Array:
    """Returns the overlapping frames [b, frames, length] of waveforms [b, samples]."""
    count = (wav.shape[1] - length) // hop_length + 1
    if length % hop_length:
        return wav[:, np.arange(count)[:, None] * hop_length + np.arange(length)]
    # Side by side, since the gradient of an indexing is slow on CPUs.
    shifts = length // hop_length
    parts = wav[:, : (count + shifts - 1) * hop_length].reshape(len(wav), -1, hop_length)
    return jnp.concatenate([parts[:, i : i + count] for i in range(shifts)], axis=-1)


def log_spectral_distances(wav: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the distances [b] of the spectra of waveforms [b, samples], in decades.

    The mean absolute difference of the decimal logarithms of magnitudes, of at least 1e-4, with
    transforms of 512, 1,024 and 2,048 samples and hops of a quarter; 20 times as much in dB.
    """

    def distance(n_fft: int) -> jax.Array:
        magnitudes = (stft_magnitude(x, n_fft, n_fft // 4) for x in (wav, other))
        a, b = (jnp.log10(jnp.maximum(x, _SPECTRAL_FLOOR)) for x in magnitudes)
        return jnp.abs(a - b).mean((1, 2))

    return sum(map(distance, SPECTRAL_SIZES), jnp.zeros(())) / len(SPECTRAL_SIZES)


def spectral_convergences(wav: jax.Array, other: jax.Array) -> jax.Array:
    """Returns how far the spectra of waveforms [b, samples] are from those of others, [b].

    The norm of the difference of magnitudes beside that of the others' magnitudes (Arik et al.
    2018, "Fast spectrogram inversion"), which the loudest parts decide; transforms as in
    `log_spectral_distances`. Recordings below -88 dB count as loud as that.
    """

    def distance(n_fft: int) -> jax.Array:
        a, b = (stft_magnitude(x, n_fft, n_fft // 4) for x in (wav, other))
        norm = lambda x: jnp.sqrt(jnp.square(x).sum((1, 2)) + _POWER_FLOOR)
        return norm(a - b) / jnp.maximum(norm(b), 0.01 * math.sqrt(b[0].size))

    return sum(map(distance, SPECTRAL_SIZES), jnp.zeros(())) / len(SPECTRAL_SIZES)


def log_mel(wav: jax.Array, config: MelConfig = MelConfig()) -> jax.Array:
    """Returns the log-mel spectrograms of waveforms; pure and differentiable.

    Args:
      wav: waveforms [b, samples] in [-1, 1], of any float type; the computation is in float32.
      config: settings of the front end.

    Returns:
      float32 [b, samples // hop_length, n_mels]; about -5 to 1.5 with the default settings.

    Raises:
      ValueError: the waveform is not [b, samples], or shorter than the padding.
    """
    magnitude = stft_magnitude(wav.astype(jnp.float32), config.n_fft, config.hop_length)
    # Accelerators multiply float32 matrices in lower precision by default, to about three digits.
    mel = jnp.matmul(magnitude, mel_filters(config), precision=jax.lax.Precision.HIGHEST)
    return getattr(jnp, config.log)(jnp.maximum(mel, config.floor))
