import numpy as np
import pytest

from maa_jax.audio.mel import MelConfig, log_mel, log_spectral_distances
from maa_jax.evaluators import base, make
from maa_jax.evaluators.base import Inputs
from maa_jax.evaluators.features import Networks
from maa_jax.evaluators.reconstruction import griffin_lim, silent_level
from tests.evaluators.test_waveform import RATE, sounds, tone


@pytest.fixture(scope="module")
def recordings():
    silence = np.zeros(RATE // 2)
    return [np.concatenate([tone(-20, RATE // 2), silence]), tone(-30)]


def test_griffin_lim_returns_a_tone(recordings):
    wav = recordings[1][: 62 * 256].astype(np.float32)
    found = griffin_lim(np.asarray(log_mel(wav[None]))[0], MelConfig())
    assert found.shape == wav.shape
    spectrum = np.abs(np.fft.rfft(found))
    assert np.argmax(spectrum) == pytest.approx(440 * len(wav) / RATE, abs=15)
    distance = lambda other: float(log_spectral_distances(other[None], wav[None])[0])
    assert distance(wav) == 0
    noise = np.random.default_rng(0).normal(0, 0.02, len(wav)).astype(np.float32)
    assert distance(found.astype(np.float32)) < distance(noise) / 2


def test_a_vocoder_is_measured_beside_griffin_lim(tiny_model, recordings):
    evaluators = make(["vocoder"], Networks(vocoder=tiny_model, batch_size=2))
    found = base.values(base.run(evaluators, Inputs(references=sounds(*recordings))))
    assert found["vocoder/ratio"] == pytest.approx(
        found["vocoder/distance"] / found["vocoder/griffin_lim"]
    )
    assert found["vocoder/ratio"] > 1  # of random weights
    assert found["vocoder/offset"] >= 0 and 0 <= found["vocoder/skewness"] <= 1
    assert found["vocoder/silence"] in (0, 1)


def test_silence_is_what_lies_beyond_the_margin():
    recording = np.zeros(4_000, np.float32)
    recording[1_000] = 0.5
    sound = np.full(4_000, 1e-4, np.float32)
    sound[950:1_050] = 1.0
    assert silent_level(sound, recording, 50) == pytest.approx(-80, abs=0.1)
    assert silent_level(sound, recording, 40) > -60
    assert silent_level(sound, np.ones(4_000, np.float32), 50) == -np.inf
