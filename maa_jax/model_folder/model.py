"""Description of a whole model folder, and checks that its parts are compatible."""

import dataclasses
import os
import pathlib
from typing import Any

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.diffusion.schedule import Schedule
from maa_jax.files import FolderError, read_json
from maa_jax.model_folder import networks
from maa_jax.model_folder.hub import INDEX
from maa_jax.model_folder.index import CLASS_NAME, load_index, load_scheduler
from maa_jax.models.autoencoder import AutoencoderConfig
from maa_jax.models.hifigan import MEL_FIELDS
from maa_jax.models.unet import UNetConfig

# Parts that a model which generates sounds from text has.
_PARTS = ("unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler")


@dataclasses.dataclass(frozen=True)
class Model:
    """The configurations of a model folder, without its weights.

    Attributes:
      path: path of the folder.
      sample_rate: sample rate of the sounds, in Hz.
      max_duration: length of the longest sound, in seconds.
      mel: front end that the networks share.
      schedule: noise schedule.
      unet: configuration of the denoiser.
      vae: configuration of the autoencoder.
      vocoder: configuration of the vocoder, of one of several classes.
    """

    path: pathlib.Path
    sample_rate: int
    max_duration: float
    mel: MelConfig
    schedule: Schedule
    unet: UNetConfig
    vae: AutoencoderConfig
    vocoder: Any

    @property
    def latent_samples(self) -> int:
        """Number of samples that the narrowest latent holds which the U-Net takes."""
        return self.unet.downscale * self.vae.downscale * self.mel.hop_length


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What model_index.json states of all parts together; see `Model`."""

    sample_rate: int = schema.field(least=1000, most=768_000)
    max_duration: float = schema.field(least=1e-3, most=600)
    mel: MelConfig = dataclasses.field(default_factory=MelConfig)


def read_model(folder: str | os.PathLike[str]) -> Model:
    """Reads the configurations of a whole model folder.

    Raises:
      FolderError: the folder is of another class, files are missing, or parts are incompatible.
    """
    path = pathlib.Path(folder)
    kind = read_json(path / INDEX).get("_class_name")
    if kind != CLASS_NAME:
        raise FolderError(
            f"{path}: {INDEX} has class {kind!r}; only {CLASS_NAME!r} is supported, as "
            "maa_jax.convert writes it"
        )
    names = [f.name for f in dataclasses.fields(_Shared)]
    index = load_index(path, parts=_PARTS, meta=tuple(names))
    try:
        shared = schema.build(_Shared, {name: index[name] for name in names}, complete=True)
    except ValueError as e:
        raise FolderError(f"{path / INDEX}: {e}") from e
    mel = shared.mel
    unet, vae, vocoder = (networks.load_config(path, name) for name in ("unet", "vae", "vocoder"))
    model = Model(path, **vars(shared), schedule=load_scheduler(path), unet=unet, vae=vae,
                  vocoder=vocoder)  # fmt: skip
    for here, value, there, other in (
        *(
            (f"vocoder: {ours}", getattr(vocoder, ours), f"mel: {theirs}", getattr(mel, theirs))
            for ours, theirs in MEL_FIELDS.items()
        ),
        *(
            (f"vocoder: mel.{name}", value, f"mel: {name}", getattr(mel, name))
            for name, value in vars(vocoder.mel or mel).items()
        ),
        ("mel: sample_rate", mel.sample_rate, "sample_rate", model.sample_rate),
        ("unet: out_channels", unet.out_channels, "vae: latent_channels", vae.latent_channels),
    ):
        check_same(path, here, value, there, other)
    if mel.n_mels % (vae.downscale * unet.downscale):
        raise FolderError(
            f"{path}: mel: n_mels={mel.n_mels} cannot be halved as often as vae and unet do it, "
            f"{vae.downscale} * {unet.downscale} in all; combine networks that were trained for "
            "each other"
        )
    return model


def check_same(path: pathlib.Path, here: str, value: Any, there: str, other: Any) -> None:
    """Raises a FolderError unless two parts of a model folder agree on a setting."""
    if value != other:
        raise FolderError(
            f"{path}: incompatible parts, {here}={value!r} but {there}={other!r}; combine networks "
            "that were trained for each other"
        )
