"""Layers that the two-dimensional networks share, in PyTorch's conventions, channels last."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from maa_jax.models import kernels

# PyTorch's default for linear and convolution weights: uniform within +-1/sqrt(fan_in).
default_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zeros_init = nnx.initializers.zeros_init()

Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> jax.Array:
    """Two-dimensional cross-correlation with PyTorch's meaning of every argument.

    Args:
      x: input [b, h, w, in].
      kernel: kernel [kh, kw, in / groups, out].
      stride: stride, one number or one for each axis.
      padding: zero padding, one number, one for each axis, or ((top, bottom), (left, right)).
      dilation: dilation, one number or one for each axis.
      groups: number of groups of channels.

    Returns:
      [b, h', w', out].
    """
    high, wide = (padding, padding) if isinstance(padding, int) else padding
    return kernels.conv2d(
        x,
        kernel,
        stride=_pair(stride),
        padding=(_pair(high), _pair(wide)),
        dilation=_pair(dilation),
        groups=groups,
    )


class Conv(nnx.Module):
    """A two-dimensional convolution, PyTorch's `Conv2d`, on [b, h, w, channels].

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: size of the kernel, one number or one for each axis.
      stride: stride; see `conv2d`.
      padding: zero padding; see `conv2d`.
      dilation: dilation; see `conv2d`.
      groups: number of groups of channels.
      use_bias: whether a bias is added.
      kernel_init: initializer of the kernel; the bias starts at zero.
      dtype: type of the computation; parameters are float32.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: Padding = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = default_init,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        shape = (*_pair(kernel_size), in_features // groups, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(out_features, jnp.float32)) if use_bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, in] to [b, h', w', out]."""
        kernel = self.kernel[...].astype(self.dtype)
        x = conv2d(
            x.astype(self.dtype), kernel, self.stride, self.padding, self.dilation, self.groups
        )
        return self._add_bias(x)

    def _add_bias(self, x):
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class PreciseConv(Conv):
    """A convolution in float32, at the highest precision, whatever its network computes in.

    For the ends of a network: a mel or latent rounded to 8 bits is off by more than all roundings
    in between add up to. Its arguments are those of `Conv`, without `dtype`.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, in] to [b, h', w', out], float32."""
        with jax.default_matmul_precision("highest"):
            return super().__call__(x)


class UpsampleConv(Conv):
    """Nearest-neighbour 2x upsampling and a 3 x 3 convolution, padded by one.

    Args:
      in_features: input channels.
      out_features: output channels.
      dtype: type of the computation; parameters are float32.
      rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(in_features, out_features, 3, padding=1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, h, w, in] to [b, 2 h, 2 w, out]."""
        kernel = self.kernel[...].astype(self.dtype)
        return self._add_bias(kernels.upsample_conv2d(x.astype(self.dtype), kernel))


# PyTorch's dense layer, and its initialisation, on [..., in].
Linear = functools.partial(nnx.Linear, kernel_init=default_init)


class GroupNorm(nnx.Module):
    """Group normalisation over every axis between the first and the last, in float32.

    Args:
      features: channels.
      num_groups: number of groups of consecutive channels that share their statistics.
      epsilon: constant added to the variance; PyTorch's networks differ in it.
      dtype: type of the result.
    """

    def __init__(
        self,
        features: int,
        *,
        num_groups: int,
        epsilon: float,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        del rngs  # nothing is random, but every layer takes them
        if features % num_groups:
            raise ValueError(
                f"norm_num_groups={num_groups} does not divide a width of {features}: choose "
                "widths that are multiples of it"
            )
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.num_groups, self.epsilon, self.dtype = num_groups, epsilon, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises [b, ..., features]."""
        x = x.astype(jnp.float32)
        grouped = (x.shape[0], self.num_groups, -1)
        axes = tuple(range(1, x.ndim - 1))
        # Sums per channel first, then over a group's channels: the large array is read in memory
        # order, and normalising it takes one multiplication and one addition.
        spread = lambda m: jnp.broadcast_to(m, (*m.shape[:2], x.shape[-1] // self.num_groups))
        mean = x.mean(axes).reshape(grouped).mean(-1, keepdims=True)
        square = jnp.square(x).mean(axes).reshape(grouped).mean(-1, keepdims=True)
        rate = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + self.epsilon)
        mean, rate = (spread(m).reshape(x.shape[0], -1) for m in (mean, rate))
        gain = rate * self.scale[...]
        offset = self.bias[...] - mean * gain
        wide = lambda m: jnp.expand_dims(m, axes)
        return (x * wide(gain) + wide(offset)).astype(self.dtype)


# Added to attention scores where a query may not attend to a key. Finite, so that a query without
# any key gets an average and not NaN.
MASK_VALUE = -1e30


def key_bias(attention_mask: jax.Array | None) -> jax.Array | None:
    """Returns the bias [b, 1, 1, n] for a mask [b, n] that is non-zero for keys to attend to."""
    if attention_mask is None:
        return None
    return jnp.where(attention_mask != 0, 0.0, MASK_VALUE)[:, None, None, :]


def remat(module: nnx.Module, *args: jax.Array) -> jax.Array:
    """Applies a module, keeping only its inputs for the backward pass (rematerialisation)."""
    # Not nnx.remat: it writes to the module, which may belong to an outer trace.
    graphdef, state = nnx.split(module)
    return jax.checkpoint(lambda state, *args: nnx.merge(graphdef, state)(*args))(state, *args)
