"""Applies jitted functions of a fixed batch size to any number of rows, on all devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from maa_jax.devices import LocalDevices

Tree = Any


def in_batches(function: Callable[[Tree], Tree], rows: Tree, batch_size: int) -> Tree:
    """Applies a function of `batch_size` rows to any number of them.

    The last batch is filled up by repeating its rows, so that only one program is compiled.

    Args:
      function: function from a tree of arrays [batch_size, ...] to another.
      rows: tree of arrays [n, ...], n at least 1.
      batch_size: number of rows in a batch.

    Returns:
      The function's results for the n rows, as numpy arrays [n, ...].
    """
    count = len(jax.tree.leaves(rows)[0])
    results = []
    for start in range(0, count, batch_size):
        batch = jax.tree.map(lambda x: x[start : start + batch_size], rows)  # noqa: B023
        filled = jax.tree.map(lambda x: np.resize(x, (batch_size, *x.shape[1:])), batch)
        results.append(jax.device_get(function(filled)))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:count], *results)


class Batches:
    """Runs jitted functions of weights and rows in batches, on devices of this process.

    Attributes:
      batch_size: number of rows in a batch, over all devices.
    """

    def __init__(self, batch_size: int, devices: Sequence[jax.Device] | None = None):
        """Makes the mesh of the devices.

        Args:
          batch_size: number of rows in a batch, rounded up to a multiple of that of the devices.
          devices: devices that share every batch, by default all of this process.
        """
        devices = devices or jax.local_devices()
        self._devices = LocalDevices(devices)
        self.batch_size = -(-batch_size // len(devices)) * len(devices)

    def put(self, params: Tree) -> Tree:
        """Returns weights replicated on all devices."""
        return self._devices.replicate(params)

    def run(self, function: Callable[..., Tree], params: Tree, *rows: Tree) -> Tree:
        """Returns `function(params, *rows)` for any number of rows, as numpy arrays.

        Args:
          function: jitted function of weights and trees of arrays [batch_size, ...].
          params: weights from `put`.
          *rows: trees of arrays [n, ...], n at least 1.
        """

        def on_devices(batch: tuple[Tree, ...]) -> Tree:
            return function(params, *self._devices.split(batch))

        return in_batches(on_devices, rows, self.batch_size)


def gather(rows: np.ndarray) -> np.ndarray:
    """Returns the rows of all processes, [n, ...], those of the first process first.

    Args:
      rows: rows of this process; their number may differ between processes.
    """
    if jax.process_count() == 1:
        return rows
    shapes = multihost_utils.process_allgather(np.array(rows.shape))  # [processes, axes]
    filled = np.zeros(shapes.max(axis=0), rows.dtype)
    filled[tuple(map(slice, rows.shape))] = rows
    parts = multihost_utils.process_allgather(filled)
    return np.concatenate([part[: shape[0]] for part, shape in zip(parts, shapes, strict=True)])
