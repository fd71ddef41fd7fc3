"""The captioner stage (paper section 3.2.1, Appendix E.2): sounds to sentences.

First by cross-entropy with the true words before each word, then, as an option, by self-critical
training (Rennie et al. 2017; for sound Xu et al. 2020): the likelihood of a sampled caption rises
by as much as its CIDEr-D is above that of the captioner's others. Those are further samples (Luo
2020, "A better variant of self-critical sequence training") and not the greedy caption, which is
better than most samples, so that hardly any would ever be encouraged.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models import captioner as captioner_lib
from maa_jax.models.cnn10 import Cnn10Config
from maa_jax.stages.contrastive import augment, make_tokenizer
from maa_jax.text import cider
from maa_jax.text.tokenizer import Tokenizer
from maa_jax.training import optim, state

Tree = Any

_LOSSES = ("cross_entropy", "self_critical")
_DRAWS = 5  # captions of a recording in a step of self-critical training
_PICTURES = 4  # examples whose attention TensorBoard shows
_PIXELS = 8  # of a cell of such a picture
# Fields of the encoder that are training's own choice: weights may have been trained with others.
_FREE = ("block_dropout", "stripes", "time_stripe", "mel_stripe")


class CaptionerStage:
    """Trains `captioner`: encoder and decoder.

    The config's keys beside those of every stage:
        captioner: `encoder` (fields of Cnn10Config) and fields of CaptionerConfig; what the
            vocabulary's ids mean is the tokenizer's to say.
        tokenizer: a tokenizer folder, or "captions": built from the training captions, with up to
            `captioner.vocab_size` entries.
        init_from: `captioner`, a model folder to go on from (self-critical training begins with
            one), and `audio_encoder`, the folder of a Cnn10 of PANNs (config.json and
            model.safetensors), or "".
        loss: "cross_entropy" or "self_critical".
        label_smoothing: probability of the cross-entropy's target that all words share.
        augment: as in the CLAP stage.
    """

    def __init__(self, config: ml_collections.ConfigDict, *, steps_per_epoch: int):
        """Defines the network and the tokenizer; no weights.

        Raises:
            ValueError: for settings that do not fit each other.
            FileNotFoundError: if there is no such tokenizer.
        """
        self.config = config
        keys = dict(config.captioner)
        self.tokenizer = self.prepare_text = make_tokenizer(config, keys["vocab_size"])
        if config.tokenizer == "captions":
            keys["vocab_size"] = self.tokenizer.vocab_size
        begin, end = self._ends()
        keys |= {
            "encoder": Cnn10Config(**config.captioner.encoder),
            "sample_rate": config.mel.sample_rate,
            "pad_token_id": self.tokenizer.pad_id,
            "bos_token_id": begin,
            "eos_token_id": end,
            "suppress_tokens": [i for i in self.tokenizer.special_ids if i != end],
        }
        self.captioner_config = captioner_lib.CaptionerConfig(**keys)
        self._check()
        self._make = lambda rngs: captioner_lib.Captioner(
            self.captioner_config, dtype=jnp.dtype(config.dtype), rngs=rngs
        )
        self._graph = state.define(self._make)
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)

    def _ends(self) -> tuple[int, int]:
        """Returns the ids that begin and end a caption."""
        begin, end, after = self.tokenizer([""])[0, :3].tolist()
        if end == self.tokenizer.pad_id or after != self.tokenizer.pad_id:
            raise ValueError(
                f"config.tokenizer={self.config.tokenizer!r}: it does not put one token before a "
                "caption and another, that is not its padding, behind: take that of a BERT, or "
                "'captions'."
            )
        return begin, end

    def _check(self) -> None:
        config, sizes = self.config, self.captioner_config
        if config.loss not in _LOSSES:
            raise ValueError(f"config.loss={config.loss!r}: choose from {', '.join(_LOSSES)}.")
        if self.tokenizer.vocab_size > sizes.vocab_size:
            raise ValueError(
                f"config.captioner.vocab_size={sizes.vocab_size}, but the tokenizer in "
                f"{config.tokenizer} has {self.tokenizer.vocab_size} entries: set it to that."
            )
        if sizes.max_length > self.tokenizer.length:
            raise ValueError(
                f"config.captioner.max_length={sizes.max_length}: captions come with "
                f"{self.tokenizer.length} tokens, give at most as many."
            )
        if config.data.samples < sizes.min_samples:
            raise ValueError(
                f"config.data.samples={config.data.samples} is too short for the encoder: give at "
                f"least {sizes.min_samples}."
            )

    def load_frozen(self) -> Tree:
        """Returns the references' tokens and n-gram statistics, for CIDEr-D: `validation`.

        For self-critical training also those of `train`.
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
        """Returns the captioner, or the encoder, to begin with; {} for none."""
        begin, sizes = self.config.init_from, self.captioner_config
        key = "init_from.captioner"
        whole = networks.start_weights(
            begin.captioner, "captioner", sizes, key=key, free=("dropout",)
        )
        if whole:
            return whole
        key = "init_from.audio_encoder"
        part = networks.start_weights(begin.audio_encoder, ".", sizes.encoder, key=key, free=_FREE)
        return {"captioner": {"encoder": part["."]}} if part else {}

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0, with random weights."""
        averaged = ("captioner",) if self.config.ema_decay else ()
        return state.start({"captioner": self._make}, {"captioner": self._tx}, averaged, key)

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step; under self-critical training a network without dropout is the policy."""
        extra = train.extra["captioner"]

        def cross_entropy(params, batch, key):
            key_augment, key_dropout = jax.random.split(key)
            network = state.merge(self._graph, params, extra)
            rngs = nnx.Rngs(dropout=key_dropout)
            audio = augment(batch["audio"], key_augment, **self.config.augment)
            memory = network.encode(audio, use_running_average=False, rngs=rngs)
            tokens = self._cut(batch)
            logits, _ = network(memory, tokens, rngs=rngs)
            words = tokens[:, 1:]
            mask, smoothing = self.tokenizer.mask(words), self.config.label_smoothing
            losses = caption_losses(logits, words, mask, smoothing)
            return losses.mean(), ({}, state.split(network)[1])

        def self_critical(params, batch, key):
            key_augment, key_sample = jax.random.split(key)
            audio = augment(batch["audio"], key_augment, **self.config.augment)
            # Two copies: nothing is differentiated through the making of captions.
            policy = state.merge(self._graph, params, extra)
            writer = state.merge(self._graph, jax.lax.stop_gradient(params), extra)
            several = lambda x: jnp.repeat(x, _DRAWS, axis=0)
            memory = jax.tree.map(several, policy.encode(audio))
            keys = jax.random.split(key_sample, len(memory.frames))
            sampled = captioner_lib.sample(writer, jax.lax.stop_gradient(memory), keys)
            reward = cider.token_cider_d(
                frozen["train"], several(batch["index"]), sampled, self.tokenizer.mask
            ).reshape(-1, _DRAWS)
            others = (reward.sum(1, keepdims=True) - reward) / (_DRAWS - 1)
            likelihood = policy.log_likelihood(memory, sampled).reshape(-1, _DRAWS)
            loss = -jnp.mean((reward - others) * likelihood)
            scores = {"reward": reward.mean()}
            return loss, (scores, state.split(policy)[1])

        loss_fn = {"cross_entropy": cross_entropy, "self_critical": self_critical}[self.config.loss]
        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (loss, (scores, extra)), grads = grad_fn(train.params["captioner"], batch, key)
        params, opt = optim.update(
            self._tx, grads, train.params["captioner"], train.opt["captioner"]
        )
        params = {"captioner": params}
        new = state.advance(
            train, params, {"captioner": opt}, self.config.ema_decay, {"captioner": extra}
        )
        return new, {"loss": loss, **scores}

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's cross-entropy [b] and its greedy caption's CIDEr-D [b]."""
        network = self._network(train)
        memory, tokens = network.encode(batch["audio"]), self._cut(batch)
        logits, _ = network(memory, tokens)
        greedy = captioner_lib.beam_search(network, memory, width=1)[0][:, 0]
        words, mask, tables = tokens[:, 1:], self.tokenizer.mask, frozen["validation"]
        return {
            "loss": caption_losses(logits, words, mask(words)),
            "cider": cider.token_cider_d(tables, batch["index"], greedy, mask),
        }

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the attention of a few captions: a row a word, a column a frame."""
        network = self._network(train)
        memory = network.encode(batch["audio"][:_PICTURES])
        _, image = network(memory, self._cut(batch)[:_PICTURES])
        image = image / jnp.max(image, axis=(1, 2), keepdims=True)
        image = jnp.repeat(jnp.repeat(image, _PIXELS, axis=1), _PIXELS, axis=2)
        return {"image/attention": image[..., None]}

    def _network(self, train: state.TrainState) -> captioner_lib.Captioner:
        weights, extra = train.weights()["captioner"], train.extra["captioner"]
        return state.merge(self._graph, weights, extra)

    def _cut(self, batch: Tree) -> jax.Array:
        return batch["text"][:, : self.captioner_config.max_length]

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes the captioner and its tokenizer into a model folder."""
        network = state.merge(self._graph, params["captioner"], extra["captioner"])
        tree = nnx.to_pure_dict(nnx.state(network))
        networks.save_network(folder, "captioner", self.captioner_config, tree)
        self.tokenizer.save(pathlib.Path(folder, "tokenizer"))
        save_index(folder)


def caption_losses(
    logits: jax.Array, words: jax.Array, mask: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Returns the cross-entropy [b] of each caption, the mean over its words.

    Args:
        logits: [b, n, vocab_size].
        words: ids [b, n].
        mask: bool [b, n], False where `words` is padding.
        smoothing: probability of the target that all ids share (Szegedy et al. 2016).
    """
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    losses = -jnp.take_along_axis(log_probs, words[..., None], axis=-1)[..., 0]
    losses = (1 - smoothing) * losses - smoothing * jnp.mean(log_probs, axis=-1)
    return jnp.sum(jnp.where(mask, losses, 0), axis=1) / jnp.maximum(mask.sum(1), 1)


def reference_tables(captions: list[list[str]], tokenize: Tokenizer, length: int) -> Tree:
    """Returns `cider.token_tables` of each recording's captions, cut to `length` tokens."""
    most = max(map(len, captions))
    references = np.full((len(captions), most, length), tokenize.pad_id, np.int32)
    for row, texts in zip(references, captions, strict=True):
        row[: len(texts)] = tokenize(texts)[:, :length]
    return cider.token_tables(references, tokenize.mask)
