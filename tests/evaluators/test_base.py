import jax
import numpy as np
import pytest

from maa_jax.evaluators import EVALUATORS, base, find
from maa_jax.evaluators.base import Inputs, Sounds
from maa_jax.evaluators.features import Cached


class Means:
    """A network whose feature is the mean; it counts the sounds that it embeds."""

    def __init__(self, name="means"):
        self.name = self.digest = name
        self.heard = 0

    def __call__(self, wavs, sample_rate):
        self.heard += len(wavs)
        return wavs.mean(axis=1, keepdims=True)


class Mean:
    """An evaluator that reports the mean of the sounds."""

    name, needs, samples = "mean", frozenset({"sounds"}), None

    def __init__(self, network):
        self.networks = (network,)

    def run(self, inputs):
        (features,) = inputs.sounds.features(self.networks)
        yield base.Score("mean", float(features.mean()))


def sounds(wavs, passes=None):
    def batches():
        if passes is not None:
            passes.append(1)
        for i in reversed(range(len(wavs))):
            yield np.array([i]), wavs[i : i + 1]

    names = [str(i) for i in range(len(wavs))]
    return Sounds(
        batches, 16000, 4, names=names, captions=[()] * len(wavs), labels=[()] * len(wavs)
    )


WAVS = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_sounds_are_made_once_for_all_evaluators_and_embedded_once_by_each_network():
    one, two, passes = Means("one"), Means("two"), []
    inputs = Inputs(sounds(WAVS, passes))
    evaluators = [Mean(one), Mean(two), Mean(one)]
    assert [score.value for score in base.run(evaluators, inputs)] == [5.5, 5.5, 5.5]
    assert len(passes) == 1 and one.heard == two.heard == 3
    features = inputs.sounds.features([two])[0]
    np.testing.assert_array_equal(features, WAVS.mean(axis=1, keepdims=True))  # in order
    assert len(passes) == 1


def test_processes_embed_their_shares_and_have_all_features_in_order(monkeypatch):
    shares = [np.array([0, 2, 4]), np.array([1, 3])]
    rows = np.arange(5, dtype=np.float32)[:, None] * np.ones((1, 4), np.float32)
    monkeypatch.setattr(base, "gather", lambda mine: np.concatenate([first[mine.ndim], mine]))
    first = {1: shares[0], 2: rows[shares[0]].mean(axis=1, keepdims=True)}
    second = Sounds(
        lambda: [(shares[1], rows[shares[1]])], 16000, 4,
        names=list("abcde"), captions=[()] * 5, labels=[()] * 5,
    )  # fmt: skip
    (features,) = second.features([Means()])
    np.testing.assert_array_equal(features[:, 0], np.arange(5))
    assert jax.process_count() == 1


def test_features_are_kept_by_the_content_of_network_and_sounds(tmp_path):
    network = Means()
    cached = Cached(network, tmp_path)
    expected = cached(WAVS, 16000)
    again = Cached(network, tmp_path)
    np.testing.assert_array_equal(again(WAVS.copy(), 16000), expected)
    assert network.heard == 3
    again(WAVS + 1, 16000)
    again(WAVS, 8000)
    Cached(Means("another"), tmp_path)(WAVS, 16000)
    assert network.heard == 9 and len(list(tmp_path.glob("*/*.npy"))) == 4
    for file in tmp_path.glob("*/*.npy"):
        file.write_bytes(file.read_bytes()[:-4])
    np.testing.assert_array_equal(again(WAVS, 16000), expected)
    assert network.heard == 12


def test_labels_that_no_recording_has_are_refused():
    evaluator = Mean(Means())
    evaluator.needs = frozenset({"sounds", "references", "labels"})
    made, recorded = sounds(WAVS), sounds(WAVS)
    recorded.labels = [["drum"], ["bell", "metal"], ["voice"]]
    made.labels = [["drum"], ["metal", "other"], ["voise"]]
    with pytest.raises(
        ValueError,
        match=r"1 of 3 sounds have no label of a recording, such as '2'.*'voise'.*'voice'",
    ):
        base.run([evaluator], Inputs(made, recorded)).__next__()
    made.labels[2] = ["voise", "voice"]
    assert len(list(base.run([evaluator], Inputs(made, recorded)))) == 1


def test_a_mistaken_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"evaluators='label_acuracy'.*'label_accuracy'"):
        find("label_acuracy")
    for name in EVALUATORS:
        assert find(name).name == name
