"""The interface of whatever conditions a denoiser: text, stored contexts, images, video."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

Tree = Any


class Conditioner(Protocol):
    """A frozen encoder that turns inputs, such as sentences, into the denoiser's context.

    `prepare` runs on the host, in the workers of the input pipeline as well, and `encode` on the
    devices, inside the jitted functions of training and sampling. The condition, which `prepare`
    returns and `encode` takes, is a tree of arrays whose first axis is the batch.

    Attributes:
      width: channels of the context.
      params: weights of the encoder, to be passed to `encode` as an argument of a jitted function.
    """

    width: int
    params: Tree

    @property
    def prepare(self) -> Callable[[Sequence[Any]], Tree]:
        """The function from n inputs to their condition, a tree of arrays [n, ...].

        It is a small object that can be pickled: a method of the conditioner would carry the
        weights into every worker.
        """
        ...

    def unconditional(self) -> Tree:
        """Returns the condition of the empty input, arrays [1, ...], for guidance."""
        ...

    def encode(self, params: Tree, condition: Tree) -> jax.Array:
        """Returns the context [n, length, width] of a condition; pure.

        Args:
          params: weights, such as `self.params`.
          condition: condition from `prepare` or `unconditional`.
        """
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the encoder's networks and tokenizer, where it has one, into a model folder."""
        ...
