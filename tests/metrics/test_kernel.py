import itertools
import tracemalloc

import numpy as np
import pytest

from maa_jax.metrics import kernel
from maa_jax.metrics.base import Spread
from maa_jax.metrics.kernel import kernel_audio_distance, kernel_inception_distance
from tests.metrics.tools import CASES, FEATURES, TOOLS, features


def sets(n=50, m=40, width=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, width)), 1.2 * rng.normal(size=(m, width)) + 0.3


def mmd(x, y, k):
    """Unbiased squared MMD, pair by pair."""
    within = (np.mean([k(a, b) for a, b in itertools.permutations(z, 2)]) for z in (x, y))
    return sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])


def gaussian_mmd(x, y, bandwidth):
    return mmd(x, y, lambda a, b: np.exp(-np.sum((a - b) ** 2) / (2 * bandwidth**2)))


def distances(x):
    return sorted(np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2))


@pytest.mark.parametrize("case", CASES)
def test_kid_is_that_of_the_tools(case):
    found = kernel_inception_distance(*features(case), subset_size=100)
    for tool in ("audioldm_eval", "specvqgan", "torch_fidelity"):
        np.testing.assert_allclose(found.mean, TOOLS[f"{case}/{tool}/kid_mean"], rtol=1e-10)
        np.testing.assert_allclose(found.deviation, TOOLS[f"{case}/{tool}/kid_std"], rtol=1e-10)
    np.testing.assert_allclose(found.mean, FEATURES[f"{case}/kid_mean"], rtol=1e-6)
    np.testing.assert_allclose(found.deviation, FEATURES[f"{case}/kid_std"], rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_kad_is_that_of_kadtk_by_its_code_and_by_its_paper(case):
    for bandwidth, name in (("evaluated", "code"), ("reference", "paper")):
        found = kernel_audio_distance(*features(case), bandwidth=bandwidth)
        np.testing.assert_allclose(found, TOOLS[f"{case}/kadtk/{name}"], rtol=1e-6)
        np.testing.assert_allclose(found, FEATURES[f"{case}/kad_{name}_float64"], rtol=1e-6)
        # Its float32 is that far from its float64.
        np.testing.assert_allclose(found, FEATURES[f"{case}/kad_{name}_float32"], rtol=2e-5)


def test_kid_of_whole_sets_is_that_of_the_formula():
    x, y = sets(m=50)
    found = kernel_inception_distance(x, y)
    assert found == Spread(found.mean, 0)
    np.testing.assert_allclose(found.mean, mmd(x, y, lambda a, b: (a @ b / 6 + 1) ** 3))


def test_kad_is_that_of_the_formula():
    x, y = sets()
    for bandwidth, of in (("reference", x), ("evaluated", y)):
        middle = distances(of)[(len(of) * (len(of) - 1) // 2 - 1) // 2]
        expected = 100 * gaussian_mmd(x, y, middle)
        np.testing.assert_allclose(kernel_audio_distance(x, y, bandwidth=bandwidth), expected)


def test_distances_do_not_depend_on_the_blocks(monkeypatch):
    x, y = sets()
    whole = kernel_audio_distance(x, y), kernel_inception_distance(x, y, subset_size=30).mean
    rows = np.arange(40) // 2
    chosen = kernel.kernel_audio_distance_of_rows(x, y)(rows)
    monkeypatch.setattr(kernel, "_BLOCK", 7)
    parts = kernel_audio_distance(x, y), kernel_inception_distance(x, y, subset_size=30).mean
    np.testing.assert_allclose(parts, whole, rtol=1e-10)
    np.testing.assert_allclose(kernel.kernel_audio_distance_of_rows(x, y)(rows), chosen)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 37])
def test_the_median_is_the_lower_of_the_middle_ones(n):
    x = np.random.default_rng(n).normal(size=(n, 3))
    found = distances(x)
    np.testing.assert_allclose(kernel.median_distance(x), found[(len(found) - 1) // 2], rtol=1e-12)


def test_the_median_may_have_equals():
    x = np.repeat(np.eye(4), 3, axis=0)  # 12 pairs are equal, 54 a root of 2 apart
    np.testing.assert_allclose(kernel.median_distance(x), np.sqrt(2))


def test_a_bandwidth_of_nothing_is_refused():
    x = np.concatenate([np.ones((9, 2)), np.zeros((1, 2))])
    with pytest.raises(ValueError, match="bandwidth='reference': more than half of the pairs"):
        kernel_audio_distance(x, sets(width=2)[0])
    with pytest.raises(ValueError, match="bandwidth='refrence': did you mean 'reference'"):
        kernel_audio_distance(*sets(), bandwidth="refrence")


def test_kad_does_not_depend_on_the_origin():
    x, y = sets()
    moved = kernel_audio_distance(x + 1e6, y + 1e6)
    np.testing.assert_allclose(moved, kernel_audio_distance(x, y), rtol=1e-6)


def test_kid_repeats_by_its_seed():
    found = [kernel_inception_distance(*sets(), subset_size=20, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_kid_of_no_subsets_is_refused():
    for wrong in ({"subsets": 0}, {"subset_size": 1}):
        with pytest.raises(ValueError, match=r"subsets=.*give at least 1 and at least 2"):
            kernel_inception_distance(*sets(), **wrong)


def test_kad_of_many_rows_takes_little_memory():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(5000, 128)).astype(np.float32) for _ in range(2))
    tracemalloc.start()
    found = kernel_audio_distance(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert abs(found) < 0.01
    # A matrix of all pairs has 200 MB, all their differences 26 GB.
    assert peak < 100e6


def test_kad_of_all_rows_in_any_order_is_kad():
    x, y = sets()
    for bandwidth in kernel.BANDWIDTHS:
        expected = kernel_audio_distance(x, y, bandwidth=bandwidth)
        of_rows = kernel.kernel_audio_distance_of_rows(x, y, bandwidth=bandwidth)
        np.testing.assert_allclose(of_rows(np.arange(40)[::-1]), expected)


def test_kad_of_resamples_is_unbiased():
    x, y = sets()
    of_rows, rng = kernel.kernel_audio_distance_of_rows(x, y), np.random.default_rng(0)
    drawn = [of_rows(rng.integers(40, size=40)) for _ in range(4000)]
    score, error = of_rows(np.arange(40)), np.std(drawn) / np.sqrt(4000)
    assert abs(np.mean(drawn) - score) < 4 * error
    assert 4 * error < 0.3  # a row paired with itself would add more than 1
