"""Orbax checkpoints of a run: state, average and data iterator, each an item of its own."""

import json
from typing import Any

import grain
import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from maa_jax.checks import differences
from maa_jax.files import user_path, write_json
from maa_jax.training.state import TrainState

Tree = Any

# Keys that may change between two starts of one run: they change how it is watched or where it
# runs, not what it computes.
_FREE = (
    "total_steps",
    "total_epochs",
    "log_every",
    "eval_every",
    "summary_every",
    "checkpoint_every",
    "keep",
    "profile",
    "mesh",
    "summary",
    "data.workers",
    "data.prefetch",
    "data.data_dir",
)


class Checkpoints:
    """Saves and restores the checkpoints of one workdir.

    Writing is asynchronous: `save` returns once the arrays are copied off the devices. A step
    becomes visible only when all of it is on the disk, so that a kill or a full disk leaves the
    steps before it whole. The latest `keep` steps and the best one are kept.
    """

    def __init__(self, workdir: str, *, keep: int = 2, best: str | None = None):
        """Opens `workdir/checkpoints`, local or in a bucket.

        Args:
          workdir: the run's folder.
          keep: how many of the latest steps stay.
          best: name of the validation metric whose lowest value is kept besides; None for none.
        """
        policies = [checkpoint_managers.LatestN(keep)]
        if best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[best],
                    reverse=True,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._best = best
        self._manager = ocp.CheckpointManager(
            epath.Path(user_path(workdir)) / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    def latest_step(self) -> int | None:
        """Returns the newest complete step, or None."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the complete steps."""
        return sorted(self._manager.all_steps())

    def reached_preemption(self, step: int) -> bool:
        """Returns whether all processes were told to stop (several processes only)."""
        return self._manager.reached_preemption(step)

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: grain.DatasetIterator,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts to write a step; an error of the write before it is raised here."""
        if step in self._manager.all_steps():
            return
        kept = metrics if metrics and self._best in metrics else None
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state.replace(ema=None)),
                # Orbax restores no part of an item: the average alone is what sampling loads.
                ema=ocp.args.StandardSave(state.ema or {"none": 0}),
                data=grain.checkpoint.CheckpointSave(iterator),
            ),
            metrics=kept,
        )

    def wait(self) -> None:
        """Waits until the last step is on the disk; raises what went wrong with it."""
        self._manager.wait_until_finished()

    def restore(
        self, step: int, shapes: TrainState, iterator: grain.DatasetIterator | None = None
    ) -> TrainState:
        """Returns the state of a step, and sets the iterator to where it stood.

        Args:
          step: one of `all_steps`.
          shapes: abstract state (`jax.ShapeDtypeStruct` with shardings).
          iterator: the training iterator; None restores the state alone.
        """
        items = {
            "state": ocp.args.StandardRestore(shapes.replace(ema=None)),
            "ema": ocp.args.StandardRestore(shapes.ema or {"none": 0}),
        }
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(iterator)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored["state"].replace(ema=restored["ema"] if shapes.ema else {})


def check_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Checks that `workdir` can hold a run of this config: it is new, or its run has the same one.

    Raises:
      ValueError: the folder cannot be made, or its run has another config; each key that differs
        is named, with both values.
    """
    path = _config_file(workdir)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text() if path.exists() else None
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir}: cannot be used ({error}); give another folder."
        ) from error
    if text is None:
        return
    # Both through JSON, which knows no tuples.
    old, new = (_flatten(json.loads(x)) for x in (text, config.to_json()))
    checked = [
        key
        for key in sorted(old | new)
        if not any(key == free or key.startswith(free + ".") for free in _FREE)
    ]
    differ = [
        f"  config.{line}"
        for line in differences(old, {key: new.get(key, "absent") for key in checked})
    ]
    if differ:
        raise ValueError(
            f"--workdir={workdir} holds a run of another config:\n"
            + "\n".join(differ)
            + "\nGive another --workdir, or the values that the run began with."
        )


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Writes `workdir/config.json`, after the checks of `check_config`."""
    check_config(workdir, config)
    if jax.process_index() == 0:
        write_json(_config_file(workdir), json.loads(config.to_json()))


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the config of the run in `workdir`.

    Raises:
      FileNotFoundError: if no run was started there.
    """
    path = _config_file(workdir)
    if not path.exists():
        raise FileNotFoundError(
            f"--workdir={workdir} holds no config.json: it is not a workdir of maa_jax.train."
        )
    return ml_collections.ConfigDict(json.loads(path.read_text()))


def _config_file(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "config.json"


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
