"""The retriever stage: sounds and captions ranked by a max-margin loss.

Make-An-Audio, section 3.2.1 and Appendix E.2, after Koepke et al. 2022: BERT, and a multi-modal
transformer (Gabeur et al. 2020) over sound. What it trains finds candidate captions for recordings.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.bert import BertConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.models.retriever import AudioTransformerConfig, Retriever, RetrieverConfig
from maa_jax.stages import contrastive
from maa_jax.training import optim, state

Tree = Any

NEGATIVES = ("all", "hardest")


class RetrieverStage:
    """Trains `retriever`, both sides whole.

    The config's keys beside those of every stage:
        retriever: `text_encoder`, `audio_encoder` and `audio_transformer` (fields of BertConfig,
            Cnn14Config and AudioTransformerConfig, whose `max_frames` follows from
            `data.samples`).
        margin: by how much a cosine of a pair must be above those of its negatives.
        negatives: "all" of the batch count, or for each the "hardest" alone (Faghri et al. 2018).
        tokenizer, init_from, augment: as of the CLAP stage, whose encoders fit here.
    """

    def __init__(self, config: ml_collections.ConfigDict, *, steps_per_epoch: int):
        """Defines the network and the tokenizer; no weights.

        Raises:
            ValueError: for settings that do not fit each other.
            FileNotFoundError: if there is no such tokenizer.
        """
        self.config = config
        if config.negatives not in NEGATIVES:
            raise ValueError(f"config.negatives={config.negatives!r}: use one of {NEGATIVES}.")
        text = dict(config.retriever.text_encoder)
        self.tokenizer = self.prepare_text = contrastive.make_tokenizer(config, text["vocab_size"])
        if config.tokenizer == "captions":
            text["vocab_size"] = self.tokenizer.vocab_size
        text, audio = BertConfig(**text), Cnn14Config(**config.retriever.audio_encoder)
        contrastive.check(config, "retriever", self.tokenizer, text, audio)
        transformer = AudioTransformerConfig(
            **config.retriever.audio_transformer, max_frames=audio.frames(config.data.samples)
        )
        self.retriever_config = RetrieverConfig(text, audio, transformer)
        dtype = jnp.dtype(config.dtype)
        self._make = lambda rngs: Retriever(self.retriever_config, dtype=dtype, rngs=rngs)
        self._graph = state.define(self._make)
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)

    def load_frozen(self) -> Tree:
        """Returns {}: this stage reads no other network."""
        return {}

    def start_weights(self) -> dict[str, Tree]:
        """Returns the encoders to begin with, {} for none."""
        encoders = {name: getattr(self.retriever_config, name) for name in self.config.init_from}
        # A Cnn14's classifier is left in its folder.
        return contrastive.start_weights(
            "retriever", self.config.init_from, encoders, ("num_classes",)
        )

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0, with random weights."""
        averaged = ("retriever",) if self.config.ema_decay else ()
        return state.start({"retriever": self._make}, {"retriever": self._tx}, averaged, key)

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step; each example's negatives are the others of the global batch.

        With `accumulate` above 1 they are the others of its microbatch.
        """

        def loss_fn(params, batch, key):
            key_augment, key_dropout = jax.random.split(key)
            retriever = state.merge(self._graph, params, train.extra["retriever"])
            rngs = nnx.Rngs(dropout=key_dropout)
            audio = contrastive.augment(batch["audio"], key_augment, **self.config.augment)
            audio = retriever.audio_embedding(audio, use_running_average=False, rngs=rngs)
            mask = self.tokenizer.mask(batch["text"])
            text = retriever.text_embedding(batch["text"], mask, rngs=rngs)
            scores = {name: x.mean() for name, x in self._scores(text @ audio.T, batch).items()}
            return scores.pop("loss"), (scores, state.split(retriever)[1])

        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (loss, (scores, extra)), grads = grad_fn(train.params["retriever"], batch, key)
        params, opt = optim.update(
            self._tx, grads, train.params["retriever"], train.opt["retriever"]
        )
        params = {"retriever": params}
        new = state.advance(
            train, params, {"retriever": opt}, self.config.ema_decay, {"retriever": extra}
        )
        return new, {"loss": loss, **scores}

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's loss [b] and whether either side finds the other in the batch."""
        return self._scores(self._cosines(train, batch), batch)

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the batch's cosines as an image: a row a caption, a column a recording."""
        return {"image/similarity": contrastive.similarity_image(self._cosines(train, batch))}

    def _scores(self, cosines: jax.Array, batch: Tree) -> dict[str, jax.Array]:
        """Returns each example's loss and recalls, [b], of cosines [captions, recordings]."""
        same = contrastive.same_pairs(batch["index"], batch["text"])
        return {
            "loss": ranking_losses(cosines, same, self.config.margin, self.config.negatives),
            "text_to_audio/recall_at_1": contrastive.recall_at_1(cosines, same),
            "audio_to_text/recall_at_1": contrastive.recall_at_1(cosines.T, same),
        }

    def _cosines(self, train: state.TrainState, batch: Tree) -> jax.Array:
        """Returns cosines [captions, recordings]."""
        weights = train.weights()["retriever"]
        retriever = state.merge(self._graph, weights, train.extra["retriever"])
        text = retriever.text_embedding(batch["text"], self.tokenizer.mask(batch["text"]))
        return text @ retriever.audio_embedding(batch["audio"]).T

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes the network and the tokenizer into a model folder."""
        tree = contrastive.union(params["retriever"], extra["retriever"])
        networks.save_network(folder, "retriever", self.retriever_config, tree)
        self.tokenizer.save(pathlib.Path(folder, "tokenizer"))
        save_index(folder)


def ranking_losses(
    cosines: jax.Array, same: jax.Array, margin: float, negatives: str = "all"
) -> jax.Array:
    """Returns the bidirectional max-margin ranking loss [b] of each pair, as MMT has it.

    By how much a negative comes nearer than the margin, summed over the negatives of the caption
    and of the recording.

    Args:
        cosines: [captions, recordings], matching pairs on the diagonal.
        same: [b, b], pairs that are no negatives, the diagonal among them.
        margin: between a pair and its negatives.
        negatives: "all", or "hardest": the nearest caption and the nearest recording alone.
    """
    pair = jnp.diagonal(cosines)
    cost = lambda pair: jnp.where(same, 0, jnp.maximum(0, margin + cosines - pair))
    reduce = {"all": jnp.sum, "hardest": jnp.max}[negatives]
    return reduce(cost(pair[:, None]), axis=1) + reduce(cost(pair[None]), axis=0)
