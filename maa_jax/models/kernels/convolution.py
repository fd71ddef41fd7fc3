"""Convolutions and filters, and their forms for CPUs; see the package's docstring."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from maa_jax.models.kernels import cpu
from maa_jax.models.kernels.bilinear import bilinear

Pair = tuple[int, int]


def _xla_conv(x, kernel, *, stride, padding, dilation, groups):
    axes = ("NWC", "WIO", "NWC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=axes,
        feature_group_count=groups,
    )


_conv, _conv_left = bilinear("conv", _xla_conv, cpu.conv, cpu.conv_left, cpu.conv_right)


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: Pair = (1, 1),
    padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of x [b, h, w, in] with a kernel [kh, kw, in / groups, out].

    Args:
      x: input [b, h, w, in].
      kernel: kernel [kh, kw, in / groups, out], of the input's type.
      stride: stride on either axis.
      padding: zero padding ((top, bottom), (left, right)).
      dilation: dilation on either axis.
      groups: number of groups of channels; each output channel depends on its own group.

    Returns:
      [b, h', w', out].
    """
    if kernel.shape[:2] == stride == (1, 1) and padding == ((0, 0), (0, 0)) and groups == 1:
        return x @ kernel[0, 0]  # not flattened: that would copy x on a TPU
    return _conv(x, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)


def conv1d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Cross-correlation of x [b, t, in] with a kernel [k, in / groups, out]: [b, t', out].

    `padding` zeros are added at either end; for the rest see `conv2d`.
    """
    pads = ((padding, padding),)
    return _conv(x, kernel, stride=(stride,), padding=pads, dilation=(dilation,), groups=groups)


def conv_transpose1d(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int = 0
) -> jax.Array:
    """Transposed convolution of x [b, t, in] with a kernel [k, out, in].

    It is the adjoint, in the input, of a `conv1d` with that kernel, stride and padding.

    Returns:
      [b, (t - 1) * stride + k - 2 * padding, out].
    """
    size, features, _ = kernel.shape
    length = (x.shape[1] - 1) * stride + size - 2 * padding
    return _conv_left(
        x,
        kernel,
        shape=(x.shape[0], length, features),
        stride=(stride,),
        padding=((padding, padding),),
        dilation=(1,),
        groups=1,
    )


def upsample2d(x: jax.Array) -> jax.Array:
    """Nearest-neighbour 2x upsampling: [b, h, w, c] to [b, 2 h, 2 w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def _xla_upsample_conv2d(x, kernel):
    return conv2d(upsample2d(x), kernel, padding=((1, 1), (1, 1)))


def _cpu_upsample_conv2d(x, kernel):
    """Computes all outputs with 16 products instead of 36.

    On either axis an output, even or odd, depends on two positions, one of them by two taps: that
    makes four kernels [2, 2, in, out].
    """

    def kernels(kernel, axis):
        first, middle, last = (lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
        both = lambda a, b: jnp.concatenate([a, b], axis)
        return both(first, middle + last), both(first + middle, last)

    b, h, w, _ = x.shape
    pads = ((1, 0), (0, 1))
    rows = [
        jnp.stack(
            [
                conv2d(x, kernel, padding=(above, beside))
                for kernel, beside in zip(kernels(row, 1), pads, strict=True)
            ],
            axis=3,
        )
        for row, above in zip(kernels(kernel, 0), pads, strict=True)
    ]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, -1)


_upsample_conv2d, _ = bilinear("upsample_conv2d", _xla_upsample_conv2d, _cpu_upsample_conv2d)


def upsample_conv2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Nearest-neighbour 2x upsampling, and a convolution with zero padding of one position.

    Args:
      x: input [b, h, w, in].
      kernel: kernel [3, 3, in, out].

    Returns:
      [b, 2 h, 2 w, out].
    """
    return _upsample_conv2d(x, kernel)


def _xla_filter1d(x, taps, *, start, length):
    parts = (lax.slice_in_dim(x, start + i, start + i + length, axis=1) for i in range(len(taps)))
    return sum(tap * part for tap, part in zip(taps, parts, strict=True))


def _cpu_filter1d(x, taps, **options):
    # XLA would recompute the elements of a long chain of operations for each tap that reads them.
    return _xla_filter1d(lax.optimization_barrier(x), taps, **options)


def _cpu_filter1d_left(y, taps, *, shape, start, length):
    # Another filter, where XLA would sum padded copies of the gradient.
    y = jnp.pad(y, ((0, 0), (start + len(taps) - 1, shape[1] - start - length), (0, 0)))
    return _cpu_filter1d(y, taps[::-1], start=0, length=shape[1])


_filter1d, _ = bilinear("filter1d", _xla_filter1d, _cpu_filter1d, _cpu_filter1d_left)


def filter1d(x: jax.Array, taps: np.ndarray, start: int, length: int) -> jax.Array:
    """Applies one filter to every channel: sum_i taps[i] x[:, start + i + t] for t < length.

    Args:
      x: input [b, t, channels].
      taps: filter taps [n].
      start: position of the first input sample.
      length: number of results.

    Returns:
      [b, length, channels].
    """
    return _filter1d(x, jnp.asarray(taps, x.dtype), start=start, length=length)
