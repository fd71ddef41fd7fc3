"""Scaled dot-product attention; see the package's docstring."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from maa_jax.models.kernels.bilinear import CPU_FORMS

# Scores that are computed at once on a CPU: few enough to stay in cache, enough for an efficient
# matrix product.
_SCORES = 7 * 2**18


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    *,
    scale: float | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Scaled dot-product attention, its scores and softmax in float32.

    Args:
      query: queries [b, q, heads, d].
      key: keys [b, k, heads, d].
      value: values [b, k, heads, d].
      bias: term added to the scores, broadcastable to [b, heads, q, k]: a mask, or a bias of
        relative positions.
      scale: factor of the product of a query with a key; 1 / sqrt(d) by default.
      dropout: function applied to the weights [b, heads, q, k].

    Returns:
      [b, q, heads, d].
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if CPU_FORMS and bias is None and dropout is None:
        # Both have one signature: `platform_dependent` chooses when the program is lowered.
        cpu = functools.partial(_attend_in_pieces, scale=scale)
        default = functools.partial(_attend, scale=scale)
        return lax.platform_dependent(query, key, value, cpu=cpu, default=default)
    return _attend(query, key, value, bias, scale, dropout)


def _attend(query, key, value, bias=None, scale=1.0, dropout=None):
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def _attend_in_pieces(query, key, value, scale):
    """Computes attention for some queries at a time; the backward pass recomputes their scores.

    XLA would write and read all scores several times.
    """
    b, n, heads, d = query.shape
    pieces = min(n, -(-b * heads * n * key.shape[1] // _SCORES))
    if pieces == 1:
        return _attend(query, key, value, scale=scale)
    size = -(-n // pieces)
    query = jnp.pad(query, ((0, 0), (0, pieces * size - n), (0, 0), (0, 0)))
    query = jnp.moveaxis(query.reshape(b, pieces, size, heads, d), 1, 0)
    piece = jax.checkpoint(lambda query: _attend(query, key, value, scale=scale))
    out = jnp.moveaxis(lax.map(piece, query), 0, 1)
    return out.reshape(b, -1, heads, d)[:, :n]
