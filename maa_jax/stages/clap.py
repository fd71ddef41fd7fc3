"""The CLAP stage: sounds and sentences drawn together by a symmetric contrastive loss.

Elizalde et al. 2022, "CLAP: Learning audio concepts from natural language supervision", section 2.
Its text tower becomes the denoiser's condition, its audio tower a score.
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
from maa_jax.models.bert import BertConfig
from maa_jax.models.clap import Clap, ClapConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.stages import contrastive
from maa_jax.training import optim, state

Tree = Any

# Of a CLAP, one a folder.
NETWORKS = ("text_encoder", "text_projection", "audio_encoder", "audio_projection")

# The temperature's bounds (CLIP, Radford et al. 2021, section 2.4): sharper logits are unstable.
_MAX_LOGIT_SCALE = float(np.log(100))


class ClapStage:
    """Trains `clap`: both towers, both projections and the temperature.

    The config's keys beside those of every stage:
        clap: `text_encoder` and `audio_encoder` (fields of BertConfig and Cnn14Config),
            `embedding_size` and `dropout` (of the projections).
        tokenizer: a tokenizer folder, or "captions": built from the training captions, with up to
            `clap.text_encoder.vocab_size` entries.
        init_from: `text_encoder` and `audio_encoder`, folders of networks to begin with (each with
            config.json and model.safetensors) or ids on the Hugging Face hub, or "".
        augment: `gain_db`, the largest change of loudness, and `shift`, the largest circular shift
            in time as a part of the clip.
    """

    def __init__(self, config: ml_collections.ConfigDict, *, steps_per_epoch: int):
        """Defines the networks and the tokenizer; no weights.

        Raises:
            ValueError: for settings that do not fit each other.
            FileNotFoundError: if there is no such tokenizer.
        """
        self.config = config
        text = dict(config.clap.text_encoder)
        self.tokenizer = self.prepare_text = contrastive.make_tokenizer(config, text["vocab_size"])
        if config.tokenizer == "captions":
            text["vocab_size"] = self.tokenizer.vocab_size
        self.clap_config = ClapConfig(
            text_encoder=BertConfig(**text),
            audio_encoder=Cnn14Config(**config.clap.audio_encoder),
            embedding_size=config.clap.embedding_size,
            dropout=config.clap.dropout,
        )
        contrastive.check(
            config,
            "clap",
            self.tokenizer,
            self.clap_config.text_encoder,
            self.clap_config.audio_encoder,
        )
        self._make = lambda rngs: Clap(self.clap_config, dtype=jnp.dtype(config.dtype), rngs=rngs)
        self._graph = state.define(self._make)
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)

    def load_frozen(self) -> Tree:
        """Returns {}: this stage reads no other network."""
        return {}

    def start_weights(self) -> dict[str, Tree]:
        """Returns the towers to begin with, {} for none."""
        towers = {name: getattr(self.clap_config, name) for name in self.config.init_from}
        return contrastive.start_weights("clap", self.config.init_from, towers)

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0, with random weights."""
        averaged = ("clap",) if self.config.ema_decay else ()
        return state.start({"clap": self._make}, {"clap": self._tx}, averaged, key)

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, dict[str, jax.Array]]:
        """One step; each example's negatives are the others of the global batch.

        With `accumulate` above 1 they are the others of its microbatch.
        """

        def loss_fn(params, batch, key):
            key_augment, key_dropout = jax.random.split(key)
            clap = state.merge(self._graph, params, train.extra["clap"])
            rngs = nnx.Rngs(dropout=key_dropout)
            audio = contrastive.augment(batch["audio"], key_augment, **self.config.augment)
            audio = clap.audio_embedding(audio, use_running_average=False, rngs=rngs)
            text = clap.text_embedding(batch["text"], self.tokenizer.mask(batch["text"]), rngs=rngs)
            logits = jnp.exp(clap.logit_scale[...]) * text @ audio.T
            same = contrastive.same_pairs(batch["index"], batch["text"])
            loss = contrastive_losses(logits, same).mean()
            recall = contrastive.recall_at_1(logits, same).mean()
            return loss, ({"recall_at_1": recall}, state.split(clap)[1])

        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (loss, (scores, extra)), grads = grad_fn(train.params["clap"], batch, key)
        params, opt = optim.update(self._tx, grads, train.params["clap"], train.opt["clap"])
        params = params | {"logit_scale": jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE)}
        params = {"clap": params}
        new = state.advance(train, params, {"clap": opt}, self.config.ema_decay, {"clap": extra})
        scale = jnp.exp(params["clap"]["logit_scale"])
        return new, {"loss": loss, **scores, "logit_scale": scale}

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's loss [b] and whether its caption finds its recording [b]."""
        logits = self._logits(train, batch)
        same = contrastive.same_pairs(batch["index"], batch["text"])
        return {
            "loss": contrastive_losses(logits, same),
            "recall_at_1": contrastive.recall_at_1(logits, same),
        }

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the batch's similarity matrix: a row a caption, a column a recording."""
        scale = jnp.exp(train.weights()["clap"]["logit_scale"])
        return {
            "image/similarity": contrastive.similarity_image(self._logits(train, batch) / scale)
        }

    def _logits(self, train: state.TrainState, batch: Tree) -> jax.Array:
        """Returns similarities [captions, recordings], scaled by the temperature."""
        clap = state.merge(self._graph, train.weights()["clap"], train.extra["clap"])
        text = clap.text_embedding(batch["text"], self.tokenizer.mask(batch["text"]))
        audio = clap.audio_embedding(batch["audio"])
        return jnp.exp(clap.logit_scale[...]) * text @ audio.T

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes both towers, both projections and the tokenizer into a model folder."""
        for network in NETWORKS:
            tree = contrastive.union(params["clap"][network], extra["clap"].get(network, {}))
            networks.save_network(folder, network, getattr(self.clap_config, network), tree)
        self.tokenizer.save(pathlib.Path(folder, "tokenizer"))
        save_index(folder)


def contrastive_losses(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Returns the symmetric cross-entropy [b] of each pair (CLAP, equation 3).

    Args:
        logits: [captions, recordings], matching pairs on the diagonal.
        same: [b, b], pairs off the diagonal that are no negatives; they are left out.
    """
    size = len(logits)
    logits = jnp.where(same & ~jnp.eye(size, dtype=bool), -jnp.inf, logits)
    rows, columns = (jax.nn.log_softmax(logits, axis=axis) for axis in (1, 0))
    return -(jnp.diagonal(rows) + jnp.diagonal(columns)) / 2
