"""Shared parts of the configs. Every other file here is a stage's, with `get_config(arg)`.

Arguments that every file takes: none, the paper's full size; `demo`, minutes on a laptop with the
bundled recordings; `runlocal`, a few tiny steps to check that the code runs; `bundled`, the
settings of the model inside the package.
"""

import dataclasses

import ml_collections

from maa_jax.audio.mel import MelConfig
from maa_jax.data.config import DataConfig


def base(stage: str) -> ml_collections.ConfigDict:
    """Returns the keys that the training loop reads, at their full-size values."""
    config = ml_collections.ConfigDict()
    config.stage = stage
    config.seed = 0
    config.batch_size = 32  # over all devices
    config.accumulate = 1  # microbatches per step
    config.total_steps = 1_000_000
    config.total_epochs = 0  # length of the run in place of total_steps, unless 0
    config.dtype = "bfloat16"  # type of the computation; parameters are float32
    config.remat = False  # recompute activations in the backward pass instead of keeping them
    config.ema_decay = 0.0  # 0 keeps no average
    config.init_from = ""  # a model folder, or "bundled", with pretrained weights
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1})

    config.data = fields_of(DataConfig)
    config.mel = fields_of(MelConfig)

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.base_lr = 1e-4
    config.optimizer.scale_lr = False  # multiplies it by the batch size, LDM's rule
    config.optimizer.warmup_steps = 0
    config.optimizer.cosine_steps = 0
    config.optimizer.decay_rate = 1.0  # multiplies it every decay_steps steps
    config.optimizer.decay_steps = 1
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0

    config.log_every = 100
    config.eval_every = 5_000
    config.summary_every = 5_000
    config.checkpoint_every = 5_000
    config.keep = 2
    config.best = "validation/loss"  # the checkpoint with its lowest value is kept too
    config.evaluators = block()  # scores of generated sounds: {name: {every, num_prompts, clap}}
    config.profile = ()  # (first step, number of steps) to trace for TensorBoard
    return config


def block(**keys) -> ml_collections.ConfigDict:
    """Returns keys as a block of a config."""
    return ml_collections.ConfigDict(keys)


def fields_of(settings: type) -> ml_collections.ConfigDict:
    """Returns the fields of a dataclass, with their defaults, as a block of a config."""
    found = ml_collections.ConfigDict()
    for name, value in dataclasses.asdict(settings()).items():
        # A placeholder is None until it is set; all fields without a default are strings.
        found[name] = ml_collections.config_dict.placeholder(str) if value is None else value
    return found


def bert_base() -> ml_collections.ConfigDict:
    """Returns the sizes of bert-base-uncased, as fields of BertConfig."""
    return block(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
        max_position_embeddings=512,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )


def panns(channels: tuple[int, ...], **more) -> ml_collections.ConfigDict:
    """Returns the fields of a PANNs network's config, with its front end at 16 kHz, and `more`."""
    return block(
        sample_rate=16_000,
        n_fft=512,
        hop_length=160,
        n_mels=64,
        fmin=50.0,
        fmax=8000.0,
        channels=channels,
        block_dropout=0.2,
        stripes=2,
        time_stripe=64,
        mel_stripe=8,
        **more,
    )


CNN14 = (64, 128, 256, 512, 1024, 2048)


def shrink_bert(text: ml_collections.ConfigDict) -> None:
    """Makes a text encoder small enough for the bundled captions, to which it overfits."""
    text.vocab_size = 1024
    text.hidden_size, text.intermediate_size = 128, 256
    text.num_hidden_layers, text.num_attention_heads = 2, 4
    text.max_position_embeddings = 77
    text.hidden_dropout_prob = text.attention_probs_dropout_prob = 0.0


def shrink_panns(audio: ml_collections.ConfigDict) -> None:
    """Makes an audio encoder small enough for the bundled recordings, without regularisation."""
    audio.channels = (16, 32, 64, 128)
    audio.n_fft, audio.hop_length, audio.n_mels = 1024, 640, 32
    audio.block_dropout = 0.0
    audio.stripes = 0


def small_run(config: ml_collections.ConfigDict, steps: int) -> ml_collections.ConfigDict:
    """Sets the length and the intervals of a short run on one machine."""
    config.dtype = "float32"
    config.total_steps = steps
    config.log_every = max(1, steps // 20)
    config.eval_every = config.checkpoint_every = max(1, steps // 5)
    config.summary_every = max(1, steps // 2)
    return config


def pick(arg: str | None, **choices):
    """Returns the choice that a config's argument names, `full` without one.

    Raises:
      ValueError: the argument is not one of the choices.
    """
    if (arg or "full") not in choices:
        raise ValueError(f"Unknown config argument {arg!r}; choose from {', '.join(choices)}.")
    return choices[arg or "full"]
