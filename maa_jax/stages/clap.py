"""The CLAP stage: recordings and captions aligned by a symmetric contrastive loss.

Elizalde et al. 2022, "CLAP: Learning audio concepts from natural language supervision", section 2.
Its text tower conditions the denoiser; its audio tower ranks and scores sounds.
"""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from maa_jax import schema
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.clap import Clap, ClapConfig
from maa_jax.stages import contrastive
from maa_jax.stages.base import Scalars, SingleNetworkStage, Tree
from maa_jax.stages.images import matrix_image
from maa_jax.training.state import TrainState

if TYPE_CHECKING:
    from maa_jax.text.tokenizer import Tokenizer

# The networks of a CLAP, each in its own folder.
NETWORKS = ("text_encoder", "text_projection", "audio_encoder", "audio_projection")

# Bound of the temperature (CLIP, Radford et al. 2021, section 2.4): sharper logits are unstable.
_MAX_LOGIT_SCALE = math.log(100)


class ClapStage(SingleNetworkStage):
    """Trains `clap`: both towers, both projections and the temperature.

    Config keys, in addition to those of every stage:
      clap: `text_encoder` and `audio_encoder` (fields of BertConfig and Cnn14Config),
        `embedding_size`, and the projections' `dropout`.
      tokenizer: folder of a tokenizer, or "captions" to build one from the training captions, with
        up to `clap.text_encoder.vocab_size` entries.
      init_from: pretrained `text_encoder` and `audio_encoder`, each a folder with config.json and
        model.safetensors, an id on the Hugging Face hub, or "".
      augment: `gain_db`, the largest change of loudness in dB, and `shift`, the largest circular
        shift in time as a fraction of the clip.
    """

    network = "clap"
    tokenizer: Tokenizer

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        tokenizer: Tokenizer | None = None,
    ):
        """Defines the networks, without weights, and opens or builds the tokenizer.

        Raises:
          ValueError: settings are inconsistent.
          FileNotFoundError: there is no such tokenizer.
        """
        text = dict(config.clap.text_encoder)
        self.tokenizer = tokenizer or contrastive.make_tokenizer(config, text["vocab_size"])
        self.prepare_text = self.tokenizer
        if config.tokenizer == "captions":
            text["vocab_size"] = self.tokenizer.vocab_size
        keys = {**config.clap, "text_encoder": text}
        self.clap_config = schema.build(ClapConfig, keys, "config.clap")
        towers = self.clap_config.text_encoder, self.clap_config.audio_encoder
        contrastive.check(config, "clap", self.tokenizer, *towers)
        dtype = jnp.dtype(config.dtype)
        super().__init__(config, lambda rngs: Clap(self.clap_config, dtype=dtype, rngs=rngs))

    def start_weights(self) -> dict[str, Tree]:
        """Returns the pretrained towers, {} for none."""
        towers = {name: getattr(self.clap_config, name) for name in self.config.init_from}
        return contrastive.start_weights("clap", self.config.init_from, towers)

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the mean loss; an example's negatives are the others of the (micro)batch."""
        del frozen
        key_augment, key_dropout = jax.random.split(key)
        clap, rngs = self.merge(params, extra), nnx.Rngs(dropout=key_dropout)
        audio = contrastive.augment(batch["audio"], key_augment, **self.config.augment)
        audio = clap.audio_embedding(audio, use_running_average=False, rngs=rngs)
        text = clap.text_embedding(batch["text"], self.tokenizer.mask(batch["text"]), rngs=rngs)
        scale = jnp.exp(clap.logit_scale[...])
        logits = scale * text @ audio.T
        same = contrastive.same_pairs(batch["index"], batch["text"])
        loss = contrastive_losses(logits, same).mean()
        scores = {
            "recall_at_1": contrastive.recall_at_1(logits, same).mean(),
            "logit_scale": scale,
        }
        return loss, (scores, self.split_extra(clap))

    def constrain(self, params: Tree) -> Tree:
        """Bounds the temperature."""
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE)}

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's loss [b] and whether its caption finds its recording [b]."""
        del frozen, key
        logits = self._logits(train, batch)
        same = contrastive.same_pairs(batch["index"], batch["text"])
        return {
            "loss": contrastive_losses(logits, same),
            "recall_at_1": contrastive.recall_at_1(logits, same),
        }

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the batch's similarity matrix, captions in rows and recordings in columns."""
        del frozen, key
        cosines = self._logits(train, batch) / jnp.exp(train.weights()["clap"]["logit_scale"])
        return {"image/similarity": matrix_image((1 + cosines[None]) / 2)}

    def _logits(self, train: TrainState, batch: Tree) -> jax.Array:
        """Returns cosines [captions, recordings], scaled by the temperature."""
        clap = self.merge(train.weights(), train.extra)
        text = clap.text_embedding(batch["text"], self.tokenizer.mask(batch["text"]))
        audio = clap.audio_embedding(batch["audio"])
        return jnp.exp(clap.logit_scale[...]) * text @ audio.T

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes both towers, both projections and the tokenizer into a model folder."""
        for network in NETWORKS:
            tree = contrastive.union(params["clap"][network], extra["clap"].get(network, {}))
            networks.save_network(folder, network, getattr(self.clap_config, network), tree)
        self.tokenizer.save(folder / "tokenizer")
        save_index(folder)


def contrastive_losses(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Returns the symmetric cross-entropy [b] of each pair (CLAP, equation 3).

    Args:
      logits: scaled cosines [captions, recordings], matching pairs on the diagonal.
      same: pairs that are not negatives of each other, bool [b, b]; off the diagonal they are left
        out.
    """
    size = len(logits)
    logits = jnp.where(same & ~jnp.eye(size, dtype=bool), -jnp.inf, logits)
    rows, columns = (jax.nn.log_softmax(logits, axis=axis) for axis in (1, 0))
    return -(jnp.diagonal(rows) + jnp.diagonal(columns)) / 2
