"""Networks by the class name that config.json states."""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

from maa_jax.files import FolderError

# Class name in config.json -> (library of that class, module here, configuration, network).
# Modules are imported when a folder needs them, so that sampling does not import all networks.
NETWORKS = {
    "UNet2DConditionModel": ("diffusers", "maa_jax.models.unet", "UNetConfig", "UNet"),
    "AutoencoderKL": (
        "diffusers",
        "maa_jax.models.autoencoder",
        "AutoencoderConfig",
        "Autoencoder",
    ),
    "SpeechT5HifiGan": ("transformers", "maa_jax.models.hifigan", "HifiGanConfig", "HifiGan"),
    "BertModel": ("transformers", "maa_jax.models.bert", "BertConfig", "Bert"),
    "T5EncoderModel": ("transformers", "maa_jax.models.t5", "T5Config", "T5Encoder"),
    "CLIPTextModel": ("transformers", "maa_jax.models.clip", "ClipTextConfig", "ClipTextModel"),
    "CLIPVisionModel": (
        "transformers",
        "maa_jax.models.clip",
        "ClipVisionConfig",
        "ClipVisionModel",
    ),
    "CLIPModel": ("transformers", "maa_jax.models.clip", "ClipConfig", "ClipModel"),
    "ClapModel": ("transformers", "maa_jax.models.clap", "LaionClapConfig", "LaionClap"),
    "BigVGAN": ("maa_jax", "maa_jax.models.bigvgan", "BigVGANConfig", "BigVGAN"),
    "Captioner": ("maa_jax", "maa_jax.models.captioner", "CaptionerConfig", "Captioner"),
    "Cnn10": ("maa_jax", "maa_jax.models.cnn10", "Cnn10Config", "Cnn10"),
    "Cnn14": ("maa_jax", "maa_jax.models.cnn14", "Cnn14Config", "Cnn14"),
    "EventClassifier": (
        "maa_jax",
        "maa_jax.models.event_classifier",
        "EventClassifierConfig",
        "EventClassifier",
    ),
    "Melception": (
        "maa_jax",
        "maa_jax.models.inception",
        "MelceptionConfig",
        "Melception",
    ),
    "Projection": ("maa_jax", "maa_jax.models.clap", "ProjectionConfig", "Projection"),
    "Vocos": ("maa_jax", "maa_jax.models.vocos", "VocosConfig", "Vocos"),
    "Retriever": ("maa_jax", "maa_jax.models.retriever", "RetrieverConfig", "Retriever"),
    "VGGish": ("maa_jax", "maa_jax.models.vggish", "VGGishConfig", "VGGish"),
}

# Classes that a part of a model folder may have.
PARTS = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "vocoder": ("SpeechT5HifiGan", "BigVGAN", "Vocos"),
    "text_encoder": ("BertModel", "T5EncoderModel", "CLIPTextModel", "CLIPModel"),
    "text_projection": ("Projection",),
    "audio_encoder": ("Cnn14",),
    "audio_projection": ("Projection",),
    "captioner": ("Captioner",),
    "retriever": ("Retriever",),
    "event_classifier": ("EventClassifier",),
    "audio_classifier": ("Melception", "Cnn14", "VGGish"),
}

# Classes whose files hold one of these networks among others, which are not read.
_ALIASES = {
    "BertForMaskedLM": "BertModel",
    "BertForPreTraining": "BertModel",
    "T5Model": "T5EncoderModel",
    "T5ForConditionalGeneration": "T5EncoderModel",
    "T5WithLMHeadModel": "T5EncoderModel",
    "CLIPTextModelWithProjection": "CLIPTextModel",
    "CLIPVisionModelWithProjection": "CLIPVisionModel",
}


def class_of(config: Mapping[str, Any]) -> str:
    """Returns the class name that a config.json of diffusers or transformers states.

    For a class that only adds heads to a known network, it is that network's name.
    """
    stated = config.get("_class_name") or config.get("architectures")
    name = stated[0] if isinstance(stated, list) and stated else stated
    return _ALIASES.get(name, name) if isinstance(name, str) else "(none)"


def lookup(
    config: Mapping[str, Any], where: pathlib.Path, kind: str | None = None
) -> tuple[str, Any, Any]:
    """Returns (library, configuration class, module class) for a config.json's content.

    Args:
      config: content of config.json.
      where: path of the file, for errors.
      kind: name of the class, by default the one that `config` states.

    Raises:
      FolderError: the class is unknown.
    """
    name = kind or class_of(config)
    if name not in NETWORKS:
        raise FolderError(
            f"{where}: class {name[:80]!r} is not supported; known: {', '.join(NETWORKS)}"
        )
    library, place, config_class, network = NETWORKS[name]
    module = importlib.import_module(place)
    return library, getattr(module, config_class), getattr(module, network)
