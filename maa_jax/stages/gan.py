"""Parts shared by the autoencoder's and the vocoder's stages: adversarial training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx

from maa_jax.stages.base import Scalars, Stage, Tree
from maa_jax.training import optim, state

# Scalars by name, gradients for `add_gradients`, and the discriminators' non-trainable variables.
GanLosses = tuple[Scalars, Tree, Tree]


class GanStage(Stage):
    """A stage that trains a generator, with discriminators from step `config.discriminator.start`.

    All gradients are taken at the same weights, so that one pass through the discriminators serves
    both sides. Before the start, nothing of the discriminators is computed.

    Attributes:
      generator: name of the generator in the state.
      discriminators: names of the discriminators.
    """

    generator: str
    discriminators: tuple[str, ...]

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        makes: dict[str, Callable[[Any], nnx.Module]],
    ):
        """Defines the networks, without weights.

        Args:
          config: config of the run.
          makes: constructors by name, the generator's first.
        """
        self.config = config
        self.generator, *discriminators = makes
        self.discriminators = tuple(discriminators)
        self._makes = makes
        self._graphs = {name: state.define(make) for name, make in makes.items()}
        self._tx = optim.make_optimizer(config.optimizer, config.batch_size)

    def init(self, key: jax.Array) -> state.TrainState:
        """Returns the state of step 0, with random weights."""
        averaged = (self.generator,) if self.config.ema_decay else ()
        return state.start(self._makes, dict.fromkeys(self._makes, self._tx), averaged, key)

    def loss(
        self,
        params: Tree,
        extra: Tree,
        frozen: Tree,
        batch: Tree,
        key: jax.Array,
        active: jax.Array | bool = True,
    ) -> tuple[jax.Array, tuple[Scalars, Tree]]:
        """Returns the loss as in `Stage`; the discriminators are used where `active`."""
        raise NotImplementedError

    def train_step(
        self, train: state.TrainState, frozen: Tree, batch: Tree, key: jax.Array
    ) -> tuple[state.TrainState, Scalars]:
        """Takes a step of all networks; before their start, discriminators keep their weights."""
        active = train.step >= self.config.discriminator.start

        def loss(params, batch, key):
            return self.loss(params, train.extra, frozen, batch, key, active)

        grad_fn = optim.accumulated_grad(loss, self.config.accumulate)
        (value, (scores, extra)), grads = grad_fn(train.params, batch, key)
        update = lambda name: optim.update(
            self._tx, grads[name], train.params[name], train.opt[name]
        )
        updated = {self.generator: update(self.generator)}
        updated |= jax.lax.cond(
            active,
            lambda: {name: update(name) for name in self.discriminators},
            lambda: {name: (train.params[name], train.opt[name]) for name in self.discriminators},
        )
        params = {name: new for name, (new, _) in updated.items()}
        opt = {name: opt for name, (_, opt) in updated.items()}
        new = state.apply_update(train, params, opt, self.config.ema_decay, extra)
        return new, {"loss": value, **scores, **optim.grad_norms(grads)}


def when_active(
    active: jax.Array | bool, compute: Callable[[], GanLosses], extra: Tree
) -> GanLosses:
    """Returns compute() where `active`; otherwise zeros and `extra`, and nothing is computed.

    Args:
      active: whether the discriminators are used.
      compute: function that returns their scalars, gradients and non-trainable variables.
      extra: current non-trainable variables of the discriminators.
    """

    def inactive() -> GanLosses:
        scores, grads, _ = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(compute)
        )
        return scores, grads, extra

    return jax.lax.cond(active, compute, inactive)


def add_gradients(loss: jax.Array, values: Tree, grads: Tree) -> jax.Array:
    """Returns `loss`, with `grads` added to its gradient with respect to `values`.

    The added term is linear in `values`, and its value is subtracted again. The discriminators'
    gradients are thus computed once and serve the adaptive weight, the generator's update and
    their own update.

    Args:
      loss: scalar loss.
      values: tree of arrays that depend on the differentiated parameters.
      grads: tree of the same structure that does not depend on these parameters.
    """
    linear = optax.tree.vdot(grads, values)
    return loss + (linear - jax.lax.stop_gradient(linear))


def discriminate(
    graphdef: nnx.GraphDef, params: Tree, extra: Tree, inputs: jax.Array, **arguments: Any
) -> tuple[Any, Tree]:
    """Returns a discriminator's outputs in float32, and its updated non-trainable variables."""
    module = state.merge(graphdef, params, extra)
    outputs = module(inputs, **arguments)
    outputs = jax.tree.map(lambda x: x.astype(jnp.float32), outputs)
    return outputs, state.split(module)[1]
