import itertools

import numpy as np
import pytest

from maa_jax.evaluators import base, make
from maa_jax.evaluators.base import Inputs, Sounds
from maa_jax.evaluators.features import Networks
from maa_jax.evaluators.label_accuracy import chance, top

LABELS = [["drum"], ["drum"], ["bell"], ["bell", "metal"], ["voice"], ["voice"]]
RATE = 16000


def sound(kind, rng):
    t = np.arange(RATE // 2) / RATE
    wav = {
        "drum": np.sin(2 * np.pi * 60 * t) * np.exp(-20 * t),
        "bell": np.sin(2 * np.pi * 3000 * t) * np.exp(-3 * t),
        "voice": np.sign(np.sin(2 * np.pi * 300 * t)) * 0.3,
    }[kind]
    return (wav + rng.normal(0, 0.003, t.size)).astype(np.float32)


def sounds(kinds, labels, seed):
    rng = np.random.default_rng(seed)
    wavs = np.stack([sound(kind, rng) for kind in kinds])
    return Sounds(
        lambda: [(np.arange(len(wavs)), wavs)],
        RATE,
        RATE // 2,
        names=kinds,
        captions=[[f"a {kind}"] for kind in kinds],
        labels=labels,
    )


@pytest.fixture(scope="module")
def evaluators(tiny_model):
    return make(["label_accuracy"], Networks(clap=tiny_model))


@pytest.fixture(scope="module")
def recordings():
    return sounds([labels[0] for labels in LABELS], LABELS, 7)


def test_sounds_of_the_right_class_score_one(evaluators, recordings):
    made = sounds([labels[0] for labels in LABELS], LABELS, 0)
    scores = base.values(base.run(evaluators, Inputs(made, recordings)))
    assert scores["prompts"] == 6
    for name in ("clap", "log_mel"):
        assert scores[f"{name}/top_1"] == scores[f"{name}/top_5"] == 1
        assert scores[f"{name}/top_1_recordings"] == 1
    np.testing.assert_allclose(scores["top_1_chance"], 2 / 6)


def test_sounds_of_a_wrong_class_score_nothing(evaluators, recordings):
    made = sounds(["bell", "voice", "drum"], [["drum"], ["bell"], ["voice"]], 0)
    scores = base.values(base.run(evaluators, Inputs(made, recordings)))
    assert scores["log_mel/top_1"] == scores["clap/top_1"] == 0


def test_chance_is_that_of_every_draw():
    labels, theirs = [["a"], ["b", "c"]], [["a"], ["a"], ["b"], ["c", "b"], [], ["d"]]
    for k in (1, 2, 5, 9):
        draws = list(itertools.combinations(range(6), min(k, 6)))
        expected = np.mean(
            [[any(set(of) & set(theirs[i]) for i in draw) for draw in draws] for of in labels]
        )
        np.testing.assert_allclose(chance(labels, theirs, k), expected)


def test_top_asks_whether_any_found_recording_has_a_right_label():
    found, theirs = np.array([[1, 2], [0, 2]]), [["a"], ["b"], ["c"]]
    assert top(found, [["c"], ["a"]], theirs) == 1
    assert top(found[:, :1], [["c"], ["a"]], theirs) == 0.5


def test_recordings_without_labels_are_refused(evaluators, recordings):
    unlabelled = sounds(["drum", "bell"], [["drum"], []], 0)
    with pytest.raises(ValueError, match=r"needs labels of all sounds, but 1 of 2 .* 'bell'"):
        base.values(base.run(evaluators, Inputs(unlabelled, recordings)))
    with pytest.raises(ValueError, match="needs references"):
        base.values(base.run(evaluators, Inputs(recordings)))
