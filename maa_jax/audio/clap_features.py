"""What LAION's CLAP hears: log-mels at 48 kHz, by the rules of transformers' ClapFeatureExtractor.

Those cut long recordings at random; here a seed decides, and a recording's features do not depend
on others of its batch. (Microsoft's CLAP takes waveforms at 44.1 kHz: `maa_jax.models.cnn14`.)
"""

import dataclasses
import functools
from typing import Any, Self

import numpy as np

from maa_jax.audio.mel import triangular_filters

_TRUNCATIONS = ("fusion", "rand_trunc")
_PADDINGS = ("repeatpad", "repeat", "pad")


@dataclasses.dataclass(frozen=True)
class ClapFeatures:
    """Settings of the front end, named as in preprocessor_config.json, and the front end itself.

    `truncation` says what becomes of recordings longer than `max_length_s` seconds: "fusion" (the
    whole of it shrunk in time, and three crops) or "rand_trunc" (one crop). `padding` says what
    becomes of shorter ones: "repeatpad" (repeated as often as it fits, then silence), "repeat"
    (repeated and cut) or "pad" (silence).
    """

    feature_size: int = 64
    sampling_rate: int = 48000
    hop_length: int = 480
    max_length_s: int = 10
    fft_window_size: int = 1024
    frequency_min: float = 0
    frequency_max: float = 14000
    truncation: str = "fusion"
    padding: str = "repeatpad"

    def __post_init__(self):
        for name, value, known in (
            ("truncation", self.truncation, _TRUNCATIONS),
            ("padding", self.padding, _PADDINGS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not known: use {' or '.join(known)}.")

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads preprocessor_config.json."""
        return cls(**{f.name: d[f.name] for f in dataclasses.fields(cls) if f.name in d})

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return self.max_length_s * self.sampling_rate

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.samples // self.hop_length + 1

    def __call__(self, wav: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, bool]:
        """Returns the spectrograms of one recording, and whether it is longer than a clip.

        Args:
            wav: [samples], mono, at `sampling_rate`, of at least one sample.
            seed: of the crops; the same one gives the same crops.

        Returns:
            Decibels, float32 [4, frames, feature_size] with "fusion", else [1, frames,
            feature_size]; and what `Htsat` takes as `is_longer`.
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
        if len(mel) == self.frames:  # also of a recording less than a hop longer than a clip
            return np.stack([mel] * 4), False
        crops = [mel[start : start + self.frames] for start in self._starts(len(mel), rng)]
        return np.stack([_shrink(mel, self.frames), *crops]), True

    def _starts(self, total: int, rng: np.random.Generator) -> list[int]:
        """Returns the first frames of the crops: one each in three thirds of all places."""
        thirds = np.array_split(np.arange(total - self.frames + 1), 3)
        return [rng.choice(third) if len(third) else 0 for third in thirds]

    def _padded(self, wav: np.ndarray) -> np.ndarray:
        """Returns a recording of a clip's length or more."""
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
        # The two kinds of the released models were trained with different filters.
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
    """Interpolates [n, mels] linearly to [frames, mels], as PyTorch does without aligned ends."""
    position = np.maximum((np.arange(frames) + 0.5) * (len(mel) / frames) - 0.5, 0)
    first = np.floor(position).astype(int)
    share = (position - first).astype(np.float32)[:, None]
    return mel[first] * (1 - share) + mel[np.minimum(first + 1, len(mel) - 1)] * share
