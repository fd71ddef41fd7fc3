"""The CLIP stage: pictures and captions aligned by a symmetric contrastive loss.

Radford et al. 2021, "Learning transferable visual models from natural language supervision",
sections 2.3 to 2.5. A picture's embedding then stands for a caption's where the denoiser is
conditioned by one (paper section 4.3).
"""

from __future__ import annotations

import math
import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import ml_collections

from maa_jax import schema
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.clap import unit_length
from maa_jax.models.clip import ClipConfig, ClipModel, normalize
from maa_jax.stages import contrastive
from maa_jax.stages.base import Scalars, SingleNetworkStage, Tree
from maa_jax.stages.clap import contrastive_losses
from maa_jax.stages.images import matrix_image
from maa_jax.training.state import TrainState
from maa_jax.visual.images import SIDE

if TYPE_CHECKING:
    from maa_jax.text.tokenizer import Tokenizer

# Bound of the temperature (section 2.5): sharper logits are unstable.
_MAX_LOGIT_SCALE = math.log(100)


class ClipStage(SingleNetworkStage):
    """Trains `clip`: both towers, both projections and the temperature.

    Config keys, in addition to those of every stage:
      clip: `text_config` and `vision_config` (fields of ClipTextConfig, whose special tokens follow
        from the tokenizer, and of ClipVisionConfig), and `projection_dim`.
      tokenizer: folder of a tokenizer, or "captions" to build one from the training captions, with
        up to `clip.text_config.vocab_size` entries.
      init_from: model folder with a whole CLIP as `text_encoder`; "" for none.
      augment: `crop`, the least side of a random square crop, as a fraction of the picture's.
    """

    network = "clip"
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
        text = dict(config.clip.text_config)
        self.tokenizer = tokenizer or contrastive.make_tokenizer(config, text["vocab_size"])
        self.prepare_text = self.tokenizer
        if config.tokenizer == "captions":
            text["vocab_size"] = self.tokenizer.vocab_size
        begin, end = self.tokenizer([""])[0, :2].tolist()
        text |= {"pad_token_id": self.tokenizer.pad_id, "bos_token_id": begin, "eos_token_id": end}
        keys = {**config.clip, "text_config": text}
        self.clip_config = schema.build(ClipConfig, keys, "config.clip")
        self._check(config)
        dtype = jnp.dtype(config.dtype)
        super().__init__(config, lambda rngs: ClipModel(self.clip_config, dtype=dtype, rngs=rngs))

    def _check(self, config: ml_collections.ConfigDict) -> None:
        text, vision = self.clip_config.text_config, self.clip_config.vision_config
        if self.tokenizer.vocab_size > text.vocab_size:
            raise ValueError(
                f"config.clip.text_config.vocab_size={text.vocab_size}, but the tokenizer in "
                f"{config.tokenizer} has {self.tokenizer.vocab_size} entries: set it to that."
            )
        if text.max_position_embeddings < self.tokenizer.length:
            raise ValueError(
                f"config.clip.text_config.max_position_embeddings={text.max_position_embeddings}: "
                f"captions have {self.tokenizer.length} tokens, give at least as many."
            )
        if vision.image_size > SIDE:
            raise ValueError(
                f"config.clip.vision_config.image_size={vision.image_size}: the pictures of a "
                f"dataset have {SIDE} pixels, give at most as many."
            )

    def start_weights(self) -> dict[str, Tree]:
        """Returns the CLIP to start from, {} for none."""
        start, name = self.config.init_from, "text_encoder"
        found = networks.start_weights(start, name, self.clip_config)
        return {"clip": found[name]} if found else {}

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the mean loss; an example's negatives are the others of the (micro)batch."""
        del frozen
        seen = view(batch["image"], self._side, key, self.config.augment.crop)
        clip = self.merge(params, extra)
        losses, recalls = self._scores(clip, seen, batch)
        scores = {"recall_at_1": recalls.mean(), "logit_scale": jnp.exp(clip.logit_scale[...])}
        return losses.mean(), (scores, {})

    def constrain(self, params: Tree) -> Tree:
        """Bounds the temperature."""
        return params | {"logit_scale": jnp.minimum(params["logit_scale"], _MAX_LOGIT_SCALE)}

    def eval_step(self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array) -> Scalars:
        """Returns each example's loss [b] and whether its caption finds its picture [b]."""
        del frozen, key
        clip = self.merge(train.weights(), train.extra)
        losses, recalls = self._scores(clip, view(batch["image"], self._side), batch)
        return {"loss": losses, "recall_at_1": recalls}

    def summarize(
        self, train: TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns the batch's similarity matrix, captions in rows and pictures in columns."""
        del frozen, key
        clip = self.merge(train.weights(), train.extra)
        cosines = self._cosines(clip, view(batch["image"], self._side), batch)
        return {"image/similarity": matrix_image((1 + cosines[None]) / 2)}

    @property
    def _side(self) -> int:
        return self.clip_config.vision_config.image_size

    def _cosines(self, clip: ClipModel, pixels: jax.Array, batch: Tree) -> jax.Array:
        """Returns cosines [captions, pictures]."""
        text = unit_length(clip.text_features(batch["text"]))
        return text @ unit_length(clip.image_features(pixels)).T

    def _scores(
        self, clip: ClipModel, pixels: jax.Array, batch: Tree
    ) -> tuple[jax.Array, jax.Array]:
        """Returns each example's loss and recall, [b] each."""
        logits = jnp.exp(clip.logit_scale[...]) * self._cosines(clip, pixels, batch)
        same = contrastive.same_pairs(batch["index"], batch["text"])
        return contrastive_losses(logits, same), contrastive.recall_at_1(logits, same)

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes the CLIP, as `text_encoder`, and the tokenizer into a model folder."""
        networks.save_network(folder, "text_encoder", self.clip_config, params["clip"])
        self.tokenizer.save(folder / "tokenizer")
        save_index(folder)


def view(
    pictures: jax.Array, side: int, key: jax.Array | None = None, crop: float = 1.0
) -> jax.Array:
    """Returns what the vision tower sees of pictures, float32 [b, side, side, 3].

    Without a key it is what `models.clip.preprocess` gives of the same squares.

    Args:
      pictures: uint8 [b, h, h, 3].
      side: height and width of the result in pixels.
      key: PRNG key of random square crops; None for whole pictures.
      crop: least side of a crop, as a fraction of the picture's.
    """
    size, whole = pictures.shape[:2]
    part = jnp.ones(size)
    corner = jnp.zeros((size, 2))
    if key is not None:
        key_part, key_corner = jax.random.split(key)
        part = jax.random.uniform(key_part, (size,), minval=crop, maxval=1.0)
        corner = jax.random.uniform(key_corner, (size, 2)) * (1 - part[:, None]) * whole
    scale = jnp.broadcast_to((side / (part * whole))[:, None], (size, 2))

    def resized(picture: jax.Array, scale: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.image.scale_and_translate(
            picture, (side, side, 3), (0, 1), scale, -corner * scale, "cubic", antialias=True
        )

    colours = jax.vmap(resized)(pictures.astype(jnp.float32), scale, corner)
    return normalize(jnp.clip(jnp.round(colours), 0, 255))
