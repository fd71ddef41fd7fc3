"""The captioner stage (paper section 3.2.1, Appendix E.2): from recordings to captions.

The captioner is trained by cross-entropy with teacher forcing, then, optionally, by self-critical
training (Rennie et al. 2017; for audio Xu et al. 2020), which raises the likelihood of a sampled
caption in proportion to its CIDEr-D above that of the captioner's other captions. The others are
further samples (Luo 2020, "A better variant of self-critical sequence training") and not the greedy
caption, which is better than most samples, so that hardly any would be reinforced.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.checks import check_name
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models import captioner as captioner_lib
from maa_jax.stages.base import Scalars, SingleNetworkStage, Tree
from maa_jax.stages.contrastive import augment, make_tokenizer
from maa_jax.stages.images import matrix_image
from maa_jax.text import cider
from maa_jax.training.state import TrainState

if TYPE_CHECKING:
    from maa_jax.text.tokenizer import Tokenizer

_LOSSES = ("cross_entropy", "self_critical")
_DRAWS = 5  # captions sampled per recording in a step of self-critical training
_SUMMARIES = 4  # examples whose attention TensorBoard shows
# Fields in which a pretrained encoder's configuration may differ: they are regularisation.
_IGNORED = ("block_dropout", "stripes", "time_stripe", "mel_stripe")


class CaptionerStage(SingleNetworkStage):
    """Trains `captioner`, encoder and decoder.

    Config keys, in addition to those of every stage:
      captioner: `encoder` (fields of Cnn10Config) and fields of CaptionerConfig, except the special
        ids, which are the tokenizer's.
      tokenizer: folder of a tokenizer, or "captions" to build one from the training captions, with
        up to `captioner.vocab_size` entries.
      init_from: `captioner`, a model folder to start from (self-critical training needs one), and
        `audio_encoder`, the folder of a Cnn10 of PANNs (config.json and model.safetensors); "" for
        none.
      loss: "cross_entropy" or "self_critical".
      label_smoothing: probability in the cross-entropy's target that all words share.
      augment: augmentations of the CLAP stage.
    """

    network = "captioner"
    tokenizer: Tokenizer

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        tokenizer: Tokenizer | None = None,
    ):
        """Defines the network, without weights, and opens or builds the tokenizer.

        Raises:
          ValueError: settings are inconsistent.
          FileNotFoundError: there is no such tokenizer.
        """
        keys = dict(config.captioner)
        self.tokenizer = tokenizer or make_tokenizer(config, keys["vocab_size"])
        self.prepare_text = self.tokenizer
        if config.tokenizer == "captions":
            keys["vocab_size"] = self.tokenizer.vocab_size
        begin, end = _ends(config, self.tokenizer)
        keys |= {
            "sample_rate": config.mel.sample_rate,
            "pad_token_id": self.tokenizer.pad_id,
            "bos_token_id": begin,
            "eos_token_id": end,
            "suppress_tokens": [i for i in self.tokenizer.special_ids if i != end],
        }
        self.captioner_config = schema.build(
            captioner_lib.CaptionerConfig, keys, "config.captioner"
        )
        dtype = jnp.dtype(config.dtype)
        super().__init__(
            config,
            lambda rngs: captioner_lib.Captioner(self.captioner_config, dtype=dtype, rngs=rngs),
        )
        self._check()

    def _check(self) -> None:
        config, sizes = self.config, self.captioner_config
        check_name("config.loss", config.loss, _LOSSES)
        if self.tokenizer.vocab_size > sizes.vocab_size:
            raise ValueError(
                f"config.captioner.vocab_size={sizes.vocab_size}, but the tokenizer in "
                f"{config.tokenizer} has {self.tokenizer.vocab_size} entries: set it to that."
            )
        if sizes.max_length > self.tokenizer.length:
            raise ValueError(
                f"config.captioner.max_length={sizes.max_length}: captions have "
                f"{self.tokenizer.length} tokens, give at most as many."
            )
        if config.data.samples < sizes.min_samples:
            raise ValueError(
                f"config.data.samples={config.data.samples} is too short for the encoder: give at "
                f"least {sizes.min_samples}."
            )

    def load_frozen(self) -> Tree:
        """Returns the references' ids and n-gram statistics of `validation`, for CIDEr-D.

        Self-critical training also needs those of `train`.
        """
        frozen = {"validation": self._tables(self.config.data.eval_split)}
        if self.config.loss == "self_critical":
            frozen["train"] = self._tables(self.config.data.split)
        return frozen

    def _tables(self, split: str) -> Tree:
        from maa_jax.data import datasets

        captions = [x["captions"] for x in datasets.metadata(self.config.data, split)]
        return reference_tables(captions, self.tokenizer, self.captioner_config.max_length)

    def start_weights(self) -> dict[str, Tree]:
        """Returns the pretrained captioner, or its encoder; {} for none."""
        begin, sizes = self.config.init_from, self.captioner_config
        key = "init_from.captioner"
        whole = networks.start_weights(
            begin.captioner, "captioner", sizes, key=key, free=("dropout",)
        )
        if whole:
            return whole
        key = "init_from.audio_encoder"
        part = networks.start_weights(
            begin.audio_encoder, ".", sizes.encoder, key=key, free=_IGNORED
        )
        return {"captioner": {"encoder": part["."]}} if part else {}

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the mean loss that `config.loss` names."""
        if self.config.loss == "self_critical":
            return self._self_critical(params, extra, frozen, batch, key)
        return self._cross_entropy(params, extra, batch, key)

    def _cross_entropy(self, params, extra, batch, key):
        key_augment, key_dropout = jax.random.split(key)
        network, rngs = self.merge(params, extra), nnx.Rngs(dropout=key_dropout)
        audio = augment(batch["audio"], key_augment, **self.config.augment)
        memory = network.encode(audio, use_running_average=False, rngs=rngs)
        tokens = self._cut(batch)
        logits, _ = network(memory, tokens, rngs=rngs)
        words = tokens[:, 1:]
        smoothing = self.config.label_smoothing
        losses = caption_losses(logits, words, self.tokenizer.mask(words), smoothing)
        return losses.mean(), ({}, self.split_extra(network))

    def _self_critical(self, params, extra, frozen, batch, key):
        """Returns the self-critical loss, whose policy is the network without dropout."""
        key_augment, key_sample = jax.random.split(key)
        audio = augment(batch["audio"], key_augment, **self.config.augment)
        # Two copies, because sampling is not differentiated.
        policy = self.merge(params, extra)
        writer = self.merge(jax.lax.stop_gradient(params), extra)
        repeat = lambda x: jnp.repeat(x, _DRAWS, axis=0)
        memory = jax.tree.map(repeat, policy.encode(audio))
        keys = jax.random.split(key_sample, len(memory.frames))
        sampled = captioner_lib.sample(writer, jax.lax.stop_gradient(memory), keys)
        reward = cider.token_cider_d(
            frozen["train"], repeat(batch["index"]), sampled, self.tokenizer.mask
        ).reshape(-1, _DRAWS)
        others = (reward.sum(1, keepdims=True) - reward) / (_DRAWS - 1)
        likelihood = policy.log_likelihood(memory, sampled).reshape(-1, _DRAWS)
        loss = -jnp.mean((reward - others) * likelihood)
        return loss, ({"reward": reward.mean()}, self.split_extra(policy))

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's cross-entropy [b] and its greedy caption's CIDEr-D [b]."""
        del key
        network = self.merge(train.weights(), train.extra)
        memory, tokens = network.encode(batch["audio"]), self._cut(batch)
        logits, _ = network(memory, tokens)
        greedy = captioner_lib.beam_search(network, memory, width=1)[0][:, 0]
        words, mask, tables = tokens[:, 1:], self.tokenizer.mask, frozen["validation"]
        return {
            "loss": caption_losses(logits, words, mask(words)),
            "cider": cider.token_cider_d(tables, batch["index"], greedy, mask),
        }

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the attention of a few captions, words in rows and frames in columns."""
        del frozen, key
        network = self.merge(train.weights(), train.extra)
        memory = network.encode(batch["audio"][:_SUMMARIES])
        _, attention = network(memory, self._cut(batch)[:_SUMMARIES])
        largest = jnp.max(attention, axis=(1, 2), keepdims=True)
        return {"image/attention": matrix_image(attention / largest)}

    def _cut(self, batch: Tree) -> jax.Array:
        return batch["text"][:, : self.captioner_config.max_length]

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes the captioner and its tokenizer into a model folder."""
        tree = nnx.to_pure_dict(nnx.state(self.merge(params, extra)))
        networks.save_network(folder, "captioner", self.captioner_config, tree)
        self.tokenizer.save(folder / "tokenizer")
        save_index(folder)


def _ends(config: ml_collections.ConfigDict, tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the ids of the tokens that begin and end a caption."""
    ids = tokenizer([""])[0, :3]
    if tokenizer.mask(ids).tolist() != [True, True, False]:
        raise ValueError(
            f"config.tokenizer={config.tokenizer!r}: it must put one token before a caption and "
            "another, which is not its padding, after it: use a BERT's tokenizer, or 'captions'."
        )
    begin, end, _ = ids.tolist()
    return begin, end


def caption_losses(
    logits: jax.Array, words: jax.Array, mask: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross-entropy [b] of each caption, averaged over its words.

    Args:
      logits: logits [b, n, vocab_size].
      words: ids [b, n].
      mask: mask, bool [b, n], False where `words` is padding.
      smoothing: probability of the target that all ids share (Szegedy et al. 2016).
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    losses = -jnp.take_along_axis(log_probs, words[..., None], axis=-1)[..., 0]
    losses = (1 - smoothing) * losses - smoothing * jnp.mean(log_probs, axis=-1)
    return jnp.sum(jnp.where(mask, losses, 0), axis=1) / jnp.maximum(mask.sum(1), 1)


def reference_tables(captions: list[list[str]], tokenizer: Tokenizer, length: int) -> Tree:
    """Returns `cider.token_tables` of all recordings' captions, cut to `length` tokens."""
    most = max(map(len, captions))
    references = np.full((len(captions), most, length), tokenizer.pad_id, np.int32)
    for row, texts in zip(references, captions, strict=True):
        row[: len(texts)] = tokenizer(texts)[:, :length]
    return cider.token_tables(references, tokenizer.mask)
