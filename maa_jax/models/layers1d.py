"""Convolutions over time for vocoders and waveform discriminators, with optional weight norm.

Arrays are `[batch, time, channels]`; padding is PyTorch's: an integer, the same on both sides.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax.models import kernels


def weight_norm(weight_v: jax.Array, weight_g: jax.Array) -> jax.Array:
    """Returns the kernel `g * v / ||v||`, the norm over all axes but the last.

    The last axis of a kernel is the first of PyTorch's weight, over which its weight norm does not
    sum: output channels, or input channels of a transposed convolution.

    Args:
      weight_v: direction [..., n], in the layout of the kernel.
      weight_g: length [1, ..., 1, n].
    """
    return weight_v * (weight_g / _norm(weight_v))


def _norm(weight_v):
    axes = tuple(range(weight_v.ndim - 1))
    return jnp.sqrt(jnp.sum(jnp.square(weight_v), axis=axes, keepdims=True))


class NormConv(nnx.Module):
    """Kernel and bias of a convolution, optionally with weight norm; subclasses convolve.

    Without weight norm it holds `kernel`, with it `weight_v` in the kernel's layout and `weight_g`
    `[1, ..., 1, n]`; both are trained, and `weight_g` starts as the norm of `weight_v`.
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
    """Convolution over time, as torch.nn.Conv1d, optionally with weight norm.

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
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, in_features // groups, out_features)
        super().__init__(shape, out_features, use_bias, weight_norm, dtype, rngs)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves x `[b, t, in]`."""
        y = kernels.conv1d(
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
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (kernel_size, out_features, in_features)
        super().__init__(shape, out_features, use_bias, weight_norm, dtype, rngs)
        self.stride, self.padding = stride, padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b, (t - 1) * stride + k - 2 * padding, out]` for x `[b, t, in]`."""
        y = kernels.conv_transpose1d(
            x.astype(self.dtype), self._kernel(), stride=self.stride, padding=self.padding
        )
        return self._add_bias(y)


def dilated_pairs(
    channels: int, kernel_size: int, dilations: tuple[int, ...], **kwargs: Any
) -> tuple[nnx.List, nnx.List]:
    """Returns the dilated and the plain convolutions of a vocoder's residual block, in pairs.

    Args:
      channels: channels of their inputs and outputs.
      kernel_size: size of every kernel.
      dilations: dilation of the first convolution of each pair.
      **kwargs: further arguments of `Conv1d`.
    """

    def make(dilation: int) -> Conv1d:
        padding = dilation * (kernel_size - 1) // 2
        return Conv1d(channels, channels, kernel_size, padding=padding, dilation=dilation, **kwargs)

    return nnx.List(map(make, dilations)), nnx.List(make(1) for _ in dilations)


def mean_of(blocks: Sequence[Callable[[jax.Array], jax.Array]], x: jax.Array) -> jax.Array:
    """Returns the mean of the results of `blocks` for x [b, t, channels]."""
    total = blocks[0](x)
    for block in blocks[1:]:
        total = total + block(x)
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
