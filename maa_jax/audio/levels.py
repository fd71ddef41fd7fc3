"""Levels of waveforms."""

import numpy as np

from maa_jax.audio.io import SAMPLE_RATE


def loudest(wav: np.ndarray, sample_rate: int = SAMPLE_RATE) -> float:
    """Returns the level of the loudest 0.4 s of [samples], in dB of full scale; -120 for silence.

    Args:
      wav: waveform in [-1, 1].
      sample_rate: its sample rate, in Hz.
    """
    width = min(len(wav), round(0.4 * sample_rate))
    power = np.concatenate([[0.0], np.cumsum(np.square(wav, dtype=np.float64))])
    best = float((power[width:] - power[:-width]).max() / width)
    return 10 * float(np.log10(max(best, 1e-12)))


def offset(wav: np.ndarray) -> float:
    """Returns the size of the mean of [samples] beside its RMS; 0 for silence."""
    rms = float(np.sqrt(np.square(wav, dtype=np.float64).mean()))
    return abs(float(wav.mean(dtype=np.float64))) / rms if rms else 0.0


def skewness(wav: np.ndarray) -> float:
    """Returns the skewness of [samples]: 0 where both signs are alike; 0 for silence."""
    centred = wav.astype(np.float64) - wav.mean(dtype=np.float64)
    deviation = float(np.sqrt(np.square(centred).mean()))
    return float((centred**3).mean()) / deviation**3 if deviation else 0.0
