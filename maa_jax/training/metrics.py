"""Logging: scalars, images and sounds for TensorBoard, and a progress bar."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


class Metrics:
    """Writes scalars, images, sounds and texts of a run as TensorBoard events, only on process 0.

    Scalars of the steps between two `write` calls are averaged. The bar on the terminal shows the
    loss and the time left.

    Attributes:
      latest: last value written of each scalar, by tag.
    """

    def __init__(self, workdir: str, *, first_step: int, total_steps: int, batch_size: int):
        """Opens `workdir` for events and shows the bar.

        Args:
          workdir: folder of the run, local or in a bucket.
          first_step: step from which the run is resumed, 0 for a fresh run. Later events, written
            before the interruption, are no longer shown.
          total_steps: step at which the run ends.
          batch_size: number of examples per step, over all devices.
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
        """Holds one step's scalars until the next `write`, without waiting for the device."""
        self._pending.append(scalars)
        self._bar.update()

    def write(self, step: int, **more: float) -> None:
        """Writes the means since the last call, and the speed.

        Args:
          step: step at which the means are written.
          **more: further scalars to write.
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
        """Writes the result of a stage's `summarize`.

        Each image and each sound has its own tag, "image/NAME/0" or "audio/NAME/0", because
        TensorBoard shows one kind of data per tag.

        Args:
          step: step of the summary.
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
        """Writes a text, preserving its lines."""
        self._writer.add_text(tag, f"```\n{text}\n```", step)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Excludes the time spent inside (evaluation, checkpoints) from the speed."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def close(self) -> None:
        """Closes the bar and writes out buffered events."""
        self._bar.close()
        self._writer.close()
