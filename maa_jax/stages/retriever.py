"""The retriever stage: recordings and captions ranked by a max-margin loss.

Make-An-Audio, section 3.2.1 and Appendix E.2, after Koepke et al. 2022: BERT, and a multi-modal
transformer (Gabeur et al. 2020) over audio. Prompt enhancement finds candidate captions with it.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from maa_jax import schema
from maa_jax.checks import check_name
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.bert import BertConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.models.retriever import AudioTransformerConfig, Retriever, RetrieverConfig
from maa_jax.stages import contrastive
from maa_jax.stages.base import Scalars, SingleNetworkStage, Tree
from maa_jax.stages.images import matrix_image
from maa_jax.training.state import TrainState

if TYPE_CHECKING:
    from maa_jax.text.tokenizer import Tokenizer

NEGATIVES = ("all", "hardest")


class RetrieverStage(SingleNetworkStage):
    """Trains `retriever`, the text encoder and the audio encoder with its transformer.

    Config keys, in addition to those of every stage:
      retriever: `text_encoder`, `audio_encoder` and `audio_transformer` (fields of BertConfig,
        Cnn14Config and AudioTransformerConfig, whose `max_frames` follows from `data.samples`).
      margin: required difference between the cosines of a pair and of its negatives.
      negatives: "all" of the batch, or only the "hardest" for each example (Faghri et al. 2018).
      tokenizer, init_from, augment: the same as in the CLAP stage, whose encoders can be used here.
    """

    network = "retriever"
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
        check_name("config.negatives", config.negatives, NEGATIVES)
        sizes = dict(config.retriever.text_encoder)
        self.tokenizer = tokenizer or contrastive.make_tokenizer(config, sizes["vocab_size"])
        self.prepare_text = self.tokenizer
        if config.tokenizer == "captions":
            sizes["vocab_size"] = self.tokenizer.vocab_size
        text = schema.build(BertConfig, sizes, "config.retriever.text_encoder")
        audio = schema.build(
            Cnn14Config, config.retriever.audio_encoder, "config.retriever.audio_encoder"
        )
        contrastive.check(config, "retriever", self.tokenizer, text, audio)
        frames = {"max_frames": audio.frames(config.data.samples)}
        transformer = schema.build(
            AudioTransformerConfig,
            {**config.retriever.audio_transformer, **frames},
            "config.retriever.audio_transformer",
        )
        self.retriever_config = RetrieverConfig(text, audio, transformer)
        dtype = jnp.dtype(config.dtype)
        super().__init__(
            config,
            lambda rngs: Retriever(self.retriever_config, dtype=dtype, rngs=rngs),
        )

    def start_weights(self) -> dict[str, Tree]:
        """Returns the pretrained encoders, {} for none."""
        encoders = {name: getattr(self.retriever_config, name) for name in self.config.init_from}
        # A Cnn14's classifier is not used here, so its size does not matter.
        return contrastive.start_weights(
            "retriever", self.config.init_from, encoders, ("num_classes",)
        )

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the mean loss; an example's negatives are the others of the (micro)batch."""
        del frozen
        key_augment, key_dropout = jax.random.split(key)
        retriever, rngs = self.merge(params, extra), nnx.Rngs(dropout=key_dropout)
        audio = contrastive.augment(batch["audio"], key_augment, **self.config.augment)
        audio = retriever.audio_embedding(audio, use_running_average=False, rngs=rngs)
        mask = self.tokenizer.mask(batch["text"])
        text = retriever.text_embedding(batch["text"], mask, rngs=rngs)
        scores = {name: x.mean() for name, x in self._scores(text @ audio.T, batch).items()}
        return scores.pop("loss"), (scores, self.split_extra(retriever))

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's loss [b], and whether either side finds the other in the batch."""
        del frozen, key
        return self._scores(self._cosines(train, batch), batch)

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the batch's cosines as an image, captions in rows and recordings in columns."""
        del frozen, key
        return {"image/similarity": matrix_image((1 + self._cosines(train, batch)[None]) / 2)}

    def _scores(self, cosines: jax.Array, batch: Tree) -> dict[str, jax.Array]:
        """Returns each example's loss and recalls [b] from cosines [captions, recordings]."""
        same = contrastive.same_pairs(batch["index"], batch["text"])
        return {
            "loss": ranking_losses(cosines, same, self.config.margin, self.config.negatives),
            "text_to_audio/recall_at_1": contrastive.recall_at_1(cosines, same),
            "audio_to_text/recall_at_1": contrastive.recall_at_1(cosines.T, same),
        }

    def _cosines(self, train: TrainState, batch: Tree) -> jax.Array:
        """Returns cosines [captions, recordings]."""
        retriever = self.merge(train.weights(), train.extra)
        text = retriever.text_embedding(batch["text"], self.tokenizer.mask(batch["text"]))
        return text @ retriever.audio_embedding(batch["audio"]).T

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes the network and the tokenizer into a model folder."""
        tree = contrastive.union(params["retriever"], extra["retriever"])
        networks.save_network(folder, "retriever", self.retriever_config, tree)
        self.tokenizer.save(folder / "tokenizer")
        save_index(folder)


def ranking_losses(
    cosines: jax.Array, same: jax.Array, margin: float, negatives: str = "all"
) -> jax.Array:
    """Returns the bidirectional max-margin ranking loss [b] of each pair, as in MMT.

    It is the mean of margin violations over the negatives of the caption and of the recording, so
    that a batch has the mean over its 2 b (b - 1) comparisons; of the hardest two it is the sum.

    Args:
      cosines: cosines [captions, recordings], matching pairs on the diagonal.
      same: pairs that are not negatives of each other, bool [b, b], including the diagonal.
      margin: required difference between the cosines of a pair and of its negatives.
      negatives: "all", or "hardest": only the nearest caption and the nearest recording.
    """
    pair = jnp.diagonal(cosines)
    cost = lambda pair: jnp.where(same, 0, jnp.maximum(0, margin + cosines - pair))
    captions, recordings = cost(pair[None]), cost(pair[:, None])
    if negatives == "hardest":
        return recordings.max(axis=1) + captions.max(axis=0)
    count = (~same).sum(axis=1) + (~same).sum(axis=0)
    return (recordings.sum(axis=1) + captions.sum(axis=0)) / jnp.maximum(count, 1)
