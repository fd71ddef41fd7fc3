"""Winograd's minimal filtering: m outputs of an r-tap filter with m + r - 1 products, not m r.

A filter F(m, r) is three matrices (Lavin and Gray 2016, "Fast algorithms for convolutional neural
networks"): the m outputs of a tile are `output @ ((kernel @ taps) * (input @ samples))`. With
channels, each product is a matrix product, next to which the transforms are cheap. The matrices
follow, by transposition, from the Toom-Cook product of polynomials, evaluated at m + r - 2 points
and infinity (Blahut 2010, "Fast Algorithms for Signal Processing", chapter 5).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Filter:
    """Transforms of F(m, r), n = m + r - 1.

    Attributes:
      output: transform of the products, [m, n].
      kernel: transform of the taps, [n, r].
      input: transform of the samples, [n, n]; the largest number of a row is one.
    """

    output: np.ndarray
    kernel: np.ndarray
    input: np.ndarray

    @classmethod
    def at(cls, m: int, r: int, points: Sequence[float]) -> "Filter":
        """Returns F(m, r) with evaluation at m + r - 2 points and infinity."""
        n = m + r - 1
        values = np.vander([*points, 0.0], n, increasing=True)  # of the powers, at each point
        values[-1] = 0
        output, kernel = values[:, :m].T.copy(), values[:, :r].copy()
        output[-1, -1] = kernel[-1, -1] = values[-1, -1] = 1
        samples = np.linalg.inv(values).T
        scale = np.abs(samples).max(axis=1, keepdims=True)
        clean = lambda matrix: np.where(np.abs(matrix) < 1e-9, 0, matrix).astype(np.float32)
        return cls(clean(output), clean(kernel * scale), clean(samples / scale))


_ROOT = math.sqrt(0.5)
# Points with little loss of precision.
F23 = Filter.at(2, 3, (0, 1, -1))
F43 = Filter.at(4, 3, (0, _ROOT, -_ROOT, 1 / _ROOT, -1 / _ROOT))
F44 = Filter.at(4, 4, (0, 1, -1, 0.5, -0.5, 2))


def combine(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the sums of `parts` weighted by the rows of a matrix [rows, len(parts)]."""
    return [
        sum(part if weight == 1 else float(weight) * part for weight, part in terms)
        for terms in ([t for t in zip(row, parts, strict=True) if t[0]] for row in matrix)
    ]
