"""Text to sound: a model folder's networks, behind one call."""

import math
import numbers
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax import bundle
from maa_jax.conditioning import TextConditioner
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule

# Latent widths are rounded up to a multiple of this (1.02 s at 16 kHz and hop 256), so that all
# durations together compile one program a second of sound and not one a frame.
WIDTH_MULTIPLE = 8
BATCH_SIZE = 8  # Samples made at a time; more prompts are taken one batch after another.
MAX_SEGMENT = 10  # DDIM steps in one program; see `_segment`.


def _segment(steps: int) -> int:
    """Returns how many DDIM steps one call of the program takes: a divisor of `steps`.

    Between calls the host reports progress: a callback from inside the program would keep it out
    of the persistent compilation cache. And 20, 50 and 100 steps share one program.
    """
    return max(n for n in range(1, MAX_SEGMENT + 1) if steps % n == 0)


def check_request(
    *,
    steps: int = 100,
    guidance_scale: float = 3.0,
    seed: int = 0,
    duration: float | None = None,
    num_samples: int = 1,
    start_index: int = 0,
    max_duration: float = math.inf,
) -> None:
    """Checks a request, as far as that goes without a model's weights.

    Args are those of `Pipeline.__call__`, and the model's limit in seconds.

    Raises:
      ValueError: naming the argument, its value and the remedy.
    """

    def need(name: str, value: Any, good: bool, remedy: str) -> None:
        if not good:
            raise ValueError(f"{name}={value!r}: give {remedy}")

    for name, value, low in (
        ("steps", steps, 1),
        ("num_samples", num_samples, 1),
        ("seed", seed, 0),
        ("start_index", start_index, 0),
    ):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        need(name, value, whole and low <= value < 2**32, f"a whole number from {low}")
    need("steps", steps, steps <= 1000, "a number from 1 to 1000")
    need("guidance_scale", guidance_scale, _finite(guidance_scale), "a finite number, such as 3.0")
    if duration is not None:
        limit = f" and up to {max_duration:g}, the model's limit" if _finite(max_duration) else ""
        fits = _finite(duration) and 0 < duration <= max_duration
        need("duration", duration, fits, f"seconds above 0{limit}")


def _finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


class Pipeline:
    """Makes sounds of sentences.

        pipe = Pipeline.from_pretrained("bundled")
        wavs = pipe(["a crow caws"], seed=0)  # float32 [1, samples] at pipe.sample_rate

    Attributes:
      sample_rate: of the sounds, in Hz.
      max_duration: seconds; the longest sound this model makes, and the default.
      path: the model folder.
    """

    sample_rate: int
    max_duration: float
    path: pathlib.Path

    def __init__(self, path: pathlib.Path, dtype: Any = jnp.float32):
        index = bundle.load_index(
            path,
            parts=(
                "unet",
                "vae",
                "vocoder",
                "text_encoder",
                "text_projection",
                "tokenizer",
                "scheduler",
            ),
            meta=("sample_rate", "max_duration", "mel"),
        )
        unet, vae, vocoder = (bundle.load_config(path, n) for n in ("unet", "vae", "vocoder"))
        self.path = path
        self.sample_rate = int(index["sample_rate"])
        self.max_duration = float(index["max_duration"])
        self._conditioner = TextConditioner.from_folder(path, dtype=dtype)
        _check_fit(path, index, unet, vae, vocoder, self._conditioner.width)
        self._schedule = Schedule.from_hf(
            bundle.read_json(path / "scheduler" / "scheduler_config.json")
        )
        self._hop = vocoder.hop_length
        self._scale = 2 ** (len(vae.block_out_channels) - 1)  # mel frames or bins a latent
        self._height = vocoder.model_in_dim // self._scale
        self._channels = unet.in_channels
        self._width_step = 2 ** (len(unet.block_out_channels) - 1)  # the U-Net halves the width

        graphs, params = {}, {"text": self._conditioner.params}
        for name in ("unet", "vae", "vocoder"):
            graphs[name], params[name] = bundle.load_network(path, name, dtype=dtype)
        # Weights are arguments of the jitted functions: closed over they would be constants of
        # the programs, copied into each and hashed for the cache.
        self._params = jax.device_put(params)

        def noise(seed, indices, shape):
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
            return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)

        def denoise(params, latents, coefficients, context, unconditional, guidance_scale):
            unconditional = jnp.broadcast_to(unconditional, context.shape)
            eps = samplers.guided(
                bundle.build(graphs["unet"], params), context, unconditional, guidance_scale
            )
            return samplers.ddim_scan(eps, latents, coefficients)

        def decode(vae_params, vocoder_params, latents):
            images = bundle.build(graphs["vae"], vae_params).decode(latents / vae.scaling_factor)
            mels = images[..., 0].transpose(0, 2, 1)  # [b, frames, n_mels]
            wavs = bundle.build(graphs["vocoder"], vocoder_params)(mels)
            return jnp.clip(wavs.astype(jnp.float32), -1, 1)

        self._encode = jax.jit(self._conditioner.encode)
        self._noise = jax.jit(noise, static_argnums=2)
        self._denoise = jax.jit(denoise)
        self._decode = jax.jit(decode)

    @classmethod
    def from_pretrained(
        cls, model: str | os.PathLike[str] = "bundled", *, dtype: Any = None
    ) -> "Pipeline":
        """Reads a model folder.

        Args:
          model: the folder's path, or "bundled" for the small model inside this package.
          dtype: the networks' compute dtype, float32 by default; jnp.bfloat16 on accelerators.

        Raises:
          ValueError: the folder is missing, half-written or does not fit together.
        """
        return cls(bundle.resolve(model), jnp.float32 if dtype is None else dtype)

    def latent_shape(self, duration: float | None = None) -> tuple[int, int, int]:
        """Returns (height, width, channels) of the latents of a sound of `duration` seconds."""
        return (self._height, self._width(self._samples(duration)), self._channels)

    def _samples(self, duration: float | None) -> int:
        check_request(duration=duration, max_duration=self.max_duration)
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
        guidance_scale: float = 3.0,
        seed: int = 0,
        duration: float | None = None,
        num_samples: int = 1,
        negative_prompt: str = "",
        initial_latents: np.ndarray | jax.Array | None = None,
        callback: Callable[[int, int], None] | None = None,
        start_index: int = 0,
    ) -> np.ndarray:
        """Makes `num_samples` sounds of each prompt.

        Sound i (of prompt i // num_samples) starts from noise that depends on `seed`, on
        `start_index + i` and on the latents' shape, and on nothing else: made alone, with its
        index as `start_index`, it is the same sound. Durations whose latents have one shape
        (within about a second) start from the same noise.

        Args:
          prompts: one sentence or several; an empty one gives any sound of the model's.
          steps: DDIM steps, 1 to 1000.
          guidance_scale: classifier-free guidance; 1 is none, larger follows the prompt more.
          seed: of the noise, from 0.
          duration: seconds; the model's limit by default.
          num_samples: sounds a prompt.
          negative_prompt: what guidance leads away from; empty is "any sound".
          initial_latents: noise to start from, [n, *latent_shape(duration)], in place of the
            seed's.
          callback: called with (steps done, steps in all) as sampling goes on.
          start_index: index of the first sound.

        Returns:
          float32 [n, round(duration * sample_rate)] in [-1, 1], n = len(prompts) * num_samples.

        Raises:
          ValueError: an argument is not as above.
        """
        check_request(
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed,
            duration=duration,
            num_samples=num_samples,
            start_index=start_index,
            max_duration=self.max_duration,
        )
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise ValueError(f"prompts={prompts!r}: give one sentence or more, as strings")
        if not isinstance(negative_prompt, str):
            raise ValueError(f'negative_prompt={negative_prompt!r}: give a sentence, or ""')
        samples = self._samples(duration)
        shape = self.latent_shape(duration)
        n = len(prompts) * num_samples
        if initial_latents is not None and np.shape(initial_latents) != (n, *shape):
            raise ValueError(
                f"initial_latents has shape {np.shape(initial_latents)}: "
                f"give {(n, *shape)}, [n, height, width, channels]"
            )

        tokens = self._conditioner.tokenize([negative_prompt, *prompts])
        unconditional = self._encode(self._params["text"], tokens[:1])
        coefficients = samplers.ddim_coefficients(
            self._schedule.ddim_timesteps(steps), self._schedule.alphas_cumprod
        )
        segments = np.split(np.asarray(coefficients), steps // _segment(steps))
        batches = list(_batches(n))
        wavs, done = [], 0
        for batch in batches:
            context = self._encode(self._params["text"], tokens[1 + batch // num_samples])
            if initial_latents is None:
                indices = (start_index + batch).astype(np.uint32)
                latents = self._noise(np.uint32(seed), indices, shape)
            else:
                latents = jnp.asarray(initial_latents[batch[0] : batch[-1] + 1], jnp.float32)
            for rows in segments:
                latents = self._denoise(
                    self._params["unet"], latents, rows, context, unconditional,
                    np.float32(guidance_scale),
                )  # fmt: skip
                done += len(rows)
                if callback is not None:
                    latents.block_until_ready()
                    callback(done, steps * len(batches))
            wav = self._decode(self._params["vae"], self._params["vocoder"], latents)
            # The last latent column holds more sound than was asked for: the end is cut.
            wavs.append(np.asarray(wav)[:, :samples])
        return np.concatenate(wavs)


def _check_fit(path, index, unet, vae, vocoder, context_width: int) -> None:
    """Raises a BundleError unless the parts of a model folder can work together."""
    mel = index["mel"]
    for here, value, there, other in (
        ("vocoder: model_in_dim", vocoder.model_in_dim, "mel: n_mels", mel["n_mels"]),
        ("vocoder: hop_length", vocoder.hop_length, "mel: hop_length", mel["hop_length"]),
        ("vocoder: sampling_rate", vocoder.sampling_rate, "sample_rate", index["sample_rate"]),
        ("vocoder: log", vocoder.log, "mel: log", mel["log"]),
        ("unet: in_channels", unet.in_channels, "vae: latent_channels", vae.latent_channels),
        ("unet: cross_attention_dim", unet.cross_attention_dim, "text's width", context_width),
    ):
        if value != other:
            raise bundle.BundleError(
                f"{path}: parts that do not fit, {here}={value!r} but {there}={other!r}; "
                "put networks together that were trained for one another"
            )


def _batches(n: int) -> Iterator[np.ndarray]:
    """Yields the indices 0..n-1 in batches; the last one is smaller and not padded."""
    for start in range(0, n, BATCH_SIZE):
        yield np.arange(start, min(start + BATCH_SIZE, n))
