"""The end of a run that is asked to stop."""

import multiprocessing
import os
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Tells whether to stop: after SIGTERM or Ctrl-C, at a step that all processes agree on.

    A second Ctrl-C ends the process at once.

    Attributes:
      status: exit status of a run that was stopped, 128 and the signal's number: not 0, so that a
        script or a scheduler does not take the run for one that is trained to the end.
    """

    def __init__(self) -> None:
        self._told = False
        self._before: dict[int, Any] = {}
        self.status = 128 + signal.SIGTERM

    def __enter__(self) -> "StopSignal":
        handlers = {signal.SIGINT: self._interrupt}
        if jax.process_count() == 1:
            handlers[signal.SIGTERM] = self._tell
        # Otherwise JAX has a handler of SIGTERM, by which the processes agree.
        for number, handler in handlers.items():
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _tell(self, *_: object) -> None:
        self._told = True

    def _interrupt(self, *_: object) -> None:
        self.status = 128 + signal.SIGINT
        signal.signal(signal.SIGINT, _end_at_once)
        print(
            "\nSaving a checkpoint before the run ends. Press Ctrl-C again to end at once.",
            flush=True,
        )
        if jax.process_count() == 1:
            self._told = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def __call__(self, step: int) -> bool:
        """Returns whether this step is the last."""
        return self._told or multihost_utils.reached_preemption_sync_point(step)


def _end_at_once(*_: object) -> None:
    """Ends this process: a write that has begun would else be waited for."""
    for worker in multiprocessing.active_children():
        worker.terminate()
    print("\nEnded before the checkpoint was saved.", flush=True)
    os._exit(128 + signal.SIGINT)
