"""Optimizers from a config, and gradients accumulated over microbatches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

Tree = Any


def learning_rate(config: ml_collections.ConfigDict, batch_size: int) -> optax.Schedule:
    """Returns the learning rate schedule of a `config.optimizer` block.

    The rate is `base_lr`, multiplied by the global batch size if `scale_lr` is set: latent
    diffusion's rule, base x devices x batch size on each (paper section 5.2). It rises linearly
    over `warmup_steps`, is multiplied by `decay_rate` every `decay_steps` steps, and, if
    `cosine_steps` is set, falls along a cosine to 0 at that step.

    Args:
      config: block of the optimizer's settings; see `make_optimizer`.
      batch_size: global batch size, for `scale_lr`.
    """
    rate = config.base_lr * (batch_size if config.get("scale_lr", False) else 1)
    warmup = config.get("warmup_steps", 0)
    decay, decay_steps = config.get("decay_rate", 1.0), config.get("decay_steps", 1)
    cosine = config.get("cosine_steps", 0)

    def schedule(count):
        factor = decay ** (count // decay_steps) if decay != 1.0 else 1.0
        if cosine:
            factor *= 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(count / cosine, 0, 1)))
        if warmup:
            factor *= jnp.minimum(1.0, (count + 1) / warmup)
        return rate * factor

    return schedule


def make_optimizer(
    config: ml_collections.ConfigDict, batch_size: int
) -> optax.GradientTransformation:
    """Returns AdamW with the settings of a `config.optimizer` block.

    Args:
      config: block of the optimizer's settings: base_lr, and optionally scale_lr, warmup_steps,
        decay_rate, decay_steps, cosine_steps, b1, b2, weight_decay, clip_norm (0: no clipping).
      batch_size: global batch size, for `scale_lr`.
    """
    adam = optax.adamw(
        learning_rate(config, batch_size),
        b1=config.get("b1", 0.9),
        b2=config.get("b2", 0.999),
        weight_decay=config.get("weight_decay", 0.0),
    )
    clip = config.get("clip_norm", 0.0)
    # The same state with and without clipping, so that a run may go on with another `clip_norm`.
    return optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(), adam)


def update(
    tx: optax.GradientTransformation, grads: Tree, params: Tree, opt: Tree
) -> tuple[Tree, Tree]:
    """Returns the parameters and the optimizer's state after one step."""
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt


def grad_norms(grads: Tree) -> dict[str, jax.Array]:
    """Returns the gradient's norm of each network and of each of its modules, for the log.

    Args:
      grads: {network: gradients of its parameters}.

    Returns:
      Scalars named as "grad_norm/unet" and "grad_norm/unet.conv_in".
    """
    norms = {}
    for network, modules in grads.items():
        squares = {name: optax.tree.norm(tree, squared=True) for name, tree in modules.items()}
        norms[f"grad_norm/{network}"] = jnp.sqrt(sum(squares.values(), jnp.zeros(())))
        norms |= {f"grad_norm/{network}.{name}": jnp.sqrt(x) for name, x in squares.items()}
    return norms


def accumulated_grad(
    loss_fn: Callable[[Tree, Tree, jax.Array], tuple[jax.Array, Tree]], microbatches: int
) -> Callable[[Tree, Tree, jax.Array], tuple[tuple[jax.Array, Tree], Tree]]:
    """Like `jax.value_and_grad(loss_fn, has_aux=True)`, but over equal microbatches.

    Args:
      loss_fn: function (params, batch, key) -> (loss, aux), where aux is a tree of arrays.
      microbatches: number of microbatches; 1 takes the whole batch.

    Returns:
      (params, batch, key) -> ((loss, aux), grads). Loss and gradients are means over the
      microbatches, as are the floating-point scalars of aux. Anything else in aux, such as batch
      statistics, is that of the last one.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        return grad_fn

    def accumulate(params, batch, key):
        # Example i goes to part i % n, so that each part is spread evenly over the devices.
        parts = jax.tree.map(
            lambda x: x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(
                0, 1
            ),
            batch,
        )
        keys = jax.random.split(key, microbatches)
        mean = lambda old, new: old + new / microbatches

        def body(total, part):
            (loss, aux), grads = grad_fn(params, *part)
            return jax.tree.map(mean, total, (loss, grads)), aux

        loss_shape, grads_shape = jax.eval_shape(
            lambda: (lambda out: (out[0][0], out[1]))(
                grad_fn(params, jax.tree.map(lambda x: x[0], parts), keys[0])
            )
        )
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (loss_shape, grads_shape))
        (loss, grads), aux = jax.lax.scan(body, zeros, (parts, keys))
        scalar = lambda x: x.ndim == 1 and jnp.issubdtype(x.dtype, jnp.floating)
        return (loss, jax.tree.map(lambda x: x.mean() if scalar(x) else x[-1], aux)), grads

    return accumulate
