"""Convolution and attention for CPUs, where XLA's own are slow.

XLA's CPU gradients of a convolution run far below the speed of its forward pass, and its attention
writes and reads every score several times. What is here is made of matrix products on pieces that
stay in the processor's cache. It holds for other devices too, which have no need of it. All of it
is ordinary operations, so a gradient can be differentiated again; loops never run over the batch,
which may be spread over devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maa_jax.models.kernels.winograd import F23, F43, combine

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]

# Output positions for which the input of a kernel's gradient is gathered at once, tiles that
# Winograd's transforms cover at once, and scores that attention makes at once: few enough to stay
# in cache, enough for a matrix product to be worth starting. Measured on 2 cores with AVX-512,
# whose vectors hold so many numbers.
_POSITIONS = 1024
_TILES = 256
_SCORES = 7 * 2**18
_VECTOR = 16
# Fewer channels, and Winograd's transforms cost more than the products that they save; fewer
# positions, and transforming the kernel does.
_WINOGRAD_CHANNELS = 128
_WINOGRAD_POSITIONS = 512


def plain_conv2d(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pads, dilation: Pair, groups: int = 1
) -> jax.Array:
    """XLA's convolution of [b, h, w, in] with [kh, kw, in / groups, out]."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def conv2d(
    x: jax.Array, kernel: jax.Array, stride: Pair, padding: Pads, dilation: Pair
) -> jax.Array:
    """Convolution of [b, h, w, in] with [kh, kw, in, out], and gradients as quick as it is."""
    return _conv2d(x, kernel, stride, padding, dilation, False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _conv2d(x, kernel, stride, padding, dilation, flipped):
    """Convolves; with `flipped`, by the kernel that leads back from output to input."""
    if _suits_winograd(x, kernel, stride, dilation):
        if _positions(x) >= (1 + flipped) * _WINOGRAD_POSITIONS:  # to flip a kernel takes time
            return winograd(x, kernel, padding, flipped)
    if flipped:
        kernel = kernel[::-1, ::-1].swapaxes(2, 3)
    return plain_conv2d(x, kernel, stride, padding, dilation)


def _forward(x, kernel, stride, padding, dilation, flipped):
    return _conv2d(x, kernel, stride, padding, dilation, flipped), (x, kernel)


def _backward(stride, padding, dilation, flipped, saved, grad):
    x, kernel = saved
    if stride == (1, 1):
        back = _reversed_padding(kernel.shape, padding, dilation)
        dx = _conv2d(grad, kernel, stride, back, dilation, not flipped)
        if flipped:
            x, grad, padding = grad, x, back
    elif dilation == (1, 1):
        dx = strided_input_gradient(grad, kernel, x.shape, stride, padding)
    else:
        (dx,) = jax.vjp(lambda x: plain_conv2d(x, kernel, stride, padding, dilation), x)[1](grad)
    if _suits_winograd(x, kernel, stride, dilation) and _positions(x) >= _WINOGRAD_POSITIONS:
        return dx, winograd_kernel_gradient(x, grad, padding)
    return dx, kernel_gradient(x, grad, kernel.shape, stride, padding, dilation)


_conv2d.defvjp(_forward, _backward)


def _reversed_padding(shape, padding, dilation):
    reach = [d * (k - 1) for d, k in zip(dilation, shape[:2], strict=True)]
    return tuple((r - lo, r - hi) for r, (lo, hi) in zip(reach, padding, strict=True))


def strided_input_gradient(
    grad: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: Pair, padding: Pads
) -> jax.Array:
    """Returns the gradient [b, h, w, in] of the input, whose shape is given.

    Input positions with the same remainder by the stride meet the same taps of the kernel, so one
    convolution gives the gradients of all remainders side by side.
    """
    (sh, sw), (_, h, w, width_in) = stride, shape
    th, tw = (-(-k // s) for k, s in zip(kernel.shape, stride, strict=False))
    kernel = jnp.pad(
        kernel, ((0, th * sh - kernel.shape[0]), (0, tw * sw - kernel.shape[1]), (0, 0), (0, 0))
    )
    kernel = kernel.reshape(th, sh, tw, sw, width_in, -1)[::-1, :, ::-1]
    kernel = kernel.transpose(0, 2, 5, 1, 3, 4).reshape(th, tw, -1, sh * sw * width_in)
    dx = conv2d(grad, kernel, (1, 1), ((th - 1, th - 1), (tw - 1, tw - 1)), (1, 1))
    b, rows, columns, _ = dx.shape
    dx = dx.reshape(b, rows, columns, sh, sw, width_in).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(b, rows * sh, columns * sw, width_in)
    (top, _), (left, _) = padding
    end = [(0, max(0, n - have)) for n, have in ((top + h, rows * sh), (left + w, columns * sw))]
    return jnp.pad(dx, ((0, 0), *end, (0, 0)))[:, top : top + h, left : left + w]


def kernel_gradient(
    x: jax.Array, grad: jax.Array, shape: tuple[int, ...], stride: Pair, padding: Pads,
    dilation: Pair,
) -> jax.Array:  # fmt: skip
    """Returns the gradient of a kernel of the given shape [kh, kw, in, out].

    One matrix product for a band of output rows: what every tap of the kernel sees, times the
    output's gradient.
    """
    kh, kw, width_in, width_out = shape
    if 4 * width_out <= width_in and stride == (1, 1):
        # What is gathered is kh * kw times its size: gather the slimmer side.
        back = _reversed_padding(shape, padding, dilation)
        swapped = (kh, kw, width_out, width_in)
        return kernel_gradient(grad, x, swapped, stride, back, dilation)[::-1, ::-1].swapaxes(2, 3)
    b, h, w, _ = grad.shape
    rows = max(1, min(h, _POSITIONS // (b * w)))
    bands = -(-h // rows)
    seen = lambda n, i: (n - 1) * stride[i] + (shape[i] - 1) * dilation[i] + 1  # by n outputs
    x = _extend(x, padding, seen(bands * rows, 0), seen(w, 1))
    grad = jnp.pad(grad, ((0, 0), (0, bands * rows - h), (0, 0), (0, 0)))

    def band(i):
        part = lax.dynamic_slice_in_dim(x, i * rows * stride[0], seen(rows, 0), axis=1)
        taps = [
            part[
                :,
                top : top + (rows - 1) * stride[0] + 1 : stride[0],
                left : left + (w - 1) * stride[1] + 1 : stride[1],
            ]
            for top in range(0, kh * dilation[0], dilation[0])
            for left in range(0, kw * dilation[1], dilation[1])
        ]
        out = lax.dynamic_slice_in_dim(grad, i * rows, rows, axis=1)
        taps = jnp.concatenate(taps, axis=3).reshape(b * rows * w, -1)
        return taps.T @ out.reshape(-1, width_out)

    return sum_over(band, bands).reshape(shape)


def _extend(x, padding, height, width):
    """Pads [b, h, w, c] with zeros at its low ends, and pads or crops it to height and width."""
    (top, _), (left, _) = padding
    low_high = ((top, height - top - x.shape[1]), (left, width - left - x.shape[2]))
    edges = ((0, 0, 0), *((lo, hi, 0) for lo, hi in low_high), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def sum_over(term, count):
    """Returns the sum of term(i), a tree, for i < count."""
    if count == 1:
        return term(0)
    zeros = jax.tree.map(lambda t: jnp.zeros(t.shape, t.dtype), jax.eval_shape(term, 0))
    add = lambda total, i: (jax.tree.map(jnp.add, total, term(i)), None)
    return lax.scan(add, zeros, jnp.arange(count))[0]


# Winograd's filters, in two ways. A convolution takes F(4, 3) along the width alone: half of the
# products, and rows are left to XLA. The gradient of its kernel, whose products are over positions
# and so are slow when they are long, takes F(2, 3) along both sides, band by band.
_KERNEL_TRANSFORM = np.kron(F23.kernel, F23.kernel)  # [16, 9]


def _suits_winograd(x, kernel, stride, dilation):
    return (
        kernel.shape[:2] == (3, 3)
        and stride == dilation == (1, 1)
        and min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS
        and x.dtype == jnp.float32  # transforms cost less precise numbers too much
    )


def _positions(x):
    return x.size // x.shape[-1]


def winograd(x: jax.Array, kernel: jax.Array, padding: Pads, flipped: bool = False) -> jax.Array:
    """Convolution of [b, h, w, in] with [3, 3, in, out]; flipped, of [b, h, w, out]."""
    b = x.shape[0]
    # Only so that kernels are not all transformed, and kept, before the first of them is needed.
    kernel = kernel + 0 * x[0, 0, 0, 0]
    h, w = (n + lo + hi - 2 for n, (lo, hi) in zip(x.shape[1:3], padding, strict=True))
    across = -(-w // 4)
    x = _extend(x, padding, h + 2, 4 * across + 2)
    samples = [lax.slice_in_dim(x, i, i + 4 * across - 3, 4, axis=2) for i in range(6)]
    if flipped:
        # A product of matrices: XLA would fuse sums with the transposition that follows, and that
        # is ten times as slow as either.
        kernels = jnp.tensordot(F43.kernel, kernel[::-1, ::-1].swapaxes(0, 1), 1)
    else:
        kernels = combine(F43.kernel, [kernel[:, i] for i in range(3)])
    products = [
        # Rows one after another, so that one axis is left: XLA is up to twice as quick over one.
        lax.conv_general_dilated(
            tiles.reshape(b, -1, x.shape[3]),
            taps,
            (1,),
            "VALID",
            rhs_dilation=(across,),
            dimension_numbers=("NWC", "WOI" if flipped else "WIO", "NWC"),
        ).reshape(b, h, across, -1)
        for tiles, taps in zip(combine(F43.input, samples), kernels, strict=True)
    ]
    out = jnp.stack(combine(F43.output, products), axis=3)
    return out.reshape(b, h, 4 * across, -1)[:, :, :w]


def winograd_kernel_gradient(x: jax.Array, grad: jax.Array, padding: Pads) -> jax.Array:
    """Returns the gradient of the kernel [3, 3, in, out] of a convolution."""
    b, h, w, _ = grad.shape
    across, rows, bands = _bands(b, h, w)
    x = _extend(x, padding, 2 * rows * bands + 2, 2 * across + 2)
    grad = jnp.pad(grad, ((0, 0), (0, 2 * rows * bands - h), (0, 2 * across - w), (0, 0)))
    every_other = lambda x, i, n, axis: lax.slice_in_dim(x, i, i + 2 * n - 1, 2, axis)
    flat = lambda t: t.reshape(-1, t.shape[-1])

    def band(i):
        seen = lax.dynamic_slice_in_dim(x, 2 * rows * i, 2 * rows + 2, axis=1)
        out = lax.dynamic_slice_in_dim(grad, 2 * rows * i, 2 * rows, axis=1)
        terms = []
        for tiles, slopes in zip(
            combine(F23.input, [every_other(seen, k, rows, 1) for k in range(4)]),
            combine(F23.output.T, [every_other(out, k, rows, 1) for k in range(2)]),
            strict=True,
        ):
            tiles = combine(F23.input, [every_other(tiles, k, across, 2) for k in range(4)])
            slopes = combine(F23.output.T, [every_other(slopes, k, across, 2) for k in range(2)])
            terms += [flat(t).T @ flat(s) for t, s in zip(tiles, slopes, strict=True)]
        return jnp.stack(terms)

    products = sum_over(band, bands)
    grad_kernel = jnp.tensordot(_KERNEL_TRANSFORM.T, products, 1)
    return grad_kernel.reshape(3, 3, *products.shape[1:])


def _bands(b, h, w):
    """Returns tiles across, tile rows a band and bands for an output [b, h, w]."""
    down, across = -(-h // 2), -(-w // 2)
    if b * down * across <= 2 * _TILES:
        return across, down, 1
    rows = max(1, min(down, _TILES // (b * across)))
    return across, rows, -(-down // rows)


def doubled_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with [3, 3, in, out], padded by one, of [b, h, w, in] with each position doubled.

    On either axis an even output sees two positions, one of them twice, and so does an odd one:
    four kernels [2, 2, in, out] find all outputs with 16 products instead of 36. They are summed up
    as precisely as the kernel is, and then made as precise as x.

    Returns:
      [b, 2 h, 2 w, out].
    """
    b, h, w, _ = x.shape

    def kinds(kernel, axis):
        first, middle, last = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
        both = lambda a, b: jnp.concatenate([a, b], axis)
        return both(first, middle + last), both(first + middle, last)

    pads = ((1, 0), (0, 1))
    rows = [
        jnp.stack(
            [
                conv2d(x, taps.astype(x.dtype), (1, 1), (above, beside), (1, 1))
                for taps, beside in zip(kinds(row, 1), pads, strict=True)
            ],
            axis=3,
        )
        for row, above in zip(kinds(kernel, 0), pads, strict=True)
    ]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention of [b, q, heads, d] to [b, k, heads, d], softmax in float32.

    By pieces of the queries, all heads at once; the backward pass computes the scores anew.
    """
    heads_first = lambda x: x.transpose(0, 2, 1, 3)
    return heads_first(_attend(*(heads_first(x) for x in (query, key, value))))


@jax.custom_vjp
def _attend(query, key, value):
    return _attend_forward(query, key, value)[0]


def _pieces(x, keys):
    """Cuts the queries [b, heads, q, ...] into [pieces, b, heads, size, ...], zeros at the end."""
    b, heads, n = x.shape[:3]
    pieces = min(n, -(-b * heads * n * keys // _SCORES))
    size = -(-n // pieces)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, pieces * size - n), *[(0, 0)] * (x.ndim - 3)))
    return jnp.moveaxis(x.reshape(b, heads, pieces, size, *x.shape[3:]), 2, 0)


def _joined(x, n):
    """Undoes `_pieces` for n queries."""
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :n]


def _over(piece, pieces):
    """Applies `piece` to each piece of the queries."""
    if len(pieces[0]) == 1:
        return jax.tree.map(lambda x: x[None], piece(tuple(x[0] for x in pieces)))
    return lax.map(piece, pieces)


_product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _scores(query, key):
    """Returns [b, heads, q, k]."""
    return _product(query * query.shape[-1] ** -0.5, key.mT)


def _attend_forward(query, key, value):
    # A column of ones, for the weights' total; a product is quicker with whole vectors of columns.
    d = value.shape[-1]
    ones = jnp.ones((*value.shape[:-1], 1), value.dtype)
    wide = jnp.concatenate([value, ones], axis=-1)
    wide = jnp.pad(wide, ((0, 0), (0, 0), (0, 0), (0, -(d + 1) % _VECTOR)))

    def piece(args):
        scores = _scores(*args, key)
        largest = scores.max(-1, keepdims=True)
        out = _product(jnp.exp(scores - largest).astype(value.dtype), wide)
        total = out[..., d : d + 1]
        return (out[..., :d] / total).astype(value.dtype), (largest + jnp.log(total))[..., 0]

    n = query.shape[2]
    out, normalizer = (_joined(x, n) for x in _over(piece, (_pieces(query, key.shape[2]),)))
    return out, (query, key, value, out, normalizer)


def _attend_backward(saved, grad):
    query, key, value, out, normalizer = saved
    shift = jnp.sum(grad * out, axis=-1, dtype=jnp.float32)

    def piece(total, args):
        query, grad, normalizer, shift = args
        weights = jnp.exp(_scores(query, key) - normalizer[..., None])
        slope = _product(grad, value.mT)
        slope = (weights * (slope - shift[..., None])).astype(key.dtype) * key.shape[-1] ** -0.5
        add = (
            _product(slope.mT, query),
            _product(weights.astype(grad.dtype).mT, grad),
        )
        dquery = _product(slope, key).astype(query.dtype)
        return jax.tree.map(jnp.add, total, add), dquery

    zeros = (jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32))
    pieces = tuple(_pieces(x, key.shape[2]) for x in (query, grad, normalizer, shift))
    (dkey, dvalue), dquery = lax.scan(piece, zeros, pieces)
    return _joined(dquery, query.shape[2]), dkey.astype(key.dtype), dvalue.astype(value.dtype)


_attend.defvjp(_attend_forward, _attend_backward)
