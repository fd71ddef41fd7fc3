"""What the stages that learn from pairs of a sound and a sentence share: CLAP and the retriever."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from maa_jax.files import user_path
from maa_jax.model_folder import networks
from maa_jax.models.bert import BertConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.text.tokenizer import Tokenizer, tokenizer_from_captions

Tree = Any

_PIXELS = 8  # of a cell of the similarity matrix, in TensorBoard
# Fields that are training's own choice: weights to begin with may have been trained with others.
_FREE = ("hidden_dropout_prob", "attention_probs_dropout_prob", "block_dropout", "head_dropout")
_FREE += ("stripes", "time_stripe", "mel_stripe")


def make_tokenizer(config: ml_collections.ConfigDict, vocab_size: int) -> Tokenizer:
    """Returns the tokenizer in the folder `config.tokenizer`, or one made of training captions.

    Args:
        config: the run's; `tokenizer` is a folder or "captions".
        vocab_size: the most entries of one that is made here.

    Raises:
        FileNotFoundError: if there is no such tokenizer.
    """
    if config.tokenizer != "captions":
        return Tokenizer.from_folder(user_path(config.tokenizer))
    # Imported here: a stage with a tokenizer of its own needs no dataset to be defined.
    from maa_jax.data import datasets

    captions = datasets.captions(config.data, config.data.split)
    return tokenizer_from_captions(captions, vocab_size)


def check(
    config: ml_collections.ConfigDict,
    block: str,
    tokenizer: Tokenizer,
    text: BertConfig,
    audio: Cnn14Config,
) -> None:
    """Raises ValueError unless both encoders fit the run's tokenizer and clips.

    Args:
        config: the run's.
        block: the block of it that has the encoders' settings, for errors.
        tokenizer: the run's.
        text: the text encoder.
        audio: the audio encoder.
    """
    if tokenizer.vocab_size > text.vocab_size:
        raise ValueError(
            f"config.{block}.text_encoder.vocab_size={text.vocab_size}, but the tokenizer in "
            f"{config.tokenizer} has {tokenizer.vocab_size} entries: set it to that."
        )
    if text.max_position_embeddings < tokenizer.length:
        raise ValueError(
            f"config.{block}.text_encoder.max_position_embeddings={text.max_position_embeddings}: "
            f"prompts have {tokenizer.length} tokens, give at least as many."
        )
    if audio.sample_rate != config.mel.sample_rate:
        raise ValueError(
            f"config.{block}.audio_encoder.sample_rate={audio.sample_rate}, but recordings come "
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
    """Returns {network: {encoder: weights to begin with}}, {} for none.

    Args:
        network: of the stage, which the encoders are parts of.
        init_from: {encoder: folder of a network or id on the hub, "" for none}.
        encoders: {encoder: the configuration that its folder must have, but for dropout}.
        free: more fields in which a configuration may differ.

    Raises:
        ValueError: as `networks.start_weights`.
    """
    given = {}
    for name, config in encoders.items():
        key = f"init_from.{name}"
        found = networks.start_weights(init_from[name], ".", config, key=key, free=_FREE + free)
        for weights in found.values():
            given[name] = weights
    return {network: given} if given else {}


def same_pairs(index: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns [b, b], True where two examples are one recording or have one caption.

    Such pairs answer each other's question correctly, so neither is a negative of the other.

    Args:
        index: [b], the recordings' numbers.
        tokens: [b, n], the captions.
    """
    same_caption = jnp.all(tokens[:, None] == tokens[None], axis=-1)
    return (index[:, None] == index[None]) | same_caption


def recall_at_1(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Returns [b], 1 where a caption is nearest to its recording or to one just as right."""
    best = jnp.argmax(logits, axis=1)
    return jnp.take_along_axis(same, best[:, None], axis=1)[:, 0].astype(jnp.float32)


def augment(wav: jax.Array, key: jax.Array, *, gain_db: float, shift: float) -> jax.Array:
    """Changes loudness and moves in time, circularly; [b, samples] to the same.

    Args:
        wav: recordings.
        key: of the draw.
        gain_db: gains are uniform within plus and minus this many decibels.
        shift: shifts are uniform within plus and minus this part of the clip.
    """
    size, samples = wav.shape
    key_gain, key_shift = jax.random.split(key)
    gain = 10 ** (jax.random.uniform(key_gain, (size, 1), minval=-gain_db, maxval=gain_db) / 20)
    reach = round(shift * samples)
    moves = jax.random.randint(key_shift, (size,), -reach, reach + 1)
    return gain * jax.vmap(jnp.roll)(wav, moves)


def similarity_image(cosines: jax.Array) -> jax.Array:
    """Returns cosines [captions, recordings] as an image [1, height, width, 1] in 0..1."""
    image = jnp.repeat(jnp.repeat((1 + cosines) / 2, _PIXELS, axis=0), _PIXELS, axis=1)
    return jnp.clip(image, 0, 1)[None, :, :, None]


def union(a: Tree, b: Tree) -> Tree:
    """Returns two nested dicts, of different leaves, as one."""
    both = {k: union(a[k], b[k]) for k in a.keys() & b.keys()}
    return {**a, **b, **both}
