"""Convolution for CPUs, where some of XLA's own forms are slow.

On a CPU, XLA calls a fast library for a convolution only if its axes are in the usual order. It
transposes others, but not inside conditionals and loops: there, a gradient that
`jax.linear_transpose` makes of a convolution takes a hundred times as long. So gradients are
written here as convolutions in the usual order. Wide ones use Winograd's algorithm, with fewer
products.

Nothing here is differentiated: these are implementations for `bilinear`. No loop runs over the
batch, which may be spread over devices.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maa_jax.models.kernels.winograd import F23, F43, F44, combine

Pads = tuple[tuple[int, int], ...]

# With a smaller kernel (taps times channels of the narrower side), Winograd's transforms cost more
# than the products that they save; with fewer positions, transforming the kernel does.
_WINOGRAD_KERNEL = 768
_WINOGRAD_POSITIONS = 512
# Tiles that the kernel's gradient covers at once: few enough to stay in cache, enough for an
# efficient matrix product.
_TILES = 256


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: tuple[int, ...],
    padding: Pads,
    dilation: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """Convolves [b, ..., in] with [..., in / groups, out] over one or two axes."""
    if groups > 1:
        options: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=1)
        pairs = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        return jnp.concatenate([conv(x, kernel, **options) for x, kernel in pairs], -1)
    if x.ndim == 3:  # an image one pixel high takes up to a third less time
        return conv(
            x[:, None],
            kernel[None],
            stride=(1, *stride),
            padding=((0, 0), *padding),
            dilation=(1, *dilation),
            groups=1,
        )[:, 0]
    if _suits_winograd(x, kernel, stride, dilation):
        return winograd(x, kernel, padding, dilation[1])
    return _conv(x, kernel, stride, padding, dilation)


def conv_left(
    y: jax.Array,
    kernel: jax.Array,
    *,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pads,
    dilation: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """Returns the gradient of the input, [b, ..., in] of the given shape, from the output's."""
    if groups > 1:
        options: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=1)
        shape = (*shape[:-1], shape[-1] // groups)
        pairs = zip(jnp.split(y, groups, -1), jnp.split(kernel, groups, -1), strict=True)
        parts = [conv_left(y, kernel, shape=shape, **options) for y, kernel in pairs]
        return jnp.concatenate(parts, -1)
    # A convolution with the transposed kernel, of outputs `stride` apart.
    kernel = jnp.flip(kernel, range(kernel.ndim - 2)).swapaxes(-1, -2)
    pads = tuple(
        (d * (k - 1) - low, n + low - (s * (m - 1) + 1))
        for n, m, k, s, d, (low, _) in zip(
            shape[1:], y.shape[1:-1], kernel.shape, stride, dilation, padding, strict=False
        )
    )
    if set(stride) == {1}:
        kernel = lax.optimization_barrier(kernel)  # transposed once, not by every reader
        return conv(y, kernel, stride=stride, padding=pads, dilation=dilation, groups=1)
    return _conv(y, kernel, (1,) * len(stride), pads, dilation, stride)


def conv_right(
    x: jax.Array,
    y: jax.Array,
    *,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Pads,
    dilation: tuple[int, ...],
    groups: int,
) -> jax.Array:
    """Returns the gradient of the kernel, [..., in / groups, out] of the given shape."""
    if groups > 1:
        options: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation, groups=1)
        shape = (*shape[:-1], shape[-1] // groups)
        pairs = zip(jnp.split(x, groups, -1), jnp.split(y, groups, -1), strict=True)
        return jnp.concatenate([conv_right(x, y, shape=shape, **options) for x, y in pairs], -1)
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    if shape[:-2] == (3, 3) and _suits_winograd(x, kernel, stride, dilation):
        return winograd_right(x, y, padding)
    # A convolution with batch and channels exchanged.
    pads = tuple(
        (low, d * (k - 1) + s * (m - 1) + 1 - n - low)
        for n, m, k, s, d, (low, _) in zip(
            x.shape[1:], y.shape[1:-1], shape, stride, dilation, padding, strict=False
        )
    )
    x, y = jnp.moveaxis(x, (0, -1), (-1, 0)), jnp.moveaxis(y, 0, -2)
    return jnp.moveaxis(_conv(x, y, dilation, pads, stride), 0, -2)


def _conv(x, kernel, stride, padding, dilation, spacing=None):
    """XLA's convolution of inputs that are `spacing` apart, in the usual order of axes."""
    axes = ("NWC", "WIO", "NWC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, stride, padding, spacing, dilation, axes)


def _suits_winograd(x, kernel, stride, dilation):
    height, width, *channels = kernel.shape
    one_row = x.shape[1] == height == 1 and width > 2
    return (
        (one_row or ((height, width) == (3, 3) and dilation == (1, 1)))
        and stride == (1, 1)
        and height * width * min(channels) >= _WINOGRAD_KERNEL
        and x.size // x.shape[-1] >= _WINOGRAD_POSITIONS
        and x.dtype == jnp.float32  # transforms cost less precise numbers too much
    )


def winograd(x: jax.Array, kernel: jax.Array, padding: Pads, dilation: int) -> jax.Array:
    """Convolves [b, h, w, in] with [3, 3, in, out], or one row with [1, k, in, out].

    It takes about half of the products: along the width, F(4, 3) for three taps and F(4, 4) for
    each four of more. Positions `dilation` apart are neighbours to the kernel: a tile is four runs
    of that many positions. The input of the j-th four taps at a tile is that of the first four j
    tiles later, so one convolution over tiles sums each product over all taps.
    """
    height, taps, channels, features = kernel.shape
    scheme = F43 if taps <= 3 else F44
    size = scheme.kernel.shape[1]
    groups = -(-taps // size)
    b, h, w, _ = x.shape
    (top, bottom), (left, right) = padding
    across = w + left + right - dilation * (taps - 1)
    tiles = -(-across // (4 * dilation))
    x = _extended(x, padding, h + top + bottom, 4 * dilation * (tiles + groups))
    x = x.reshape(b, -1, tiles + groups, 4, dilation * channels)
    samples = [x[:, :, :-1, i] for i in range(4)] + [x[:, :, 1:, i] for i in range(size - 1)]
    # Otherwise XLA would transform, and keep, the kernels of all layers before it runs the first.
    # It removes barriers before scheduling, so this is a zero that depends on x: nothing, not even
    # infinity or NaN, is greater than infinity.
    kernel = lax.optimization_barrier(kernel + (x[0, 0, 0, 0, 0] > jnp.inf))
    kernel = jnp.pad(kernel, ((0, 0), (0, groups * size - taps), (0, 0), (0, 0)))
    kernel = kernel.reshape(height, groups, size, channels, features)
    kernels = combine(scheme.kernel, [kernel[:, :, i] for i in range(size)])
    # Rows are concatenated, because XLA is up to twice as fast over one axis.
    apart = dilation if height == 1 else tiles
    products = [
        _conv(
            tile.reshape(b, 1, -1, channels),
            weights.reshape(1, -1, channels, features),
            (1, 1),
            ((0, 0), (0, 0)),
            (1, apart),
        ).reshape(b, -1, tiles, dilation * features)
        for tile, weights in zip(combine(scheme.input, samples), kernels, strict=True)
    ]
    out = jnp.stack(combine(scheme.output, products), axis=3)
    return out.reshape(b, out.shape[1], -1, features)[:, :, :across]


def _extended(x, padding, height, width):
    """Pads [b, h, w, c] with zeros at the low ends, then pads or crops it to height and width."""
    (top, _), (left, _) = padding
    edges = ((top, height - top - x.shape[1], 0), (left, width - left - x.shape[2], 0))
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def winograd_right(x: jax.Array, y: jax.Array, padding: Pads) -> jax.Array:
    """Returns the gradient [3, 3, in, out] of a kernel, from [b, h, w, in] and [b, h', w', out].

    F(2, 3) along both axes: its products run over positions, and are slow if these are many.
    """
    b, h, w, _ = y.shape
    down, across = -(-h // 2), -(-w // 2)
    bands = 1
    if b * down * across > 2 * _TILES:
        rows = max(1, _TILES // (b * across))
        bands = -(-down // rows)
    rows = -(-down // bands)
    x = _extended(x, padding, 2 * rows * bands + 2, 2 * across + 2)
    y = _extended(y, ((0, 0), (0, 0)), 2 * rows * bands, 2 * across)
    every_other = lambda x, i, n, axis: lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis)
    flat = lambda x: x.reshape(-1, x.shape[-1])

    def band(i):
        seen = lax.dynamic_slice_in_dim(x, 2 * rows * i, 2 * rows + 2, axis=1)
        out = lax.dynamic_slice_in_dim(y, 2 * rows * i, 2 * rows, axis=1)
        products = []
        for inputs, outputs in zip(
            combine(F23.input, [every_other(seen, k, rows, 1) for k in range(4)]),
            combine(F23.output.T, [every_other(out, k, rows, 1) for k in range(2)]),
            strict=True,
        ):
            inputs = combine(F23.input, [every_other(inputs, k, across, 2) for k in range(4)])
            outputs = combine(F23.output.T, [every_other(outputs, k, across, 2) for k in range(2)])
            products += [flat(i).T @ flat(o) for i, o in zip(inputs, outputs, strict=True)]
        return jnp.stack(products)

    if bands == 1:
        products = band(0)
    else:
        zeros = jnp.zeros((16, x.shape[-1], y.shape[-1]), x.dtype)
        products = lax.fori_loop(0, bands, lambda i, total: total + band(i), zeros)
    kernel = jnp.tensordot(np.kron(F23.kernel, F23.kernel).T, products, 1)
    return kernel.reshape(3, 3, *products.shape[1:])
