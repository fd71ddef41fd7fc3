import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maa_jax.models.kernels import attention, dot_product_attention
from tests.models.kernels.test_convolution import assert_same, random


def plain(q, k, v, bias=0.0):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2 + bias)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def inputs():
    return 3 * random(2, 6, 3, 4), random(2, 7, 3, 4, seed=1), random(2, 7, 3, 4, seed=2)


@pytest.mark.parametrize("scores", [2 * 7 * 3, 2 * 4 * 7 * 3, 2**18])  # 1, 4 or all queries at once
def test_value_and_derivatives_are_those_of_the_definition(scores, monkeypatch):
    monkeypatch.setattr(dot_product_attention, "_SCORES", scores)

    def results(attend, *args):
        out, vjp = jax.vjp(attend, *args)
        loss = lambda *args: jnp.sum(jnp.tanh(attend(*args)))
        return (
            out,
            vjp(random(*out.shape, seed=3)),
            jax.jvp(attend, args, args),
            jax.jvp(jax.grad(loss, (0, 1, 2)), args, args),
            jax.vmap(attend, (0, None, None))(jnp.stack([args[0], 2 * args[0]]), *args[1:]),
        )

    assert_same(results, attention, plain, *inputs(), tolerance=1e-4)


def test_bias_scale_and_dropout_reach_the_scores_and_weights():
    q, k, v = inputs()
    bias = random(2, 1, 6, 7)
    np.testing.assert_allclose(attention(q, k, v, bias), plain(q, k, v, bias), atol=1e-5)
    np.testing.assert_allclose(attention(q, k, v, scale=1.0), plain(2 * q, k, v), atol=1e-5)
    twice = attention(q, k, v, dropout=lambda weights: 2 * weights)
    np.testing.assert_allclose(twice, 2 * plain(q, k, v), atol=1e-5)


def test_half_precision_is_kept_and_scores_are_not():
    half = [x.astype(jnp.bfloat16) for x in inputs()]
    out = attention(*half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out, plain(*(x.astype("f") for x in half)), atol=0.05)
