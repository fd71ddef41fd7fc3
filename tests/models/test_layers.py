import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.models.layers import Conv, GroupNorm, UpsampleConv


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_conv_starts_like_pytorchs_and_computes_in_its_dtype():
    conv = Conv(8, 6, (3, 5), padding=(1, 2), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    bound = 1 / np.sqrt(8 * 3 * 5)
    assert 0.9 * bound < np.abs(conv.kernel[...]).max() <= bound
    assert conv.kernel.dtype == jnp.float32
    out = conv(random(2, 4, 7, 8))
    assert out.dtype == jnp.bfloat16 and out.shape == (2, 4, 7, 6)
    assert Conv(8, 6, 3, use_bias=False, rngs=nnx.Rngs(0)).bias is None


def test_upsample_conv_is_a_convolution_of_the_upsampled_map():
    conv, x = UpsampleConv(5, 6, rngs=nnx.Rngs(0)), random(2, 4, 7, 5)
    plain = Conv(5, 6, 3, padding=1, rngs=nnx.Rngs(1))
    nnx.update(plain, nnx.state(conv))
    wanted = plain(x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(conv(x), wanted, atol=1e-5 * np.abs(wanted).max())


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
