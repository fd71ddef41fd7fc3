"""Description of a whole model folder, and checks that its parts are compatible."""

import dataclasses
import os
import pathlib
from typing import Any

from maa_jax.audio.mel import MelConfig
from maa_jax.diffusion.schedule import Schedule
from maa_jax.files import FolderError, read_json
from maa_jax.model_folder import networks
from maa_jax.model_folder.hub import INDEX
from maa_jax.model_folder.index import CLASS_NAME, front_end, load_index, load_scheduler
from maa_jax.models.autoencoder import AutoencoderConfig
from maa_jax.models.unet import UNetConfig

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
    index = load_index(path, parts=_PARTS, meta=("sample_rate", "max_duration", "mel"))
    mel = front_end(path, "vae")
    assert mel is not None  # because there is an index
    model = Model(
        path,
        int(index["sample_rate"]),
        float(index["max_duration"]),
        mel,
        load_scheduler(path),
        *(networks.load_config(path, name) for name in ("unet", "vae", "vocoder")),
    )
    unet, vae, vocoder = model.unet, model.vae, model.vocoder
    for here, value, there, other in (
        ("vocoder: model_in_dim", vocoder.model_in_dim, "mel: n_mels", mel.n_mels),
        ("vocoder: hop_length", vocoder.hop_length, "mel: hop_length", mel.hop_length),
        ("vocoder: sampling_rate", vocoder.sampling_rate, "sample_rate", model.sample_rate),
        ("vocoder: log", vocoder.log, "mel: log", mel.log),
        ("mel: sample_rate", mel.sample_rate, "sample_rate", model.sample_rate),
        ("unet: out_channels", unet.out_channels, "vae: latent_channels", vae.latent_channels),
    ):
        check_same(path, here, value, there, other)
    return model


def check_same(path: pathlib.Path, here: str, value: Any, there: str, other: Any) -> None:
    """Raises a FolderError unless two parts of a model folder agree on a setting."""
    if value != other:
        raise FolderError(
            f"{path}: incompatible parts, {here}={value!r} but {there}={other!r}; combine networks "
            "that were trained for each other"
        )
