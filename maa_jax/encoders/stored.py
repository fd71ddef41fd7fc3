"""Contexts that `maa_jax.embed` computed before a run, in a text encoder's place."""

import os
import pathlib

import jax
import numpy as np

from maa_jax.data.text_embeddings import Contexts
from maa_jax.encoders.base import Tree
from maa_jax.encoders.visual import open_conditioner


class StoredContexts:
    """A `Conditioner` that looks contexts up on disk; `encode` returns them as they are.

    Args:
      contexts: open folder of contexts.
      text_encoder: folder of the text encoder that computed them, for `save`.
      conditioning: what they are, a key of `encoders.visual.CONDITIONING`.

    Attributes:
      width: channels of the context.
      params: empty tree.
      prepare: function from captions to their contexts, float32 [n, length, width].
    """

    params: Tree

    def __init__(
        self, contexts: Contexts, text_encoder: pathlib.Path, conditioning: str = "tokens"
    ):
        self.width = contexts.width
        self.params = {}
        self.prepare = contexts
        self._text_encoder, self._conditioning = text_encoder, conditioning

    def unconditional(self) -> np.ndarray:
        """Returns the context of the empty caption, float32 [1, length, width]."""
        return self.prepare([""])

    def encode(self, params: Tree, condition: jax.Array) -> jax.Array:
        """Returns the contexts as they are."""
        del params
        return condition

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the text encoder and its tokenizer into a model folder."""
        open_conditioner(self._text_encoder, self._conditioning).save(folder)
