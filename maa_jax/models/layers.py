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


# XLA's CPU gradients of a convolution run far below the speed of its forward pass, so here they are
# forward convolutions and matrix products. Both are ordinary operations: the gradient can be
# differentiated again.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv2d_cpu(x, kernel, stride, padding, dilation):
    return _conv(x, kernel, stride, padding, dilation)


def _conv2d_forward(x, kernel, stride, padding, dilation):
    return _conv(x, kernel, stride, padding, dilation), (x, kernel)


def _conv2d_backward(stride, padding, dilation, saved, grad):
    x, kernel = saved
    if stride == (1, 1):
        back = _reversed_padding(kernel.shape, padding, dilation)
        dx = conv2d(grad, kernel[::-1, ::-1].swapaxes(2, 3), 1, back, dilation)
    elif dilation == (1, 1):
        dx = _strided_input_gradient(grad, kernel, x.shape, stride, padding)
    else:
        (dx,) = jax.vjp(lambda x: _conv(x, kernel, stride, padding, dilation), x)[1](grad)
    return dx, _kernel_gradient(x, grad, kernel.shape, stride, padding, dilation)


_conv2d_cpu.defvjp(_conv2d_forward, _conv2d_backward)


def _reversed_padding(shape, padding, dilation):
    """Returns the padding with which the flipped kernel leads back from output to input."""
    reach = [d * (k - 1) for d, k in zip(dilation, shape[:2], strict=True)]
    return tuple((r - lo, r - hi) for r, (lo, hi) in zip(reach, padding, strict=True))


def _strided_input_gradient(grad, kernel, shape, stride, padding):
    """Returns the gradient [b, h, w, in] of the input of a strided convolution.

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
    dx = conv2d(grad, kernel, 1, (th - 1, tw - 1))
    b, rows, columns, _ = dx.shape
    dx = dx.reshape(b, rows, columns, sh, sw, width_in).transpose(0, 1, 3, 2, 4, 5)
    dx = dx.reshape(b, rows * sh, columns * sw, width_in)
    (top, _), (left, _) = padding
    end = [(0, max(0, n - have)) for n, have in ((top + h, rows * sh), (left + w, columns * sw))]
    return jnp.pad(dx, ((0, 0), *end, (0, 0)))[:, top : top + h, left : left + w]


# Output positions a matrix product of the kernel's gradient covers: few enough that the gathered
# input stays in the processor's cache, enough that a product is worth starting.
_CHUNK = 1024


def _kernel_gradient(x, grad, shape, stride, padding, dilation):
    """Returns the gradient of a convolution's kernel, [kh, kw, in, out].

    One matrix product for a band of output rows: what every tap of the kernel sees, channels
    first, times the output's gradient.
    """
    kh, kw, width_in, width_out = shape
    if 4 * width_out <= width_in and stride == (1, 1):
        # What is gathered is kh * kw times its size: gather the slimmer side.
        back = _reversed_padding(shape, padding, dilation)
        swapped = (kh, kw, width_out, width_in)
        return _kernel_gradient(grad, x, swapped, stride, back, dilation)[::-1, ::-1].swapaxes(2, 3)
    b, h, w, _ = grad.shape
    rows = max(1, min(h, _CHUNK // w))
    bands = -(-h // rows)
    seen = lambda n, i: (n - 1) * stride[i] + (shape[i] - 1) * dilation[i] + 1  # by n outputs
    # Pads, and crops what no output sees; the last band may reach past the end.
    low = [lo for lo, _ in padding]
    high = [seen(n, i) - x.shape[1 + i] - low[i] for i, n in enumerate((bands * rows, w))]
    edges = ((0, 0, 0), (0, 0, 0), *((lo, hi, 0) for lo, hi in zip(low, high, strict=True)))
    x = lax.pad(x.transpose(0, 3, 1, 2), jnp.zeros((), x.dtype), edges)
    grad = jnp.pad(grad, ((0, 0), (0, bands * rows - h), (0, 0), (0, 0)))

    def band(n, i):
        part = lax.dynamic_slice(
            x, (n, 0, i * rows * stride[0], 0), (1, width_in, seen(rows, 0), x.shape[3])
        )[0]
        taps = [
            part[
                :,
                top : top + (rows - 1) * stride[0] + 1 : stride[0],
                left : left + (w - 1) * stride[1] + 1 : stride[1],
            ]
            for top in range(0, kh * dilation[0], dilation[0])
            for left in range(0, kw * dilation[1], dilation[1])
        ]
        out = lax.dynamic_slice(grad, (n, i * rows, 0, 0), (1, rows, w, width_out))
        return jnp.stack(taps).reshape(-1, rows * w) @ out.reshape(-1, width_out)

    def add(total, index):
        return total + band(index // bands, index % bands), None

    if b * bands == 1:
        return band(0, 0).reshape(shape)
    zero = jnp.zeros((kh * kw * width_in, width_out), grad.dtype)
    return lax.scan(add, zero, jnp.arange(b * bands))[0].reshape(shape)


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
