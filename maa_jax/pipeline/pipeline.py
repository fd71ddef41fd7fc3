"""Text to sound: a model folder's networks, behind one call."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.audio import io
from maa_jax.checks import check_name
from maa_jax.devices import LocalDevices
from maa_jax.encoders import clap
from maa_jax.encoders.visual import check_sees, open_conditioner
from maa_jax.files import FolderError, user_path
from maa_jax.latents import LatentCodec
from maa_jax.model_folder import hub
from maa_jax.model_folder.card import model_card
from maa_jax.model_folder.index import copy_folder
from maa_jax.model_folder.model import Model, check_same, read_model
from maa_jax.options import keywords
from maa_jax.pipeline import arguments, editing, programs
from maa_jax.pipeline.coding import Coder
from maa_jax.pipeline.denoising import Denoiser
from maa_jax.pipeline.lengths import Lengths
from maa_jax.pipeline.making import TIME, Maker, Order
from maa_jax.pipeline.prompts import check_heard
from maa_jax.pipeline.prompts import read as read_prompts
from maa_jax.pipeline.request import OUTPUTS, Request, is_list
from maa_jax.vocoder import Vocoder


class Ranked(NamedTuple):
    """The best of each prompt's candidates, best first.

    Attributes:
      sounds: sounds as `Pipeline.__call__` returns them without ranking.
      scores: cosine of the CLAP embeddings of sound and prompt, float32 [n].
      indices: `start_index` with which each sound can be made again alone, int [n].
    """

    sounds: np.ndarray | list[np.ndarray]
    scores: np.ndarray
    indices: np.ndarray


class Pipeline:
    """Generates sounds from text prompts, pictures or videos.

        pipe = Pipeline.from_pretrained("bundled")
        wavs = pipe(["a crow caws"], seed=0)  # float32 [1, samples] at pipe.sample_rate

    Attributes:
      model: description of the model folder.
      path: path of the model folder.
      sample_rate: sample rate of the sounds, in Hz.
      max_duration: length of the sounds that the model was trained on, in seconds: the default.
        Longer ones are made by overlapping windows.
    """

    def __init__(self, model: Model, dtype: Any, devices: LocalDevices):
        """Reads what encodes prompts; users call `from_pretrained`.

        Raises:
          ValueError: the folder's networks do not fit together.
        """
        self.model, self.path = model, model.path
        self.sample_rate, self.max_duration = model.sample_rate, model.max_duration
        self._codec = LatentCodec.from_folder(model.path, dtype=dtype)
        vocoder = Vocoder.from_folder(model.path, self._codec.mel)
        # In float32, as in training and in stored contexts.
        conditioner = open_conditioner(model.path)
        wide = model.unet.cross_attention_dim
        check_same(self.path, "unet: cross_attention_dim", wide, "text's width", conditioner.width)
        taken, latent = model.unet.in_channels, model.vae.latent_channels
        if taken not in (latent, 2 * latent + 1):
            raise FolderError(
                f"{self.path}: unet: in_channels={taken}, but vae: latent_channels={latent}: give "
                f"a U-Net that takes the latents, or {2 * latent + 1} channels: the latents, those "
                "of a masked recording, and the mask"
            )
        self._lengths = Lengths(model, self._codec)
        self._devices = devices
        self._networks = programs.Networks(self.path, dtype, devices)
        self._coder = Coder(self._codec, vocoder, self._networks, devices, self._run)
        fills = taken != latent
        denoiser = Denoiser(self._networks, self._coder, devices, model.schedule, fills, self._run)
        self._maker = Maker(
            model, conditioner, self._coder, denoiser, self._lengths, devices, self._run
        )
        self._score: clap.ClapScore | None = None
        self._seconds: dict[str, float] | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "bundled",
        *,
        dtype: Any = None,
        devices: Sequence[jax.Device] | None = None,
    ) -> "Pipeline":
        """Opens a model folder. The denoiser and decoders are read when they are first needed.

        Args:
          model: path of the folder, a hub id ("user/model"), or "bundled" for the small model
            inside this package.
          dtype: compute dtype of U-Net and autoencoder; float32 on CPUs by default, bfloat16
            elsewhere. The text encoder, the vocoder and scores compute in float32.
          devices: devices of this process that share every batch; JAX's default device otherwise.

        Raises:
          ValueError: the folder is missing, half-written or does not fit together.
        """
        if devices is not None and not all(isinstance(device, jax.Device) for device in devices):
            raise ValueError(f"devices={devices!r}: give some of jax.local_devices()")
        if devices is not None and not len(devices):
            raise ValueError("devices=[]: give at least one of jax.local_devices()")
        return cls(
            read_model(hub.fetch_model(model)), arguments.float_type(dtype), LocalDevices(devices)
        )

    def load(self, output: str = "wav", *, ranking: bool = False) -> None:
        """Reads the weights that `output`, and ranking, need and that have not been read yet.

        Raises:
          ValueError: they are broken, or the folder has no CLAP to rank with.
        """
        check_name("output", output, OUTPUTS)
        if ranking:
            clap.check_folder(self.path)
        for name in ("unet", *OUTPUTS["wav" if ranking else output]):
            self._networks.load(name)
        if ranking and self._score is None:
            self._score = clap.ClapScore(self.path)

    @contextlib.contextmanager
    def timed(self) -> Iterator[dict[str, float]]:
        """Measures the seconds that each part takes, as a context manager.

        Compilation is included. Inside the block each part waits for the one before.
        """
        self._seconds = collections.defaultdict(float)
        try:
            yield self._seconds
        finally:
            self._seconds = None

    def _run(self, part: str, program: Callable[..., Any], *args: Any) -> Any:
        if self._seconds is None:
            return program(*args)
        begin = time.perf_counter()
        result = jax.block_until_ready(program(*args))
        self._seconds[part] += time.perf_counter() - begin
        return result

    def latent_shape(self, duration: float | None = None) -> tuple[int, int, int]:
        """Returns (height, width, channels) of the latents of a sound of `duration` seconds."""
        (seconds,) = Request(duration=duration).durations(self.max_duration, 1)
        return self._lengths.shape(self._lengths.samples(seconds))

    @keywords(Request)
    def __call__(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        video: Any = None,
        audio: Any = None,
        mask: Any = None,
        initial_latents: np.ndarray | jax.Array | Sequence[np.ndarray] | None = None,
        callback: Callable[[int, int, jax.Array], None] | None = None,
        **options: Any,
    ) -> np.ndarray | list[np.ndarray] | Ranked:
        """Generates `num_samples` sounds for each prompt.

        Sound i (of prompt i // num_samples) starts from noise that depends only on `seed`,
        `start_index + i` and the latents' shape: made alone, with its index as `start_index`, it is
        the same sound. Durations whose latents have one shape (within about a second) start from
        the same noise. With ranking, the indices count candidates.

        Args:
          prompts: prompt, or several; an empty one gives any sound that the model can make, and one
            with times, "0-3 s rain; 3-6 s thunder", one after the other.
          image: in place of prompts, path of a picture, or uint8 [h, w, 3]; or a list, for a model
            that was trained under CLIP's embedding (configs/v2a.py; paper, section 4.3).
          video: the same with paths of videos; their sounds are as long as they are.
          audio: recording that the sounds are made from (SDEdit, paper section 4.1): path of a
            sound file, or waveform [samples] at `sample_rate`; or a list, one for each prompt. The
            sounds have its length; see `edit` and `strength`.
          mask: parts of the recording that are made anew, while all else stays as it is, bit for
            bit: "1.5-2" seconds, "1.5-2:500-3000" Hz within them, "continue:2" or "before:2"
            seconds added to it, "bandwidth:4000" all above so many Hz, a picture (white is made
            anew), a recording whose silence is filled, a list of these, or bool [n_mels, frames].
          initial_latents: noise to start from in place of the seed's, one entry for each sound (or
            candidate): [n, *latent_shape(duration)], or a list if `duration` is a list.
          callback: function called during sampling with (evaluations of the U-Net done, evaluations
            in total, current estimate of the batch's clean latents [b, height, width, channels], of
            very long sounds those of the section that is made). `decode` makes these audible.
          **options: fields of `Request`.

        Returns:
          float32 [n, round(duration * sample_rate)] in [-1, 1], n = len(prompts) * num_samples; or
          mels or latents [n, ...]. A list of n arrays if `duration`, `audio` or `video` is a list,
          or prompts have times. With `num_candidates`, a `Ranked`, whose `sounds` these are.

        Raises:
          ValueError: an argument is invalid, or the folder lacks the CLAP that ranking needs.
        """
        order = self._order(prompts, image, video, audio, mask, initial_latents, callback, options)
        request, output = order.request, order.request.output
        self.load(output, ranking=request.ranks)
        sounds: list[np.ndarray] = [np.empty(0)] * len(order.samples)
        scores = np.zeros(len(sounds), np.float32)
        for batch, pieces in self._maker.batches(order):
            made = list(pieces)
            if request.ranks:
                texts = [order.prompt(i).text for i in batch.rows]
                scores[batch.sounds] = self._rank(texts, made[0]["wav"])[: len(batch.sounds)]
            for place, i in enumerate(batch.sounds):
                parts = [piece[output][place] for piece in made]
                whole = parts[0] if len(parts) == 1 else np.concatenate(parts, TIME[output] - 1)
                sounds[i] = whole[: self._maker.end(order.samples[i], output)]
        return _result(request, sounds, scores, order.listed)

    @keywords(Request)
    def stream(
        self,
        prompts: str | Sequence[str] | None = None,
        *,
        image: Any = None,
        video: Any = None,
        audio: Any = None,
        mask: Any = None,
        initial_latents: np.ndarray | jax.Array | Sequence[np.ndarray] | None = None,
        callback: Callable[[int, int, jax.Array], None] | None = None,
        **options: Any,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Generates the sounds of `__call__`, and yields each as it is made.

            for _, piece in pipe.stream("applause", duration=600):
                speaker.write(piece)

        Sounds of more than six times the length of training come in pieces, before their end is
        made; others whole. The memory that they take does not grow with their length.

        Args:
          prompts: as for `__call__`, and so are all others.
          image: see `__call__`.
          video: see `__call__`.
          audio: see `__call__`.
          mask: see `__call__`.
          initial_latents: see `__call__`.
          callback: see `__call__`.
          **options: fields of `Request`; nothing is ranked.

        Returns:
          An iterator of the number of a sound and its next piece: float32 [samples], or frames of
          mels [frames, n_mels], or columns of latents [height, width, channels].

        Raises:
          ValueError: an argument is invalid, or sounds are ranked, which takes whole ones.
        """
        order = self._order(prompts, image, video, audio, mask, initial_latents, callback, options)
        if order.request.ranks:
            raise ValueError(
                f"num_candidates={order.request.num_candidates}: sounds are ranked when they are "
                "whole: leave it out, or call the pipeline"
            )
        self.load(order.request.output)
        return self._stream(order)

    def _stream(self, order: Order) -> Iterator[tuple[int, np.ndarray]]:
        output = order.request.output
        for batch, pieces in self._maker.batches(order):
            done = 0
            for piece in pieces:
                for place, i in enumerate(batch.sounds):
                    part = piece[output][place]
                    end = self._maker.end(order.samples[i], output)
                    part = part if end is None else part[: max(0, end - done)]
                    if part.size:
                        yield int(i), part
                done += piece[output].shape[TIME[output]]

    def _order(
        self,
        prompts: str | Sequence[str] | None,
        image: Any,
        video: Any,
        audio: Any,
        mask: Any,
        initial_latents: Any,
        callback: Any,
        options: dict[str, Any],
    ) -> Order:
        """Checks and reads the arguments of `__call__`."""
        for name in options:
            check_name("option", name, [field.name for field in dataclasses.fields(Request)])
        request = Request(**options)
        if image is not None or video is not None:
            check_sees(self.path)
        asked = read_prompts(prompts, image, video, self.max_duration)
        if request.ranks and asked[0].pictures:
            raise ValueError("num_candidates: sounds are ranked by a prompt, not by pictures")
        if callback is not None and not callable(callback):
            raise ValueError(f"callback={callback!r}: give a function")
        recordings = None
        if audio is not None:
            if request.duration is not None or initial_latents is not None:
                raise ValueError(
                    "audio: its sounds have its length and begin with its latents: leave out "
                    "duration and initial_latents"
                )
            if mask is not None:
                request.check_masked()
            recordings = editing.read(audio, mask, len(asked), self._codec.mel)
        else:
            request.check_unedited(mask=mask is not None)
        skipped = request.skipped(audio, mask)
        table = request.coefficients(self.model.schedule, skipped)
        if recordings is None:
            durations = request.durations(self.max_duration, len(asked))
            if request.duration is None:
                stated = [prompt.seconds for prompt in asked]
                durations = [d if s is None else s for s, d in zip(stated, durations, strict=True)]
            lengths = [self._lengths.samples(seconds) for seconds in durations]
        else:
            lengths = [len(wav) for wav in recordings.wavs]
        check_heard(asked, [length / self.sample_rate for length in lengths])
        request.check_loop(lengths, self.model)
        samples = np.repeat(lengths, request.tries)
        noise = None
        if initial_latents is not None:
            shapes = [self._lengths.shape(int(count), request.loop) for count in samples]
            noise = arguments.initial_noise(initial_latents, shapes, is_list(request.duration))
        if recordings is None:
            timed = any(prompt.seconds is not None for prompt in asked)
            listed = is_list(request.duration) or (timed and is_list(prompts or video))
        else:
            listed = recordings.listed
        source = None
        if request.edit == "inversion":
            source = self._maker.context_of(request.source_prompt)
        return Order(
            request=request,
            asked=asked,
            recordings=recordings,
            samples=samples,
            noise=noise,
            table=table,
            skipped=skipped,
            unconditional=self._maker.context_of(request.negative_prompt),
            source=source,
            callback=callback,
            listed=listed,
        )

    def _rank(self, prompts: list[str], wavs: np.ndarray) -> np.ndarray:
        """Returns each sound's CLAP score for its prompt, [n].

        The sounds are not cut, which would compile a program for each length.
        """
        assert self._score is not None  # set by `load`
        return self._run("CLAP", self._score, prompts, io.as_read(wavs), self.sample_rate)

    def encode(self, wavs: np.ndarray | jax.Array) -> np.ndarray:
        """Encodes sounds to latents, such as `decode` takes.

        Args:
          wavs: waveforms [n, samples] in [-1, 1] at `sample_rate`.

        Returns:
          float32 [n, *latent_shape(duration)], scaled as the U-Net has them: the means of the
          autoencoder's posterior. After the sounds they are padded with silence.

        Raises:
          ValueError: the sounds are longer than an hour, or have another shape.
        """
        audio = arguments.numbers("wavs", wavs)
        if audio.ndim != 2 or not audio.size:
            raise ValueError(f"wavs has shape {audio.shape}: give [n, samples]")
        shape = self.latent_shape(audio.shape[1] / self.sample_rate)
        silence = self._codec.samples(shape[1]) - audio.shape[1]
        audio = np.pad(audio, ((0, 0), (0, max(0, silence))))
        return np.array(self._coder.encode(audio, self._lengths.windows(shape)))

    def decode(self, latents: np.ndarray | jax.Array, output: str = "wav") -> np.ndarray:
        """Decodes latents to sound, as sampling does at its end.

        Args:
          latents: latents [n, height, width, channels], scaled as the U-Net has them.
          output: "wav", or "mel" for log-mel spectrograms.

        Returns:
          float32 [n, samples] in [-1, 1], or [n, frames, n_mels], of all that the latents hold.

        Raises:
          ValueError: `latents` are no latents of this model, or their sound is not finite.
        """
        check_name("output", output, OUTPUTS)
        array = arguments.numbers("latents", latents)
        height, _, channels = self.latent_shape()
        if (
            array.ndim != 4
            or (array.shape[1], array.shape[3]) != (height, channels)
            or not array.size
        ):
            raise ValueError(
                f"latents has shape {array.shape}: give [n, {height}, width, {channels}]"
            )
        given = programs.Given(windows=self._lengths.windows(array.shape[1:]))
        decoded = self._maker.decode(jnp.asarray(array), output, given=given)[output]
        finite = np.isfinite(decoded).reshape(len(decoded), -1).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"latents[{int(np.argmin(finite))}] gives a sound that is not finite: give latents "
                "as the U-Net has them, whose standard deviation is about 1"
            )
        return decoded

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model folder, with a model card where there is none.

        Parts of a model that `folder` already holds are replaced; other files in it stay.

        Raises:
          ValueError: `folder` is this model's own, or holds something other than a model.
        """
        target = pathlib.Path(user_path(folder))
        copy_folder(self.path, target)
        if not (target / "README.md").exists():
            (target / "README.md").write_text(model_card(target), "utf-8")

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads the model folder with its card to the Hugging Face hub: see `hub.upload`."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(pathlib.Path(folder, "model"))
            return hub.upload(pathlib.Path(folder, "model"), repo_id, private=private)


def _result(
    request: Request, sounds: list[np.ndarray], scores: np.ndarray, listed: bool
) -> np.ndarray | list[np.ndarray] | Ranked:
    """Returns all sounds, or each prompt's best."""
    order = np.arange(len(sounds))
    if request.ranks:
        best = np.argsort(-scores.reshape(-1, request.tries), axis=1, kind="stable")
        best = best[:, : request.num_samples] + request.tries * np.arange(len(best))[:, None]
        order = best.reshape(-1)
    picked = [sounds[i] for i in order]
    result = picked if listed else np.stack(picked)
    if not request.ranks:
        return result
    return Ranked(result, scores[order], request.start_index + order)
