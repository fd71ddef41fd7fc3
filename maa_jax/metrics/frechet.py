"""The Fréchet distance of two sets of features (FD, FAD, FID), and what derives from it.

The distance of the Gaussians with the sets' means and covariances (with n - 1 in the denominator)
is |mean_1 - mean_2|^2 + tr(C_1) + tr(C_2) - 2 tr((C_1 C_2)^(1/2)) (Heusel et al. 2017, Kilgour et
al. 2019). Where C = F^T F, the last trace is the sum of the singular values of F_1 F_2^T. The tools
(audioldm_eval, SpecVQGAN, fadtk, torch-fidelity) form C_1 C_2 and its root: of a singular one, each
eigenvalue that should be 0 is then rounding noise, whose root is larger, and may be complex. Here F
comes from the features themselves, so that nothing is squared.
"""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from maa_jax.metrics.base import check_widths, checked

_BLOCK = 4096  # rows that are in float64 at a time


class FewRows(UserWarning):
    """There are too few rows for a covariance of full rank."""


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of features.

    Attributes:
      rows: number n of rows that it was estimated from.
      mean: mean, float64 [d].
      factor: F with C = F^T F, float64 [min(n, d), d].
    """

    rows: int
    mean: np.ndarray
    factor: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, name: str = "features") -> "Gaussian":
        """Estimates a Gaussian; holds a block of the features in float64 at a time.

        Args:
          features: features [n, d], n of at least 2.
          name: their name in errors.

        Raises:
          ValueError: the features are no finite matrix of 2 rows or more.
        """
        features = checked(name, features, least=2)
        mean = features.mean(0, dtype=np.float64)
        factor = np.zeros((0, len(mean)))
        for start in range(0, len(features), _BLOCK):
            factor = np.concatenate([factor, features[start : start + _BLOCK] - mean])
            if len(factor) > len(mean):
                factor = np.linalg.qr(factor, mode="r")
        return cls(len(features), mean, factor / np.sqrt(len(features) - 1))

    @property
    def note(self) -> str | None:
        """What to write beside a distance if n does not exceed d; None if it does."""
        if self.rows > len(self.mean):
            return None
        return (
            f"n={self.rows} rows do not exceed their width d={len(self.mean)}: the covariance is "
            "singular, and the Fréchet distance depends much on n; compare it at equal n alone"
        )


def frechet_distance(reference: np.ndarray | Gaussian, evaluated: np.ndarray | Gaussian) -> float:
    """Returns the Fréchet distance, 0 or more; it is symmetric.

    Agrees with audioldm_eval's `calculate_fid` (audioldm_eval/metrics/fid.py), SpecVQGAN's
    (evaluation/metrics/fid.py), fadtk's `calc_frechet_distance` (fadtk/fad.py) and torch-fidelity's
    (torch_fidelity/metric_fid.py). Where n does not exceed d, these give a value as well, with the
    noise of their roots and without a warning.

    Args:
      reference: features [n, d], or their `Gaussian`.
      evaluated: features [m, d], or their `Gaussian`.

    Raises:
      ValueError: the features are no finite matrices of one width and of 2 rows or more.

    Warns:
      FewRows: n or m does not exceed d. `Gaussian.note` is the warning's text.
    """
    first, second = _gaussian("reference", reference), _gaussian("evaluated", evaluated)
    check_widths(("reference", "evaluated"), len(first.mean), len(second.mean))
    _warn(reference=first.note, evaluated=second.note)
    return _distance(first, second)


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """A line through scores of n rows, against 1/n.

    Attributes:
      score: its value at 1/n = 0.
      slope: its slope.
      r2: share of the scores' variance that it explains.
      sizes: the numbers n.
      scores: the score of each n.
    """

    score: float
    slope: float
    r2: float
    sizes: tuple[int, ...]
    scores: tuple[float, ...]


def fad_infinity(
    reference: np.ndarray | Gaussian,
    evaluated: np.ndarray,
    *,
    sizes: int = 25,
    least: int = 500,
    seed: int = 0,
) -> Extrapolation:
    """Extrapolates the distance to infinitely many rows, as fadtk does (Gui et al. 2024).

    Agrees with `score_inf` of fadtk/fad.py where numpy's global generator has the same seed. As
    there, rows are drawn with replacement, and only the evaluated ones.

    Args:
      reference: features [n, d], or their `Gaussian`.
      evaluated: features [m, d], m above `least`.
      sizes: how many numbers of rows are tried, evenly spaced from `least` to m; 2 or more.
      least: the smallest of them, 2 or more.
      seed: seed of the draws.

    Raises:
      ValueError: m does not exceed `least`, or an argument is out of range.

    Warns:
      FewRows: `least` or n does not exceed d.
    """
    reference = _gaussian("reference", reference)
    evaluated = checked("evaluated", evaluated)
    check_widths(("reference", "evaluated"), len(reference.mean), evaluated.shape[1])
    if sizes < 2 or least < 2:
        raise ValueError(f"sizes={sizes}, least={least}: give 2 or more of each")
    if len(evaluated) <= least:
        raise ValueError(
            f"evaluated has {len(evaluated)} rows: an extrapolation from least={least} rows needs "
            "more; give more, or a smaller least"
        )
    numbers = tuple(int(n) for n in np.linspace(least, len(evaluated), sizes))
    rng = np.random.RandomState(seed)  # that of numpy.random.choice, which the tool calls
    scores: list[float] = []
    for n in numbers:
        drawn = Gaussian.of(evaluated[rng.choice(len(evaluated), size=n, replace=True)])
        if not scores:
            _warn(reference=reference.note, evaluated=drawn.note)
        scores.append(_distance(reference, drawn))
    x, y = 1 / np.array(numbers), np.array(scores)
    slope, intercept = np.polyfit(x, y, 1)
    left, total = np.sum((y - slope * x - intercept) ** 2), np.sum((y - y.mean()) ** 2)
    r2 = 1 - left / total if total else 1.0
    return Extrapolation(float(intercept), float(slope), float(r2), numbers, tuple(scores))


def frechet_distance_each(
    reference: np.ndarray | Gaussian, evaluated: Sequence[np.ndarray]
) -> np.ndarray:
    """Returns the distance of each recording, float64 [recordings]: fadtk's per-song FAD.

    Agrees with `score_individual` of fadtk/fad.py. A recording's frames rarely exceed the width, so
    only the reference is warned about: such distances rank recordings, and no more.

    Args:
      reference: features [n, d], or their `Gaussian`.
      evaluated: features of each recording, [frames, d], of 2 frames or more.

    Raises:
      ValueError: some recording has fewer than 2 frames; and as for `frechet_distance`.

    Warns:
      FewRows: n does not exceed d.
    """
    reference = _gaussian("reference", reference)
    _warn(reference=reference.note)
    distances = []
    for number, features in enumerate(evaluated):
        name = f"evaluated[{number}]"
        gaussian = Gaussian.of(features, name)
        check_widths(("reference", name), len(reference.mean), len(gaussian.mean))
        distances.append(_distance(reference, gaussian))
    return np.array(distances)


def frechet_distance_of_rows(
    reference: np.ndarray | Gaussian, evaluated: np.ndarray
) -> Callable[[np.ndarray], float]:
    """Returns the distance as a function of the rows that are taken, for `intervals.bootstrap`.

    `bootstrap(frechet_distance_of_rows(reference, evaluated), np.arange(len(evaluated)),
    centred=True)` resamples the evaluated rows against a fixed reference. Each call costs the
    singular values of [rows, min(n, d)], where a bootstrap takes 63 % of m different rows; to that
    end it holds [m, min(n, d)] in float64.

    Args:
      reference: features [n, d], or their `Gaussian`.
      evaluated: features [m, d].

    Returns:
      A function of indices of evaluated rows, int [k], k of at least 2, which may repeat.

    Raises:
      ValueError: as for `frechet_distance`.
    """
    reference, whole = _gaussian("reference", reference), _gaussian("evaluated", evaluated)
    check_widths(("reference", "evaluated"), len(reference.mean), len(whole.mean))
    features = np.asarray(evaluated) - whole.mean
    against = features @ reference.factor.T
    squares = np.einsum("nd,nd->n", features, features)
    shift = whole.mean - reference.mean

    def distance(rows: np.ndarray) -> float:
        places, counts = np.unique(rows, return_counts=True)
        total = counts.sum()
        mean = counts @ features[places] / total
        trace = (counts @ squares[places] - total * mean @ mean) / (total - 1)
        factor = against[places] - counts @ against[places] / total
        factor *= np.sqrt(counts / (total - 1))[:, None]
        root = np.linalg.svd(factor, compute_uv=False).sum()
        apart = shift + mean
        return _sum(apart @ apart, np.sum(reference.factor**2), trace, root)

    return distance


def _gaussian(name: str, given: np.ndarray | Gaussian) -> Gaussian:
    return given if isinstance(given, Gaussian) else Gaussian.of(given, name)


def _warn(**notes: str | None) -> None:
    for name, note in notes.items():
        if note:
            warnings.warn(f"{name}: {note}", FewRows, stacklevel=3)


def _distance(first: Gaussian, second: Gaussian) -> float:
    apart = first.mean - second.mean
    root = np.linalg.svd(first.factor @ second.factor.T, compute_uv=False).sum()
    return _sum(apart @ apart, np.sum(first.factor**2), np.sum(second.factor**2), root)


def _sum(means: float, first: float, second: float, root: float) -> float:
    # Of two equal sets, rounding leaves some 1e-16 of the traces, of either sign.
    return max(0.0, float(means + first + second - 2 * root))
