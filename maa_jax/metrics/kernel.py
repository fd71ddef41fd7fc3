"""Kernel distances of two sets of features: KID and KAD, unbiased estimates of a squared MMD.

MMD^2 is the mean of k over the pairs of the one set, plus that over the pairs of the other, less
twice that over the pairs of both, where no row is paired with itself (Gretton et al. 2012). Being
unbiased, it is about 0, and may be negative, for sets that are alike. Kernels are computed for
blocks of pairs, so that the memory does not depend on the number of rows.
"""

from collections.abc import Callable, Iterator

import numpy as np

from maa_jax.checks import check_name
from maa_jax.metrics.base import Spread, checked_pair

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [i, d] and [j, d] to [i, j]

BANDWIDTHS = ("reference", "evaluated")
_NAMES = ("reference", "evaluated")
_BLOCK = 1024  # rows of a block; 8 MiB for each of its matrices
_KAD_SCALE, _KAD_EPS = 100, 1e-8  # kadtk's


def kernel_inception_distance(
    reference: np.ndarray,
    evaluated: np.ndarray,
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> Spread:
    """Returns KID, with the kernel (x y / d + 1)^3 (Binkowski et al. 2018).

    Agrees with `kid_features_to_metric` of torch-fidelity (torch_fidelity/metric_kid.py) and
    `calculate_kid` of SpecVQGAN and audioldm_eval (metrics/kid.py), with the set that they call
    features_1 as the reference: it is drawn from first.

    Args:
      reference: features [n, d].
      evaluated: features [m, d].
      subsets: number of subsets that are drawn from each set.
      subset_size: rows of a subset; the smaller of n and m, if that is less, as in SpecVQGAN.
      seed: seed of the draws.

    Raises:
      ValueError: the features are no finite matrices of one width and of 2 rows or more, or an
        argument is out of range.
    """
    reference, evaluated = checked_pair(_NAMES, reference, evaluated, least=2)
    if subsets < 1 or subset_size < 2:
        raise ValueError(
            f"subsets={subsets}, subset_size={subset_size}: give at least 1 and at least 2"
        )
    size = min(subset_size, len(reference), len(evaluated))
    if size == len(reference) == len(evaluated):
        subsets = 1  # all are the same
    width = reference.shape[1]
    kernel = lambda a, b: (a @ b.T / width + 1) ** 3
    rng = np.random.RandomState(seed)  # the tools' generator
    scores = []
    for _ in range(subsets):
        x = reference[rng.choice(len(reference), size, replace=False)]
        y = evaluated[rng.choice(len(evaluated), size, replace=False)]
        scores.append(_mean_within(x, kernel) + _mean_within(y, kernel) - 2 * _mean(x, y, kernel))
    return Spread.of(scores)


def kernel_audio_distance(
    reference: np.ndarray, evaluated: np.ndarray, *, bandwidth: str = "reference"
) -> float:
    """Returns KAD: 100 MMD^2 with the kernel exp(-d^2 / (2 bandwidth^2)) (Chung et al. 2025).

    Agrees with `calc_kernel_audio_distance` of kadtk/kad.py, in float64, given x = reference and
    y = evaluated. That code takes the bandwidth from the evaluated set, the paper and the tool's
    README from the reference; values of the two do not compare (YoonjinXD/kadtk issue 9).

    Args:
      reference: features [n, d].
      evaluated: features [m, d].
      bandwidth: the set whose median distance between two rows is the bandwidth: "reference", as
        in the paper, or "evaluated", as in the tool's code.

    Raises:
      ValueError: the features are no finite matrices of one width and of 2 rows or more, or the
        median distance is 0.
    """
    reference, evaluated, kernel = _gaussian_kernel(reference, evaluated, bandwidth)
    apart = _mean(reference, evaluated, kernel)
    within = _mean_within(reference, kernel) + _mean_within(evaluated, kernel)
    return _KAD_SCALE * (within - 2 * apart)


def kernel_audio_distance_of_rows(
    reference: np.ndarray, evaluated: np.ndarray, *, bandwidth: str = "reference"
) -> Callable[[np.ndarray], float]:
    """Returns KAD as a function of the rows that are taken, for `intervals.bootstrap`.

    `bootstrap(kernel_audio_distance_of_rows(reference, evaluated), np.arange(len(evaluated)))`
    resamples the evaluated rows against a fixed reference, at the bandwidth of the whole sets. A
    row that is drawn twice is not paired with itself, so that resamples are as unbiased as the
    score. A call takes m^2 multiplications, since all kernels among the evaluated rows are held, in
    float64 [m, m].

    Args:
      reference: features [n, d].
      evaluated: features [m, d].
      bandwidth: as in `kernel_audio_distance`.

    Returns:
      A function of indices of evaluated rows, int [k], which may repeat; two must differ.

    Raises:
      ValueError: as for `kernel_audio_distance`.
    """
    reference, evaluated, kernel = _gaussian_kernel(reference, evaluated, bandwidth)
    fixed = _mean_within(reference, kernel)
    apart, among = np.zeros(len(evaluated)), np.empty((len(evaluated), len(evaluated)))
    for start, rows in _blocks(evaluated):
        place = slice(start, start + len(rows))
        for _, others in _blocks(reference):
            apart[place] += kernel(rows, others).sum(1)
        for other, others in _blocks(evaluated):
            among[place, other : other + len(others)] = kernel(rows, others)
    apart /= len(reference)
    np.fill_diagonal(among, 0)

    def distance(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=len(among)).astype(np.float64)
        pairs = counts.sum() ** 2 - counts @ counts
        within = counts @ (among @ counts) / pairs
        return _KAD_SCALE * float(fixed + within - 2 * (counts @ apart) / counts.sum())

    return distance


def median_distance(features: np.ndarray) -> float:
    """Returns the median Euclidean distance between two different rows of [n, d].

    Of an even number of pairs, it is the lower of the two in the middle, as torch.median's. Its
    place is found 21 bits at a time, since the distances of all pairs may not fit into memory.
    """
    centre = features.mean(0, dtype=np.float64)  # what is far from 0 loses digits
    rank = (len(features) * (len(features) - 1) // 2 - 1) // 2
    prefix, mask = 0, 2**21 - 1
    for shift in (42, 21, 0):  # the bits of positive numbers sort as the numbers do
        counts = np.zeros(mask + 1, np.int64)
        for squares in _pairs(features, lambda a, b: _squares(a - centre, b - centre)):
            bits = squares.view(np.int64) >> shift
            counts += np.bincount(bits[bits >> 21 == prefix] & mask, minlength=mask + 1)
        below = counts.cumsum()
        digit = int(np.searchsorted(below, rank, side="right"))
        rank -= int(below[digit] - counts[digit])
        prefix = prefix << 21 | digit
    return float(np.sqrt(np.int64(prefix).view(np.float64)))


def _gaussian_kernel(
    reference: np.ndarray, evaluated: np.ndarray, bandwidth: str
) -> tuple[np.ndarray, np.ndarray, Kernel]:
    """Returns the sets, checked, and the kernel."""
    reference, evaluated = checked_pair(_NAMES, reference, evaluated, least=2)
    check_name("bandwidth", bandwidth, BANDWIDTHS)
    width = median_distance(reference if bandwidth == "reference" else evaluated)
    if not width:
        raise ValueError(
            f"bandwidth={bandwidth!r}: more than half of the pairs of its rows are equal, so that "
            "the median distance is 0; leave out repeated rows"
        )
    gamma = 1 / (2 * width**2 + _KAD_EPS)
    centre = reference.mean(0, dtype=np.float64)
    kernel = lambda a, b: np.exp(-gamma * _squares(a - centre, b - centre))
    return reference, evaluated, kernel


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the squared distances [i, j] of rows [i, d] and [j, d], without any [i, j, d]."""
    norms = (np.einsum("nd,nd->n", rows, rows) for rows in (a, b))
    return np.maximum(np.add.outer(*norms) - 2 * (a @ b.T), 0)


def _blocks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the start of each block of rows, and the block in float64."""
    for start in range(0, len(rows), _BLOCK):
        yield start, rows[start : start + _BLOCK].astype(np.float64)


def _pairs(rows: np.ndarray, kernel: Kernel) -> Iterator[np.ndarray]:
    """Yields the kernels of all pairs of two different rows, each pair once, in blocks [pairs]."""
    for start, first in _blocks(rows):
        for ahead, second in _blocks(rows[start:]):
            values = kernel(first, second)
            yield values.ravel() if ahead else values[np.triu_indices_from(values, 1)]


def _mean_within(rows: np.ndarray, kernel: Kernel) -> float:
    total = sum(float(values.sum()) for values in _pairs(rows, kernel))
    return total / (len(rows) * (len(rows) - 1) / 2)


def _mean(x: np.ndarray, y: np.ndarray, kernel: Kernel) -> float:
    total = sum(float(kernel(a, b).sum()) for _, a in _blocks(x) for _, b in _blocks(y))
    return total / (len(x) * len(y))
