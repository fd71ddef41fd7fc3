"""The latent codec: waveforms to mel images to scaled latents, and back (paper section 3.4)."""

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.audio.mel import MelConfig, log_mel
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import front_end
from maa_jax.models.autoencoder import AutoencoderConfig

Tree = Any


@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """Front end, autoencoder and scale, without weights: those are arguments, as under `jax.jit`.

    Attributes:
      mel: the front end that the autoencoder was trained with.
      config: of the autoencoder; its `scaling_factor` is the scale unless a call names another.
      graphdef: of the autoencoder.
    """

    mel: MelConfig
    config: AutoencoderConfig
    graphdef: nnx.GraphDef

    def __post_init__(self):
        if self.mel.n_mels % self.downscale:
            raise ValueError(
                f"config.mel.n_mels={self.mel.n_mels}: the autoencoder needs a multiple of "
                f"{self.downscale}."
            )

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        mel: MelConfig | None = None,
        dtype: Any = jnp.float32,
    ) -> tuple[Self, Tree]:
        """Reads the autoencoder of a model folder.

        Args:
          model: the folder, or "bundled".
          mel: the front end that it must have been trained with; by default that of its folder.
          dtype: in which it computes.

        Returns:
          The codec, and the autoencoder's weights as a nested dict of numpy arrays.

        Raises:
          ValueError: the folder is not whole, or its front end is another than `mel`.
        """
        folder = hub.resolve(model)
        given = front_end(folder, "vae")
        check_front_end(mel or given, {f"the autoencoder in {model}": given})
        graphdef, params = networks.load_network(folder, "vae", dtype=dtype)
        return cls(mel or given, networks.load_config(folder, "vae"), graphdef), params

    @property
    def downscale(self) -> int:
        """Frames, or mel bands, to one row or column of a latent."""
        return self.config.downscale

    def image(self, audio: jax.Array) -> jax.Array:
        """Returns mel images [b, n_mels, frames, 1] of waveforms [b, samples]."""
        return log_mel(audio, self.mel).swapaxes(1, 2)[..., None]

    def mels(self, image: jax.Array) -> jax.Array:
        """Returns log mels [b, frames, n_mels], float32, of mel images [b, n_mels, frames, 1]."""
        return image[..., 0].swapaxes(1, 2).astype(jnp.float32)

    def moments(self, params: Tree, audio: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns mean and log-variance of the unscaled latents of waveforms, [b, h, w, c] each."""
        mean, logvar = networks.build(self.graphdef, params).encode(self.image(audio))
        return mean.astype(jnp.float32), logvar.astype(jnp.float32)

    def encode(
        self,
        params: Tree,
        audio: jax.Array,
        key: jax.Array | None = None,
        *,
        scale: jax.Array | float | None = None,
    ) -> jax.Array:
        """Returns scaled latents, float32 [b, h, w, c], of waveforms.

        Args:
          params: the autoencoder's weights.
          audio: [b, samples] at `mel.sample_rate`; their frames must divide by `downscale`.
          key: draws from the posterior; without it, its mean is taken.
          scale: what latents are multiplied by; the configuration's by default.
        """
        mean, logvar = self.moments(params, audio)
        if key is not None:
            mean = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        return mean * (self.config.scaling_factor if scale is None else scale)

    def decode(
        self, params: Tree, latents: jax.Array, *, scale: jax.Array | float | None = None
    ) -> jax.Array:
        """Returns log mels, float32 [b, frames, n_mels], of scaled latents [b, h, w, c]."""
        latents = latents / (self.config.scaling_factor if scale is None else scale)
        return self.mels(networks.build(self.graphdef, params).decode(latents))

    def frames(self, samples: int) -> int:
        """Returns how many frames it takes to hold `samples`."""
        return math.ceil(samples / self.mel.hop_length)

    def shape(self, samples: int, multiple: int = 1) -> tuple[int, int, int]:
        """Returns (height, width, channels) of latents that hold `samples`.

        Args:
          samples: of the waveform.
          multiple: what the width is rounded up to a multiple of.
        """
        width = math.ceil(self.frames(samples) / self.downscale)
        width = math.ceil(width / multiple) * multiple
        return self.mel.n_mels // self.downscale, width, self.config.latent_channels

    def check_clip(self, samples: int) -> None:
        """Raises ValueError unless a clip's frames divide by the autoencoder's factor."""
        frames, factor = samples // self.mel.hop_length, self.downscale
        if samples % self.mel.hop_length or frames % factor:
            raise ValueError(
                f"config.data.samples={samples} are {samples / self.mel.hop_length:g} frames, "
                f"which the autoencoder cannot divide by {factor}: choose a multiple of "
                f"{factor * self.mel.hop_length}."
            )


def check_front_end(mel: MelConfig, others: Mapping[str, MelConfig | None]) -> None:
    """Raises ValueError unless parts that exchange mels or recordings have one front end.

    Args:
      mel: the run's, `config.mel`.
      others: {what it belongs to: a part's front end}; None where a part does not state its own.
    """
    if mel.sample_rate != SAMPLE_RATE:
        raise ValueError(
            f"config.mel.sample_rate={mel.sample_rate}, but recordings come at {SAMPLE_RATE} Hz: "
            f"set it to {SAMPLE_RATE}."
        )
    for part, other in others.items():
        if other is None:
            continue
        different = [
            f"config.mel.{field.name}={getattr(mel, field.name)!r} here, "
            f"{getattr(other, field.name)!r} there"
            for field in dataclasses.fields(MelConfig)
            if getattr(mel, field.name) != getattr(other, field.name)
        ]
        if different:
            raise ValueError(
                f"{part} has another front end: {'; '.join(different)}. Take its values, or train "
                "it with these."
            )
