"""Processes, devices and the cache of compiled programs."""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maa_jax.files import output_folder


def initialize() -> None:
    """Sets up a program's process: the compilation cache, and the connection to other processes.

    Programs call this before anything touches a device; a library that imports maa_jax makes both
    choices itself.
    """
    enable_compilation_cache()
    initialize_distributed()


def enable_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second run starts at once.

    The folder is JAX_COMPILATION_CACHE_DIR, else $XDG_CACHE_HOME/maa_jax/jax, else
    ~/.cache/maa_jax/jax. Entry points call this; a library that imports maa_jax decides itself.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(cache, "maa_jax", "jax"))
    # The default leaves out programs that compile in under a second, which together take most of a
    # small model's compilation time.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


_COORDINATOR = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


def initialize_distributed() -> None:
    """Connects to the other processes of the run, if there are any.

    Starts `jax.distributed` when JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID are
    set, under Slurm with more than one task, and on a TPU pod of more than one host. Call it before
    anything else touches a device.

    Raises:
      ValueError: only some of the three variables are set.
    """
    present = [name for name in _COORDINATOR if os.environ.get(name)]
    if present and len(present) < len(_COORDINATOR):
        absent = sorted(set(_COORDINATOR) - set(present))
        raise ValueError(f"{present[0]} is set but {', '.join(absent)} not: set all or none.")
    on_pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if not (present or on_pod or _several(os.environ.get("SLURM_NTASKS", "1"))):
        return
    _keep_cpu_collectives_in_order()
    if present:
        address, count, index = (os.environ[name] for name in _COORDINATOR)
        jax.distributed.initialize(address, int(count), int(index))
    else:
        jax.distributed.initialize()


def _keep_cpu_collectives_in_order() -> None:
    """Has XLA run the collectives of a CPU's program in one order, the same in every process.

    Its other scheduler starts independent collectives in any order: processes then exchange the
    wrong arrays and abort. XLA reads the flag when a backend starts; a user's own value stays.
    """
    flag, given = (
        "--xla_cpu_enable_concurrency_optimized_scheduler",
        os.environ.get("XLA_FLAGS", ""),
    )
    if "cpu" in (os.environ.get("JAX_PLATFORMS") or "cpu") and flag not in given:
        os.environ["XLA_FLAGS"] = f"{given} {flag}=false".strip()


def _several(count: str) -> bool:
    return count.isdigit() and int(count) > 1


@contextlib.contextmanager
def hold_folder(path: str) -> Iterator[pathlib.Path]:
    """Makes a folder for the output of this run, and holds it for the run's processes alone.

    Raises:
      ValueError: the folder cannot be written to, or another run holds it.
    """
    first = jax.process_index() == 0
    held = output_folder(path) if first else contextlib.nullcontext(pathlib.Path(path))
    with held as folder:
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("the output's folder is held")
        yield folder


Items = TypeVar("Items", Sequence, np.ndarray)


def share(
    items: Items, process_index: int | None = None, process_count: int | None = None
) -> Items:
    """Returns a process's share of work that all processes divide among them.

    Args:
      items: all items of work, the same in every process.
      process_index: index of the process, by default this one's.
      process_count: number of processes, by default all of this run.

    Returns:
      Consecutive items; shares differ in length by at most one, the first ones being longer.
    """
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    begin, end = (-(-i * len(items) // count) for i in (index, index + 1))
    return items[begin:end]


def create_local_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Returns a mesh of some of this process's devices, for batches local to the process."""
    return jax.make_mesh(
        (len(devices), 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that is replicated on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch, split along its first axis over all devices."""
    return NamedSharding(mesh, P(("data", "fsdp")))


class LocalDevices:
    """Devices of this process that share batches, each with a copy of the weights.

    Args:
      devices: devices to use, or None for JAX's default device.
    """

    def __init__(self, devices: Sequence[jax.Device] | None):
        self._mesh = None if devices is None else create_local_mesh(devices)

    def replicate(self, tree: Any) -> Any:
        """Returns a tree of arrays, replicated on every device."""
        return jax.device_put(tree, self._sharding(P()))

    def split(self, tree: Any, axis: int = 0) -> Any:
        """Returns a tree of arrays, split along an axis over the devices."""
        return jax.device_put(tree, self._sharding(P(*(None,) * axis, "data")))

    def fill(self, rows: np.ndarray) -> np.ndarray:
        """Returns rows [n, ...], the last one repeated until n is a multiple of the devices."""
        count = 1 if self._mesh is None else self._mesh.size
        return np.pad(rows, ((0, -len(rows) % count), *((0, 0),) * (rows.ndim - 1)), "edge")

    def _sharding(self, spec: P) -> NamedSharding | None:
        return None if self._mesh is None else NamedSharding(self._mesh, spec)
