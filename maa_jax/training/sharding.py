"""The device mesh, and how the arrays of a run are sharded over it."""

from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maa_jax.devices import batch_sharding, replicated

Tree = Any


def create_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """Returns a mesh with the axes `data` and `fsdp` over all devices of all processes.

    Args:
      config: sizes of the axes `data` and `fsdp`; one may be -1, for all remaining devices.

    Raises:
      ValueError: the product of the sizes is not the number of devices.
    """
    count, sizes = jax.device_count(), {"data": config.data, "fsdp": config.fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) == 1 and known > 0 and count % known == 0:
        sizes[free[0]] = count // known
    if min(sizes.values()) < 1 or np.prod(list(sizes.values())) != count:
        raise ValueError(
            f"config.mesh: data={config.data} x fsdp={config.fsdp} does not cover the {count} "
            "devices; set one axis to -1 and the other to a divisor of their number."
        )
    # Auto: with explicit axes JAX rejects a convolution with an FSDP-sharded kernel.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2)


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises a ValueError unless devices and microbatches divide the global batch evenly."""
    parts = mesh.size * microbatches
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"config.batch_size={batch_size} is not divisible by {mesh.size} devices x "
            f"config.accumulate={microbatches}; the nearest that is: "
            f"{max(parts, round(batch_size / parts) * parts)}."
        )


def state_sharding(shapes: Tree, mesh: Mesh, min_size: int = 2**14) -> Tree:
    """Returns a sharding for each array: split over `fsdp` where it is large, else replicated.

    Args:
      shapes: tree of arrays or `jax.ShapeDtypeStruct`.
      mesh: mesh from `create_mesh`.
      min_size: smallest number of elements of an array that is split, along its largest dimension
        that the axis divides. Gathering smaller arrays costs more than replicating them.
    """
    ways = mesh.shape["fsdp"]

    def spec(x):
        if ways > 1 and np.prod(x.shape) >= min_size:
            for axis in np.argsort(x.shape)[::-1]:
                if x.shape[axis] % ways == 0:
                    return P(*(None,) * int(axis), "fsdp")
        return P()

    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), shapes)


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Returns global arrays, split along the batch, from each process's own rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Returns replicated global arrays; all processes must pass the same values."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )
