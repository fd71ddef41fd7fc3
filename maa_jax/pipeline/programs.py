"""The pipeline's computations: networks, read on first use, and pure functions of their weights.

Weights are arguments of the jitted functions. Closed over, they would be constants of the programs,
copied into each and hashed for the compilation cache. Graphs are static arguments, so that all
pipelines of one architecture share their programs.
"""

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax.devices import LocalDevices
from maa_jax.diffusion import samplers
from maa_jax.latents import LatentCodec
from maa_jax.model_folder import networks
from maa_jax.pipeline.windows import Windows, windowed
from maa_jax.vocoder import Vocoder

Tree = Any


class Known(NamedTuple):
    """Latents that sampling keeps, for denoisers that were not trained to fill gaps.

    Attributes:
      latents: clean latents, [b, h, w, c].
      noise: noise that brings them to each step's level, [b, h, w, c].
      mask: whether a latent is made anew, bool [b, h, w, 1].
    """

    latents: Any
    noise: Any
    mask: Any

    def put_into(self, state: samplers.SamplerState, alpha: jax.Array) -> samplers.SamplerState:
        """Puts the known latents, noised, into a state of the sampler; see `samplers.Hook`."""
        noisy = jnp.sqrt(alpha) * self.latents + jnp.sqrt(1 - alpha) * self.noise
        return state._replace(latents=jnp.where(self.mask, state.latents, noisy))


class Given(NamedTuple):
    """What is known of sounds before they are made.

    Attributes:
      latents: those of the recordings, [b, h, w, c].
      mels: theirs, [b, frames, n_mels].
      mask: what is made anew, bool [b, n_mels, frames]; None is all.
      channels: what the U-Net takes beside the latents.
      known: latents that are kept by blending.
      windows: windows of long sounds.
    """

    latents: Any = None
    mels: Any = None
    mask: Any = None
    channels: Any = None
    known: Known | None = None
    windows: Windows | None = None


class Networks:
    """The networks of a model folder, each read once, when it is first needed.

    Args:
      folder: path of the model folder.
      dtype: compute dtype of all but the vocoder, which computes in float32.
      devices: devices that hold the weights.
    """

    def __init__(self, folder: pathlib.Path, dtype: Any, devices: LocalDevices):
        self._folder, self._dtype, self._devices = folder, dtype, devices
        self._read: dict[str, tuple[nnx.GraphDef, Tree]] = {}

    def load(self, name: str) -> tuple[nnx.GraphDef, Tree]:
        """Returns the graph and the weights of the network in the folder's `name/`."""
        if name not in self._read:
            dtype = jnp.float32 if name == "vocoder" else self._dtype
            graphdef, params = networks.load_network(self._folder, name, dtype=dtype)
            self._read[name] = graphdef, self._devices.replicate(params)
        return self._read[name]


@functools.partial(jax.jit, static_argnums=0)
def draw_noise(
    shape: tuple[int, int, int], seed: jax.Array, indices: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the noise that sounds start from, [b, *shape], and their keys, [b]."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys), keys


@jax.jit
def fold_keys(keys: jax.Array, number: jax.Array) -> jax.Array:
    """Returns other keys, [b], one set for each number."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


@functools.partial(jax.jit, static_argnums=0)
def denoise(
    unet: nnx.GraphDef,
    params: Tree,
    state: samplers.SamplerState,
    table: samplers.Table,
    context: jax.Array,
    unconditional: jax.Array,
    keys: jax.Array | None,
    channels: jax.Array | None = None,
    known: Known | None = None,
    places: tuple[jax.Array, jax.Array] | None = None,
) -> samplers.SamplerState:
    """Takes some steps of a sampler.

    Args:
      unet: graph of the U-Net.
      params: weights of the U-Net.
      state: state before the first of these steps.
      table: rows of these steps.
      context: context of the prompts, [b, n, d].
      unconditional: context of the negative prompt, [1, n, d].
      keys: keys of the noise that the steps add, [b], if they add any.
      channels: what the U-Net takes beside the latents, [b, h, w, k], if it takes any.
      known: latents that are kept.
      places: `starts` and `weights` of the windows of a long sound; see `Windows`. The contexts
        may then be [b, windows, n, d].
    """
    unconditional = jnp.broadcast_to(unconditional, context.shape)
    network = samplers.widened(networks.build(unet, params))
    if places is not None:
        network = windowed(network, *places)
    predict = samplers.guided(network, context, unconditional, channels)
    hook = None if known is None else known.put_into
    return jax.lax.scan(samplers.make_step(predict, keys, hook), state, table)[0]


@functools.partial(jax.jit, static_argnums=0)
def encode(codec: LatentCodec, params: Tree, audio: jax.Array) -> jax.Array:
    """Returns scaled latents [b, h, w, c] of waveforms [b, samples], the posterior's means."""
    return codec.encode(params, audio)


@functools.partial(jax.jit, static_argnums=0)
def encode_masked(codec: LatentCodec, params: Tree, audio: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns what an inpainting U-Net takes beside the latents; see `LatentCodec.masked`."""
    return codec.masked(params, audio, mask)


@functools.partial(jax.jit, static_argnums=0)
def front_end(codec: LatentCodec, audio: jax.Array) -> jax.Array:
    """Returns log mels [b, frames, n_mels] of waveforms [b, samples]."""
    return codec.mels(codec.image(audio))


@functools.partial(jax.jit, static_argnums=0)
def decode(codec: LatentCodec, params: Tree, latents: jax.Array) -> jax.Array:
    """Returns log mels [b, frames, n_mels] of scaled latents [b, h, w, c]."""
    return codec.decode(params, latents)


@functools.partial(jax.jit, static_argnums=0, static_argnames="bounded")
def vocode(
    vocoder: Vocoder,
    params: Tree,
    mels: jax.Array,
    samples: jax.Array | None = None,
    bounded: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Returns waveforms [b, samples] of log mels, and the share that is clipped: see `Vocoder`."""
    return vocoder(params, mels, samples, bounded=bounded)
