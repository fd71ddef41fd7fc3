"""Whether waveforms look like those of recordings: no offset, no clipping, a level of theirs."""

from collections.abc import Iterator, Sequence

import numpy as np

from maa_jax.audio import levels
from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks

_FULL_SCALE = 1 - 2**-15  # of 16 bits
_NEAR_DB = 10.0
_CLICK_SECONDS = 0.005


class Waveform:
    """An `Evaluator` of samples, without any network."""

    name = "waveform"
    needs = frozenset({"sounds", "references"})
    samples: int | None = None

    def __init__(self, networks: Networks):
        del networks
        self.networks: Sequence[Network] = (WaveformStatistics(),)

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields scores.

        Yields:
          ("waveform/offset", median of the mean's size over the RMS); ("waveform/unclipped", share
          of sounds without a sample at full scale); ("waveform/loudness", share of sounds whose
          loudest 0.4 s are within 10 dB of the recordings' median); ("waveform/clicks", share of
          sounds quieter than that median whose largest sample is among the first 5 ms).
        """
        (sounds,), (recordings,) = (
            side.features(self.networks) for side in (inputs.sounds, inputs.references)
        )
        offset, clipped, level, begins = sounds.T
        middle = float(np.median(recordings[:, 2]))
        yield Score("waveform/offset", float(np.median(offset)))
        yield Score("waveform/unclipped", float(np.mean(clipped == 0)))
        yield Score("waveform/loudness", float(np.mean(np.abs(level - middle) <= _NEAR_DB)))
        yield Score("waveform/clicks", float(np.mean((begins == 1) & (level < middle))))


class WaveformStatistics:
    """Offset, clipped samples, level in dB, and whether the peak comes at once."""

    name = "waveform"
    digest = "waveform"

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        return np.array([_statistics(wav, sample_rate) for wav in wavs], np.float32)


def _statistics(wav: np.ndarray, sample_rate: int) -> tuple[float, ...]:
    size = np.abs(wav)
    at_once = size.argmax() < _CLICK_SECONDS * sample_rate
    return (
        levels.offset(wav),
        float((size >= _FULL_SCALE).sum()),
        levels.loudest(wav, sample_rate),
        float(at_once),
    )
