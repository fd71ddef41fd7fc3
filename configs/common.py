"""Shared parts of the configs. Every other file here is a stage's, with `get_config(arg)`.

Arguments that every file takes: none, the paper's full size; `demo`, minutes on a laptop with the
bundled recordings; `runlocal`, a few tiny steps to check that the code runs; `bundled`, the
settings of the model inside the package.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import ml_collections

from maa_jax.training.config import RunConfig


def base(stage: str) -> ml_collections.ConfigDict:
    """Returns the keys of every stage, at the values of `RunConfig`."""
    return fields_of(functools.partial(RunConfig, stage=stage))


def block(**keys) -> ml_collections.ConfigDict:
    """Returns keys as a block of a config."""
    return ml_collections.ConfigDict(keys)


def fields_of(settings: Callable[[], Any]) -> ml_collections.ConfigDict:
    """Returns the fields of a dataclass, with their defaults, as a block of a config."""
    return _block_of(dataclasses.asdict(settings()))


def _block_of(values: dict[str, Any]) -> ml_collections.ConfigDict:
    found = ml_collections.ConfigDict()
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = _block_of(value)
        else:
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
    """Makes a text encoder small enough for the captions of the model in the package."""
    text.vocab_size = 2048
    text.hidden_size, text.intermediate_size = 128, 256
    text.num_hidden_layers, text.num_attention_heads = 2, 4
    text.max_position_embeddings = 77
    text.hidden_dropout_prob = text.attention_probs_dropout_prob = 0.0


def shrink_panns(audio: ml_collections.ConfigDict) -> None:
    """Makes an audio encoder small enough for a laptop, without regularisation."""
    audio.channels = (16, 32, 64, 128)
    audio.n_fft, audio.hop_length, audio.n_mels = 1024, 640, 64
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


def bundled_data(config: ml_collections.ConfigDict, weight: float) -> None:
    """Sets the data of the model in the package.

    Args:
      config: config to change.
      weight: weight of the recordings in the package, of which there are few.
    """
    config.data.dataset = f"general_midi/40000x4.1 + sonic_sounds*{weight:g}"


def demo_run(config: ml_collections.ConfigDict, steps: int) -> ml_collections.ConfigDict:
    """Sets a short run on the recordings in the package alone, and returns the config."""
    config.optimizer.cosine_steps = steps
    return local_run(config, steps)


def local_run(config: ml_collections.ConfigDict, steps: int) -> ml_collections.ConfigDict:
    """As `demo_run`, with the learning rate of the config."""
    config.data.dataset = "sonic_sounds"
    return small_run(config, steps)


def pick(arg: str | None, **choices):
    """Returns the choice that a config's argument names, `full` without one.

    Raises:
      ValueError: the argument is not one of the choices.
    """
    if (arg or "full") not in choices:
        raise ValueError(f"Unknown config argument {arg!r}; choose from {', '.join(choices)}.")
    return choices[arg or "full"]
