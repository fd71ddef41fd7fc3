"""The train state: nested dicts of arrays, keyed by network.

A stage builds its modules from shapes alone (`define`) and keeps their graph definitions. Weights
are plain nested dicts, so that the step is an ordinary function under `jax.jit`.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from maa_jax.models.rngs import InitRngs

Tree = Any


class TrainState(flax.struct.PyTreeNode):
    """The state of a run, from which it can be resumed bit for bit.

    Attributes:
      step: number of optimizer steps taken, int32 scalar.
      params: {network: trained parameters}.
      extra: {network: non-trainable variables}, such as batch statistics; a stage may keep its own
        scalars here (the latent scale).
      opt: {network: optax state}.
      ema: {network: moving average of the parameters}; {} if none is kept.
    """

    step: jax.Array
    params: dict[str, Tree]
    extra: dict[str, Tree]
    opt: dict[str, Tree]
    ema: dict[str, Tree]

    def weights(self) -> dict[str, Tree]:
        """Returns the parameters to evaluate with: the average if one is kept."""
        return {**self.params, **self.ema}

    def parts(self) -> dict[str, list[jax.Array]]:
        """Returns the floating-point arrays by field, network and module: "params.unet.conv_in"."""
        parts: dict[str, list[jax.Array]] = {}
        for path, x in jax.tree.leaves_with_path(self):
            if jnp.issubdtype(x.dtype, jnp.floating):
                # Optax puts its own tuples between a network and its modules.
                inside = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
                parts.setdefault(".".join([path[0].name, *inside[:2]]), []).append(x)
        return parts


def define(make: Callable[[Any], nnx.Module]) -> nnx.GraphDef:
    """Returns the graph definition of `make(rngs)` without allocating any array."""
    return nnx.graphdef(nnx.eval_shape(lambda: make(InitRngs(0))))


def split(module: nnx.Module) -> tuple[Tree, Tree]:
    """Returns (parameters, other variables) of a module as nested dicts of arrays."""
    params, extra = nnx.state(module, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(extra)


def merge(graphdef: nnx.GraphDef, params: Tree, extra: Tree | None = None) -> Any:
    """Returns a module that holds `params` and `extra`: the inverse of `split`."""
    return nnx.merge(graphdef, params, extra) if extra else nnx.merge(graphdef, params)


def start(
    networks: dict[str, Callable[[Any], nnx.Module]],
    optimizers: dict[str, optax.GradientTransformation],
    averaged: tuple[str, ...],
    key: jax.Array,
) -> TrainState:
    """Returns the state of step 0. Pure: run it under `jax.jit` with output shardings.

    Args:
      networks: constructors by name.
      optimizers: optimizer of each network, by name.
      averaged: names of the networks whose moving average is kept.
      key: PRNG key, folded with each network's index.
    """
    params, extra = {}, {}
    for i, (name, make) in enumerate(networks.items()):
        params[name], extra[name] = split(make(InitRngs(jax.random.fold_in(key, i))))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        extra=extra,
        opt={name: tx.init(params[name]) for name, tx in optimizers.items()},
        # A copy: with donation, parameters and their average must not share a buffer.
        ema={name: jax.tree.map(jnp.copy, params[name]) for name in averaged},
    )


def load_pretrained(train: TrainState, weights: dict[str, Tree]) -> TrainState:
    """Returns the state of step 0 with given weights in place of random ones.

    Args:
      train: state from `start`, with its shardings for training.
      weights: {network: nested dict of numpy arrays}, parameters and non-trainable variables
        together; missing ones stay as they are. Averages start from the same weights.
    """

    def put(old: Any, new: Any) -> Any:
        if not isinstance(old, dict):
            return jax.make_array_from_callback(old.shape, old.sharding, lambda i: new[i])
        return {k: put(v, new[k]) if k in new else v for k, v in old.items()}

    part = lambda tree: {k: put(v, weights[k]) if k in weights else v for k, v in tree.items()}
    return train.replace(params=part(train.params), extra=part(train.extra), ema=part(train.ema))


def average(
    ema: dict[str, Tree], params: dict[str, Tree], decay: float, step: jax.Array
) -> dict[str, Tree]:
    """Returns the moving average after the update number `step`, which counts from 1.

    The decay is warmed up as min(decay, (1 + step) / (10 + step)), LDM's rule (its `LitEma`), so
    that the random initial weights are forgotten within the first steps of a short run.
    """
    fresh = 1 - jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return {name: optax.incremental_update(params[name], old, fresh) for name, old in ema.items()}


def apply_update(
    train: TrainState,
    params: dict[str, Tree],
    opt: dict[str, Tree],
    ema_decay: float,
    extra: dict[str, Tree] | None = None,
) -> TrainState:
    """Returns the state after a step.

    Args:
      train: state before the step.
      params: {network: parameters} of all networks after the step.
      opt: {network: optax state} of all networks after the step.
      ema_decay: decay of the averages that `train` keeps.
      extra: changed part of `train.extra`.
    """
    return train.replace(
        step=train.step + 1,
        params=params,
        extra=train.extra | (extra or {}),
        opt=opt,
        ema=average(train.ema, params, ema_decay, train.step + 1),
    )
