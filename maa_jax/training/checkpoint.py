"""Orbax checkpoints of a run, with state, average and data iterator as separate items."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import ml_collections
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from maa_jax.checks import differences
from maa_jax.diffusion.schedule import Schedule
from maa_jax.files import user_path, write_json
from maa_jax.text.tokenizer import Tokenizer
from maa_jax.training.state import TrainState

Tree = Any

# Keys in which a workdir's config may differ: they change how a run is monitored or where it runs,
# not what it computes.
_IGNORED = (
    "total_steps",
    "total_epochs",
    "log_every",
    "eval_every",
    "summary_every",
    "checkpoint_every",
    "keep",
    "best",
    "profile",
    "mesh",
    "summary",
    "evaluators",
    "data.workers",
    "data.prefetch",
    "data.data_dir",
)

# Keys that may change while a run goes on, so that one that diverged can be saved.
_CHANGEABLE = ("optimizer.base_lr", "optimizer.clip_norm")

# Config blocks that older workdirs lack, with the values that their runs used.
_ADDED = {"schedule": dataclasses.asdict(Schedule()), "evaluators": {}}


class Checkpoints:
    """Saves and restores the checkpoints of one workdir.

    Writing is asynchronous: `save` returns once the arrays are copied off the devices. A step
    becomes visible only when all of it is on disk, so that a kill or a full disk leaves earlier
    steps intact. The latest `keep` steps and the best one are kept.
    """

    def __init__(self, workdir: str, *, keep: int = 2, best: str | None = None):
        """Opens `workdir/checkpoints`, local or in a bucket.

        Args:
          workdir: folder of the run.
          keep: number of latest steps to keep.
          best: validation metric whose lowest step is kept too, or None.
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
        self._folder = epath.Path(user_path(workdir)) / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._folder,
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
        """Returns whether all of several processes have agreed to stop at this step."""
        return self._manager.reached_preemption(step)

    def save(
        self,
        step: int,
        state: TrainState,
        iterator: grain.DatasetIterator,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Starts to write a step.

        Raises:
          OSError: this step, or the one before it, could not be written.
        """
        if step in self._manager.all_steps():
            return
        kept = metrics if metrics and self._best in metrics else None
        with self._explained():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state.replace(ema=None)),
                    # Orbax restores no part of an item, and sampling loads only the average.
                    ema=ocp.args.StandardSave(state.ema or {"none": 0}),
                    data=grain.checkpoint.CheckpointSave(iterator),
                ),
                metrics=kept,
            )

    def wait(self) -> None:
        """Waits until the last step is on disk.

        Raises:
          OSError: the step could not be written.
        """
        with self._explained():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns a failed write into an error with its cause and remedy."""
        try:
            yield
        except Exception as error:
            # Tensorstore passes on the system's message, without the error number.
            full = os.strerror(errno.ENOSPC) in str(error)
            remedy = "The disk is full: make room" if full else "Fix the cause"
            raise OSError(
                f"A checkpoint could not be written to {self._folder} ({error}). Complete there: "
                f"steps {self.all_steps()}. {remedy} and run the same command again."
            ) from error

    def restore(
        self, step: int, shapes: TrainState, iterator: grain.DatasetIterator | None = None
    ) -> TrainState:
        """Returns the state of a step, and restores the iterator's position.

        Args:
          step: step to restore, one of `all_steps`.
          shapes: shapes and shardings of the state, as `jax.ShapeDtypeStruct`.
          iterator: training iterator; without it, only the state is restored.
        """
        items = {
            "state": ocp.args.StandardRestore(shapes.replace(ema=None)),
            "ema": ocp.args.StandardRestore(shapes.ema or {"none": 0}),
        }
        if iterator is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(iterator)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return restored["state"].replace(ema=restored["ema"] if shapes.ema else {})


def check_config(workdir: str, config: ml_collections.ConfigDict) -> list[str]:
    """Checks that `workdir` is new, or holds a run with the same config.

    Returns:
      The changes of the keys that may change while a run goes on, as lines for the log.

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
        return []
    # Both via JSON, which has no tuples.
    old, new = (_flatten(_ADDED | json.loads(x)) for x in (text, config.to_json()))
    compared = [
        key
        for key in sorted(old | new)
        if not any(key == other or key.startswith(other + ".") for other in _IGNORED)
    ]
    found = [
        f"config.{line}"
        for line in differences(old, {key: new.get(key, "absent") for key in compared})
    ]
    changes = [x for x in found if x.startswith(tuple(f"config.{key}=" for key in _CHANGEABLE))]
    if differ := [f"  {line}" for line in found if line not in changes]:
        raise ValueError(
            f"--workdir={workdir} holds a run of another config:\n"
            + "\n".join(differ)
            + "\nGive another --workdir, or the values that the run started with."
        )
    return changes


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Writes `workdir/config.json`, after the checks of `check_config`."""
    check_config(workdir, config)
    if jax.process_index() == 0:
        write_json(_config_file(workdir), json.loads(config.to_json()))


def check_data(workdir: str, data: Mapping[str, str]) -> None:
    """Checks that a run that goes on has the data that it began with.

    Args:
      workdir: folder of the run.
      data: digest of each split that it reads, by name.

    Raises:
      ValueError: recordings or captions have changed; the splits are named.
    """
    path = _data_file(workdir)
    if not (_config_file(workdir).exists() and path.exists()):
        return
    old = json.loads(path.read_text())
    changed = [name for name in sorted(old | dict(data)) if old.get(name) != data.get(name)]
    if changed:
        raise ValueError(
            f"--workdir={workdir}: the recordings or captions of {', '.join(changed)} are not those"
            " that this run began with. Bring those back, or begin another run in another"
            f" --workdir; to go on with the new ones all the same, remove {path}"
        )


def write_data(workdir: str, data: Mapping[str, str]) -> None:
    """Notes the data of a run for `check_data`; called before `write_config`."""
    if jax.process_index() == 0:
        write_json(_data_file(workdir), data)


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the config of the run in `workdir`.

    Raises:
      FileNotFoundError: no run was started there.
    """
    path = _config_file(workdir)
    if not path.exists():
        raise FileNotFoundError(
            f"--workdir={workdir} holds no config.json: it is not a workdir of maa_jax.train."
        )
    return ml_collections.ConfigDict(_ADDED | json.loads(path.read_text()))


def write_tokenizer(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Saves a run's tokenizer, if any, to `workdir/tokenizer`, unless it is already there.

    Called before `write_config`: a run that has a config also has its tokenizer.
    """
    folder = _tokenizer_folder(workdir)
    if tokenizer is None or jax.process_index() or read_tokenizer(workdir):
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Via a local folder: a workdir may be in a bucket.
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save(pathlib.Path(local, "tokenizer"))
        for path in pathlib.Path(local, "tokenizer").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())


def read_tokenizer(workdir: str) -> Tokenizer | None:
    """Returns the tokenizer that a run has saved, or None."""
    folder = _tokenizer_folder(workdir)
    if not (folder.exists() and _config_file(workdir).exists()):
        return None
    with tempfile.TemporaryDirectory() as local:
        for path in folder.iterdir():
            pathlib.Path(local, path.name).write_bytes(path.read_bytes())
        return Tokenizer.from_folder(local)


def _tokenizer_folder(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "tokenizer"


def _config_file(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "config.json"


def _data_file(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "data.json"


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
