"""Convolutions over time for vocoders and waveform discriminators, with optional weight norm.

Arrays are `[batch, time, channels]`; padding is PyTorch's: an integer, the same on both sides.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from maa_jax.models.kernels import cpu1d


def weight_norm(weight_v: jax.Array, weight_g: jax.Array) -> jax.Array:
    """Returns the kernel `g * v / ||v||`, the norm over all axes but the last.

    The last axis of a kernel is the first of PyTorch's weight, which its weight norm keeps: output
    channels, or input channels of a transposed convolution.

    Args:
      weight_v: [..., n] direction, in the layout of the kernel.
      weight_g: [1, ..., 1, n] length.
    """
    return weight_v * (weight_g / _norm(weight_v))


def _norm(weight_v):
    axes = tuple(range(weight_v.ndim - 1))
    return jnp.sqrt(jnp.sum(jnp.square(weight_v), axis=axes, keepdims=True))


def conv1d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> jax.Array:
    """Returns the convolution of x `[b, t, in]` with a kernel `[k, in / groups, out]`."""
    if jax.default_backend() == "cpu" and 1 in (stride, dilation):
        if stride > 1:
            convolve = lambda x, kernel: cpu1d.strided_conv(x, kernel, padding, stride)
        else:
            convolve = lambda x, kernel: cpu1d.conv(x, kernel, padding, dilation)
        return cpu1d.grouped(convolve, x, kernel, groups) if groups > 1 else convolve(x, kernel)
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride,),
        [(padding, padding)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def conv_transpose1d(
    x: jax.Array, kernel: jax.Array, *, stride: int, padding: int = 0
) -> jax.Array:
    """Returns PyTorch's ConvTranspose1d of x `[b, t, in]`.

    Each of the `stride` phases of the output is an ordinary convolution with every stride-th tap of
    the kernel; one convolution makes them side by side, so that no zeros are multiplied.

    Args:
      x: [b, t, in].
      kernel: [k, out, in], the layout of flax's ConvTranspose with transpose_kernel=True.
      stride: output samples for an input sample.
      padding: samples cut from either end of the full output.

    Returns:
      [b, (t - 1) * stride + k - 2 * padding, out].
    """
    size, features, channels = kernel.shape
    taps = math.ceil(size / stride)
    length = (x.shape[1] - 1) * stride + size - 2 * padding
    kernel = jnp.pad(kernel, ((0, taps * stride - size), (0, 0), (0, 0)))
    phases = kernel.reshape(taps, stride * features, channels)
    if jax.default_backend() == "cpu":
        y = cpu1d.conv(x, phases, taps - 1, 1, True)
    else:
        y = conv1d(x, phases[::-1].swapaxes(1, 2), padding=taps - 1)
    y = y.reshape(x.shape[0], -1, features)
    return lax.slice_in_dim(y, padding, padding + length, axis=1)


class NormConv(nnx.Module):
    """Kernel and bias of a convolution, with weight norm if asked for; subclasses convolve.

    Without weight norm it holds `kernel`, with it `weight_v` in the kernel's layout and `weight_g`
    `[1, ..., 1, n]`; both are trained, and the length starts as that of the direction.
    """

    def __init__(self, shape, features, use_bias, normalized, dtype, rngs):
        # PyTorch's default: uniform within 1 / sqrt(fan_in), kernel and bias alike.
        bound = 1 / math.sqrt(math.prod(shape[:-1]))
        kernel = jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
        if normalized:
            self.weight_v = nnx.Param(kernel)
            self.weight_g = nnx.Param(_norm(kernel))
        else:
            self.kernel = nnx.Param(kernel)
        if use_bias:
            self.bias = nnx.Param(
                jax.random.uniform(rngs.params(), (features,), minval=-bound, maxval=bound)
            )
        self.use_bias = use_bias
        self.normalized = normalized
        self.dtype = dtype

    def _kernel(self):
        if not self.normalized:
            return self.kernel[...].astype(self.dtype)
        return weight_norm(self.weight_v[...], self.weight_g[...]).astype(self.dtype)

    def _add_bias(self, y):
        return y + self.bias[...].astype(self.dtype) if self.use_bias else y


class Conv1d(NormConv):
    """Convolution over time, as torch.nn.Conv1d, with weight norm if asked for.

    Its kernel is [k, in / groups, out].
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        weight_norm: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, in_features // groups, out_features)
        super().__init__(shape, out_features, use_bias, weight_norm, dtype, rngs)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x `[b, t, in]`."""
        y = conv1d(
            x.astype(self.dtype),
            self._kernel(),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )
        return self._add_bias(y)


class ConvTranspose1d(NormConv):
    """Transposed convolution over time, as torch.nn.ConvTranspose1d.

    Its kernel is [k, out, in], as flax has it with transpose_kernel=True.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int = 0,
        use_bias: bool = True,
        weight_norm: bool = False,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, out_features, in_features)
        super().__init__(shape, out_features, use_bias, weight_norm, dtype, rngs)
        self.stride, self.padding = stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b, (t - 1) * stride + k - 2 * padding, out]` for x `[b, t, in]`."""
        y = conv_transpose1d(
            x.astype(self.dtype), self._kernel(), stride=self.stride, padding=self.padding
        )
        return self._add_bias(y)


def mean_of(blocks: Sequence[Callable[[jax.Array], jax.Array]], x: jax.Array) -> jax.Array:
    """Returns the mean of what `blocks` make of x [b, t, channels]."""
    total = blocks[0](x)
    for block in blocks[1:]:
        total = total + block(cpu1d.after(x, total))
    return total / len(blocks)


def split_weight_norm(params: dict) -> dict:
    """Returns a nested dict in which each `kernel` is a pair `weight_g`, `weight_v`."""
    if not isinstance(params, dict):
        return params
    if "kernel" not in params:
        return {name: split_weight_norm(value) for name, value in params.items()}
    rest = {k: v for k, v in params.items() if k != "kernel"}
    return {**rest, "weight_v": params["kernel"], "weight_g": np.asarray(_norm(params["kernel"]))}


def fold_weight_norm(params: dict) -> dict:
    """Returns a nested dict in which each pair `weight_g`, `weight_v` has become a `kernel`."""
    if not isinstance(params, dict):
        return params
    if "weight_g" not in params:
        return {name: fold_weight_norm(value) for name, value in params.items()}
    rest = {k: v for k, v in params.items() if k not in ("weight_g", "weight_v")}
    kernel = weight_norm(jnp.asarray(params["weight_v"]), jnp.asarray(params["weight_g"]))
    return {**rest, "kernel": kernel}
