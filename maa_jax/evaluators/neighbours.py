"""Exact nearest neighbours, with no array larger than a block of rows by the items."""

import numpy as np

_BLOCK = 256  # rows of distances at a time


def nearest(
    queries: np.ndarray, items: np.ndarray, k: int, *, leave_out_self: bool = False
) -> np.ndarray:
    """Returns the k items nearest to each query, the nearest first.

    By Euclidean distance, which for rows of unit length is the order of cosines.

    Args:
      queries: [n, d].
      items: [m, d].
      k: items wanted; all of them where there are fewer.
      leave_out_self: whether the queries are the items and none may find itself.

    Returns:
      int [n, k], numbers of items.
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
