import numpy as np
import pytest

from maa_jax.metrics import classes, frechet, intervals, kernel

SETS = [
    frechet.frechet_distance,
    frechet.fad_infinity,
    frechet.frechet_distance_of_rows,
    kernel.kernel_inception_distance,
    kernel.kernel_audio_distance,
    kernel.kernel_audio_distance_of_rows,
    classes.kl_divergence,
]


def rows(n=600, width=3):
    return np.random.default_rng(0).normal(size=(n, width))


@pytest.mark.parametrize("metric", SETS)
def test_what_is_no_finite_number_is_refused_with_its_row(metric):
    for bad in (np.nan, np.inf):
        broken = rows()
        broken[7, 1] = bad
        with pytest.raises(ValueError, match="evaluated has NaN or infinity in row 7"):
            metric(rows(), broken)
        with pytest.raises(ValueError, match="reference has NaN or infinity in row 7"):
            metric(broken, rows())


@pytest.mark.parametrize("metric", SETS)
def test_features_of_two_networks_are_refused(metric):
    with pytest.raises(ValueError, match="reference has rows of 3 numbers, evaluated of 4"):
        metric(rows(), rows(width=4))


@pytest.mark.parametrize("metric", SETS)
def test_what_is_no_matrix_of_numbers_is_refused(metric):
    for bad in (rows()[:, 0], rows()[None], np.zeros((5, 0))):
        with pytest.raises(ValueError, match=r"reference has the shape .*: give \[n, width\]"):
            metric(bad, rows())
    with pytest.raises(ValueError, match="reference has the type <U1: give real numbers"):
        metric(np.array([["a", "b", "c"]] * 600), rows())


@pytest.mark.parametrize("metric", [m for m in SETS if m is not classes.kl_divergence])
def test_one_row_is_refused(metric):
    with pytest.raises(ValueError, match="reference has 1 rows: give 2 or more"):
        metric(rows(1), rows())


def test_clips_without_a_partner_are_refused():
    with pytest.raises(ValueError, match="reference has 5 rows, evaluated has 4 rows"):
        classes.kl_divergence(rows(5), rows(4))
    with pytest.raises(ValueError, match="array 0 has 5 rows, array 1 has 5 rows, groups has 4"):
        intervals.bootstrap(lambda a, b: 0.0, np.zeros(5), np.zeros(5), groups=list("abcd"))
