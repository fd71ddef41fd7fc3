"""Processes, the device mesh, and where each array of a run lives."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

Tree = Any

_COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_distributed() -> None:
    """Joins the other processes of the run, where there are any.

    Starts `jax.distributed` when JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are
    set, under Slurm with more than one task, and on a TPU pod of more than one host. Call it before
    anything else touches a device.

    Raises:
      ValueError: if only some of the three variables are set.
    """
    present = [name for name in _COORDINATOR if os.environ.get(name)]
    if present:
        if len(present) < len(_COORDINATOR):
            absent = sorted(set(_COORDINATOR) - set(present))
            raise ValueError(f"{present[0]} is set but {', '.join(absent)} not: set all or none.")
        address, count, index = (os.environ[name] for name in _COORDINATOR)
        jax.distributed.initialize(address, int(count), int(index))
    elif _several(os.environ.get("SLURM_NTASKS", "1")) or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    ):
        jax.distributed.initialize()


def _several(count: str) -> bool:
    return count.isdigit() and int(count) > 1


def create_mesh(config: ml_collections.ConfigDict) -> Mesh:
    """Returns a mesh with the axes `data` and `fsdp` over all devices of all processes.

    Args:
      config: `data` and `fsdp`, sizes of the axes; -1 for one of them takes what is left.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
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
    # Auto: under jax's explicit axes a convolution with an FSDP-sharded kernel is refused.
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 2)


def create_local_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh of some of this process's devices, for batches that it spreads by itself."""
    return jax.make_mesh(
        (len(devices), 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def check_batch(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises ValueError unless the global batch splits over devices, processes and microbatches."""
    parts = mesh.size * microbatches
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"config.batch_size={batch_size} is not divisible by {mesh.size} devices x "
            f"config.accumulate={microbatches}; the nearest that is: "
            f"{max(parts, round(batch_size / parts) * parts)}."
        )


def state_sharding(shapes: Tree, mesh: Mesh, min_size: int = 2**14) -> Tree:
    """Returns a sharding for each array: split over `fsdp` where it is large, else replicated.

    The largest dimension that the axis divides is split; arrays below `min_size` elements stay
    whole, since gathering them costs more than holding them.
    """
    ways = mesh.shape["fsdp"]

    def spec(x):
        if ways > 1 and np.prod(x.shape) >= min_size:
            for axis in np.argsort(x.shape)[::-1]:
                if x.shape[axis] % ways == 0:
                    return P(*(None,) * int(axis), "fsdp")
        return P()

    return jax.tree.map(lambda x: NamedSharding(mesh, spec(x)), shapes)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """Returns global arrays made of each process's own rows."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def put_replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Returns global arrays that every device holds whole; each process gives the same values."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )
