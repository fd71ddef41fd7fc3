import numpy as np
import pytest

from maa_jax.audio import levels
from maa_jax.evaluators import base, make
from maa_jax.evaluators.base import Inputs, Sounds
from maa_jax.evaluators.features import Networks

RATE = 16_000


def sounds(*wavs):
    wavs = np.stack(wavs).astype(np.float32)
    names = [str(i) for i in range(len(wavs))]
    return Sounds(
        lambda: [(np.arange(len(wavs)), wavs)], RATE, wavs.shape[1],
        names=names, captions=names, labels=names,
    )  # fmt: skip


def tone(level_db, length=RATE):
    amplitude = np.sqrt(2) * 10 ** (level_db / 20)
    return amplitude * np.sin(2 * np.pi * 440 * np.arange(length) / RATE)


def test_good_sounds_pass_and_each_fault_is_seen():
    references = sounds(*(tone(level) for level in (-26, -20, -14)))
    (evaluator,) = make(["waveform"], Networks())
    good = base.values(base.run([evaluator], Inputs(references, references)))
    assert good == {
        "waveform/offset": pytest.approx(0, abs=1e-6),
        "waveform/unclipped": 1,
        "waveform/loudness": 1,
        "waveform/clicks": 0,
    }
    click = tone(-28)
    click[20] = 0.9
    faulty = sounds(tone(-20) + 0.3, np.clip(2 * tone(-3), -1, 1), tone(-40), click)
    found = base.values(base.run([evaluator], Inputs(faulty, references)))
    assert found["waveform/unclipped"] == 0.75
    assert found["waveform/loudness"] == 0.5
    assert found["waveform/clicks"] == 0.25
    assert found["waveform/offset"] == pytest.approx(levels.offset(click) / 2, abs=0.01)


def test_levels_are_those_of_their_definitions():
    assert levels.loudest(tone(-20, 4 * RATE)) == pytest.approx(-20, abs=0.01)
    quiet_then_loud = np.concatenate([tone(-40), tone(-20)])
    assert levels.loudest(quiet_then_loud) == pytest.approx(-20, abs=0.01)
    assert levels.loudest(np.zeros(100)) == -120
    assert levels.offset(tone(-20) + 0.1) == pytest.approx(0.1 / np.sqrt(0.02), abs=1e-3)
    assert levels.offset(np.zeros(9)) == levels.skewness(np.zeros(9)) == 0
    draws = np.random.default_rng(0).exponential(size=200_000)
    assert levels.skewness(draws) == pytest.approx(2, abs=0.1)
    assert levels.skewness(-draws) == -levels.skewness(draws)
