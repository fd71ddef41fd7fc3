"""The front end of LAION's CLAP: log mels at 48 kHz, as in transformers' ClapFeatureExtractor.

That class crops long recordings at random. Here a seed decides, and a recording's features do not
depend on the others in its batch. (Microsoft's CLAP takes waveforms at 44.1 kHz: see
`maa_jax.models.cnn14`.)
"""

import dataclasses
import functools
from typing import Any, Self

import numpy as np

from maa_jax import schema
from maa_jax.audio.mel import triangular_filters


@dataclasses.dataclass(frozen=True)
class ClapFeatures:
    """Settings of the front end, named as in preprocessor_config.json, and the front end itself.

    Attributes:
      feature_size: number of mel bands.
      sampling_rate: sample rate in Hz.
      hop_length: samples from one frame to the next.
      max_length_s: length of a clip in seconds.
      fft_window_size: length of the transform and of its window, in samples.
      frequency_min: lower edge of the lowest mel band, in Hz.
      frequency_max: upper edge of the highest mel band, in Hz.
      truncation: treatment of a recording longer than a clip: "fusion" gives all of it, shrunk in
        time, and three crops; "rand_trunc" gives one crop.
      padding: treatment of a shorter recording: "repeatpad" repeats it as often as it fits and adds
        silence, "repeat" repeats and cuts it, "pad" adds silence.
    """

    feature_size: int = schema.size(64, most=1024)
    sampling_rate: int = schema.field(48000, least=1000, most=768_000)
    hop_length: int = schema.field(480, least=16, most=16_384)
    max_length_s: int = schema.size(10, most=60)
    fft_window_size: int = schema.field(1024, least=16, most=16_384)
    frequency_min: float = schema.field(0, least=0, most=384_000)
    frequency_max: float = schema.field(14000, least=0, most=384_000)
    truncation: str = schema.field("fusion", choices=("fusion", "rand_trunc"))
    padding: str = schema.field("repeatpad", choices=("repeatpad", "repeat", "pad"))

    def __post_init__(self):
        schema.check(self)
        if not self.frequency_min < self.frequency_max <= self.sampling_rate / 2:
            raise ValueError(
                f"frequency_min={self.frequency_min}, frequency_max={self.frequency_max}: they "
                f"must rise, up to half of sampling_rate={self.sampling_rate}"
            )

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads preprocessor_config.json.

        Raises:
          ValueError: settings are invalid; all are named.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        return schema.build(cls, {k: v for k, v in d.items() if k in names})

    @property
    def samples(self) -> int:
        """Number of samples in a clip."""
        return self.max_length_s * self.sampling_rate

    @property
    def frames(self) -> int:
        """Number of frames in a clip."""
        return self.samples // self.hop_length + 1

    def __call__(self, wav: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, bool]:
        """Returns the spectrograms of one recording, and whether it is longer than a clip.

        Args:
          wav: mono samples [samples] at `sampling_rate`, at least one.
          seed: seed of the crops; the same seed gives the same crops.

        Returns:
          Decibels, float32 [4, frames, feature_size] with "fusion", else [1, frames,
          feature_size]; and the `is_longer` of `Htsat`.

        Raises:
          ValueError: the recording has another shape.
        """
        wav = np.asarray(wav)
        if wav.ndim != 1 or not len(wav):
            raise ValueError(f"a recording of shape {wav.shape}: give mono samples, [samples].")
        rng = np.random.default_rng(seed)
        if self.truncation == "rand_trunc":
            start = rng.integers(0, max(0, len(wav) - self.samples) + 1)
            longer = len(wav) > self.samples
            return self._decibels(self._padded(wav[start : start + self.samples]))[None], longer
        mel = self._decibels(self._padded(wav))
        if len(mel) == self.frames:  # or longer than a clip by less than a hop
            return np.stack([mel] * 4), False
        crops = [mel[start : start + self.frames] for start in self._starts(len(mel), rng)]
        return np.stack([_shrink(mel, self.frames), *crops]), True

    def _starts(self, total: int, rng: np.random.Generator) -> list[int]:
        """Returns the first frames of three crops, one in each third of the possible positions."""
        thirds = np.array_split(np.arange(total - self.frames + 1), 3)
        return [rng.choice(third) if len(third) else 0 for third in thirds]

    def _padded(self, wav: np.ndarray) -> np.ndarray:
        """Returns a recording that is at least as long as a clip."""
        if len(wav) >= self.samples:
            return wav
        if self.padding == "repeat":
            wav = np.tile(wav, -(-self.samples // len(wav)))[: self.samples]
        elif self.padding == "repeatpad":
            wav = np.tile(wav, self.samples // len(wav))
        return np.pad(wav, (0, self.samples - len(wav)))

    def _decibels(self, wav: np.ndarray) -> np.ndarray:
        """Returns the mel power spectrogram in decibels, float32 [frames, feature_size]."""
        n_fft = self.fft_window_size
        padded = np.pad(wav.astype(np.float64), n_fft // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: self.hop_length]
        spectrum = np.fft.rfft(frames * np.hanning(n_fft + 1)[:-1])
        # The released models of the two kinds were trained with different filters.
        power = np.square(np.abs(spectrum)) @ _filters(self, self.truncation == "fusion")
        return (10 * np.log10(np.maximum(power, 1e-10))).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _filters(config: ClapFeatures, htk: bool) -> np.ndarray:
    """Returns mel filters [bins, feature_size]: HTK's, or Slaney's."""
    return triangular_filters(
        config.sampling_rate,
        config.fft_window_size,
        config.feature_size,
        config.frequency_min,
        config.frequency_max,
        htk=htk,
    )


def _shrink(mel: np.ndarray, frames: int) -> np.ndarray:
    """Interpolates [n, mels] linearly to [frames, mels], like PyTorch with align_corners=False."""
    position = np.maximum((np.arange(frames) + 0.5) * (len(mel) / frames) - 0.5, 0)
    first = np.floor(position).astype(int)
    share = (position - first).astype(np.float32)[:, None]
    return mel[first] * (1 - share) + mel[np.minimum(first + 1, len(mel) - 1)] * share
