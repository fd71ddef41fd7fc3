import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.linalg

from maa_jax.metrics import frechet
from maa_jax.metrics.frechet import FewRows, Gaussian, frechet_distance
from tests.metrics.tools import CASES, FEATURES, TOOLS, features


def sets(n=300, m=200, width=12, seed=0):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, width)), rng.normal(size=(m, width))
    return x @ rng.normal(size=(width, width)), y @ rng.normal(size=(width, width)) + 0.5


@pytest.mark.parametrize("case", CASES)
def test_the_distance_is_that_of_the_tools(case):
    distance = frechet_distance(*features(case))
    for tool in ("audioldm_eval", "specvqgan", "fadtk", "torch_fidelity"):
        np.testing.assert_allclose(distance, TOOLS[f"{case}/{tool}/frechet_distance"], rtol=1e-10)
    np.testing.assert_allclose(distance, FEATURES[f"{case}/frechet_distance"], rtol=1e-6)


def test_the_distance_is_that_of_the_formula():
    x, y = sets()
    cov = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(cov[0] @ cov[1]).real
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cov[0] + cov[1] - 2 * root)
    np.testing.assert_allclose(frechet_distance(x, y), expected, rtol=1e-10)
    np.testing.assert_allclose(frechet_distance(y, x), expected, rtol=1e-10)


@pytest.mark.parametrize("n", [20, 199, 200, 500])
def test_the_distance_is_exact_for_singular_and_badly_scaled_covariances(n):
    rng = np.random.default_rng(0)
    low_rank = rng.normal(size=(n, 10)) @ rng.normal(size=(10, 200))
    for x in (low_rank, rng.normal(size=(n, 200)) * np.logspace(-8, 4, 200), np.ones((n, 200))):
        # Twice the features have four times the covariance, so the root is known.
        expected = np.sum(x.mean(0) ** 2) + x.var(0, ddof=1).sum()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewRows)
            np.testing.assert_allclose(frechet_distance(x, 2 * x), expected, rtol=1e-12)
            assert 0 <= frechet_distance(x, x[::-1]) < 1e-10 * expected


def test_one_column_is_enough():
    x, y = sets(width=1)
    expected = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    np.testing.assert_allclose(frechet_distance(x, y), expected)


def test_fewer_rows_than_the_width_give_the_tools_value_and_a_warning_with_both_numbers():
    x, y = (side[:60] for side in features("wide"))
    with pytest.warns(FewRows, match="evaluated: n=60 rows do not exceed their width d=96") as one:
        frechet_distance(FEATURES["wide/features_1"], y)
    assert len(one) == 1 and Gaussian.of(y).note in str(one[0].message)
    with pytest.warns(FewRows) as both:
        distance = frechet_distance(x, y)
    assert [str(w.message).partition(":")[0] for w in both] == ["reference", "evaluated"]
    assert both[0].filename == __file__
    for tool in ("audioldm_eval", "fadtk", "torch_fidelity"):  # of which the root is noisy
        np.testing.assert_allclose(distance, TOOLS[f"few/{tool}/frechet_distance"], rtol=1e-6)


def test_more_rows_than_the_width_give_no_warning():
    x, y = sets(n=13, m=13)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(x, y)
    assert Gaussian.of(x).note is None
    assert "n=12 rows" in Gaussian.of(x[1:]).note


def test_a_set_is_estimated_once_for_many_distances_in_blocks():
    x = np.random.default_rng(0).normal(size=(40_000, 64)).astype(np.float32)
    tracemalloc.start()
    gaussian = Gaussian.of(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes  # in float64, it would be twice that
    np.testing.assert_allclose(gaussian.factor.T @ gaussian.factor, np.cov(x, rowvar=False), 1e-9)
    y = x[:500] * 1.1
    assert frechet_distance(gaussian, y) == frechet_distance(x, Gaussian.of(y))


def test_fad_infinity_is_that_of_fadtk():
    found = frechet.fad_infinity(TOOLS["frames/reference"], TOOLS["frames/evaluated"], seed=5)
    for name in ("score", "slope", "r2"):
        expected = TOOLS[f"frames/fadtk/infinity_{name}"]
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9)
    points = np.transpose([found.sizes, found.scores])
    np.testing.assert_allclose(points, TOOLS["frames/fadtk/infinity_points"], rtol=1e-10)


def test_fad_infinity_repeats_by_its_seed():
    x, y = TOOLS["frames/reference"], TOOLS["frames/evaluated"]
    assert frechet.fad_infinity(x, y, seed=1) == frechet.fad_infinity(x, y, seed=1)
    assert frechet.fad_infinity(x, y, seed=1) != frechet.fad_infinity(x, y, seed=2)


def test_fad_infinity_of_few_rows_is_refused_or_warned_about():
    x, y = sets(n=600, m=500)
    with pytest.raises(ValueError, match=r"500 rows: an extrapolation from least=500 rows"):
        frechet.fad_infinity(x, y)
    with pytest.warns(FewRows, match="evaluated: n=10 rows") as found:
        frechet.fad_infinity(x, y, least=10, sizes=5)
    assert len(found) == 1
    with pytest.raises(ValueError, match="sizes=1"):
        frechet.fad_infinity(x, y, least=10, sizes=1)


def test_distances_of_recordings_are_those_of_fadtk():
    songs = list(TOOLS["frames/evaluated"].reshape(30, 30, 8))
    each = frechet.frechet_distance_each(TOOLS["frames/reference"], songs)
    np.testing.assert_allclose(each, TOOLS["frames/fadtk/individual"], rtol=1e-10)


def test_a_recording_of_one_frame_is_named():
    x, y = sets()
    with pytest.raises(ValueError, match=r"evaluated\[1\] has 1 rows: give 2"):
        frechet.frechet_distance_each(x, [y, y[:1]])


@pytest.mark.parametrize("m", [8, 150])
def test_the_distance_of_chosen_rows_is_that_of_these_rows(m):
    x, y = sets(m=m)
    rows = np.random.default_rng(1).integers(m, size=m + 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewRows)
        expected = frechet_distance(x, y[rows])
    np.testing.assert_allclose(frechet.frechet_distance_of_rows(x, y)(rows), expected, rtol=1e-10)
