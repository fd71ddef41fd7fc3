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
from maa_jax.files import FolderError
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import front_end
from maa_jax.models.autoencoder import AutoencoderConfig

Tree = Any


@dataclasses.dataclass(frozen=True)
class LatentCodec:
    """A mel front end, an autoencoder and the latents' scale.

    The weights are an argument of its methods, which are pure and may run under `jax.jit`, with the
    codec itself as a static argument.

    Attributes:
      mel: front end that the autoencoder was trained with.
      config: configuration of the autoencoder, whose `scaling_factor` is the default scale.
      graphdef: graph of the autoencoder.
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
    def from_folder(
        cls,
        model: str | os.PathLike[str],
        *,
        mel: MelConfig | None = None,
        dtype: Any = jnp.float32,
    ) -> Self:
        """Describes the autoencoder of a model folder, without reading its weights.

        Args:
          model: path of the folder, or "bundled".
          mel: front end of a run that uses the autoencoder; by default that of the folder.
          dtype: compute dtype.

        Raises:
          ValueError: the folder is incomplete, its front end is not `mel`, or neither `mel` nor the
            folder states a front end.
        """
        folder = hub.resolve(model)
        own = front_end(folder, "vae")
        if mel is not None:
            check_front_end(mel, {f"the autoencoder in {model}": own})
        elif own is not None:
            mel = own
        else:
            raise FolderError(
                f"{folder} has no {hub.INDEX}, which states the mel front end of its autoencoder: "
                "write the folder with `python -m maa_jax.convert`, or copy that file"
            )
        config = networks.load_config(folder, "vae")
        return cls(mel, config, networks.define(config, dtype)[0])

    @classmethod
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        mel: MelConfig | None = None,
        dtype: Any = jnp.float32,
    ) -> tuple[Self, Tree]:
        """Returns the codec of a model folder, and its autoencoder's weights as numpy arrays.

        For arguments and errors see `from_folder`.
        """
        codec = cls.from_folder(model, mel=mel, dtype=dtype)
        return codec, networks.load_network(hub.resolve(model), "vae", dtype=dtype)[1]

    @property
    def downscale(self) -> int:
        """Number of frames per latent column, and of mel bands per latent row."""
        return self.config.downscale

    def image(self, audio: jax.Array) -> jax.Array:
        """Returns mel images [b, n_mels, frames, 1] of waveforms [b, samples]."""
        return log_mel(audio, self.mel).swapaxes(1, 2)[..., None]

    def mels(self, image: jax.Array) -> jax.Array:
        """Returns log mels [b, frames, n_mels], float32, of mel images [b, n_mels, frames, 1]."""
        return image[..., 0].swapaxes(1, 2).astype(jnp.float32)

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
          params: weights of the autoencoder.
          audio: waveforms [b, samples] at `mel.sample_rate`, whose number of frames is a multiple
            of `downscale`.
          key: PRNG key with which the posterior is sampled, or keys [b], one for each waveform;
            without it, the mean is taken.
          scale: factor that the latents are multiplied by, the configuration's by default.
        """
        return self.sample(self.moments(params, audio), key, scale=scale)

    def moments(self, params: Tree, audio: jax.Array) -> jax.Array:
        """Returns the mean and the log-variance, float32 [b, h, w, 2 c], of waveforms' posteriors.

        For the arguments see `encode`.
        """
        return self._moments(params, self.image(audio))

    def masked(
        self,
        params: Tree,
        audio: jax.Array,
        mask: jax.Array,
        *,
        scale: jax.Array | float | None = None,
    ) -> jax.Array:
        """Returns what a denoiser that fills gaps takes beside the latents (paper section 4.2).

        Args:
          params: weights of the autoencoder.
          audio: waveforms [b, samples]; see `encode`.
          mask: what of them is made anew, bool [b, n_mels, frames].
          scale: factor of the latents, the configuration's by default.

        Returns:
          float32 [b, h, w, c + 1]: the mean latents of the mels with silence in the mask; and the
          mask, 1 or -1, that of the first band and frame of each latent, as in the authors' model.
        """
        image = jnp.where(mask[..., None], self.mel.silence, self.image(audio))
        moments = self._moments(params, image)
        cells = jnp.where(mask[:, :: self.downscale, :: self.downscale, None], 1.0, -1.0)
        return jnp.concatenate([self.sample(moments, scale=scale), cells], axis=-1)

    def _moments(self, params: Tree, image: jax.Array) -> jax.Array:
        found = networks.build(self.graphdef, params).encode(image)
        return jnp.concatenate(found, axis=-1).astype(jnp.float32)

    def sample(
        self,
        moments: jax.Array,
        key: jax.Array | None = None,
        *,
        scale: jax.Array | float | None = None,
    ) -> jax.Array:
        """Returns scaled latents [b, h, w, c] of the result of `moments`; see `encode`."""
        latents, logvar = jnp.split(moments, 2, axis=-1)
        if key is not None:
            latents += jnp.exp(0.5 * logvar) * _normal(key, latents.shape)
        return latents * (self.config.scaling_factor if scale is None else scale)

    def decode(
        self, params: Tree, latents: jax.Array, *, scale: jax.Array | float | None = None
    ) -> jax.Array:
        """Returns log mels, float32 [b, frames, n_mels], of scaled latents [b, h, w, c]."""
        latents = latents / (self.config.scaling_factor if scale is None else scale)
        return self.mels(networks.build(self.graphdef, params).decode(latents))

    def frames(self, samples: int) -> int:
        """Returns the number of frames that hold `samples`."""
        return math.ceil(samples / self.mel.hop_length)

    def samples(self, width: int) -> int:
        """Returns the number of samples that latents of a given width hold."""
        return width * self.downscale * self.mel.hop_length

    def shape(self, samples: int, multiple: int = 1) -> tuple[int, int, int]:
        """Returns (height, width, channels) of latents that hold a waveform.

        Args:
          samples: length of the waveform.
          multiple: number to whose next multiple the width is rounded up.
        """
        width = math.ceil(self.frames(samples) / self.downscale)
        width = math.ceil(width / multiple) * multiple
        return self.mel.n_mels // self.downscale, width, self.config.latent_channels

    def check_clip(self, samples: int) -> None:
        """Raises a ValueError unless a training clip is a whole number of latent columns.

        Args:
          samples: length of the clip, `config.data.samples`.
        """
        if samples % self.samples(1):
            raise ValueError(
                f"config.data.samples={samples} are {samples / self.mel.hop_length:g} frames, "
                f"which the autoencoder cannot divide by {self.downscale}: choose a multiple of "
                f"{self.samples(1)}."
            )


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns noise of a shape [b, ...], from one key or from keys [b]."""
    if not key.shape:
        return jax.random.normal(key, shape)
    return jax.vmap(lambda key: jax.random.normal(key, shape[1:]))(key)


def check_front_end(mel: MelConfig, others: Mapping[str, MelConfig | None]) -> None:
    """Checks that a run and the networks that it uses have the same mel front end.

    Args:
      mel: front end of the run, `config.mel`.
      others: {description of a network: front end}, None where the network does not state one.

    Raises:
      ValueError: front ends differ, in settings that the error names; or the run's sample rate is
        not that of the recordings.
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
                f"{part} has another front end: {'; '.join(different)}. Use its values, or train "
                "it with these."
            )
