"""Convolution over time for CPUs, where XLA's own gradients are slow and its forms uneven.

It holds for other devices too, which have no need of it. All of it is ordinary operations, so a
gradient can be differentiated again. Arrays are [b, t, channels], kernels [k, in, out], padding is
of either end. Measured on 2 cores with AVX-512, float32.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maa_jax.models.cpu import sum_over

_LAYOUT = ("NWC", "WIO", "NWC")

# With fewer channels XLA is 1.2 to 1.5 times as quick over an image one pixel high.
_NARROW = 64
# With fewer channels, the sums around a halved convolution cost more than it saves; with few taps
# that is so up to the second number.
_HALVED, _HALVED_SHORT, _SHORT = 128, 256, 5
# How often a convolution is halved.
_DEPTH = 3
# Samples from which a kernel's gradient is made at once where channels are few: all at once takes
# up to 1.8 times as long.
_SAMPLES = 2048


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, padding: int, dilation: int) -> jax.Array:
    """Convolution of x [b, t, in], and gradients as quick as it is."""
    channels = min(kernel.shape[1:])
    if channels >= (_HALVED_SHORT if kernel.shape[0] < _SHORT else _HALVED):
        return halved(x, kernel, padding, dilation, _DEPTH)
    return plain(x, kernel, padding, dilation)


def _forward(x, kernel, padding, dilation):
    return conv(x, kernel, padding, dilation), (x, kernel)


def _backward(padding, dilation, saved, grad):
    x, kernel = saved
    # The flipped kernel leads back from output to input.
    flipped, reach = kernel[::-1].swapaxes(1, 2), dilation * (kernel.shape[0] - 1)
    back = conv(grad, flipped, reach - padding, dilation)
    return back, kernel_gradient(x, grad, padding, dilation)


conv.defvjp(_forward, _backward)


def plain(x: jax.Array, kernel: jax.Array, padding: int, dilation: int) -> jax.Array:
    """XLA's convolution, in the form that suits the number of channels."""
    if kernel.shape[2] > _NARROW:
        return lax.conv_general_dilated(
            x,
            kernel,
            (1,),
            [(padding, padding)],
            rhs_dilation=(dilation,),
            dimension_numbers=_LAYOUT,
        )
    return lax.conv_general_dilated(
        x[:, None],
        kernel[None],
        (1, 1),
        [(0, 0), (padding, padding)],
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )[:, 0]


def halved(x: jax.Array, kernel: jax.Array, padding: int, dilation: int, depth: int) -> jax.Array:
    """Convolution with up to 44% fewer products (fast FIR algorithm; Parhi 1999, section 9.2).

    With even and odd samples x0, x1 and taps h0, h1, an even output is h0 x0 + h1 x1 and an odd one
    h0 x1 + h1 x0', x0' being x0 a sample later. From h0 x1, h1 x0 and (h0 + h1)(x0 + x1), three
    convolutions of half the length, both follow; each may be halved again, `depth` times in all.
    """
    taps, channels, features = kernel.shape
    if depth == 0 or taps < 3:
        return plain(x, kernel, padding, dilation)
    batch, length, _ = x.shape
    length += 2 * padding - dilation * (taps - 1)
    even, odd = kernel[0::2], kernel[1::2]
    rows = -(-length // (2 * dilation))
    total = rows + max(len(even) - 1, len(odd))
    # Samples `dilation` apart are neighbours to the kernel: pairs of rows of `dilation` samples.
    x = _padded(x, padding, 2 * dilation * total)
    x = x.reshape(batch, total, 2, dilation * channels)
    x0, x1 = (x[:, :, i].reshape(batch, -1, channels) for i in (0, 1))
    both = even + jnp.pad(odd, ((0, len(even) - len(odd)), (0, 0), (0, 0)))

    size = rows * dilation
    even_odd = halved(x1, even, 0, dilation, depth - 1)[:, :size]
    odd_even = halved(x0, odd, 0, dilation, depth - 1)
    sums = halved(x0 + x1, both, 0, dilation, depth - 1)[:, :size]
    first = sums - even_odd - odd_even[:, :size]
    second = even_odd + odd_even[:, dilation : dilation + size]
    rows_of = lambda y: y.reshape(batch, rows, 1, dilation * features)
    y = jnp.concatenate([rows_of(first), rows_of(second)], axis=2)
    return y.reshape(batch, -1, features)[:, :length]


def _padded(x, before, length):
    """Returns x with zeros before it and zeros after it, or its end cut off, to a length."""
    after = length - before - x.shape[1]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (before, after, 0), (0, 0, 0)))


def kernel_gradient(x: jax.Array, grad: jax.Array, padding: int, dilation: int) -> jax.Array:
    """Returns the gradient of a kernel [k, in, out], given x and the output's gradient.

    One correlation over a single sequence, as XLA transposes one twenty times as quickly as a
    batch; zeros in `grad` keep neighbours apart. Written out, because XLA's own form becomes a
    plain loop, hundreds of times slower, for an even kernel or inside a conditional.
    """
    x = jnp.pad(x, ((0, 0), (padding, padding), (0, 0)))
    gap = x.shape[1] - grad.shape[1]
    x = x.reshape(-1, x.shape[2])
    grad = jnp.pad(grad, ((0, 0), (0, gap), (0, 0))).reshape(-1, grad.shape[2])
    grad = grad[: len(grad) - gap]
    size = _SAMPLES if max(x.shape[1], grad.shape[1]) <= _NARROW else len(grad)
    pieces = -(-len(grad) // size)
    x, grad = (jnp.pad(y, ((0, pieces * size - len(grad)), (0, 0))) for y in (x, grad))

    def piece(i):
        seen = lax.dynamic_slice_in_dim(x, i * size, size + gap)
        out = lax.dynamic_slice_in_dim(grad, i * size, size)
        return lax.conv_general_dilated(
            seen.T[:, :, None], out[:, None], (dilation,), "VALID", dimension_numbers=_LAYOUT
        )

    return sum_over(piece, pieces).transpose(1, 0, 2)


def strided_conv(x: jax.Array, kernel: jax.Array, padding: int, stride: int) -> jax.Array:
    """Convolution that keeps every `stride`-th output.

    `stride` neighbouring samples become the channels of one. XLA's own gradient is a plain loop.
    """
    size, channels, features = kernel.shape
    taps = math.ceil(size / stride)
    length = (x.shape[1] + 2 * padding - size) // stride + 1
    x = _padded(x, padding, (length + taps - 1) * stride)
    x = x.reshape(x.shape[0], -1, stride * channels)
    kernel = jnp.pad(kernel, ((0, taps * stride - size), (0, 0), (0, 0)))
    return conv(x, kernel.reshape(taps, stride * channels, features), 0, 1)


def grouped(convolve, x: jax.Array, kernel: jax.Array, groups: int) -> jax.Array:
    """Applies `convolve(x, kernel)` to each group of channels."""
    parts = zip(jnp.split(x, groups, axis=2), jnp.split(kernel, groups, axis=2), strict=True)
    return jnp.concatenate([convolve(part, weights) for part, weights in parts], axis=2)


def materialized(tree):
    """Returns arrays as they are, written to memory before anything reads them.

    XLA would rather make the samples of a long chain anew for each of their readers: BigVGAN's
    activation of 10,000 samples of 384 channels took 132 ms and not 10.
    """
    return lax.optimization_barrier(tree) if jax.default_backend() == "cpu" else tree


def filtered(x: jax.Array, taps: np.ndarray, start: int, length: int) -> jax.Array:
    """Returns sum_i taps[i] x[:, start + i + t] for t < length: one filter for every channel."""
    return _filtered(x, tuple(map(float, taps)), start, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _filtered(x, taps, start, length):
    slices = (lax.slice_in_dim(x, start + i, start + i + length, axis=1) for i in range(len(taps)))
    return sum(tap * part for tap, part in zip(taps, slices, strict=True))


def _filtered_forward(x, taps, start, length):
    return _filtered(x, taps, start, length), x.shape[1]


def _filtered_backward(taps, start, length, whole, grad):
    # A filter again: XLA would add up padded copies of the gradient.
    edges = (start + len(taps) - 1, whole - start - length)
    grad = materialized(jnp.pad(grad, ((0, 0), edges, (0, 0))))
    return (_filtered(grad, taps[::-1], 0, whole),)


_filtered.defvjp(_filtered_forward, _filtered_backward)
