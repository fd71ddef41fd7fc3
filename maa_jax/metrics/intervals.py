"""Confidence intervals of scores: bootstrap over clips or groups of them, Student's and normal."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

import numpy as np
from scipy import special

from maa_jax.metrics.base import check_lengths, checked


@dataclasses.dataclass(frozen=True)
class Interval:
    """A score and its confidence interval.

    Attributes:
      value: the score.
      low: lower end of the interval.
      high: upper end.
    """

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    groups: Sequence[object] | np.ndarray | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    centred: bool = False,
) -> Interval:
    """Returns a score with a bootstrap percentile interval (Efron 1979).

    Clips are drawn with replacement, the same of all arrays, and scored anew. So several arrays are
    paired: `bootstrap(lambda a, b: score(a) - score(b), a, b)` compares two systems on the same
    clips. A mean costs nothing; a score of sets costs itself `resamples` times, for which there are
    `frechet_distance_of_rows` and `kernel_audio_distance_of_rows`, and 200 resamples will do.

    Args:
      statistic: score of the arrays, called with as many arrays of rows.
      *arrays: values of the clips, [n, ...] each, in one order.
      groups: what each clip belongs to, such as its prompt or its listener, [n]; whole groups are
        drawn, as clips of one group are no independent evidence. None if each clip stands alone.
      resamples: number of resamples; enough for two on either side of the interval.
      level: probability of the interval, such as 0.95.
      seed: seed of the draws.
      centred: moves the interval by the bias, the mean of the resamples less the score. For scores
        that depend on the number of different clips, of which a resample has 63 %: Fréchet
        distances and inception scores. Otherwise the interval may even exclude such a score.

    Raises:
      ValueError: the arrays do not pair, there are fewer than 2 clips or groups, a score is not
        finite, or an argument is out of range.
    """
    _check_level(level)
    if resamples * (1 - level) < 4:
        needed = int(np.ceil(4 / (1 - level) - 1e-9))
        raise ValueError(f"resamples={resamples}: level={level} needs {needed} or more")
    value, scores = replicates(
        statistic, *arrays, groups=groups, resamples=resamples, seed=seed, centred=centred
    )
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def replicates(
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    groups: Sequence[object] | np.ndarray | None = None,
    resamples: int = 1000,
    seed: int = 0,
    centred: bool = False,
) -> tuple[float, np.ndarray]:
    """Returns a score and the scores of resampled clips, float64 [resamples]; see `bootstrap`.

    Two systems' scores of the same clips, with the same seed, are resampled alike: the differences
    of their replicates are those of a paired bootstrap.
    """
    arrays = tuple(np.asarray(array) for array in arrays)
    lengths = {f"array {i}": len(array) for i, array in enumerate(arrays)}
    if groups is not None:
        lengths["groups"] = len(groups)
    check_lengths(**lengths)
    draw = _draws(len(arrays[0]), groups)
    rng = np.random.default_rng(seed)
    value, scores = _finite(statistic(*arrays)), np.empty(resamples)
    for i in range(resamples):
        rows = draw(rng)
        scores[i] = _finite(statistic(*(array[rows] for array in arrays)))
    if centred:
        scores -= scores.mean() - value
    return value, scores


def student(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Returns the mean with Student's interval, mean +- t s / sqrt(n).

    It suits means of few values that are about normal. It may leave the scale of an opinion score,
    and holds where values are independent: of listeners who rate several clips, take each one's
    mean, or `bootstrap` over listeners.

    Args:
      values: values [n], 2 or more.
      level: probability of the interval.

    Raises:
      ValueError: the values are fewer or not finite, or the level is out of range.
    """
    _check_level(level)
    values = checked("values", values, dims=1, least=2)
    return _around_mean(values, float(special.stdtrit(len(values) - 1, (1 + level) / 2)))


def normal(values: np.ndarray, *, level: float = 0.95) -> Interval:
    """Returns the mean with the normal interval, mean +- 1.96 s / sqrt(n) at 0.95 (ITU-T P.808).

    s has n - 1 in the denominator. For the arguments and errors see `student`, which is wider for
    few values.
    """
    _check_level(level)
    values = checked("values", values, dims=1, least=2)
    return _around_mean(values, statistics.NormalDist().inv_cdf((1 + level) / 2))


def _around_mean(values: np.ndarray, quantile: float) -> Interval:
    values = values.astype(np.float64)
    mean, half = values.mean(), quantile * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(mean), float(mean - half), float(mean + half))


def _draws(
    n: int, groups: Sequence[object] | np.ndarray | None
) -> Callable[[np.random.Generator], np.ndarray]:
    """Returns what draws the rows of a resample."""
    if groups is None:
        _check_count(n, "clips")
        return lambda rng: rng.integers(n, size=n)
    _, numbers = np.unique(np.asarray(groups), return_inverse=True)
    members = np.split(np.argsort(numbers, kind="stable"), np.bincount(numbers).cumsum()[:-1])
    count = len(members)
    _check_count(count, "groups")
    return lambda rng: np.concatenate([members[i] for i in rng.integers(count, size=count)])


def _check_count(n: int, of: str) -> None:
    if n < 2:
        raise ValueError(f"{n} {of}: an interval needs 2 or more")


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a probability between 0 and 1, such as 0.95")


def _finite(score: float) -> float:
    if not np.isfinite(score):
        raise ValueError(f"the statistic is {score}: it must be finite for every resample")
    return float(score)
