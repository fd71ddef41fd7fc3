import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from maa_jax.models.kernels import (
    conv1d,
    conv2d,
    conv_transpose1d,
    cpu,
    filter1d,
    upsample_conv2d,
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def xla_conv2d(x, kernel, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def xla_conv1d(x, kernel, stride=1, padding=0, dilation=1, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        ((padding, padding),),
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def xla_conv_transpose1d(x, kernel, stride, padding=0):
    size, features, _ = kernel.shape
    length = (x.shape[1] - 1) * stride + size - 2 * padding
    out = jax.ShapeDtypeStruct((x.shape[0], length, features), x.dtype)
    forward = lambda y: xla_conv1d(y, kernel, stride, padding)
    return jax.linear_transpose(forward, out)(x)[0]


def xla_upsample_conv2d(x, kernel):
    x = x.repeat(2, axis=1).repeat(2, axis=2)
    return xla_conv2d(x, kernel, padding=((1, 1), (1, 1)))


def one(n):
    return ((n, n), (n, n))


IMAGE, SOUND = (2, 11, 14, 8), (2, 37, 8)
CASES = {  # ours, XLA's, shapes of input and kernel, options
    "3x3": (conv2d, xla_conv2d, IMAGE, (3, 3, 8, 6), {"padding": one(1)}),
    "1x1": (conv2d, xla_conv2d, IMAGE, (1, 1, 8, 6), {}),
    "no padding": (conv2d, xla_conv2d, IMAGE, (3, 3, 8, 6), {}),
    "more padding than reach": (conv2d, xla_conv2d, IMAGE, (3, 3, 8, 6), {"padding": one(4)}),
    "uneven padding": (conv2d, xla_conv2d, IMAGE, (3, 3, 8, 6), {"padding": ((0, 1), (2, 0))}),
    "one channel in": (conv2d, xla_conv2d, (2, 11, 14, 1), (3, 3, 1, 6), {"padding": one(1)}),
    "stride": (conv2d, xla_conv2d, IMAGE, (3, 3, 8, 6), {"stride": (2, 2), "padding": one(1)}),
    "stride, kernel of one": (conv2d, xla_conv2d, IMAGE, (1, 1, 8, 6), {"stride": (2, 2)}),
    "stride, dilated": (
        conv2d, xla_conv2d, IMAGE, (3, 3, 8, 6),
        {"stride": (2, 3), "padding": ((2, 2), (4, 4)), "dilation": (2, 4)},
    ),
    "even kernel": (conv2d, xla_conv2d, IMAGE, (4, 2, 8, 6), {"padding": one(1)}),
    "groups": (conv2d, xla_conv2d, IMAGE, (3, 3, 4, 6), {"padding": one(1), "groups": 2}),
    "1-D": (conv1d, xla_conv1d, SOUND, (7, 8, 6), {"padding": 3}),
    "1-D, three taps": (conv1d, xla_conv1d, SOUND, (3, 8, 6), {}),
    "1-D, dilated": (conv1d, xla_conv1d, SOUND, (11, 8, 6), {"padding": 9, "dilation": 3}),
    "1-D, even kernel": (conv1d, xla_conv1d, SOUND, (4, 8, 6), {"padding": 5}),
    "1-D, stride": (conv1d, xla_conv1d, SOUND, (5, 8, 6), {"padding": 2, "stride": 3}),
    "1-D, groups": (
        conv1d, xla_conv1d, SOUND, (5, 4, 6), {"padding": 2, "stride": 2, "groups": 2}
    ),
    "transposed": (
        conv_transpose1d, xla_conv_transpose1d, SOUND, (8, 6, 8), {"stride": 4, "padding": 2}
    ),
    "transposed, odd kernel": (
        conv_transpose1d, xla_conv_transpose1d, SOUND, (7, 6, 8), {"stride": 3}
    ),
    "upsampling": (upsample_conv2d, xla_upsample_conv2d, IMAGE, (3, 3, 8, 6), {}),
}  # fmt: skip


def load(case):
    ours, xla, *shapes, options = CASES[case]
    arrays = (random(*shapes[0]), random(*shapes[1], seed=1))
    return functools.partial(ours, **options), functools.partial(xla, **options), *arrays


def assert_same(results, f, g, *args, tolerance=2e-5):
    """Compares the results of two functions, compiled as those of networks are."""
    ours, wanted = (jax.tree.leaves(jax.jit(lambda *a, f=f: results(f, *a))(*args)) for f in (f, g))
    for a, b in zip(ours, wanted, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def value_and_gradients(f, x, kernel):
    out, vjp = jax.vjp(f, x, kernel)
    return out, *vjp(random(*out.shape, seed=2).astype(out.dtype))


@pytest.fixture
def winograd_for_all(monkeypatch):
    """Winograd's filters wherever they apply, gradients in bands of a row of tiles."""
    monkeypatch.setattr(cpu, "_WINOGRAD_KERNEL", 1)
    monkeypatch.setattr(cpu, "_WINOGRAD_POSITIONS", 1)
    monkeypatch.setattr(cpu, "_TILES", 8)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_are_xlas(case):
    assert_same(value_and_gradients, *load(case))


@pytest.mark.parametrize(
    "case", ["3x3", "no padding", "uneven padding", "1-D", "1-D, three taps", "1-D, dilated",
             "1-D, even kernel", "upsampling"],
)  # fmt: skip
def test_winograds_value_and_gradients_are_xlas(case, winograd_for_all):
    assert_same(value_and_gradients, *load(case))


@pytest.mark.parametrize("case", ["3x3", "stride, dilated", "transposed", "upsampling"])
def test_derivatives_of_every_kind_are_xlas(case):
    def loss(f):
        return lambda x, kernel: jnp.sum(jnp.tanh(f(x, kernel)))

    def penalty(f):  # as R1's: the gradient, to the kernel, of the input gradient's square
        return lambda x, kernel: jnp.sum(jax.grad(loss(f))(x, kernel) ** 2)

    def results(f, x, kernel):
        along = (x, kernel)
        return (
            jax.jvp(f, (x, kernel), along),
            jax.jvp(jax.grad(loss(f), (0, 1)), (x, kernel), along),  # Hessian-vector product
            jax.grad(penalty(f), (0, 1))(x, kernel),
            jax.grad(lambda x, k: jax.jvp(loss(f), (x, k), along)[1], (0, 1))(x, kernel),
            jax.jacfwd(lambda s: loss(f)(s * x, kernel))(1.0),
            jax.vmap(jax.grad(loss(f)), (None, 0))(x, jnp.stack([kernel, 2 * kernel])),
            jax.grad(jax.checkpoint(loss(f)), 1)(x, kernel),
            lax.scan(lambda c, _: (c, jax.grad(loss(f))(x, kernel)), 0, None, length=2)[1],
        )

    assert_same(results, *load(case), tolerance=1e-4)


@pytest.mark.parametrize("case", ["3x3", "1-D", "transposed", "upsampling"])
def test_half_precision_is_kept(case):
    f, xla, *arrays = load(case)
    arrays = [x.astype(jnp.bfloat16) for x in arrays]
    for a, b in zip(
        value_and_gradients(f, *arrays), value_and_gradients(xla, *arrays), strict=True
    ):
        assert a.dtype == jnp.bfloat16
        np.testing.assert_allclose(a.astype("f"), b.astype("f"), atol=0.03 * np.abs(b).max())


def test_filter_and_its_derivatives_are_those_of_its_sum():
    taps, start, length = np.arange(1.0, 5.0), 1, 9
    x = random(2, 15, 3)
    ours = lambda x: filter1d(x, taps, start, length)
    plain = lambda x: sum(t * x[:, start + i : start + i + length] for i, t in enumerate(taps))

    def results(f, x):
        loss = lambda x: jnp.sum(jnp.tanh(f(x)) ** 2)
        return f(x), jax.grad(loss)(x), jax.jvp(jax.grad(loss), (x,), (x,))

    assert_same(results, ours, plain, x)
