"""The vocoder: log mels to waveforms, the one way for sampling and for a run's own sounds."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax.audio.mel import MelConfig
from maa_jax.model_folder import networks

# Frames added at either end of a mel: more than a vocoder's convolutions see, so that the zeros
# which pad their inputs, and which are no silence, are heard in none of the frames kept. Those
# before the sound are silence, from which it begins; behind it the last one is repeated, since many
# sounds go on where they end, and a sudden silence would be heard as a click.
_FRAMES = 16
# Corner of the filter that takes the offset out, in Hz: 0.2 dB at 50 Hz. Subtracting the mean
# instead would put a step at either end of a sound whose offset comes and goes with its loudness.
_CORNER = 10.0
FADE_SECONDS = 0.005  # at the end of a sound
_FULL_SCALE = 1 - 2**-15  # samples from here on are at the ends of a vocoder's range
LOUDEST = 0.99  # peak of a sound that would exceed full scale


@dataclasses.dataclass(frozen=True)
class Vocoder:
    """A vocoder and the front end of its mels; the weights are an argument of the call.

    It computes in float32 with the highest precision of matrix products, whatever other networks
    do: 8 bits of a waveform would be noise 50 dB below it.

    Attributes:
      mel: front end that the vocoder was trained with.
      graphdef: graph of the network.
    """

    mel: MelConfig
    graphdef: nnx.GraphDef

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], mel: MelConfig) -> Self:
        """Describes the vocoder of a model folder, without reading its weights."""
        return cls(mel, networks.define(networks.load_config(folder, "vocoder"))[0])

    def __call__(
        self,
        params: Mapping[str, Any],
        mels: jax.Array,
        samples: jax.Array | None = None,
        *,
        bounded: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Vocodes log mels; pure.

        Args:
          params: weights of the vocoder.
          mels: log mels [b, frames, n_mels].
          samples: length of each sound, int [b], at most frames * hop_length, which is the default.
            A sound fades out over its last 5 ms, and zeros follow.
          bounded: whether sounds that would exceed full scale are made quieter.

        Returns:
          Waveforms, float32 [b, frames * hop_length] in [-1, 1], without an offset; and the share
          of each sound's samples that the vocoder clipped, [b]. A vocoder whose range does not end
          at full scale (Vocos) clips none: a sound that would exceed it is made quieter as a whole,
          or left as it is if not `bounded`.
        """
        mels = mels.astype(jnp.float32)
        mels = jnp.pad(mels, ((0, 0), (_FRAMES, 0), (0, 0)), constant_values=self.mel.silence)
        mels = jnp.pad(mels, ((0, 0), (0, _FRAMES), (0, 0)), mode="edge")
        with jax.default_matmul_precision("highest"):
            wavs = networks.build(self.graphdef, params)(mels)
        edge = _FRAMES * self.mel.hop_length
        # Filtered with the silence, so that the filter has settled where the sound begins.
        even = _without_offset(wavs, self.mel.sample_rate)[:, edge:-edge]
        wavs = wavs[:, edge:-edge]
        length = wavs.shape[1]
        ends = jnp.full(len(wavs), length) if samples is None else samples
        left = ends[:, None] - jnp.arange(length)  # samples until the end
        clipped = jnp.sum((jnp.abs(wavs) >= _FULL_SCALE) & (left > 0), axis=1) / ends
        fade = jnp.minimum(FADE_SECONDS * self.mel.sample_rate, ends[:, None] / 2)
        even *= jnp.clip(left / fade, 0, 1)
        beyond = jnp.max(jnp.where(left > 0, jnp.abs(wavs), 0), axis=1) > 1
        peak = jnp.max(jnp.abs(even), axis=1)
        most = jnp.inf
        if bounded:
            even *= jnp.where(beyond & (peak > LOUDEST), LOUDEST / peak, 1)[:, None]
            most = 1.0
        most = jnp.where(beyond, most, 1)[:, None]
        return jnp.clip(even, -most, most), jnp.where(beyond, 0, clipped)


def _without_offset(wavs: jax.Array, sample_rate: int) -> jax.Array:
    """Applies a high-pass filter, (1 - z^-1) (1 + r) / 2 / (1 - r z^-1), to [b, samples]."""
    length = wavs.shape[1]
    decay = np.exp(-2 * np.pi * _CORNER / sample_rate)
    # The end of a circular filter's response would come back at the beginning: after a quarter of a
    # second it is below 1e-6.
    size = length + sample_rate // 4
    delay = np.exp(-2j * np.pi * np.arange(size // 2 + 1) / size)  # z^-1
    response = (1 - delay) * (1 + decay) / 2 / (1 - decay * delay)
    spectrum = jnp.fft.rfft(wavs, size) * response.astype(np.complex64)
    return jnp.fft.irfft(spectrum, size)[:, :length]
