"""The making of sounds: from what a call asks for to waveforms, batch by batch."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.checks import Repeated
from maa_jax.devices import LocalDevices
from maa_jax.diffusion import samplers
from maa_jax.encoders.base import Conditioner
from maa_jax.files import FolderError
from maa_jax.model_folder.model import Model
from maa_jax.pipeline import arguments, editing, programs
from maa_jax.pipeline.coding import Coder
from maa_jax.pipeline.composing import compose
from maa_jax.pipeline.denoising import Denoiser
from maa_jax.pipeline.lengths import Lengths
from maa_jax.pipeline.prompts import Prompt
from maa_jax.pipeline.request import Request
from maa_jax.pipeline.windows import Growing, Section, Windows

# Share of clipped samples from which a sound is said to be distorted.
CLIPPED = 1e-3
# What is made of a batch: latents, mels, waveforms and the share of the clipped samples.
Stages = dict[str, np.ndarray]
# Axis of each along which time goes.
TIME = {"wav": 1, "mel": 1, "latents": 2}


class Order(NamedTuple):
    """What a call asks for, checked.

    Attributes:
      request: options of the sounds.
      asked: prompts.
      recordings: recordings that the sounds are made from, one for each prompt.
      samples: length of each sound, or candidate, int [n].
      noise: noise that each starts from, if it is given.
      table: the sampler's table.
      skipped: number of its steps that are skipped, for recordings.
      unconditional: context of the negative prompt.
      source: context of what the recordings sound like, for their inversion.
      callback: function called during sampling; see `Pipeline.__call__`.
      listed: whether the result is a list of sounds.
    """

    request: Request
    asked: list[Prompt]
    recordings: editing.Recordings | None
    samples: np.ndarray
    noise: Sequence[np.ndarray] | None
    table: samplers.Table
    skipped: int
    unconditional: jax.Array
    source: jax.Array | None
    callback: Callable[[int, int, jax.Array], None] | None
    listed: bool

    def prompt(self, sound: int) -> Prompt:
        """Returns the prompt of a sound, or candidate."""
        return self.asked[sound // self.request.tries]


class Batch(NamedTuple):
    """Sounds that are made together.

    Attributes:
      sounds: their numbers.
      rows: the same and, where devices would be left without one, some of them again.
      shape: shape of their latents.
      windows: their windows, if they are long.
      sections: their sections, if they are very long.
    """

    sounds: np.ndarray
    rows: np.ndarray
    shape: tuple[int, int, int]
    windows: Windows | None
    sections: list[Section]


class Maker:
    """Makes the sounds of orders.

    Args:
      model: description of the model folder.
      conditioner: encoder of prompts.
      coder: waveforms to latents and back.
      denoiser: the steps of sampling.
      lengths: lengths of the model's sounds.
      devices: devices that share every batch.
      run: function (name of a part, function, arguments) that runs and times it.
    """

    def __init__(
        self,
        model: Model,
        conditioner: Conditioner,
        coder: Coder,
        denoiser: Denoiser,
        lengths: Lengths,
        devices: LocalDevices,
        run: Callable[..., Any],
    ):
        self.path, self._schedule = model.path, model.schedule
        self._conditioner, self._coder, self._denoiser = conditioner, coder, denoiser
        self._lengths, self._devices, self._run = lengths, devices, run
        self._text = devices.replicate(conditioner.params)
        self._encode_text = jax.jit(conditioner.encode)
        self._warn_clipped = Repeated()

    def batches(self, order: Order) -> Iterator[tuple[Batch, Iterator[Stages]]]:
        """Yields batches, and what is made of each, [rows, ...], in pieces along `TIME`."""
        loop = order.request.loop
        kinds = [
            (self._lengths.shape(int(count), loop), order.prompt(i).shortest)
            for i, count in enumerate(order.samples)
        ]
        batches = []
        for sounds in _batches(kinds, order.request.batch_size):
            shape, shortest = kinds[sounds[0]]
            plan = self._lengths.windows(shape, loop, shortest)
            sections = self._lengths.sections(plan) if order.recordings is None else []
            batches.append(Batch(sounds, self._devices.fill(sounds), shape, plan, sections))
        runs = [max(1, len(batch.sections)) for batch in batches]
        begun = itertools.count()  # runs of the sampler's table

        def denoise(batch: Batch, *args: Any) -> jax.Array:
            """Takes all steps of the sampler, and reports them."""
            final, before = args[0], next(begun) * len(order.table)
            for done, state in self._denoiser.denoise(args[0], order.table, *args[1:]):
                final = state.latents
                if order.callback is not None:
                    pred_x0 = jax.block_until_ready(state.pred_x0)[: len(batch.sounds)]
                    order.callback(before + done, sum(runs) * len(order.table), pred_x0)
            return self._devices.split(jnp.asarray(final))

        for batch in batches:
            make = self._make_sections if batch.sections else self._make
            yield batch, make(order, batch, functools.partial(denoise, batch))

    def _noise(self, order: Order, batch: Batch) -> tuple[Any, jax.Array | None]:
        """Returns the noise of a batch, and the keys of what the sampler adds, if it adds any."""
        indices = (order.request.start_index + batch.rows).astype(np.uint32)
        noise, keys = programs.draw_noise(batch.shape, np.uint32(order.request.seed), indices)
        if order.noise is not None:
            noise = np.stack([order.noise[i] for i in batch.rows])
        return noise, self._devices.split(keys) if order.request.eta else None

    def _make(self, order: Order, batch: Batch, denoise: Callable) -> Iterator[Stages]:
        """Yields all of a batch."""
        recordings = order.recordings
        which = batch.rows // order.request.tries
        asked = [order.prompt(i) for i in batch.rows]
        context = self._context(asked, batch.windows)
        latents, keys = self._noise(order, batch)
        given = self._denoiser.given(recordings, which, batch.shape, latents, batch.windows)
        if order.skipped or order.source is not None:
            latents = self._denoiser.start(given, order.table, latents, order.source)
        final = denoise(latents, context, order.unconditional, keys, given)
        yield self._finish(order, batch, final, given)

    def _finish(self, order: Order, batch: Batch, latents: Any, given: programs.Given) -> Stages:
        """Returns what latents are decoded to, checked, with recordings where they are kept."""
        request, recordings = order.request, order.recordings
        output = "wav" if request.ranks else request.output
        made = self.decode(latents, output, order.samples[batch.rows], given)
        for stage in made.values():
            self._check_finite(order, batch, stage)
        if recordings is not None and recordings.masks is not None and "wav" in made:
            self._compose(made, recordings, batch.rows // request.tries)
        if "clipped" in made:
            self._check_clipped(order, batch, made["clipped"])
        return made

    def _make_sections(self, order: Order, batch: Batch, denoise: Callable) -> Iterator[Stages]:
        """Yields the output of a batch of very long sounds, as soon as it is known.

        Sounds that are ranked, which takes whole ones, are yielded whole.
        """
        output, windows = order.request.output, batch.windows
        assert windows is not None  # sections have windows

        def checked(stages: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            for stage in stages:
                self._check_finite(order, batch, stage)
                yield stage

        pieces = checked(self._latents(order, batch, denoise))
        if order.request.ranks:
            latents = np.concatenate(list(pieces), TIME["latents"])
            yield self._finish(order, batch, latents, programs.Given(windows=windows))
            return
        clipped: list[np.ndarray] = []
        if output != "latents":
            latents = Growing(pieces, TIME["latents"])
            pieces = checked(self._coder.decode_pieces(latents, windows))
        if output == "wav":
            mels, ends = Growing(pieces, TIME["mel"]), order.samples[batch.rows]
            pieces = checked(self._coder.vocode_pieces(mels, windows, ends, clipped))
        for piece in pieces:
            yield {output: piece}
        if clipped:
            self._check_clipped(order, batch, np.mean(clipped, axis=0))

    def _latents(self, order: Order, batch: Batch, denoise: Callable) -> Iterator[np.ndarray]:
        """Yields the latents [b, h, w, c] of each section, after those of the one before.

        What the section before has made of a section is kept by blending.
        """
        asked = [order.prompt(i) for i in batch.rows]
        noise, keys = self._noise(order, batch)
        made, split = np.zeros(0, np.float32), self._devices.split
        for number, section in enumerate(batch.sections):
            first, width = section.first, section.windows.total
            own = noise[:, :, first : first + width]
            known = np.zeros(own.shape, np.float32)
            if number:
                before = batch.sections[number - 1]
                known[:, :, : section.known] = made[:, :, first - before.first : before.end]
            anew = np.broadcast_to(np.arange(width) >= section.known, (*own.shape[:2], width))
            kept = programs.Known(split(known), split(own), split(anew[..., None]))
            shape = (batch.shape[0], width, batch.shape[2])
            given = self._denoiser.given(None, batch.rows, shape, own, section.windows)
            given = given._replace(known=kept)
            context = self._context(asked, section.windows, first)
            # The noise that a sampler adds is another in each section.
            place = self._schedule.num_train_timesteps + number
            mine = None if keys is None else programs.fold_keys(keys, np.uint32(place))
            made = np.asarray(denoise(own, context, order.unconditional, mine, given))
            yield made[:, :, section.known : section.end]

    def _compose(self, made: Stages, recordings: editing.Recordings, rows: np.ndarray) -> None:
        """Puts the recordings back into waveforms where they are kept; `made` is that of `decode`.

        What a recording itself clips is not counted.
        """
        assert recordings.masks is not None  # the caller has checked it
        for place, row in enumerate(rows):
            known = recordings.wavs[row]
            wav = made["wav"][place, : len(known)]
            wav[:] = compose(known, wav, recordings.masks[row], self._coder.codec.mel)
            made["clipped"][place] = np.mean((np.abs(wav) >= 1) & (wav != known))

    def context_of(self, prompt: str) -> jax.Array:
        """Returns the context of one sentence, [1, n, d]; that of "" is the unconditional one."""
        encoder = self._conditioner
        condition = encoder.prepare([prompt]) if prompt else encoder.unconditional()
        return self._encode_text(self._text, condition)

    def _context(self, asked: list[Prompt], plan: Windows | None, first: int = 0) -> jax.Array:
        """Returns the context of prompts, [b, n, d], or of each window, [b, windows, n, d].

        `first` is the column of the sound at which the windows' columns begin.
        """
        ends = [(0.0, math.inf)]
        if plan is not None and any(prompt.changes for prompt in asked):
            second = self._coder.codec.samples(1) / self._coder.codec.mel.sample_rate  # of a column
            starts = first + plan.starts
            ends = [(s * second, (s + plan.width) * second) for s in starts]
        parts = [prompt.at(*end) for prompt in asked for end in ends]
        encoder: Any = self._conditioner
        prepare = encoder.prepare_images if asked[0].pictures else encoder.prepare
        condition = self._devices.split(prepare(parts))
        found = self._run("text encoder", self._encode_text, self._text, condition)
        if len(ends) == 1:
            return found
        return self._devices.split(found.reshape(len(asked), len(ends), *found.shape[1:]))

    def decode(
        self,
        latents: jax.Array,
        output: str,
        samples: np.ndarray | None = None,
        given: programs.Given = programs.Given(),
    ) -> Stages:
        """Decodes latents as far as `output` needs; returns each stage, at full length.

        Mels are those given outside the mask. Waveforms end after `samples`, and zeros follow;
        "clipped" is the share of their samples.
        """
        made: dict[str, Any] = {"latents": latents}
        if output != "latents":
            made["mel"] = self._coder.decode(latents, given.windows)
            if given.mask is not None:
                made["mel"] = jnp.where(given.mask.swapaxes(1, 2), made["mel"], given.mels)
        if output == "wav":
            made["wav"], made["clipped"] = self._coder.vocode(made["mel"], samples, given.windows)
        return {name: np.array(value, np.float32) for name, value in made.items()}

    def _check_finite(self, order: Order, batch: Batch, stage: np.ndarray) -> None:
        """Raises a FolderError if a stage of a sound is not finite, which a vocoder may hide."""
        bad = np.flatnonzero(~np.isfinite(stage.reshape(len(stage), -1)).all(axis=1))
        if len(bad):
            sound = batch.rows[bad[0]]
            prompt = arguments.short(order.prompt(sound).text)
            raise FolderError(
                f"{self.path} gives NaN or infinity for {prompt} (index "
                f"{order.request.start_index + sound}): its weights or schedule are broken, or its "
                "networks need dtype=float32, or a smaller guidance_scale"
            )

    def _check_clipped(self, order: Order, batch: Batch, clipped: np.ndarray) -> None:
        """Warns of sounds that are distorted; `clipped` is the share of each one's samples."""
        for share, i in zip(clipped, batch.sounds, strict=False):
            if share > CLIPPED:
                self._warn_clipped(
                    f"{share:.1%} of the samples of a sound for "
                    f"{arguments.short(order.prompt(i).text)} are clipped: lower guidance_scale"
                )

    def end(self, samples: int, output: str) -> int | None:
        """Returns the length of a sound's output, None for that of latents, which stay whole."""
        return {"wav": int(samples), "mel": self._coder.codec.frames(samples)}.get(output)


def _batches(kinds: Sequence[Any], size: int) -> Iterator[np.ndarray]:
    """Yields the indices of `kinds` in batches of one kind; the last one is not padded."""
    for kind in dict.fromkeys(kinds):
        same = np.array([i for i, other in enumerate(kinds) if other == kind])
        for start in range(0, len(same), size):
            yield same[start : start + size]
