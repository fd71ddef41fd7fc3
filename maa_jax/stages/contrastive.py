"""Parts shared by the stages that learn from pairs of a recording and a caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_collections

from maa_jax.files import user_path
from maa_jax.model_folder import networks
from maa_jax.models.bert import BertConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.stages.base import Tree

if TYPE_CHECKING:
    from maa_jax.text.tokenizer import Tokenizer

# Fields in which the configuration of pretrained weights may differ: they are regularisation and
# names, and no shape depends on them.
_IGNORED: tuple[str, ...] = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "block_dropout",
    "head_dropout",
    "stripes",
    "time_stripe",
    "mel_stripe",
    "labels",
    "published",
)


def make_tokenizer(config: ml_collections.ConfigDict, vocab_size: int) -> Tokenizer:
    """Returns the tokenizer in the folder `config.tokenizer`, or one built from training captions.

    Args:
      config: config of the run, whose `tokenizer` is a folder or "captions".
      vocab_size: largest vocabulary of a tokenizer that is built.

    Raises:
      FileNotFoundError: there is no such tokenizer.
    """
    # Imported here: nothing else in a stage needs the `tokenizers` library or a dataset.
    from maa_jax.data import datasets
    from maa_jax.text.tokenizer import Tokenizer, tokenizer_from_captions

    if config.tokenizer != "captions":
        return Tokenizer.from_folder(user_path(config.tokenizer))
    captions = datasets.captions(config.data, config.data.split)
    return tokenizer_from_captions(captions, vocab_size)


def check(
    config: ml_collections.ConfigDict,
    block: str,
    tokenizer: Tokenizer,
    text: BertConfig,
    audio: Cnn14Config,
) -> None:
    """Raises a ValueError unless both encoders are compatible with the run's tokenizer and clips.

    Args:
      config: config of the run.
      block: name of the config's block with the encoders' settings, for errors.
      tokenizer: tokenizer of the run.
      text: sizes of the text encoder.
      audio: sizes of the audio encoder.
    """
    if tokenizer.vocab_size > text.vocab_size:
        raise ValueError(
            f"config.{block}.text_encoder.vocab_size={text.vocab_size}, but the tokenizer in "
            f"{config.tokenizer} has {tokenizer.vocab_size} entries: set it to that."
        )
    if text.max_position_embeddings < tokenizer.length:
        raise ValueError(
            f"config.{block}.text_encoder.max_position_embeddings={text.max_position_embeddings}: "
            f"captions have {tokenizer.length} tokens, give at least as many."
        )
    if audio.sample_rate != config.mel.sample_rate:
        raise ValueError(
            f"config.{block}.audio_encoder.sample_rate={audio.sample_rate}, but recordings are "
            f"at config.mel.sample_rate={config.mel.sample_rate}: make them equal."
        )
    if config.data.samples < audio.min_samples:
        raise ValueError(
            f"config.data.samples={config.data.samples} is too short for the audio encoder: "
            f"give at least {audio.min_samples}."
        )


def start_weights(
    network: str,
    init_from: Mapping[str, str],
    encoders: Mapping[str, Any],
    free: tuple[str, ...] = (),
) -> dict[str, Tree]:
    """Returns {network: {encoder: pretrained weights}}, {} for none.

    Args:
      network: name of the stage's network, of which the encoders are parts.
      init_from: {encoder: folder of a network or id on the hub, "" for none}.
      encoders: {encoder: configuration that its folder must have, apart from dropout}.
      free: further fields in which a configuration may differ.

    Raises:
      ValueError: an encoder's folder is missing or has other sizes.
    """
    given = {}
    for name, config in encoders.items():
        key = f"init_from.{name}"
        found = networks.start_weights(init_from[name], ".", config, key=key, free=_IGNORED + free)
        for weights in found.values():
            given[name] = weights
    return {network: given} if given else {}


def same_pairs(index: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns bool [b, b], True where two examples share their recording or their caption.

    The caption of either describes both, so neither is a negative of the other.

    Args:
      index: indices of the recordings in the dataset, [b].
      tokens: ids of the captions, [b, n].
    """
    same_caption = jnp.all(tokens[:, None] == tokens[None], axis=-1)
    return (index[:, None] == index[None]) | same_caption


def recall_at_1(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Returns [b], 1 where the nearest recording of a caption is its own or a `same` one."""
    best = jnp.argmax(logits, axis=1)
    return jnp.take_along_axis(same, best[:, None], axis=1)[:, 0].astype(jnp.float32)


def augment(wav: jax.Array, key: jax.Array, *, gain_db: float, shift: float) -> jax.Array:
    """Returns clips with a random gain and a random circular shift in time.

    Args:
      wav: clips [b, samples].
      key: PRNG key.
      gain_db: largest change of loudness, in decibels; drawn uniformly from -gain_db to gain_db.
      shift: largest shift, as a fraction of the clip; drawn uniformly in either direction.
    """
    size, samples = wav.shape
    key_gain, key_shift = jax.random.split(key)
    gain = 10 ** (jax.random.uniform(key_gain, (size, 1), minval=-gain_db, maxval=gain_db) / 20)
    reach = round(shift * samples)
    moves = jax.random.randint(key_shift, (size,), -reach, reach + 1)
    return gain * jax.vmap(jnp.roll)(wav, moves)


def union(a: Tree, b: Tree) -> Tree:
    """Merges two nested dicts with different leaves."""
    both = {k: union(a[k], b[k]) for k in a.keys() & b.keys()}
    return {**a, **b, **both}
