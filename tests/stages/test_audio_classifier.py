"""Classifiers of one's own: what they learn, and what their folders hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maa_jax.data import datasets
from maa_jax.encoders.batching import Batches
from maa_jax.encoders.classifiers import SoundClassifier
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.stages import make_stage
from maa_jax.training import workdir_files
from maa_jax.training.config import check


@pytest.fixture
def cnn14(make_config):
    return make_config("audio_classifier")


@pytest.fixture
def config(cnn14):
    cnn14.classifier.name = "melception"
    return cnn14


def test_the_classes_are_all_labels_of_the_recordings(config):
    stage = make_stage(config)
    assert len(config.labels) == 18 and list(config.labels) == sorted(config.labels)
    assert stage.sizes.labels == config.labels and stage.sizes.num_classes == 18
    frozen = stage.load_frozen()
    for name in ("train", "validation"):
        described = datasets.metadata(config.data, name)
        found = [config.labels[i] for i in frozen[name][:, 0]]
        assert found == [example["labels"][0] for example in described]


def test_recordings_outside_the_named_classes_are_refused_by_their_id(config):
    config.labels = ("bass", "drone")
    with pytest.raises(ValueError, match=r"recording \w+ of split 'train' has the label '\w+', wh"):
        make_stage(config).load_frozen()


def test_a_melception_learns_the_first_label(config):
    stage = make_stage(config)
    logits = np.random.default_rng(0).normal(size=(2, 18)).astype("f")
    logits[0, 3] = 9
    scores = stage.scores(jnp.array(logits), np.array([[3, 5], [4, -1]]))
    expected = np.log(np.exp(logits).sum(1)) - logits[[0, 1], [3, 4]]
    np.testing.assert_allclose(scores["loss"], expected, rtol=1e-5)
    assert scores["accuracy"].tolist() == [1, np.argmax(logits[1]) == 4]


def test_a_step_moves_every_weight_of_a_melception(config):
    stage = make_stage(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    rng = np.random.default_rng(0)  # faster than compiling the initialisation
    draw = lambda x: 1 + 0.1 * np.abs(rng.standard_normal(x.shape)).astype("f")
    params, extra = jax.tree.map(draw, (shapes.params, shapes.extra))
    wavs = rng.uniform(-0.5, 0.5, (2, 16_384)).astype("f")
    batch, frozen = {"audio": wavs, "index": np.arange(2)}, {"train": np.array([[3], [4]])}
    grads, (scores, after) = jax.jit(jax.grad(stage.loss, has_aux=True))(
        params, extra, frozen, batch, jax.random.key(0)
    )
    still = [k for k, g in jax.tree.leaves_with_path(grads) if not np.any(g)]
    assert not still and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, extra)
    assert all(jax.tree.leaves(moved)) and scores.keys() == {"accuracy"}


def test_a_cnn14_learns_all_labels_and_is_scored_by_their_ranks(cnn14):
    stage = make_stage(cnn14)
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn's average precision")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 18)).astype("f")
    classes = np.array([[3, 5, 7], [4, -1, -1], [0, 17, -1]])
    there = np.zeros((3, 18))
    for row, found in zip(there, classes, strict=True):
        row[found[found >= 0]] = 1
    scores = stage.scores(jnp.array(logits), classes)
    expected = [metrics.average_precision_score(*pair) for pair in zip(there, logits, strict=True)]
    np.testing.assert_allclose(scores["average_precision"], expected, rtol=1e-5)
    likely = 1 / (1 + np.exp(-logits.astype(float)))
    entropy = -(there * np.log(likely) + (1 - there) * np.log(1 - likely)).mean(1)
    np.testing.assert_allclose(scores["loss"], entropy, rtol=1e-5)


def test_a_trained_classifier_is_opened_by_its_folder_with_labels_and_a_hash(cnn14, tmp_path):
    stage = make_stage(cnn14)
    state = jax.jit(stage.init)(jax.random.key(0))
    stage.export(state.params, state.extra, tmp_path)
    classifier = SoundClassifier(tmp_path, Batches(2))
    assert classifier.labels == tuple(cnn14.labels) and classifier.name.startswith("cnn14_")
    wavs = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 16_384)).astype("f")
    batch = {"audio": wavs, "index": np.arange(2)}
    logits = jax.jit(stage._logits)(state, batch)
    np.testing.assert_allclose(classifier.features(wavs)["logits"], logits, atol=1e-4)
    cnn14.init_from = str(tmp_path)
    assert make_stage(cnn14).start_weights().keys() == {"audio_classifier"}
    cnn14.labels = tuple(reversed(cnn14.labels))
    with pytest.raises(ValueError, match=r"config\.init_from=.*another Cnn14Config, labels="):
        make_stage(cnn14).start_weights()


def test_a_run_keeps_the_labels_that_it_found(config, make_config, tmp_path, monkeypatch):
    make_stage(config)
    workdir_files.write_config(tmp_path, config)
    again = make_config("audio_classifier")
    again.classifier.name = "melception"
    assert again.labels == () and workdir_files.check_config(tmp_path, again) == []
    monkeypatch.setattr(datasets, "metadata", None)  # gone
    assert make_stage(again).sizes == make_stage(config).sizes
    assert make_stage(workdir_files.read_config(tmp_path)).sizes == make_stage(config).sizes
    again.labels = ("a", "b")
    with pytest.raises(ValueError, match=r"config\.labels="):
        workdir_files.check_config(tmp_path, again)


def test_settings_that_do_not_fit_the_recordings_are_named(cnn14):
    cnn14.data.samples = 500
    with pytest.raises(ValueError, match=r"config\.data\.samples=500 is too short"):
        make_stage(cnn14)
    cnn14.data.samples = 16_384
    cnn14.classifier.cnn14.sample_rate = 32_000
    with pytest.raises(ValueError, match=r"config\.classifier\.cnn14\.sample_rate=32000, but rec"):
        make_stage(cnn14)
    cnn14.classifier.name = "melception"
    cnn14.data.samples = 2_000
    with pytest.raises(ValueError, match=r"config\.data\.samples=2000 is too short for a mel"):
        make_stage(cnn14)


def test_the_bundled_melception_is_small():
    from maa_jax.configs.audio_classifier import get_config

    config = get_config("bundled")
    assert check(config).classifier.melception.width == 2
    config.labels = tuple(map(str, range(150)))
    shapes = jax.eval_shape(make_stage(config).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes.params)) < 500_000
    full = get_config("cnn14").classifier.cnn14
    assert Cnn14Config(**full, num_classes=527) == Cnn14Config()
