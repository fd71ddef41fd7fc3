"""What a training config may hold: every key, its type and its limits, checked before any work.

`RunConfig` has the keys of every stage, with the defaults that `configs/common.py` starts from; the
classes derived from it add those of one stage each, which have no default.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.checks import check_name
from maa_jax.data.config import DataConfig
from maa_jax.data.masks import MASKS
from maa_jax.diffusion.schedule import Schedule
from maa_jax.models.autoencoder import AutoencoderConfig
from maa_jax.models.bigvgan import BigVGANConfig
from maa_jax.models.captioner import CaptionerConfig
from maa_jax.models.clap import ClapConfig
from maa_jax.models.clip import ClipConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.models.event_classifier import EventClassifierConfig
from maa_jax.models.hifigan import HifiGanConfig
from maa_jax.models.inception import MelceptionConfig
from maa_jax.models.mel_discriminators import MultiWindowConfig, PatchConfig
from maa_jax.models.retriever import RetrieverConfig
from maa_jax.models.unet import UNetConfig
from maa_jax.models.vocos import VocosConfig
from maa_jax.models.waveform_discriminators import (
    MultiPeriodConfig,
    MultiResolutionConfig,
    MultiScaleConfig,
)

# Numbers that are only bounded so that a typing mistake is noticed.
_MOST_STEPS = 10**12
_BELOW_1 = 1 - 1e-9


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW; a run's `config.optimizer`.

    Attributes:
      base_lr: learning rate.
      scale_lr: whether it is multiplied by the batch size, latent diffusion's rule.
      warmup_steps: steps over which the rate rises linearly.
      cosine_steps: step at which the rate has fallen along a cosine to 0; 0 for a constant rate.
      decay_rate: factor of the rate every `decay_steps` steps.
      decay_steps: steps between two such falls.
      b1: decay of the mean of the gradients.
      b2: decay of the mean of their squares.
      weight_decay: decoupled weight decay.
      clip_norm: largest norm of a step's gradients; 0 for any.
    """

    base_lr: float = schema.field(1e-4, least=1e-12, most=10)
    scale_lr: bool = False
    warmup_steps: int = schema.field(0, least=0, most=_MOST_STEPS)
    cosine_steps: int = schema.field(0, least=0, most=_MOST_STEPS)
    decay_rate: float = schema.field(1.0, least=1e-6, most=1)
    decay_steps: int = schema.field(1, least=1, most=_MOST_STEPS)
    b1: float = schema.field(0.9, least=0, most=_BELOW_1)
    b2: float = schema.field(0.999, least=0, most=_BELOW_1)
    weight_decay: float = schema.field(0.0, least=0, most=10)
    clip_norm: float = schema.field(0.0, least=0, most=1e9)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; a run's `config.mesh`.

    Attributes:
      data: devices over which batches are split; -1 for all that remain.
      fsdp: devices over which large parameters are split too; -1 for all that remain.
    """

    data: int = schema.field(-1, least=-1, most=2**20)
    fsdp: int = schema.field(1, least=-1, most=2**20)

    def __post_init__(self):
        for name, size in vars(self).items():
            if size == 0:
                raise ValueError(f"{name}=0: give a number of devices, or -1 for all that remain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatorConfig:
    """How a run scores its own sounds; a block of `config.evaluators`.

    Attributes:
      every: steps from one evaluation to the next; 0 for none.
      num_prompts: number of validation captions that sounds are generated from; 0 for all.
      clap: CLAP that embeds sounds and captions: a model folder, "bundled", or an id on the hub.
      melception: model folder of the Melception that protocols use.
      cnn14: model folder of their Cnn14.
      vggish: model folder of their VGGish.
    """

    every: int = schema.field(least=0, most=_MOST_STEPS)
    num_prompts: int = schema.field(least=0, most=10**9)
    clap: str
    melception: str = ""
    cnn14: str = ""
    vggish: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The keys that the training loop reads; a stage's class adds its own.

    Attributes:
      stage: name of the stage.
      seed: seed of all random draws.
      batch_size: examples in a step, over all devices.
      accumulate: microbatches that a step's batch is taken in.
      total_steps: length of the run.
      total_epochs: length of the run in place of `total_steps`, unless 0.
      dtype: type of the computation; parameters are float32.
      remat: whether to recompute activations in the backward pass instead of keeping them.
      ema_decay: decay of the moving average of the weights; 0 keeps none.
      init_from: a model folder, or "bundled", with pretrained weights.
      mesh: sizes of the device mesh.
      data: datasets and clips.
      mel: front end.
      optimizer: optimizer of every network.
      log_every: steps between two lines of scalars.
      eval_every: steps between two passes over the validation data.
      summary_every: steps between two sets of images and sounds.
      checkpoint_every: steps between two checkpoints.
      keep: number of latest checkpoints to keep.
      best: validation score; the checkpoint with its lowest value is kept too. "" for none. In the
        diffusion stage also EVALUATOR/SCORE, the end of a score's name in `evaluators`; with - in
        front the highest value is the best.
      evaluators: scores of generated sounds, {name: fields of EvaluatorConfig}.
      profile: first step and number of steps to trace for TensorBoard; () for none.
    """

    stage: str
    seed: int = schema.field(0, least=0, most=2**32 - 1)
    batch_size: int = schema.field(32, least=1, most=2**24)
    accumulate: int = schema.field(1, least=1, most=2**24)
    total_steps: int = schema.field(1_000_000, least=1, most=_MOST_STEPS)
    total_epochs: int = schema.field(0, least=0, most=_MOST_STEPS)
    dtype: str = schema.field("bfloat16", choices=("bfloat16", "float32"))
    remat: bool = False
    ema_decay: float = schema.field(0.0, least=0, most=_BELOW_1)
    init_from: Any = ""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    mel: MelConfig = dataclasses.field(default_factory=MelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)

    log_every: int = schema.field(100, least=1, most=_MOST_STEPS)
    eval_every: int = schema.field(5_000, least=1, most=_MOST_STEPS)
    summary_every: int = schema.field(5_000, least=1, most=_MOST_STEPS)
    checkpoint_every: int = schema.field(5_000, least=1, most=_MOST_STEPS)
    keep: int = schema.field(2, least=1, most=10**6)
    best: str = schema.field("validation/loss", choices=("validation/loss", ""))
    evaluators: dict[str, Any] = dataclasses.field(default_factory=dict)
    profile: tuple[int, ...] = schema.field((), least=1, most=_MOST_STEPS, length=(0, 2))

    def __post_init__(self):
        cosine = self.optimizer.cosine_steps
        if 0 < cosine < self.total_steps and not self.total_epochs:
            raise ValueError(
                f"optimizer.cosine_steps={cosine}: the learning rate is 0 from then on; give at "
                f"least total_steps={self.total_steps}"
            )
        if len(self.profile) == 1:
            raise ValueError(f"profile={self.profile}: give the first step and a number of steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _MelDiscriminators:
    name: str = schema.field(choices=("multi_window", "patch"))
    multi_window: MultiWindowConfig
    patch: PatchConfig
    start: int = schema.field(least=0, most=_MOST_STEPS)
    weight: float = schema.field(least=0, most=1e6)
    r1_weight: float = schema.field(least=0, most=1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderRun(RunConfig):
    """Keys of the autoencoder's stage; `stages/autoencoder.py` describes them."""

    init_from: str
    autoencoder: AutoencoderConfig
    kl_weight: float = schema.field(least=0, most=1e6)
    discriminator: _MelDiscriminators
    best: str = schema.field(
        choices=("validation/loss", "validation/l1", "validation/kl", ""),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Generators:
    name: str = schema.field(choices=("hifigan", "bigvgan", "vocos"))
    hifigan: HifiGanConfig
    bigvgan: BigVGANConfig
    vocos: VocosConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WaveformDiscriminators:
    start: int = schema.field(least=0, most=_MOST_STEPS)
    period: MultiPeriodConfig
    scale: MultiScaleConfig
    resolution: MultiResolutionConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocoderRun(RunConfig):
    """Keys of the vocoder's stage; `stages/vocoder.py` describes them."""

    init_from: str
    generator: _Generators
    discriminator: _WaveformDiscriminators
    mel_weight: float = schema.field(least=0, most=1e6)
    spectral_weight: float = schema.field(least=0, most=1e6)
    feature_weight: float = schema.field(least=0, most=1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Summary:
    prompts: tuple[str, ...] = schema.field(length=(1, 64))
    guidance_scale: float = schema.field(least=-100, most=100)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionRun(RunConfig):
    """Keys of the diffusion stage; `stages/diffusion.py` describes them."""

    init_from: str
    unet: UNetConfig
    schedule: Schedule
    autoencoder: str
    text_encoder: str
    conditioning: str = schema.field(choices=("tokens", "norm_global", "global"))
    text_embeddings: str
    latents: str
    vocoder: str
    uncond_probability: float = schema.field(least=0, most=1)
    noise_draws: int = schema.field(least=1, most=4096)
    eval_draws: int = schema.field(least=1, most=4096)
    summary: _Summary
    best: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Masks:
    names: tuple[str, ...] = schema.field(length=(1, 100), choices=MASKS)
    everything: float = schema.field(least=0, most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InpaintingRun(DiffusionRun):
    """Keys of the inpainting stage; `stages/inpainting.py` describes them."""

    masks: _Masks

    def __post_init__(self):
        super().__post_init__()
        if self.latents:
            raise ValueError(
                f"config.latents={self.latents!r}: masks are drawn on recordings, of which stored "
                "latents know nothing: set it to ''"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoders:
    text_encoder: str
    audio_encoder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Augment:
    gain_db: float = schema.field(least=0, most=60)
    shift: float = schema.field(least=0, most=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClapRun(RunConfig):
    """Keys of the CLAP stage; `stages/clap.py` describes them."""

    init_from: _Encoders
    clap: ClapConfig
    tokenizer: str
    augment: _Augment


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Crop:
    crop: float = schema.field(least=0.01, most=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRun(RunConfig):
    """Keys of the CLIP stage; `stages/clip.py` describes them."""

    init_from: str
    clip: ClipConfig
    tokenizer: str
    augment: _Crop


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrieverRun(RunConfig):
    """Keys of the retriever's stage; `stages/retriever.py` describes them."""

    init_from: _Encoders
    retriever: RetrieverConfig
    tokenizer: str
    augment: _Augment
    margin: float = schema.field(least=0, most=2)
    negatives: str = schema.field(choices=("all", "hardest"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _CaptionerStart:
    captioner: str
    audio_encoder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionerRun(RunConfig):
    """Keys of the captioner's stage; `stages/captioner.py` describes them."""

    init_from: _CaptionerStart
    captioner: CaptionerConfig
    tokenizer: str
    augment: _Augment
    loss: str = schema.field(choices=("cross_entropy", "self_critical"))
    label_smoothing: float = schema.field(least=0, most=_BELOW_1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventClassifierRun(RunConfig):
    """Keys of the event classifier's stage; `stages/event_classifier.py` describes them."""

    init_from: str
    event_classifier: EventClassifierConfig
    augment: _Augment


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Classifiers:
    name: str = schema.field(choices=("melception", "cnn14"))
    melception: MelceptionConfig
    cnn14: Cnn14Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioClassifierRun(RunConfig):
    """Keys of the audio classifier's stage; `stages/audio_classifier.py` describes them."""

    init_from: str
    classifier: _Classifiers
    labels: tuple[str, ...] = schema.field(length=(0, 65_536))
    augment: _Augment


STAGES: dict[str, type[RunConfig]] = {
    "audio_classifier": AudioClassifierRun,
    "autoencoder": AutoencoderRun,
    "captioner": CaptionerRun,
    "clap": ClapRun,
    "clip": ClipRun,
    "diffusion": DiffusionRun,
    "event_classifier": EventClassifierRun,
    "inpainting": InpaintingRun,
    "retriever": RetrieverRun,
    "vocoder": VocoderRun,
}

# Fields of networks that follow from other keys, {block: (fields, what they follow from)}.
_DERIVED = {
    "generator.hifigan": (("model_in_dim", "sampling_rate", "log"), "config.mel"),
    "generator.bigvgan": (("model_in_dim", "sampling_rate", "log"), "config.mel"),
    "generator.vocos": (("model_in_dim", "sampling_rate", "hop_length", "log"), "config.mel"),
    "captioner": (
        ("sample_rate", "pad_token_id", "bos_token_id", "eos_token_id", "suppress_tokens"),
        "config.mel and the tokenizer",
    ),
    "clip.text_config": (("pad_token_id", "bos_token_id", "eos_token_id"), "the tokenizer"),
    "classifier.melception": (
        ("samples", "first_frame", "frames", "num_classes", "labels", "published"),
        "config.data.samples and config.labels",
    ),
    "classifier.cnn14": (("num_classes", "labels", "published"), "config.labels"),
    "retriever.audio_transformer": (("max_frames",), "config.data.samples"),
}


def check(config: Any) -> RunConfig:
    """Checks every key of a run's config.

    Args:
      config: ConfigDict of a run, or a mapping.

    Returns:
      Its values, of the stage's class.

    Raises:
      ValueError: keys are missing or unknown (the nearest is named), or values are invalid; all are
        named, with what to give instead.
    """
    values = config.to_dict() if hasattr(config, "to_dict") else config
    if not isinstance(values.get("stage"), str):
        raise ValueError(f"config.stage={values.get('stage')!r}: give one of {', '.join(STAGES)}")
    check_name("config.stage", values["stage"], STAGES)
    kind = STAGES[values["stage"]]
    problems = [
        f"config.{field.name} is missing"
        for field in dataclasses.fields(kind)
        if field.name not in values
    ]
    # The loop reads these blocks as they are, without the defaults of their classes.
    for block in ("data", "mel", "mesh", "optimizer"):
        problems += [
            f"config.{block}.{field.name} is missing"
            for field in dataclasses.fields(type(getattr(RunConfig(stage=""), block)))
            if isinstance(values.get(block), Mapping) and field.name not in values[block]
        ]
    for block, (names, source) in _DERIVED.items():
        problems += [
            f"config.{block}.{name} follows from {source}: leave it out"
            for name in names
            if name in _block(values, block)
        ]
    if problems:
        raise ValueError("; ".join(problems))
    run = schema.build(kind, values, "config")
    for name, fields in run.evaluators.items():
        where = f"config.evaluators.{name}"
        every = schema.build(EvaluatorConfig, fields, where).every
        if every and not getattr(run, "vocoder", ""):
            raise ValueError(
                f"{where}.every={every}: it scores generated sounds; set config.vocoder, and use "
                "the diffusion stage"
            )
    _check_best(run)
    pictures = [p.dataset for p in run.data.parts() if p.dataset.startswith("image_folder")]
    if len(pictures) != (len(run.data.parts()) if isinstance(run, ClipRun) else 0):
        kind = "pictures: image_folder alone" if isinstance(run, ClipRun) else "sounds"
        raise ValueError(
            f"config.data.dataset={run.data.dataset!r}: the {run.stage} stage learns from {kind}"
        )
    events = run.data.reprogram.events
    if events and isinstance(run, EventClassifierRun | AudioClassifierRun):
        raise ValueError(
            f"config.data.reprogram.events={events!r}: events would join the recordings, whose "
            f"classes the {run.stage} stage learns from what they were before: leave it empty"
        )
    return run


def _check_best(run: RunConfig) -> None:
    """Raises a ValueError unless every checkpoint will have the score that chooses the best."""
    name = run.best.removeprefix("-")
    if name in ("", "validation/loss") or not isinstance(run, DiffusionRun):
        return
    evaluator, _, score = name.partition("/")
    every = run.evaluators.get(evaluator, {}).get("every", 0)
    if not score or not every:
        used = [name for name, block in run.evaluators.items() if block.get("every")]
        raise ValueError(
            f"config.best={run.best!r}: give validation/loss, EVALUATOR/SCORE of an evaluator "
            f"whose `every` is set ({', '.join(used) or 'none is'}), with - in front if the "
            'highest is best, or ""'
        )
    if run.checkpoint_every % every:
        raise ValueError(
            f"config.best={run.best!r}: config.evaluators.{evaluator}.every={every} does not "
            f"divide config.checkpoint_every={run.checkpoint_every}: checkpoints would lack it"
        )


def _block(values: Mapping[str, Any], path: str) -> Any:
    """Returns a block of a config by its path, {} where there is none."""
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values if isinstance(values, Mapping) else {}
