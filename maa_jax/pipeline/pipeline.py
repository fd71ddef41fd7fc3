"""Text to sound: a model folder's networks, behind one call."""

import collections
import contextlib
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from maa_jax.checks import check_name
from maa_jax.devices import create_local_mesh
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.encoders import clap
from maa_jax.encoders.text import TextConditioner
from maa_jax.files import read_json, user_path
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.card import model_card
from maa_jax.model_folder.index import check_fit, copy_folder, load_pipeline_index
from maa_jax.pipeline.request import (
    BATCH_SIZE,
    OUTPUTS,
    Guidance,
    check_request,
    guidance_scales,
    is_list,
)

# Latent widths are rounded up to a multiple of this (1.02 s at 16 kHz and hop 256), so that all
# durations together compile one program a second of sound and not one a frame.
WIDTH_MULTIPLE = 8
# The most evaluations of the U-Net in one call of the program. Between calls the host reports
# progress: a callback from inside the program would keep it out of the persistent compilation
# cache.
MAX_SEGMENT = 10


def segments(evaluations: int) -> list[int]:
    """Returns how many evaluations of the U-Net each call of the program takes.

    Each length is a program of its own: a divisor needs one, and 20, 50 and 100 steps share theirs.
    """
    sizes = range(MAX_SEGMENT, MAX_SEGMENT // 2, -1)
    size = next((size for size in sizes if evaluations % size == 0), MAX_SEGMENT)
    whole, rest = divmod(evaluations, size)
    return [size] * whole + [rest] * (rest > 0)


class Ranked(NamedTuple):
    """The best of several candidates a prompt, each prompt's best first.

    Attributes:
      sounds: as `Pipeline.__call__` gives them without ranking.
      scores: cosine of the CLAP embeddings of sound and prompt, float32 [n].
      indices: the `start_index` with which each sound can be made again alone, int [n].
    """

    sounds: np.ndarray | list[np.ndarray]
    scores: np.ndarray
    indices: np.ndarray


class Pipeline:
    """Makes sounds of sentences.

        pipe = Pipeline.from_pretrained("bundled")
        wavs = pipe(["a crow caws"], seed=0)  # float32 [1, samples] at pipe.sample_rate

    Attributes:
      sample_rate: of the sounds, in Hz.
      max_duration: seconds; the longest sound this model makes, and the default.
      path: the model folder.
      seconds: time spent in each part so far, compilation included.
    """

    sample_rate: int
    max_duration: float
    path: pathlib.Path
    seconds: dict[str, float]

    def __init__(
        self,
        path: pathlib.Path,
        dtype: Any = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        index = load_pipeline_index(path)
        unet, vae, vocoder = (networks.load_config(path, n) for n in ("unet", "vae", "vocoder"))
        self.path = path
        self.sample_rate = int(index["sample_rate"])
        self.max_duration = float(index["max_duration"])
        self.seconds = collections.Counter()
        self._dtype = _compute_dtype(dtype)
        self._conditioner = TextConditioner.from_folder(path, dtype=self._dtype)
        check_fit(path, index, unet, vae, vocoder, self._conditioner.width)
        self._schedule = Schedule.from_hf(read_json(path / "scheduler" / "scheduler_config.json"))
        self._hop = vocoder.hop_length
        self._scale = 2 ** (len(vae.block_out_channels) - 1)  # mel frames or bins a latent
        self._height = vocoder.model_in_dim // self._scale
        self._channels = unet.in_channels
        self._width_step = 2 ** (len(unet.block_out_channels) - 1)  # the U-Net halves the width

        self._mesh = None
        if devices is not None:
            self._mesh = create_local_mesh(devices)
        # Weights are arguments of the jitted functions: closed over they would be constants of
        # the programs, copied into each and hashed for the cache.
        self._params = {"text": self._put(self._conditioner.params)}
        self._score: clap.ClapScore | None = None
        graphs = self._graphs = {}

        def noise(seed, indices, shape):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
            return jax.vmap(lambda key: jax.random.normal(key, shape))(keys), keys

        def denoise(params, carry, rows, context, unconditional, keys):
            unconditional = jnp.broadcast_to(unconditional, context.shape)
            network = networks.build(graphs["unet"], params)
            step = samplers.make_step(samplers.guided(network, context, unconditional), keys)
            return jax.lax.scan(step, carry, rows)[0]

        def decode(params, latents):
            images = networks.build(graphs["vae"], params).decode(latents / vae.scaling_factor)
            return images[..., 0].transpose(0, 2, 1).astype(jnp.float32)  # [b, frames, n_mels]

        def vocode(params, mels):
            wavs = networks.build(graphs["vocoder"], params)(mels)
            return jnp.clip(wavs.astype(jnp.float32), -1, 1)

        self._encode = jax.jit(self._conditioner.encode)
        self._noise = jax.jit(noise, static_argnums=2)
        self._denoise = jax.jit(denoise)
        self._decode = jax.jit(decode)
        self._vocode = jax.jit(vocode)

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
          model: the folder's path, a hub id ("user/model"), or "bundled" for the small model inside
            this package.
          dtype: the networks' compute dtype; float32 on CPUs by default, bfloat16 elsewhere.
          devices: of this process, to spread every batch over; JAX's default device otherwise.

        Raises:
          ValueError: the folder is missing, half-written or does not fit together.
        """
        return cls(hub.fetch_model(model), dtype, devices)

    def load(self, output: str = "wav", *, ranking: bool = False) -> None:
        """Reads the weights that `output`, and ranking, need and that have not been read yet.

        Raises:
          ValueError: they are broken, or the folder has no CLAP to rank with.
        """
        check_name("output", output, OUTPUTS)
        if ranking:
            clap.check_folder(self.path)
        for name in ("unet", *OUTPUTS["wav" if ranking else output]):
            if name not in self._params:
                self._load_network(name)
        if ranking and self._score is None:
            self._score = clap.ClapScore(self.path)

    def _load_network(self, name: str) -> None:
        self._graphs[name], params = networks.load_network(self.path, name, dtype=self._dtype)
        self._params[name] = self._put(params)

    def _put(self, tree: Any, axis: int | None = None) -> Any:
        """Returns arrays on the devices: split over them along an axis, or whole on each."""
        if self._mesh is None:
            return jax.device_put(tree)
        spec = P() if axis is None else P(*(None,) * axis, "data")
        return jax.device_put(tree, NamedSharding(self._mesh, spec))

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - begin

    def latent_shape(self, duration: float | None = None) -> tuple[int, int, int]:
        """Returns (height, width, channels) of the latents of a sound of `duration` seconds."""
        check_request(duration=duration, max_duration=self.max_duration)
        return self._shape(self._samples(duration))

    def _shape(self, samples: int) -> tuple[int, int, int]:
        return (self._height, self._width(samples), self._channels)

    def _samples(self, duration: float | None) -> int:
        duration = self.max_duration if duration is None else duration
        # Not to nothing: less than half a sample is still a sound, of one sample.
        return max(1, round(duration * self.sample_rate))

    def _width(self, samples: int) -> int:
        def latents(samples: int) -> int:
            return math.ceil(math.ceil(samples / self._hop) / self._scale)

        def rounded(width: int, multiple: int) -> int:
            return math.ceil(width / multiple) * multiple

        limit = rounded(latents(round(self.max_duration * self.sample_rate)), self._width_step)
        return min(rounded(latents(samples), max(WIDTH_MULTIPLE, self._width_step)), limit)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        steps: int = 100,
        sampler: str = "ddim",
        eta: float = 0.0,
        spacing: str = "ldm",
        guidance_scale: Guidance = 3.0,
        seed: int = 0,
        duration: float | Sequence[float] | None = None,
        num_samples: int = 1,
        num_candidates: int | None = None,
        negative_prompt: str = "",
        initial_latents: np.ndarray | jax.Array | Sequence[np.ndarray] | None = None,
        output: str = "wav",
        batch_size: int = BATCH_SIZE,
        callback: Callable[[int, int, jax.Array], None] | None = None,
        start_index: int = 0,
    ) -> np.ndarray | list[np.ndarray] | Ranked:
        """Makes `num_samples` sounds of each prompt.

        Sound i (of prompt i // num_samples) starts from noise that depends on `seed`, on
        `start_index + i` and on the latents' shape, and on nothing else: made alone, with its
        index as `start_index`, it is the same sound. Durations whose latents have one shape
        (within about a second) start from the same noise.

        Args:
          prompts: one sentence or several; an empty one gives any sound of the model's.
          steps: of the sampler, 1 to 1000.
          sampler: "ddim", "plms" (one evaluation of the U-Net more than steps) or "dpmpp_2m".
          eta: 0 to 1, of "ddim" alone: how much fresh noise the steps add.
          spacing: of the timesteps: "ldm" (the release's), or diffusers' "leading", "trailing"
            or "linspace".
          guidance_scale: classifier-free guidance; 1 is none, larger follows the prompt more. One
            number, or one for each step, or a function of the progress, 0 at the first step and 1
            at the last.
          seed: of the noise, from 0.
          duration: seconds, or seconds of each prompt; the model's limit by default.
          num_samples: sounds a prompt.
          num_candidates: sounds made of each prompt, of which the `num_samples` are given that
            fit it best by the folder's CLAP; without it there is no ranking. Candidates' indices
            count as sounds' do above.
          negative_prompt: what guidance leads away from; empty is "any sound".
          initial_latents: noise to start from in place of the seed's, a sound (or candidate) an
            entry: [n, *latent_shape(duration)], or a list where there is a list of durations.
          output: "wav", "mel" (log-mel spectrograms, [frames, n_mels] each) or "latents" (as
            `decode` takes them); networks that it does not need are not read.
          batch_size: sounds made at a time; memory on the device depends on it, and not on how
            many sounds there are.
          callback: called as sampling goes on with (evaluations of the U-Net done, evaluations in
            all, the batch's latents without noise as estimated so far [b, height, width,
            channels]). `decode` makes these audible.
          start_index: index of the first sound.

        Returns:
          float32 [n, round(duration * sample_rate)] in [-1, 1], n = len(prompts) * num_samples; or
          mels or latents [n, ...]. A list of n arrays where there is a list of durations. With
          `num_candidates`, these are the first of a `Ranked`'s three fields.

        Raises:
          ValueError: an argument is not as above, or the folder lacks what ranking needs.
        """
        check_request(
            steps=steps,
            sampler=sampler,
            eta=eta,
            spacing=spacing,
            guidance_scale=guidance_scale,
            seed=seed,
            duration=duration,
            num_samples=num_samples,
            num_candidates=num_candidates,
            batch_size=batch_size,
            output=output,
            start_index=start_index,
            max_duration=self.max_duration,
        )
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompts={prompts!r}: give one sentence or more, as strings")
        if not isinstance(negative_prompt, str):
            raise ValueError(f'negative_prompt={negative_prompt!r}: give a sentence, or ""')
        durations = list(duration) if is_list(duration) else [duration] * len(prompts)
        if len(durations) != len(prompts):
            raise ValueError(
                f"duration={duration!r}: give one, or one for each of the {len(prompts)} prompts"
            )
        tries = num_samples if num_candidates is None else num_candidates
        samples = np.repeat([self._samples(d) for d in durations], tries)
        shapes = [self._shape(int(n)) for n in samples]
        ends = {"wav": samples, "mel": -(-samples // self._hop)}.get(output)  # latents stay whole
        if initial_latents is not None:
            _check_latents(initial_latents, shapes, is_list(duration))
        ranking = num_candidates is not None
        self.load(output, ranking=ranking)

        conditions = self._conditioner.prepare([negative_prompt, *prompts])
        take = lambda rows: jax.tree.map(lambda x: x[rows], conditions)
        unconditional = self._encode(self._params["text"], take([0]))
        table = samplers.coefficients(
            sampler,
            self._schedule,
            steps,
            spacing=spacing,
            eta=eta,
            guidance_scale=guidance_scales(guidance_scale, steps),
        )
        batches = list(_batches(shapes, batch_size))
        sounds: list[Any] = [None] * len(shapes)
        scores = np.zeros(len(shapes), np.float32)
        for number, batch in enumerate(batches):
            rows = batch
            if self._mesh is not None:  # as many for each device
                rows = np.pad(batch, (0, -len(batch) % self._mesh.size), "edge")
            with self._timed("text encoder"):
                words = self._put(take(1 + rows // tries), 0)
                context = self._encode(self._params["text"], words).block_until_ready()
            indices = (start_index + rows).astype(np.uint32)
            latents, keys = self._noise(np.uint32(seed), indices, shapes[batch[0]])
            if initial_latents is not None:
                latents = np.stack([np.asarray(initial_latents[i], np.float32) for i in rows])
            keys = self._put(keys, 0) if eta else None
            for done, carry in self._steps(latents, table, context, unconditional, keys):
                if callback is not None:
                    done += number * len(table)
                    callback(done, len(batches) * len(table), carry.pred_x0[: len(batch)])
            made = self._finish(carry.latents, "wav" if ranking else output)
            if ranking:
                for wav, end in zip(made["wav"], samples[batch], strict=False):
                    wav[end:] = 0  # silence, and not a cut: that would be a program a length
                with self._timed("CLAP"):
                    asked = [prompts[i // tries] for i in rows]
                    heard = self._score(asked, made["wav"], self.sample_rate)
                scores[batch] = heard[: len(batch)]
            for i, sound in zip(batch, made[output], strict=False):
                sounds[i] = sound if ends is None else sound[: ends[i]]
        order = np.arange(len(sounds))
        if ranking:
            best = np.argsort(-scores.reshape(-1, tries), axis=1, kind="stable")[:, :num_samples]
            order = (best + tries * np.arange(len(best))[:, None]).reshape(-1)
        picked = [sounds[i] for i in order]
        result = picked if is_list(duration) else np.stack(picked)
        return Ranked(result, scores[order], start_index + order) if ranking else result

    def _steps(
        self, latents, table, context, unconditional, keys
    ) -> Iterator[tuple[int, samplers.SamplerState]]:
        """Goes through a table, and yields how many rows are done and what they have made."""
        carry = samplers.initial_state(jnp.asarray(latents))
        if self._mesh is not None:
            axes = samplers.SamplerState(latents=0, previous=0, history=1, pred_x0=0)
            carry = samplers.SamplerState(*map(self._put, carry, axes))
        done = 0
        for size in segments(len(table)):
            rows = table[done : done + size]
            with self._timed("U-Net"):
                carry = self._denoise(
                    self._params["unet"], carry, rows, context, unconditional, keys
                )
                carry.latents.block_until_ready()
            done += size
            yield done, carry

    def _finish(self, latents: jax.Array, output: str) -> dict[str, np.ndarray]:
        """Returns latents, mels and wavs of latents as far as `output`, whole ones."""
        made = {"latents": latents}
        if output != "latents":
            with self._timed("autoencoder"):
                made["mel"] = self._decode(self._params["vae"], latents).block_until_ready()
        if output == "wav":
            with self._timed("vocoder"):
                wavs = self._vocode(self._params["vocoder"], made["mel"])
                made["wav"] = wavs.block_until_ready()
        return {name: np.array(value, np.float32) for name, value in made.items()}

    def decode(self, latents: np.ndarray | jax.Array, output: str = "wav") -> np.ndarray:
        """Turns latents into sound, as sampling does at its end.

        Args:
          latents: [n, height, width, channels], scaled as the U-Net has them.
          output: "wav", or "mel" for log-mel spectrograms.

        Returns:
          float32 [n, samples] in [-1, 1], or [n, frames, n_mels], of all that the latents hold.
        """
        self.load(output)
        return self._finish(jnp.asarray(latents, jnp.float32), output)[output]

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes the model folder, with a model card where there is none.

        Parts of a model that `folder` holds already are replaced; whatever else is in it stays.

        Raises:
          ValueError: `folder` is this model's own, or holds something that is no model.
        """
        target = pathlib.Path(user_path(folder))
        copy_folder(self.path, target)
        if not (target / "README.md").exists():
            (target / "README.md").write_text(model_card(target), "utf-8")

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads the model folder with its card to the Hugging Face hub.

        Args:
          repo_id: such as "someone/sounds"; made if it does not exist.
          private: whether a new repository is hidden from others.

        Returns:
          The address of the upload.

        Raises:
          OSError: the hub refuses, or cannot be reached; log in with `hf auth login`.
        """
        import huggingface_hub

        api = huggingface_hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(pathlib.Path(folder, "model"))
            return str(api.upload_folder(repo_id=repo_id, folder_path=f"{folder}/model"))


def _compute_dtype(dtype: Any) -> Any:
    if dtype is None:
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype={dtype!r}: give jnp.float32 or jnp.bfloat16")
    return dtype


def _check_latents(latents: Any, shapes: list[tuple[int, ...]], is_list: bool) -> None:
    """Raises a ValueError unless there is an entry of the right shape for each sound."""
    if not is_list:
        got, want = np.shape(latents), (len(shapes), *shapes[0])
    else:
        got, want = [np.shape(x) for x in latents], shapes
    if got != want:
        raise ValueError(
            f"initial_latents has shape {got}: give {want}, [n, height, width, channels]"
        )


def _batches(shapes: Sequence[tuple[int, ...]], size: int) -> Iterator[np.ndarray]:
    """Yields the indices of `shapes` in batches of one shape; the last is smaller, not padded."""
    for shape in dict.fromkeys(shapes):
        same = np.array([i for i, other in enumerate(shapes) if other == shape])
        for start in range(0, len(same), size):
            yield same[start : start + size]
