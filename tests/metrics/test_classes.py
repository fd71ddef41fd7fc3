import numpy as np
import pytest

from maa_jax.metrics import classes
from maa_jax.metrics.base import Spread
from tests.metrics.tools import CASES, FEATURES, TOOLS, logits


def softmax(x):
    return np.exp(x) / np.exp(x).sum(1, keepdims=True)


@pytest.mark.parametrize("case", CASES)
def test_kl_is_that_of_the_tools(case):
    evaluated, reference = logits(case)
    soft = classes.kl_divergence(reference, evaluated).mean()
    sigmoid = classes.kl_divergence(reference, evaluated, form="sigmoid").mean()
    np.testing.assert_allclose(soft, TOOLS[f"{case}/specvqgan/kl"], rtol=1e-10)
    np.testing.assert_allclose(soft, TOOLS[f"{case}/audioldm_eval/kl_softmax"], rtol=1e-10)
    np.testing.assert_allclose(sigmoid, TOOLS[f"{case}/audioldm_eval/kl_sigmoid"], rtol=1e-10)
    np.testing.assert_allclose(soft, FEATURES[f"{case}/kl_softmax"], rtol=1e-6)
    np.testing.assert_allclose(sigmoid, FEATURES[f"{case}/kl_sigmoid"], rtol=1e-6)


def test_kl_has_a_direction():
    peaked, flat = np.array([[5.0, 0, 0]]), np.zeros((1, 3))
    p, q = softmax(peaked), softmax(flat)
    for a, b, x, y in ((p, q, peaked, flat), (q, p, flat, peaked)):
        expected = np.sum(a * np.log(a / (b + 1e-6)), axis=1)
        np.testing.assert_allclose(classes.kl_divergence(x, y), expected)
    assert classes.kl_divergence(peaked, flat) < 1.1 < classes.kl_divergence(flat, peaked)


def test_kl_is_that_of_each_clip():
    evaluated, reference = logits("small")
    each = classes.kl_divergence(reference, evaluated)
    alone = [classes.kl_divergence(reference[i : i + 1], evaluated[i : i + 1]) for i in range(9)]
    np.testing.assert_allclose(each[:9], np.concatenate(alone))


@pytest.mark.parametrize("form", classes.KL_FORMS)
def test_kl_of_certain_classes_is_finite(form):
    certain = np.array([[2000.0, 0, -2000], [-2000, 0, 2000]])
    found = classes.kl_divergence(certain, certain[::-1], form=form)
    # Each takes a class for impossible that the other is sure of, up to 1e-6.
    assert np.all(found >= -np.log(1e-6) - 1e-5) and np.isfinite(found).all()


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form='softmx': did you mean 'softmax'"):
        classes.kl_divergence(np.zeros((2, 2)), np.zeros((2, 2)), form="softmx")


@pytest.mark.parametrize("case", CASES)
def test_inception_score_is_that_of_the_tools(case):
    found = classes.inception_score(FEATURES[f"{case}/logits_1"])
    for tool in ("audioldm_eval", "specvqgan", "torch_fidelity"):
        mean, deviation = (TOOLS[f"{case}/{tool}/inception_score_{x}"] for x in ("mean", "std"))
        np.testing.assert_allclose([found.mean, found.deviation], [mean, deviation], rtol=1e-10)


def test_inception_score_counts_classes_that_are_evenly_and_surely_met():
    sure = 3000.0 * np.tile(np.eye(7), (10, 1))  # other probabilities underflow
    assert classes.inception_score(sure, splits=1) == Spread(pytest.approx(7), 0)
    assert classes.inception_score(np.zeros((40, 7))) == Spread(pytest.approx(1), 0)
    one = np.tile([[3000.0, 0, 0]], (20, 1))  # some classes underflow in all clips
    assert classes.inception_score(one) == Spread(pytest.approx(1), 0)


def test_inception_score_repeats_by_its_seed():
    x = logits("wide")[0]
    found = [classes.inception_score(x, seed=seed) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


def test_more_splits_than_clips_are_refused():
    with pytest.raises(ValueError, match="splits=10, n=9"):
        classes.inception_score(np.zeros((9, 3)))
