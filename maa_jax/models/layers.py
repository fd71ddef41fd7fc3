"""Layers that the two-dimensional networks share, in PyTorch's conventions, channels last."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

# PyTorch's default for linear and convolution weights: uniform within +-1/sqrt(fan_in).
default_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zeros_init = nnx.initializers.zeros_init()

Padding = int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


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
      x: [b, h, w, in].
      kernel: [kh, kw, in / groups, out].
      stride: one number, or one for each axis.
      padding: zeros on both sides, one number, one for each axis, or ((top, bottom), (left,
        right)).
      dilation: one number, or one for each axis.
      groups: of channels.

    Returns:
      [b, h', w', out].
    """
    stride, dilation, padding = _pair(stride), _pair(dilation), _pair(padding)
    padding = tuple(_pair(p) for p in padding)
    if kernel.shape[:2] == (1, 1) and stride == (1, 1) and padding == ((0, 0), (0, 0)):
        if groups == 1:
            return x @ kernel[0, 0]
    if jax.default_backend() == "cpu" and groups == 1:
        return _conv2d_cpu(x, kernel, stride, padding, dilation)
    return _conv(x, kernel, stride, padding, dilation, groups)


def _conv(x, kernel, stride, padding, dilation, groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


# XLA's CPU gradients of a convolution run far below the speed of its forward pass, so here the
# kernel's gradient is one matrix product a kernel tap, and the input's a forward convolution with
# the flipped kernel. Both are ordinary operations, so the gradient can be differentiated again.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d_cpu(x, kernel, stride, padding, dilation):
    return _conv(x, kernel, stride, padding, dilation)


def _conv2d_forward(x, kernel, stride, padding, dilation):
    return _conv(x, kernel, stride, padding, dilation), (x, kernel)


def _conv2d_backward(stride, padding, dilation, saved, grad):
    x, kernel = saved
    if stride == (1, 1):
        reach = [d * (k - 1) for d, k in zip(dilation, kernel.shape, strict=False)]
        flipped = [(r - lo, r - hi) for r, (lo, hi) in zip(reach, padding, strict=True)]
        dx = conv2d(grad, kernel[::-1, ::-1].swapaxes(2, 3), 1, tuple(flipped), dilation)
    else:
        _, pull = jax.vjp(lambda x: _conv(x, kernel, stride, padding, dilation), x)
        (dx,) = pull(grad)
    return dx, _kernel_gradient(x, grad, kernel.shape, stride, padding, dilation)


_conv2d_cpu.defvjp(_conv2d_forward, _conv2d_backward)


def _kernel_gradient(x, grad, shape, stride, padding, dilation):
    """Returns the gradient of a convolution's kernel, [kh, kw, in, out]."""
    kh, kw, width_in, width_out = shape
    _, h, w, _ = grad.shape
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows = grad.reshape(-1, width_out)
    taps = []
    for i in range(kh):
        for j in range(kw):
            top, left = i * dilation[0], j * dilation[1]
            seen = x[
                :,
                top : top + (h - 1) * stride[0] + 1 : stride[0],
                left : left + (w - 1) * stride[1] + 1 : stride[1],
            ]
            taps.append(seen.reshape(-1, width_in).T @ rows)
    return jnp.stack(taps).reshape(shape)


class Conv(nnx.Module):
    """A two-dimensional convolution, PyTorch's `Conv2d`, on [b, h, w, channels].

    Args:
      in_features, out_features: channels.
      kernel_size, stride, padding, dilation, groups: as in `conv2d`.
      use_bias: whether a bias is added.
      kernel_init: of the kernel; the bias starts at zero.
      dtype: in which it computes; parameters are float32.
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
        return x if self.bias is None else x + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Group normalisation over every axis between the first and the last, in float32.

    Args:
      features: channels.
      num_groups: of neighbouring channels that share their statistics.
      epsilon: added to the variance; PyTorch networks differ in it.
      dtype: of the result.
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
        del rngs  # nothing random, but every layer takes them
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
        # Sums over space by channel first, then over a group's channels: the large array is read in
        # its own order, and normalising it is one multiplication and one addition.
        spread = lambda m: jnp.broadcast_to(m, (*m.shape[:2], x.shape[-1] // self.num_groups))
        mean = x.mean(axes).reshape(grouped).mean(-1, keepdims=True)
        square = jnp.square(x).mean(axes).reshape(grouped).mean(-1, keepdims=True)
        rate = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0) + self.epsilon)
        mean, rate = (spread(m).reshape(x.shape[0], -1) for m in (mean, rate))
        gain = rate * self.scale[...]
        offset = self.bias[...] - mean * gain
        wide = lambda m: jnp.expand_dims(m, axes)
        return (x * wide(gain) + wide(offset)).astype(self.dtype)


def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Scaled dot-product attention, its softmax in float32.

    Args:
      query: [b, q, heads, d].
      key, value: [b, k, heads, d].

    Returns:
      [b, q, heads, d].
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def double(x: jax.Array) -> jax.Array:
    """Repeats every position of [b, h, w, c] twice on both axes: [b, 2h, 2w, c]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def recomputed(module: nnx.Module, *args: jax.Array) -> jax.Array:
    """Applies a module so that its backward pass computes it anew from its inputs."""
    # Not nnx.remat: it writes to the module, which may belong to an outer trace.
    graphdef, state = nnx.split(module)
    return jax.checkpoint(lambda state, *args: nnx.merge(graphdef, state)(*args))(state, *args)
