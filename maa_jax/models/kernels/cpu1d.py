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

from maa_jax.models.kernels.cpu2d import sum_over
from maa_jax.models.kernels.winograd import F43, F44, combine

_LAYOUT = ("NWC", "WIO", "NWC")

# With fewer channels XLA is 1.2 to 1.5 times as quick over an image one pixel high.
_NARROW = 64
# With fewer channels, Winograd's transforms cost more than the products that they save; with few
# taps that is so up to the second number.
_WINOGRAD, _WINOGRAD_SHORT, _SHORT = 128, 256, 5
# Samples from which a kernel's gradient is made at once where channels are few: all at once takes
# up to 1.8 times as long.
_SAMPLES = 2048


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def conv(
    x: jax.Array, kernel: jax.Array, padding: int, dilation: int, flipped: bool = False
) -> jax.Array:
    """Convolution of x [b, t, in], and gradients as quick as it is.

    With `flipped`, of x [b, t, out] by the kernel that leads back from output to input.
    """
    channels = min(kernel.shape[1:])
    enough = _WINOGRAD_SHORT if kernel.shape[0] < _SHORT else _WINOGRAD
    # Transforms cost less precise numbers too much.
    if channels >= enough and kernel.shape[0] > 2 and x.dtype == jnp.float32:
        return winograd(x, _led_back(kernel) if flipped else kernel, padding, dilation)
    return plain(x, kernel, padding, dilation, flipped)


def _led_back(kernel):
    return kernel[::-1].swapaxes(1, 2)


def _forward(x, kernel, padding, dilation, flipped):
    return conv(x, kernel, padding, dilation, flipped), (x, kernel)


def _backward(padding, dilation, flipped, saved, grad):
    x, kernel = saved
    back = dilation * (kernel.shape[0] - 1) - padding
    dx = conv(grad, kernel, back, dilation, not flipped)
    if flipped:
        x, grad, padding = grad, x, back
    return dx, kernel_gradient(x, grad, padding, dilation)


conv.defvjp(_forward, _backward)


def plain(
    x: jax.Array, kernel: jax.Array, padding: int, dilation: int, flipped: bool = False
) -> jax.Array:
    """Convolution by the operation that suits the number of channels."""
    if flipped:
        kernel = _led_back(kernel)
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


def winograd(x: jax.Array, kernel: jax.Array, padding: int, dilation: int) -> jax.Array:
    """Convolution with about half of the products: F(4, 3) for three taps, F(4, 4) for each four.

    Samples `dilation` apart are neighbours to the kernel: a tile is four rows of so many samples.
    The j-th four taps see at a tile what the first see j tiles later, so that one convolution over
    tiles sums up each product over all taps.
    """
    taps, channels, features = kernel.shape
    scheme = F43 if taps <= 3 else F44
    width = scheme.kernel.shape[1]
    groups = -(-taps // width)
    batch, length, _ = x.shape
    length += 2 * padding - dilation * (taps - 1)
    tiles = -(-length // (4 * dilation))
    x = _padded(x, padding, 4 * dilation * (tiles + groups))
    x = x.reshape(batch, tiles + groups, 4, dilation * channels)
    samples = [x[:, :-1, i] for i in range(4)] + [x[:, 1:, i] for i in range(width - 1)]
    # Padded at once: else each transform would make a kernel with weight norm anew.
    kernel = jnp.pad(kernel, ((0, groups * width - taps), (0, 0), (0, 0)))
    kernel = kernel.reshape(groups, width, channels, features)
    kernels = combine(scheme.kernel, [kernel[:, i] for i in range(width)])
    products = []
    for part, weights, row in zip(
        combine(scheme.input, samples), kernels, scheme.kernel, strict=True
    ):
        if taps < groups * width and not row[:-1].any():
            part, weights = part[:, :-1], weights[:-1]  # of the last group, it sees zeros alone
        products.append(plain(part.reshape(batch, -1, channels), weights, 0, dilation))
    rows = [y.reshape(batch, tiles, dilation * features) for y in products]
    y = jnp.stack(combine(scheme.output, rows), axis=2)
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


def after(x: jax.Array, other: jax.Array) -> jax.Array:
    """Returns x, on CPUs not before there is `other`; both are [b, t, channels].

    XLA would make branches at once, which takes more memory and is slower.
    """
    if jax.default_backend() != "cpu":
        return x
    return x + 0 * lax.stop_gradient(other[:, :1, :1])


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
