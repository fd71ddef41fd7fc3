"""The check that every training step was finite."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from maa_jax.training.state import TrainState

Batch = Mapping[str, Any]
Result = tuple[jax.Array, dict[str, jax.Array]]  # (halted, whether each named part is finite)

# Steps by which the check of a step's result lags, so that the host stays ahead of the device.
_LAG = 2


class FiniteSteps:
    """Stops the run at the first step whose loss, gradient or new state is not finite."""

    def __init__(self, workdir: str):
        self._workdir = workdir
        self._behind: deque[tuple[int, Result, Batch]] = deque()

    def add(self, step: int, result: Result, batch: Batch) -> None:
        """Records a step of the training loop, without waiting for it."""
        self._behind.append((step, result, batch))

    def check(self, state: TrainState, *, all_steps: bool) -> None:
        """Checks all steps so far, or all but the last few, which may still be running.

        Raises:
          FloatingPointError: a step was not finite; `state` is then the one before it.
        """
        while len(self._behind) > (0 if all_steps else _LAG):
            step, (halted, finite), batch = self._behind.popleft()
            if halted:
                faulty = [name for name, good in jax.device_get(finite).items() if not good]
                self._fail(step, faulty, state, batch)

    def _fail(self, step: int, faulty: list[str], state: TrainState, batch: Batch) -> None:
        folder = epath.Path(self._workdir) / "failure" / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        named = {jax.tree_util.keystr(k): x for k, x in jax.tree.leaves_with_path(batch)}
        with (folder / f"batch_{jax.process_index()}.npz").open("wb") as file:
            np.savez(file, **{name.strip("[']"): x for name, x in named.items()})
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / "state", state, force=True)
        raise FloatingPointError(
            f"Not finite at step {step}: {', '.join(_causes(faulty))}. The state before that step "
            f"and its batch are in {folder}. Lower config.optimizer.base_lr or give a "
            "config.optimizer.clip_norm, and give the command again: the run goes on from its last "
            "checkpoint, which is good. Or look at the batch."
        )


def _causes(faulty: list[str]) -> list[str]:
    """Returns the names that tell the most, the loss first, of what is not finite in a step.

    A gradient that is not finite spoils the parameters that it updates, and, by the norm that
    clips it, those of the whole network: where gradients are named, these are left out.
    """
    spoilt = ("params.", "opt.", "ema.")
    names = [name for name in faulty if not name.startswith(spoilt)] or faulty
    modules = [name for name in names if not any(x.startswith(f"{name}.") for x in names)]
    return sorted(modules, key=lambda name: (name != "loss", name))
