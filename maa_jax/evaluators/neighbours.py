"""Exact nearest neighbours, computed in blocks of queries to limit memory."""

import numpy as np

_BLOCK = 256  # rows of distances at a time


def nearest(
    queries: np.ndarray, items: np.ndarray, k: int, *, leave_out_self: bool = False
) -> np.ndarray:
    """Returns the k items nearest to each query, nearest first.

    The distance is Euclidean, which for rows of unit length gives the order of cosines.

    Args:
      queries: query vectors [n, d].
      items: item vectors [m, d].
      k: number of items to return, at most all of them.
      leave_out_self: whether the queries are the items, and each is excluded from its own results.

    Returns:
      Indices of items, int [n, k].
    """
    items = items.astype(np.float64)
    lengths = np.square(items).sum(axis=1)
    blocks = []
    for start in range(0, len(queries), _BLOCK):
        block = queries[start : start + _BLOCK].astype(np.float64)
        # |q - i|² = |q|² - 2 q·i + |i|², of which |q|² is the same for all items.
        distances = lengths - 2 * block @ items.T
        if leave_out_self:
            rows = np.arange(len(block))
            distances[rows, start + rows] = np.inf
        blocks.append(np.argsort(distances, axis=1, kind="stable")[:, :k])
    found = np.concatenate(blocks)
    return found[:, : len(items) - 1] if leave_out_self else found
