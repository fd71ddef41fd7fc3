"""Orbax checkpoints of a run: state, average and checksums, each an item of its own."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from maa_jax.files import user_path
from maa_jax.training.state import TrainState

Tree = Any


class BrokenCheckpoint(ValueError):
    """A checkpoint that cannot be read, or that does not hold the arrays that were saved."""


class Checkpoints:
    """Saves and restores the checkpoints of one workdir.

    Writing is asynchronous: `save` returns once the arrays are copied off the devices. A step
    becomes visible only when all of it is on disk, so that a kill or a full disk leaves earlier
    steps intact. The latest `keep` steps and the best one are kept. Only `save` changes the folder.

    Each step has a checksum of each array, which was computed on the devices before the array was
    written. A restored array whose checksum differs is an error.
    """

    def __init__(self, workdir: str, *, keep: int = 2, best: str | None = None):
        """Opens `workdir/checkpoints`, local or in a bucket.

        Args:
          workdir: folder of the run.
          keep: number of latest steps to keep.
          best: validation metric whose lowest step is kept too, or highest with - in front; a part
            of the name between its first and last / may be left out. None or "" for none.
        """
        self._keep, self._best = keep, best
        self._folder = epath.Path(user_path(workdir)) / "checkpoints"
        self._broken: list[int] = []
        # Each process reads on its own, as one that cannot read would leave the others waiting.
        index = jax.process_index()
        self._reader = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                save_interval_steps=0,
                create=False,
                read_only=True,
                lightweight_initialize=True,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=index,
                    active_processes={index},
                    barrier_sync_key_prefix=f"reader_{index}",
                ),
            ),
        )
        self._writer: ocp.CheckpointManager | None = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._reader.close()
        if self._writer is not None:
            self._writer.close()

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return max(self.all_steps(), default=None)

    def all_steps(self) -> list[int]:
        """Returns the complete steps."""
        return sorted((self._writer or self._reader).all_steps())

    def _open_writer(self) -> ocp.CheckpointManager:
        """Returns the manager that writes; broken steps are moved out of its way first."""
        policies = [checkpoint_managers.LatestN(self._keep)]
        if self._best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=self._best_of,
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        aside = self._folder.parent / "broken"
        for step in self._broken if jax.process_index() == 0 else ():
            aside.mkdir(exist_ok=True)
            if (aside / str(step)).exists():
                (aside / str(step)).rmtree()
            (self._folder / str(step)).rename(aside / str(step))
            logging.warning("step %d is broken: moved to %s", step, aside / str(step))
        self._broken = []
        multihost_utils.sync_global_devices("broken checkpoints are aside")
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, step: int, state: TrainState, metrics: dict[str, float] | None = None) -> None:
        """Starts to write a step.

        Raises:
          OSError: this step, or the one before it, could not be written.
        """
        kept = metrics if metrics and self._best_of(metrics) is not None else None
        with self._explained():
            if self._writer is None:
                self._writer = self._open_writer()
            if step in self._writer.all_steps():
                return
            self._writer.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state.replace(ema=None)),
                    # Orbax restores no part of an item, and sampling loads only the average.
                    ema=ocp.args.StandardSave(state.ema or {"none": 0}),
                    checksums=ocp.args.JsonSave({"number": step, **checksums(state)}),
                ),
                metrics=kept,
            )

    def _best_of(self, metrics: dict[str, float]) -> float | None:
        """Returns what is lowest for the best step, None if these metrics do not say."""
        wanted = (self._best or "").removeprefix("-")
        first, _, last = wanted.partition("/")
        for name, value in metrics.items():
            named = name.startswith(f"{first}/") and name.endswith(f"/{last}")
            if wanted and (name == wanted or (last and named)):
                return -value if (self._best or "").startswith("-") else value
        return None

    def wait(self) -> None:
        """Waits until the last step is on disk.

        Raises:
          OSError: the step could not be written.
        """
        if self._writer is not None:
            with self._explained():
                self._writer.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns a failed write into an error with its cause and remedy."""
        try:
            yield
        except Exception as error:
            raise OSError(
                f"A checkpoint could not be written to {self._folder} ({error}). Complete there: "
                f"steps {self.all_steps()}. Fix the cause and run the same command again."
            ) from error

    def restore_newest(self, shapes: TrainState) -> tuple[int, TrainState] | None:
        """Returns the newest step that is whole, and its state; None if there are no steps.

        Broken steps are named on the terminal. They stay where they are until the next `save`,
        which moves them to `workdir/broken`.

        Args:
          shapes: shapes and shardings of the state, as `jax.ShapeDtypeStruct`.

        Raises:
          BrokenCheckpoint: there are steps, but none is whole.
        """
        faults = []
        for step in reversed(self.all_steps()):
            try:
                state = self.restore(step, shapes)
            except BrokenCheckpoint as error:
                faults.append(str(error))
                self._broken = sorted({*self._broken, step})
                continue
            for fault in faults:
                logging.warning("%s: going on from step %d", fault, step)
            return step, state
        if faults:
            raise BrokenCheckpoint(
                f"{self._folder} holds no whole checkpoint: {'; '.join(faults)}. Put back the files"
                " from a copy, or remove the folder to train from the beginning."
            )
        return None

    def restore(self, step: int, shapes: TrainState) -> TrainState:
        """Returns the state of a step.

        Args:
          step: step to restore, one of `all_steps`.
          shapes: shapes and shardings of the state, as `jax.ShapeDtypeStruct`.

        Raises:
          BrokenCheckpoint: the step is broken in any of the processes.
        """
        # Version 0.1.0 wrote the data iterator, and no checksums.
        old = (self._folder / str(step) / "data").exists()
        state: Any = None
        expected: dict[str, int] = {}
        broken: BrokenCheckpoint | None = None
        try:
            state = self._read(step, "state", ocp.args.StandardRestore(shapes.replace(ema=None)))
            ema = self._read(step, "ema", ocp.args.StandardRestore(shapes.ema or {"none": 0}))
            if not old:
                expected = self._read(step, "checksums", ocp.args.JsonRestore())
            state = state.replace(ema=ema if shapes.ema else {})
        except BrokenCheckpoint as error:
            broken = error
        if np.any(multihost_utils.process_allgather(np.array(broken is not None))):
            raise broken or BrokenCheckpoint(f"step {step} is broken (in another process)")
        if old:
            logging.warning("step %d has no checksums: it cannot be verified", step)
            return state
        found = {"number": step, **checksums(state)}
        differ = [name for name in found if found[name] != expected.get(name)]
        if differ:
            more = f" and {len(differ) - 1} more" if len(differ) > 1 else ""
            raise BrokenCheckpoint(
                f"step {step} is broken ({differ[0]}{more}: not the values that were saved)"
            )
        return state

    def _read(self, step: int, item: str, how: Any) -> Any:
        """Returns an item of a step, read by this process alone."""
        try:
            return self._reader.restore(step, args=ocp.args.Composite(**{item: how}))[item]
        except Exception as error:
            if isinstance(error, MemoryError | PermissionError) or _PASSING.search(str(error)):
                raise
            place, reason = self._fault(step, error)
            raise BrokenCheckpoint(f"step {step} is broken ({place or item}: {reason})") from error

    def _fault(self, step: int, error: Exception) -> tuple[str, str]:
        """Returns the file that a library's error names, "" for none, and its reason in one line.

        Tensorstore's messages are sentences from the array down to the file, and then pages of
        settings in brackets.
        """
        text = " ".join(str(error).split()).partition(" [tensorstore_spec")[0]
        folder = f"{self._folder / str(step)}/"
        _, named, after = text.rpartition(folder)
        if not named:
            return "", text[:160] or type(error).__name__
        file, _, reason = re.split(r"""([\s'":]+|$)""", after, maxsplit=1)
        return file.rstrip("/"), reason[:160] or text.partition(":")[0]


# What tensorstore says when not the files are at fault.
_PASSING = re.compile(r"RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED")


def checksums(tree: Tree) -> dict[str, int]:
    """Returns a checksum of each array of a tree, by its path.

    It does not depend on how the array is split over devices. All processes call it together.
    """
    # One program at a time: hundreds in flight, each with a sum over all devices, wait for each
    # other for ever on CPUs with fewer cores than devices.
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): int(_checksum(x))
        for path, x in jax.tree.leaves_with_path(tree)
    }


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Returns the sum, modulo 2^32, of the hashes of an array's words and their places.

    For a given place the hash, MurmurHash3's last step, is one-to-one: the change of one word
    always changes the sum.
    """
    words = x.astype(jnp.uint8) if x.dtype == bool else x
    words = jax.lax.bitcast_convert_type(words, jnp.dtype(f"uint{8 * words.dtype.itemsize}"))
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    hashes = words.astype(jnp.uint32) + place * np.uint32(0x9E3779B1)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashes = (hashes ^ (hashes >> shift)) * np.uint32(factor)
    return jnp.sum(hashes ^ (hashes >> 16), dtype=jnp.uint32)
