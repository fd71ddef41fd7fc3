import numpy as np
import pytest
import scipy.stats

from maa_jax.metrics import frechet, intervals, kernel
from maa_jax.metrics.intervals import Interval, bootstrap


def test_the_interval_of_a_mean_is_about_the_normal_one():
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found, expected = bootstrap(np.mean, values, resamples=4000), intervals.normal(values)
    assert found.value == expected.value == values.mean()
    width = expected.high - expected.low
    np.testing.assert_allclose(found.low, expected.low, atol=width / 20)
    np.testing.assert_allclose(found.high, expected.high, atol=width / 20)


def test_intervals_repeat_by_their_seed():
    values = np.random.default_rng(0).normal(size=50)
    for groups in (None, np.arange(50) // 5):
        found = [bootstrap(np.mean, values, groups=groups, seed=seed) for seed in (1, 1, 2)]
        assert found[0] == found[1] != found[2]


def test_an_interval_of_a_higher_level_is_wider():
    values = np.random.default_rng(0).normal(size=50)
    resampled = lambda values, level: bootstrap(np.mean, values, level=level)
    for interval in (resampled, intervals.normal, intervals.student):
        narrow, wide = interval(values, level=0.8), interval(values, level=0.99)
        assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def coverage(draw, truth, **options):
    """Share of 150 intervals that contain the truth."""
    found = [draw(np.random.default_rng(i), **options) for i in range(150)]
    return np.mean([x.low <= truth <= x.high for x in found])


def test_clips_of_one_prompt_are_no_independent_evidence():
    groups = np.repeat(np.arange(25), 6)

    def interval(rng, **options):
        values = rng.normal(size=25)[groups] + 0.3 * rng.normal(size=150)
        return bootstrap(np.mean, values, resamples=200, **options)

    assert 0.87 < coverage(interval, 0, groups=groups) < 0.99
    assert coverage(interval, 0) < 0.75


def test_groups_may_have_names_and_any_order_and_size():
    values = np.array([1.0, 5, 1, 9, 5, 1])
    found = bootstrap(lambda x: len(x), values, groups=["a", "b", "a", "c", "b", "a"])
    assert found == Interval(6, 3, 9)  # of one clip thrice, to of three clips thrice
    medians = bootstrap(lambda x: len(set(x)), values, groups=list("abacba"))
    assert medians.high == 3  # clips of a group stay together


def test_two_systems_are_compared_on_the_same_clips():
    rng = np.random.default_rng(0)
    clips = rng.normal(size=100)
    a, b = clips + 0.1 + 0.1 * rng.normal(size=100), clips + 0.1 * rng.normal(size=100)
    found = bootstrap(lambda a, b: a.mean() - b.mean(), a, b)
    assert 0.05 < found.low < found.high < 0.15
    apart = [bootstrap(np.mean, x) for x in (a, b)]
    assert apart[0].low < apart[1].high  # which would not tell them apart
    of_differences = bootstrap(np.mean, a - b)
    np.testing.assert_allclose(found.low, of_differences.low)
    np.testing.assert_allclose(found.high, of_differences.high)


def test_an_interval_of_a_frechet_distance_is_centred_and_covers_its_mean():
    rng = np.random.default_rng(99)
    reference = frechet.Gaussian.of(rng.normal(size=(5000, 10)))

    def draw(rng):
        return rng.normal(size=(40, 10)) * 1.3

    truth = np.mean([frechet.frechet_distance(reference, draw(rng)) for _ in range(2000)])

    def interval(rng, **options):
        score = frechet.frechet_distance_of_rows(reference, draw(rng))
        return bootstrap(score, np.arange(40), resamples=100, **options)

    assert 0.85 < coverage(interval, truth, centred=True)
    assert coverage(interval, truth) < 0.6  # resamples have fewer different clips


def test_an_interval_of_kad_contains_it():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(80, 5)), 1.3 * rng.normal(size=(70, 5))
    found = bootstrap(kernel.kernel_audio_distance_of_rows(x, y), np.arange(70), resamples=200)
    np.testing.assert_allclose(found.value, kernel.kernel_audio_distance(x, y))
    assert 0 < found.low < found.value < found.high


def test_students_interval_is_scipys():
    values = np.array([3.0, 4, 5, 5, 2])
    for level in (0.5, 0.95):
        found = intervals.student(values, level=level)
        error = scipy.stats.sem(values)
        expected = scipy.stats.t.interval(level, 4, loc=values.mean(), scale=error)
        np.testing.assert_allclose([found.low, found.high], expected)


def test_the_normal_interval_is_that_of_p808():
    values = np.array([3, 4, 5, 5, 2])
    found = intervals.normal(values)
    half = 1.96 * np.std(values, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose([found.low, found.high], [3.8 - half, 3.8 + half], rtol=1e-4)


def test_what_gives_no_interval_is_refused():
    values = np.arange(9.0)
    refused = {
        "resamples=79: level=0.95 needs 80": lambda: bootstrap(np.mean, values, resamples=79),
        "level=95": lambda: bootstrap(np.mean, values, level=95),
        "level=0: give a probability": lambda: intervals.student(values, level=0),
        "1 clips: an interval needs 2": lambda: bootstrap(np.mean, values[:1]),
        "1 groups: an interval needs 2": lambda: bootstrap(np.mean, values, groups=["a"] * 9),
        "the statistic is nan": lambda: bootstrap(lambda x: np.nan, values),
        "values has 1 rows": lambda: intervals.normal(values[:1]),
        "values has NaN or infinity in row 1": lambda: intervals.student(np.array([1, np.nan, 2])),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
    bootstrap(np.mean, values, resamples=80)
