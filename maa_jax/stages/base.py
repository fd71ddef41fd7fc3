"""The interface of a stage, and the update that stages with one network share."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import jax
import ml_collections
import numpy as np
from flax import nnx

from maa_jax.training import optim, state

if TYPE_CHECKING:
    from maa_jax.data.stored_latents import Latents
    from maa_jax.text.tokenizer import Tokenizer

Tree = Any
Scalars = dict[str, jax.Array]
# (state, frozen, prepared captions, index of the first caption) -> sounds [n, samples]
SoundGenerator = Callable[[state.TrainState, Tree, Tree, jax.Array], jax.Array]


class Stage(Protocol):
    """Networks with their losses and training step: all that the training loop knows of them.

    `init`, `loss`, `prepare`, `train_step`, `eval_step` and `summarize` are pure and run under
    `jax.jit`. A batch holds `audio`, float32 [b, samples]; `index`, int [b], each recording's index
    in the dataset; and, with a `prepare_text`, its result as `text`. The clip stage's has `image`,
    uint8 [b, h, w, 3], in place of `audio`. Trees of weights are nested dicts of arrays, {network:
    tree} at the top.

    Attributes:
      config: config of the run.
      tokenizer: tokenizer of the captions, or None. A run keeps it in its workdir, so that only a
        fresh run reads the captions that it may be built from.
      prepare_text: function from n captions to a tree of arrays [n, ...], called on the host by the
        input pipeline; None for a stage that reads no captions.
      latents: stored latents of the training examples, of the stage's autoencoder; a batch then has
        `moments` [b, h, w, 2 c] in place of `audio`. None for a stage that hears recordings.
      draw_mask: function that draws an example's `mask`, bool [n_mels, frames]; None for a stage
        without masks.
      can_remat: whether the stage supports `config.remat`.
      prepare_batches: number of a fresh run's first batches that are passed to `prepare`.
    """

    config: ml_collections.ConfigDict
    tokenizer: Tokenizer | None = None
    prepare_text: Callable[[Sequence[str]], Tree] | None = None
    latents: Latents | None = None
    draw_mask: Callable[[np.random.Generator], np.ndarray] | None = None
    can_remat: bool = False
    prepare_batches: int = 0

    def load_frozen(self) -> Tree:
        """Returns the arrays that the step reads but never changes, {} for none."""
        return {}

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0, with random weights."""
        ...

    def start_weights(self) -> dict[str, Tree]:
        """Returns {network: weights} to replace random ones in a fresh run, {} for none."""
        ...

    def prepare(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> state.TrainState:
        """Updates the state of a fresh run from one of its first batches."""
        del frozen, batch, key
        return train

    def loss(
        self, params: Tree, extra: Tree, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the loss to differentiate, independent of how its gradient is used.

        Args:
          params: {network: parameters}; adapters, or a part of the parameters, are trained by the
            gradient of `lambda tree: loss(merged(tree), ...)`.
          extra: {network: non-trainable variables}, such as batch statistics.
          frozen: arrays from `load_frozen`.
          batch: batch of examples.
          key: PRNG key of all random draws.

        Returns:
          (loss, (scores, extra)): a scalar; further scalars by name; the changed part of `extra`.
        """
        ...

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, Scalars]:
        """Returns the state after one step, and scalars for the log."""
        ...

    def eval_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> Scalars:
        """Returns scores by name, [b] each: one value per example.

        The key is the same for all batches. Random draws for an example follow from it and
        `batch["index"]` alone, so that a score does not depend on how examples are batched; scores
        that compare the examples of a batch say so.
        """
        ...

    def summarize(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> dict[str, jax.Array]:
        """Returns {"image/NAME": [n, h, w, 1] in 0..1, "audio/NAME": [n, samples, 1] in -1..1}."""
        ...

    def sound_generator(self) -> SoundGenerator | None:
        """Returns the pure function that makes sounds of captions; None for a stage without one."""
        return None

    def export(self, params: Tree, extra: Tree, folder: pathlib.Path) -> None:
        """Writes the trained networks, and the parts needed to use them, into a model folder."""
        ...


class SingleNetworkStage(Stage):
    """A stage that trains one network with one optimizer. A subclass sets `network` and its loss.

    Attributes:
      network: name of the network in the state.
    """

    network: str

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        make: Callable[[Any], nnx.Module],
    ):
        """Defines the network, without weights.

        Args:
          config: config of the run.
          make: constructor of the network.
        """
        self.config = config
        self._make, self._graph = make, state.define(make)
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size)

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0, with random weights."""
        averaged = (self.network,) if self.config.ema_decay else ()
        return state.start({self.network: self._make}, {self.network: self._tx}, averaged, key)

    def merge(self, params: Tree, extra: Tree) -> Any:
        """Returns the module that holds a state's parameters and non-trainable variables."""
        return state.merge(self._graph, params[self.network], extra[self.network])

    def split_extra(self, module: nnx.Module) -> Tree:
        """Returns a module's non-trainable variables as `loss` returns them."""
        return {self.network: state.split(module)[1]}

    def constrain(self, params: Tree) -> Tree:
        """Returns the network's parameters after an update, projected onto their constraints."""
        return params

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, Scalars]:
        """One optimizer step; the batch is taken in `config.accumulate` microbatches."""

        def loss(params, batch, key):
            return self.loss(params, train.extra, frozen, batch, key)

        grad_fn = optim.accumulated_grad(loss, self.config.accumulate)
        (value, (scores, extra)), grads = grad_fn(train.params, batch, key)
        name = self.network
        params, opt = optim.update(self._tx, grads[name], train.params[name], train.opt[name])
        params = {name: self.constrain(params)}
        new = state.apply_update(train, params, {name: opt}, self.config.ema_decay, extra)
        return new, {"loss": value, **scores, **optim.grad_norms(grads)}
