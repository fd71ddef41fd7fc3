import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from maa_jax.models.kernels import cpu2d as cpu
from maa_jax.models.layers import Conv, GroupNorm, attention, conv2d, double


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def plain(x, kernel, stride, padding, dilation, groups):
    """XLA's convolution with its own gradient."""
    padding = [p if isinstance(p, tuple) else (p, p) for p in padding]
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


CASES = {  # kernel, channels in, out, stride, padding, dilation, groups
    "3x3": ((3, 3), 8, 6, (1, 1), (1, 1), (1, 1), 1),
    "1x1": ((1, 1), 8, 6, (1, 1), (0, 0), (1, 1), 1),
    "no padding": ((3, 3), 8, 6, (1, 1), (0, 0), (1, 1), 1),
    "more padding than reach": ((3, 3), 8, 6, (1, 1), (4, 3), (1, 1), 1),
    "one channel in": ((3, 3), 1, 6, (1, 1), (1, 1), (1, 1), 1),
    "one channel out": ((3, 3), 8, 1, (1, 1), (1, 1), (1, 1), 1),
    "stride 2": ((3, 3), 8, 6, (2, 2), (1, 1), (1, 1), 1),
    "stride 2 on one side": ((3, 3), 8, 6, (2, 2), ((0, 1), (0, 1)), (1, 1), 1),
    "1x1 stride 2": ((1, 1), 8, 6, (2, 2), (0, 0), (1, 1), 1),
    "period": ((5, 1), 8, 6, (3, 1), (2, 0), (1, 1), 1),
    "dilated": ((3, 3), 8, 6, (1, 1), (2, 4), (2, 4), 1),
    "even kernel": ((4, 2), 8, 6, (1, 1), (1, 1), (1, 1), 1),
    "dilated with stride": ((3, 3), 8, 6, (2, 3), (2, 4), (2, 4), 1),
    "one channel out, dilated": ((3, 3), 8, 1, (1, 1), (1, 3), (1, 2), 1),
    "groups": ((3, 3), 8, 6, (1, 1), (1, 1), (1, 1), 2),
}


# Bands of a few rows or all at once; Winograd's way for all that it can do, or for none.
WAYS = {
    "bands": (30, 8, 1),
    "at once": (1024, 256, 1),
    "direct": (1024, 256, 1000),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_convolution_and_gradients_equal_xlas(case, way, monkeypatch):
    names = ("_POSITIONS", "_TILES", "_WINOGRAD_CHANNELS")
    for name, value in zip(names, WAYS[way], strict=True):
        monkeypatch.setattr(cpu, name, value)
    monkeypatch.setattr(cpu, "_WINOGRAD_POSITIONS", 1)
    size, width_in, width, *how = CASES[case]
    x, kernel = random(2, 11, 14, width_in), random(*size, width_in // how[-1], width, seed=1)

    def results(conv):
        out, pull = jax.vjp(lambda x, kernel: conv(x, kernel, *how), x, kernel)
        return out, *pull(random(*out.shape, seed=2))

    for mine, wanted in zip(jax.jit(lambda: results(conv2d))(), results(plain), strict=True):
        assert mine.shape == wanted.shape
        np.testing.assert_allclose(mine, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("case", ["3x3", "stride 2"])
def test_gradient_can_be_differentiated_again(case):
    """As the R1 penalty does: the gradient, to the kernel, of the input gradient's square."""
    size, width_in, width, *how = CASES[case]
    x, kernel = random(2, 6, 8, width_in), random(*size, width_in, width, seed=1)

    def penalty(conv):
        def square(kernel):
            slope = jax.grad(lambda x: jnp.sum(jnp.tanh(conv(x, kernel, *how))))(x)
            return jnp.sum(slope**2)

        return jax.grad(square)(kernel)

    wanted = penalty(plain)
    np.testing.assert_allclose(penalty(conv2d), wanted, atol=1e-5 * np.abs(wanted).max())


def test_convolution_of_doubled_positions_and_its_gradients():
    conv, x = Conv(5, 6, 3, padding=1, rngs=nnx.Rngs(0)), random(2, 4, 7, 5)
    graphdef, params = nnx.split(conv)

    def results(apply):
        out, pull = jax.vjp(lambda p, x: apply(nnx.merge(graphdef, p), x), params, x)
        return jax.tree.leaves((out, pull(random(*out.shape, seed=1))))

    mine = results(lambda conv, x: conv.doubled(x))
    wanted = results(lambda conv, x: conv(double(x)))
    for a, b in zip(mine, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_conv_starts_like_pytorchs_and_computes_in_its_dtype():
    conv = Conv(8, 6, (3, 5), padding=(1, 2), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    bound = 1 / np.sqrt(8 * 3 * 5)
    assert 0.9 * bound < np.abs(conv.kernel[...]).max() <= bound
    assert conv.kernel.dtype == jnp.float32
    out = conv(random(2, 4, 7, 8))
    assert out.dtype == jnp.bfloat16 and out.shape == (2, 4, 7, 6)
    assert Conv(8, 6, 3, use_bias=False, rngs=nnx.Rngs(0)).bias is None


def test_group_norm_equals_its_definition():
    x = 3 + 2 * random(2, 5, 7, 12)
    norm = GroupNorm(12, num_groups=4, epsilon=1e-3, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = random(12, seed=1), random(12, seed=2)
    groups = np.asarray(x, np.float64).reshape(2, 35, 4, 3)
    mean, var = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    wanted = ((groups - mean) / np.sqrt(var + 1e-3)).reshape(x.shape)
    wanted = wanted * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
    np.testing.assert_allclose(norm(x), wanted, atol=1e-5)
    assert GroupNorm(12, num_groups=4, epsilon=1e-3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(
        x
    ).dtype == (jnp.bfloat16)


def test_group_norm_refuses_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="norm_num_groups=5"):
        GroupNorm(12, num_groups=5, epsilon=1e-3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("scores", [2 * 7, 2 * 4 * 7, 2**18])  # 1, 4 or all queries at once
def test_attention_and_gradients_equal_their_definition(scores, monkeypatch):
    monkeypatch.setattr(cpu, "_SCORES", scores)
    q, k, v = random(2, 6, 3, 4), random(2, 7, 3, 4, seed=1), random(2, 7, 3, 4, seed=2)

    def plain(q, k, v):
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

    def results(attend):
        out, pull = jax.vjp(attend, 10 * q, k, v)
        return out, *pull(random(*out.shape, seed=3))

    for mine, wanted in zip(jax.jit(lambda: results(attention))(), results(plain), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-5 * np.abs(wanted).max())
    half = attention(*(x.astype(jnp.bfloat16) for x in (q, k, v)))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half, plain(q, k, v), atol=0.05)
