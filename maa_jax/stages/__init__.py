"""The training stages, one per file; base.py defines their interface to the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_collections

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.checks import check_name
from maa_jax.latents import check_front_end
from maa_jax.stages.audio_classifier import AudioClassifierStage
from maa_jax.stages.autoencoder import AutoencoderStage
from maa_jax.stages.base import Stage
from maa_jax.stages.captioner import CaptionerStage
from maa_jax.stages.clap import ClapStage
from maa_jax.stages.clip import ClipStage
from maa_jax.stages.diffusion import DiffusionStage
from maa_jax.stages.event_classifier import EventClassifierStage
from maa_jax.stages.inpainting import InpaintingStage
from maa_jax.stages.retriever import RetrieverStage
from maa_jax.stages.vocoder import VocoderStage

if TYPE_CHECKING:
    from maa_jax.text.tokenizer import Tokenizer

STAGES: dict[str, Any] = {
    "audio_classifier": AudioClassifierStage,
    "autoencoder": AutoencoderStage,
    "captioner": CaptionerStage,
    "clap": ClapStage,
    "clip": ClipStage,
    "diffusion": DiffusionStage,
    "event_classifier": EventClassifierStage,
    "inpainting": InpaintingStage,
    "retriever": RetrieverStage,
    "vocoder": VocoderStage,
}


def make_stage(config: ml_collections.ConfigDict, tokenizer: Tokenizer | None = None) -> Stage:
    """Returns the stage that `config.stage` names.

    Args:
      config: config of the run.
      tokenizer: tokenizer that the run has kept; without it, a stage reads or builds the one that
        `config.tokenizer` states.

    Raises:
      ValueError: there is no such stage, or its settings are inconsistent.
    """
    check_name("config.stage", config.stage, STAGES)
    stage = STAGES[config.stage]
    if config.remat and not stage.can_remat:
        able = [name for name, other in STAGES.items() if other.can_remat]
        raise ValueError(
            f"config.remat=True: the {config.stage} stage keeps its activations; only "
            f"{' and '.join(able)} can recompute them; lower config.batch_size or raise "
            "config.accumulate to save memory"
        )
    check_front_end(schema.build(MelConfig, config.mel, "config.mel"), {})
    kept = {} if tokenizer is None else {"tokenizer": tokenizer}
    return stage(config, **kept)
