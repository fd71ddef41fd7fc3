"""What a run tells of itself: TensorBoard events and a progress bar."""

import contextlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

Tree = Any


class Metrics:
    """Writes scalars, images and sounds of a run as TensorBoard events, on process 0 alone.

    Scalars of the steps between two `write` calls are averaged. The bar on the terminal shows the
    loss and the time left.
    """

    def __init__(self, workdir: str, *, first_step: int, total_steps: int, batch_size: int):
        """Opens `workdir` for events and shows the bar."""
        # Imported here: clu's writers load tensorflow, which only the entry points may do.
        from clu import metric_writers

        self._main = jax.process_index() == 0
        self._writer = metric_writers.create_default_writer(
            workdir, just_logging=not self._main, asynchronous=True
        )
        self._batch_size = batch_size
        self._pending: list[dict[str, jax.Array]] = []
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            disable=not self._main,
            unit="step",
            dynamic_ncols=True,
            mininterval=1.0,
        )
        self._since, self._paused = time.perf_counter(), 0.0

    def add(self, scalars: dict[str, jax.Array]) -> None:
        """Keeps one step's scalars until the next `write`; does not wait for the device."""
        self._pending.append(scalars)
        self._bar.update()

    def write(self, step: int, **more: float) -> dict[str, float]:
        """Writes the means since the last call and the speed; returns what was written."""
        steps = jax.device_get(self._pending)
        self._pending = []
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        self._since, self._paused = time.perf_counter(), 0.0
        scalars = {f"train/{name}": float(np.mean([s[name] for s in steps])) for name in steps[0]}
        scalars |= {f"train/{name}": value for name, value in more.items()}
        scalars["speed/steps_per_second"] = len(steps) / seconds
        scalars["speed/samples_per_second"] = len(steps) * self._batch_size / seconds
        self._writer.write_scalars(step, scalars)
        self._bar.set_postfix(loss=f"{scalars.get('train/loss', float('nan')):.4g}")
        return scalars

    def write_scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Writes scalars as they are."""
        self._writer.write_scalars(step, scalars)

    def write_summary(self, step: int, summary: dict[str, Any], sample_rate: int) -> None:
        """Writes the images [n, h, w, 1] and sounds [n, samples, 1] of a stage's `summarize`."""
        images = {n[len("image/") :]: v for n, v in summary.items() if n.startswith("image/")}
        sounds = {n[len("audio/") :]: v for n, v in summary.items() if n.startswith("audio/")}
        if images:
            self._writer.write_images(step, images)
        if sounds:
            self._writer.write_audios(step, sounds, sample_rate=sample_rate)

    @contextlib.contextmanager
    def pause(self):
        """Keeps the time spent inside out of the speed (evaluation, checkpoints)."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def close(self) -> None:
        """Writes out what is buffered."""
        self._bar.close()
        self._writer.flush()
        self._writer.close()


def spectrogram_image(mel: jax.Array) -> jax.Array:
    """Returns log mels [n, frames, n_mels] as images [n, n_mels, frames, 1] in 0..1.

    Values of base-10 logarithms from -5, the front end's floor, to 1.5 fill the range.
    """
    image = jnp.clip((mel.astype(jnp.float32) + 5.0) / 6.5, 0.0, 1.0)
    return image.swapaxes(1, 2)[:, ::-1, :, None]
