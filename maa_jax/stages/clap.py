"""The CLAP stage: sounds and sentences drawn together by a symmetric contrastive loss.

Elizalde et al. 2022, "CLAP: Learning audio concepts from natural language supervision", section 2.
Its text tower becomes the denoiser's condition, its audio tower a score.
"""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from maa_jax import bundle, conditioning
from maa_jax.interop import clap as names
from maa_jax.interop import torch_layout
from maa_jax.models.bert import BertConfig
from maa_jax.models.clap import Clap, ClapConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.training import optim, state

Tree = Any

# The temperature's bounds (CLIP, Radford et al. 2021, section 2.4): sharper logits are unstable.
_MAX_LOGIT_SCALE = float(np.log(100))
_PIXELS = 8  # of a cell of the similarity matrix, in TensorBoard


class ClapStage:
    """Trains `clap`: both towers, both projections and the temperature.

    The config's keys beside those of every stage:
        clap: `text_encoder` and `audio_encoder` (fields of BertConfig and Cnn14Config),
            `embedding_size` and `dropout` (of the projections).
        tokenizer: a tokenizer folder, or "captions": built from the training captions, with up to
            `clap.text_encoder.vocab_size` entries.
        init_from: `text_encoder` and `audio_encoder`, folders of networks to begin with (each with
            config.json and model.safetensors), or "".
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
        if config.tokenizer == "captions":
            # Imported here: a stage with a tokenizer of its own needs no dataset to be defined.
            from maa_jax.data import input_pipeline

            captions = input_pipeline.captions(config.data, config.data.split)
            self.tokenize = conditioning.tokenizer_from_captions(captions, text["vocab_size"])
            text["vocab_size"] = self.tokenize.vocab_size
        else:
            self.tokenize = conditioning.Tokenizer.from_folder(config.tokenizer)
        self.clap_config = ClapConfig(
            text_encoder=BertConfig(**text),
            audio_encoder=Cnn14Config(**config.clap.audio_encoder),
            embedding_size=config.clap.embedding_size,
            dropout=config.clap.dropout,
        )
        self._check()
        self._make = lambda rngs: Clap(self.clap_config, dtype=jnp.dtype(config.dtype), rngs=rngs)
        self._graph = state.define(self._make)
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size, steps_per_epoch)

    def _check(self) -> None:
        text, audio = self.clap_config.text_encoder, self.clap_config.audio_encoder
        if self.tokenize.vocab_size > text.vocab_size:
            raise ValueError(
                f"config.clap.text_encoder.vocab_size={text.vocab_size}, but the tokenizer in "
                f"{self.config.tokenizer} has {self.tokenize.vocab_size} entries: set it to that."
            )
        if text.max_position_embeddings < conditioning.MAX_TOKENS:
            raise ValueError(
                "config.clap.text_encoder.max_position_embeddings="
                f"{text.max_position_embeddings}: prompts have {conditioning.MAX_TOKENS} tokens, "
                "give at least as many."
            )
        if audio.sample_rate != self.config.mel.sample_rate:
            raise ValueError(
                f"config.clap.audio_encoder.sample_rate={audio.sample_rate}, but recordings come "
                f"at config.mel.sample_rate={self.config.mel.sample_rate}: make them equal."
            )
        if self.config.data.samples < audio.min_samples:
            raise ValueError(
                f"config.data.samples={self.config.data.samples} is too short for the audio tower: "
                f"give at least {audio.min_samples}."
            )

    def load_frozen(self) -> Tree:
        """Returns {}: this stage reads no other network."""
        return {}

    def start_weights(self) -> dict[str, Tree]:
        """Returns the towers to begin with, {} for none."""
        towers = {}
        if self.config.init_from.text_encoder:
            towers["text_encoder"] = self._start_weights("text_encoder", names.from_bert)
        if self.config.init_from.audio_encoder:
            towers["audio_encoder"] = self._start_weights("audio_encoder", names.from_panns)
        return {"clap": towers} if towers else {}

    def _start_weights(self, network: str, rename) -> Tree:
        folder = pathlib.Path(self.config.init_from[network])
        path = folder / "model.safetensors"
        missing = [str(p) for p in (folder / "config.json", path) if not p.is_file()]
        if missing:
            raise ValueError(
                f"config.init_from.{network}={str(folder)!r}: {', '.join(missing)} missing; name "
                "a network's folder, such as a downloaded bert-base-uncased, or '' for none."
            )
        expected = getattr(self.clap_config, network)
        given = type(expected).from_hf(json.loads((folder / "config.json").read_text()))
        free = ("hidden_dropout_prob", "attention_probs_dropout_prob", "block_dropout")
        free += ("head_dropout", "stripes", "time_stripe", "mel_stripe")  # training's own choices
        different = [
            f"{key}: {getattr(given, key)} there, {value} in config.clap.{network}"
            for key, value in vars(expected).items()
            if getattr(given, key) != value and key not in free
        ]
        if different:
            raise ValueError(f"config.init_from.{network}={str(folder)!r}: {'; '.join(different)}")
        abstract = nnx.eval_shape(lambda: self._make(bundle.InitRngs(0)))
        return torch_layout.from_torch(getattr(abstract, network), rename(load_file(path)))

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
            audio = augment(batch["audio"], key_augment, **self.config.augment)
            audio = clap.audio_embedding(audio, use_running_average=False, rngs=rngs)
            text = clap.text_embedding(batch["tokens"], self._mask(batch["tokens"]), rngs=rngs)
            logits = jnp.exp(clap.logit_scale[...]) * text @ audio.T
            same = same_pairs(batch["index"], batch["tokens"])
            loss = contrastive_losses(logits, same).mean()
            recall = recall_at_1(logits, same).mean()
            return loss, ({"recall_at_1": recall}, state.split(clap)[1])

        grad_fn = optim.accumulated_grad(loss_fn, self.config.accumulate)
        (loss, (scores, extra)), grads = grad_fn(train.params["clap"], batch, key)
        params, opt = optim.update(self._tx, grads, train.params["clap"], train.opt["clap"])
        params = params | {"logit_scale": jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE)}
        params = {"clap": params}
        new = train.replace(
            step=train.step + 1,
            params=params,
            extra={"clap": extra},
            opt={"clap": opt},
            ema=state.average(train.ema, params, self.config.ema_decay, train.step),
        )
        scale = jnp.exp(params["clap"]["logit_scale"])
        return new, {"loss": loss, **scores, "logit_scale": scale}

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns each example's loss [b] and whether its caption finds its recording [b]."""
        logits = self._logits(train, batch)
        same = same_pairs(batch["index"], batch["tokens"])
        return {
            "loss": contrastive_losses(logits, same),
            "recall_at_1": recall_at_1(logits, same),
        }

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the batch's similarity matrix: a row a caption, a column a recording."""
        scale = jnp.exp(train.weights()["clap"]["logit_scale"])
        image = (1 + self._logits(train, batch) / scale) / 2  # cosine -1..1 to 0..1
        image = jnp.repeat(jnp.repeat(image, _PIXELS, axis=0), _PIXELS, axis=1)
        return {"image/similarity": jnp.clip(image, 0, 1)[None, :, :, None]}

    def _logits(self, train: state.TrainState, batch: Tree) -> jax.Array:
        """Returns similarities [captions, recordings], scaled by the temperature."""
        clap = state.merge(self._graph, train.weights()["clap"], train.extra["clap"])
        text = clap.text_embedding(batch["tokens"], self._mask(batch["tokens"]))
        audio = clap.audio_embedding(batch["audio"])
        return jnp.exp(clap.logit_scale[...]) * text @ audio.T

    def _mask(self, tokens: jax.Array) -> jax.Array:
        return tokens != self.tokenize.pad_id

    def export(self, params: Tree, extra: Tree, folder: str) -> None:
        """Writes both towers, both projections and the tokenizer into a model folder."""
        for network in names.PREFIXES:
            tree = _union(params["clap"][network], extra["clap"].get(network, {}))
            bundle.save_network(folder, network, getattr(self.clap_config, network), tree)
        self.tokenize.save(pathlib.Path(folder, "tokenizer"))
        bundle.save_index(folder)


def same_pairs(index: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns [b, b], True where two examples are one recording or have one caption.

    Such pairs answer each other's question correctly, so neither is a negative of the other.

    Args:
        index: [b], the recordings' numbers.
        tokens: [b, n], the captions.
    """
    same_caption = jnp.all(tokens[:, None] == tokens[None], axis=-1)
    return (index[:, None] == index[None]) | same_caption


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


def _union(a: Tree, b: Tree) -> Tree:
    """Returns two nested dicts, of different leaves, as one."""
    both = {k: _union(a[k], b[k]) for k in a.keys() & b.keys()}
    return {**a, **b, **both}
