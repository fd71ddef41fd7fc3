"""What conditions a denoiser: the interface that text, stored contexts, images and video share."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

Tree = Any


class Conditioner(Protocol):
    """A frozen encoder that turns inputs, such as sentences, into the denoiser's context.

    In two halves: `prepare` runs on the host, in the workers of the input pipeline as well, and
    `encode` runs on the devices, inside the jitted functions of training and sampling. What passes
    between them, the condition, is a tree of arrays whose first axis is the batch.

    Attributes:
      width: channels of the context.
      params: the encoder's weights, to be passed to `encode` as an argument of a jitted function.
    """

    width: int
    params: Tree

    @property
    def prepare(self) -> Callable[[Sequence[Any]], Tree]:
        """The function from n inputs to their condition, a tree of arrays [n, ...].

        It is a small object of its own that can be pickled: a method of the conditioner would take
        the weights along to every worker.
        """
        ...

    def unconditional(self) -> Tree:
        """Returns the condition that stands for none, arrays [1, ...], for guidance."""
        ...

    def encode(self, params: Tree, condition: Tree) -> jax.Array:
        """Returns the context [n, length, width] of a condition; pure.

        Args:
          params: the weights, such as `self.params`.
          condition: what `prepare` or `unconditional` gave.
        """
        ...

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the encoder's networks and what else it needs into a model folder."""
        ...
