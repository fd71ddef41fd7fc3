"""The steps of sampling: what sounds start from and keep, and the calls of the denoiser."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.devices import LocalDevices
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.pipeline import editing, programs
from maa_jax.pipeline.coding import Coder
from maa_jax.pipeline.windows import Windows

# The most evaluations of the U-Net in one call of the program. Between calls the host reports
# progress: a callback from inside the program would keep it out of the persistent compilation
# cache.
MAX_SEGMENT = 10


class Denoiser:
    """Makes latents from noise or from recordings.

    Args:
      networks: networks of the model, read when they are first needed.
      coder: waveforms to latents.
      devices: devices that share every batch.
      schedule: noise schedule of the model.
      fills: whether the U-Net was trained to fill gaps, and takes what surrounds them.
      run: function (name of a part, function, arguments) that runs and times it.
    """

    def __init__(
        self,
        networks: programs.Networks,
        coder: Coder,
        devices: LocalDevices,
        schedule: Schedule,
        fills: bool,
        run: Callable[..., Any],
    ):
        self._networks, self._coder, self._devices = networks, coder, devices
        self._schedule, self._fills, self._run = schedule, fills, run

    def given(
        self,
        recordings: editing.Recordings | None,
        rows: np.ndarray,
        shape: tuple[int, int, int],
        noise: np.ndarray | jax.Array,
        plan: Windows | None,
    ) -> programs.Given:
        """Returns what is known of a batch's sounds before they are made."""
        size = self._coder.codec.downscale
        frames = shape[1] * size
        samples = frames * self._coder.codec.mel.hop_length
        mask = None if recordings is None else recordings.mask(rows, frames)
        if recordings is None and not self._fills:
            return programs.Given(windows=plan)
        split = self._devices.split
        audio = np.zeros((len(rows), samples), np.float32)
        latents = mels = channels = known = None
        if recordings is not None:
            audio = recordings.audio(rows, samples)
            latents = split(self._coder.encode(audio, plan))
            mels = self._coder.mels(audio, plan)
        if self._fills:
            every = np.ones((len(rows), self._coder.codec.mel.n_mels, frames), bool)
            channels = split(self._coder.masked(audio, every if mask is None else mask, plan))
        elif mask is not None:
            known = programs.Known(latents, split(noise), split(_any_in(mask, size)))
        return programs.Given(latents, mels, mask, channels, known, plan)

    def start(
        self,
        given: programs.Given,
        table: samplers.Table,
        noise: np.ndarray | jax.Array,
        source: jax.Array | None = None,
    ) -> Any:
        """Returns the latents of recordings at the level that a table starts from.

        Args:
          given: what is known of the sounds.
          table: the sampler's table.
          noise: noise of the sounds, [b, h, w, c].
          source: context [1, n, d] of what the recordings sound like, under which their own noise
            is found by inversion; None to add `noise`.
        """
        if not len(table):
            return given.latents
        if source is not None:
            both = jnp.broadcast_to(source, (len(given.latents), *source.shape[1:]))
            back = samplers.inversion(self._schedule, table)
            blind = given._replace(known=None)
            *_, (_, state) = self.denoise(given.latents, back, both, source, None, blind)
            return state.latents
        timesteps = jnp.full(len(given.latents), table.timestep[0])
        return self._schedule.add_noise(given.latents, jnp.asarray(noise), timesteps)

    def denoise(
        self,
        latents: np.ndarray | jax.Array,
        table: samplers.Table,
        context: jax.Array,
        unconditional: jax.Array,
        keys: jax.Array | None,
        given: programs.Given,
    ) -> Iterator[tuple[int, samplers.SamplerState]]:
        """Runs a sampler's table; yields the number of rows done and the state after them."""
        state = samplers.initial_state(jnp.asarray(latents))
        split = self._devices.split
        state = samplers.SamplerState(
            latents=split(state.latents),
            previous=split(state.previous),
            history=split(state.history, axis=1),
            pred_x0=split(state.pred_x0),
        )
        unet, params = self._networks.load("unet")
        places = None if given.windows is None else given.windows[:2]
        done = 0
        for size in segments(len(table)):
            rows = table[done : done + size]
            state = self._run(
                "U-Net",
                programs.denoise,
                unet,
                params,
                state,
                rows,
                context,
                unconditional,
                keys,
                given.channels,
                given.known,
                places,
            )
            done += size
            yield done, state


def segments(evaluations: int) -> list[int]:
    """Divides the evaluations of the U-Net into calls of the program.

    Each length compiles a program: a divisor needs only one, and 20, 50 and 100 steps share theirs.
    """
    sizes = range(MAX_SEGMENT, MAX_SEGMENT // 2, -1)
    size = next((size for size in sizes if evaluations % size == 0), MAX_SEGMENT)
    whole, rest = divmod(evaluations, size)
    return [size] * whole + [rest] * (rest > 0)


def _any_in(mask: np.ndarray, size: int) -> np.ndarray:
    """Returns whether any cell of a latent is marked, bool [b, h, w, 1], of bool [b, n_mels, n]."""
    b, n_mels, frames = mask.shape
    cells = mask.reshape(b, n_mels // size, size, frames // size, size)
    return np.any(cells, axis=(2, 4), keepdims=True).reshape(b, *cells.shape[1:4:2], 1)
