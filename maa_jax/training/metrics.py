"""Logging: scalars, images and sounds for TensorBoard, and a progress bar."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


class Metrics:
    """Writes scalars, images, sounds and texts of a run as TensorBoard events, on process 0 alone.

    Scalars of the steps between two `write` calls are averaged. The bar on the terminal shows the
    loss and the time left.

    Attributes:
      latest: the last value written of each scalar, by tag.
    """

    def __init__(self, workdir: str, *, first_step: int, total_steps: int, batch_size: int):
        """Opens `workdir` for events and shows the bar.

        Args:
          workdir: the run's folder, local or in a bucket.
          first_step: the checkpoint that the run goes on from, 0 for a fresh run. Events after it,
            of a run that was interrupted between two checkpoints, are no longer shown.
          total_steps: the step at which the run ends.
          batch_size: examples a step, over all devices.
        """
        from tensorboardX import SummaryWriter
        from tqdm import tqdm

        main = jax.process_index() == 0
        purge_step = first_step + 1 if first_step else None
        self._writer = SummaryWriter(workdir, purge_step=purge_step, write_to_disk=main)
        self._batch_size = batch_size
        self._pending: list[Mapping[str, jax.Array]] = []
        self.latest: dict[str, float] = {}
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not main,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
        )
        self._since, self._paused = time.perf_counter(), 0.0

    def add(self, scalars: Mapping[str, jax.Array]) -> None:
        """Keeps one step's scalars until the next `write`, without waiting for the device."""
        self._pending.append(scalars)
        self._bar.update()

    def write(self, step: int, **more: float) -> None:
        """Writes the means since the last call, and the speed.

        Args:
          step: the step that they are written for.
          **more: scalars to write beside them.
        """
        steps = jax.device_get(self._pending)
        self._pending = []
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        self._since, self._paused = time.perf_counter(), 0.0
        scalars = {f"train/{name}": float(np.mean([s[name] for s in steps])) for name in steps[0]}
        scalars |= {f"train/{name}": value for name, value in more.items()}
        scalars["speed/steps_per_second"] = len(steps) / seconds
        scalars["speed/samples_per_second"] = len(steps) * self._batch_size / seconds
        self.write_scalars(step, scalars)
        self._bar.set_postfix(loss=f"{scalars.get('train/loss', math.nan):.4g}")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars as they are."""
        for tag, value in scalars.items():
            self._writer.add_scalar(tag, value, step)
        self.latest |= scalars

    def write_summary(self, step: int, summary: Mapping[str, Any], sample_rate: int) -> None:
        """Writes what a stage's `summarize` returns.

        Each image and each sound has a tag of its own, "image/NAME/0" or "audio/NAME/0", since
        TensorBoard shows one kind of data a tag.

        Args:
          step: the step that it shows.
          summary: {"image/NAME": [n, h, w, 1] in 0..1, "audio/NAME": [n, samples, 1] in -1..1}.
          sample_rate: sample rate of the sounds, in Hz.
        """
        for name, values in summary.items():
            for i, value in enumerate(np.asarray(values, np.float32)):
                if name.startswith("image/"):
                    self._writer.add_image(f"{name}/{i}", value, step, dataformats="HWC")
                else:
                    sound = np.clip(value, -1, 1)
                    self._writer.add_audio(f"{name}/{i}", sound, step, sample_rate)

    def write_text(self, step: int, tag: str, text: str) -> None:
        """Writes a text, line by line as it is."""
        self._writer.add_text(tag, f"```\n{text}\n```", step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Keeps the time spent inside (evaluation, checkpoints) out of the speed."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def close(self) -> None:
        """Writes out what is buffered."""
        self._bar.close()
        self._writer.close()
