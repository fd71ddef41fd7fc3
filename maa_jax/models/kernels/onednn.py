"""oneDNN's matrix products and convolutions, which jaxlib brings along but does not use by itself.

On CPUs they are quicker than XLA's own. jaxlib calls them by names that it does not document, so
only versions of it are trusted for which the tests passed, and everything here has XLA's own
operation as its other way. Programs that hold such calls cannot be written to JAX's persistent
compilation cache, and jaxlib 0.11 and 0.12 end the process when they try: where one is set, or was
and is still open, XLA's own are used.
"""

import functools
import json
import platform
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import jaxlib
from jax import lax
from jax._src import compilation_cache  # nothing public tells whether a cache is open

# A call that a version of jaxlib reads otherwise would end the process.
_TRUSTED = ("0.10.", "0.11.", "0.12.")
# With fewer channels of a convolution, or fewer rows or columns of a matrix, XLA is as quick; past
# so many columns it is quicker.
_NARROW, _SMALL, _WIDEST = 64, 32, 2048


def usable() -> bool:
    """Whether programs traced now may hold oneDNN's operations."""
    return (
        _held()
        and not jax.config.jax_compilation_cache_dir
        and compilation_cache._cache is None
        and jax.default_backend() == "cpu"
        and jax.device_count() == 1  # the partitioner would gather the operands of such a call
    )


@functools.cache
def _held() -> bool:
    trusted = jaxlib.__version__.startswith(_TRUSTED)
    return trusted and sys.platform == "linux" and platform.machine() == "x86_64"


def suits(x: jax.Array) -> bool:
    """Whether oneDNN's operations may be used on x."""
    return x.dtype == jnp.float32 and usable()


def suits_conv(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv` is worth it for a kernel [..., in, out]."""
    return min(kernel.shape[-2:]) >= _NARROW and suits(x)


def conv(
    x: jax.Array,
    kernel: jax.Array,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    flipped: bool = False,
) -> jax.Array:
    """Convolution of x [b, ..., in] with a kernel [..., in, out] over one or two axes.

    With `flipped`, of x [b, ..., out] with the kernel that leads back: its taps in reverse, its
    last axes swapped. It has no gradient: callers bring their own.
    """
    spatial = x.ndim - 2
    span = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    if not all(0 <= n < s for s, ends in zip(span, padding, strict=True) for n in ends):
        # Cropping, and outputs that see zeros alone, are not for oneDNN.
        edges = ((0, 0, 0), *((lo, hi, 0) for lo, hi in padding), (0, 0, 0))
        x, padding = lax.pad(x, jnp.zeros((), x.dtype), edges), [(0, 0)] * spatial
    if flipped and x.size < kernel.size:
        # The smaller is turned round: x and the result, or the kernel.
        turned = lambda x: jnp.flip(x, range(1, spatial + 1))
        padding = [(hi, lo) for lo, hi in padding]
        return turned(_conv(turned(x), kernel, stride, padding, dilation, True))
    if flipped:
        kernel = jnp.flip(kernel, range(spatial))
    return _conv(x, kernel, stride, padding, dilation, flipped)


def _conv(x, kernel, stride, padding, dilation, swapped):
    """Convolves; if `swapped`, with a kernel [..., out, in]."""
    spatial = x.ndim - 2
    span = [d * (k - 1) + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
    sizes = [
        (n + lo + hi - s) // step + 1
        for n, (lo, hi), s, step in zip(x.shape[1:-1], padding, span, stride, strict=True)
    ]
    data = {
        "batch_dim": 0,
        "spatial_dims": list(range(1, spatial + 1)),
        "feature_dim": spatial + 1,
    }
    taps = {
        "spatial_dims": list(range(spatial)),
        "input_feature_dim": spatial + swapped,
        "output_feature_dim": spatial + 1 - swapped,
    }
    window = {
        "size": list(kernel.shape[:spatial]),
        "pad_left": [lo for lo, _ in padding],
        "pad_right": [hi for _, hi in padding],
        "strides": list(stride),
        "window_dilations": list(dilation),
    }
    config = {
        "dims": x.ndim,
        "input": {"data": data},
        "kernel": {"filter": taps},
        "output": {"data": data},
        "window": window,
        "feature_groups": 1,
    }
    shape = (x.shape[0], *sizes, kernel.shape[spatial + 1 - swapped])
    return _call("convolution", {"onednn_conv_config": config}, shape, x, kernel)


def matmul(
    a: jax.Array,
    b: jax.Array,
    transpose_a: bool = False,
    transpose_b: bool = False,
    preferred_element_type: jnp.dtype | None = None,
) -> jax.Array:
    """Product of matrices, their last two axes swapped if asked for; XLA's where that is quicker.

    Args:
      a: [..., m, k], or [..., k, m] to be transposed.
      b: [..., k, n], or [..., n, k] to be transposed.
      preferred_element_type: of the result, where it is not to be theirs.

    Returns:
      [..., m, n].
    """
    m, k = a.shape[:-3:-1] if transpose_a else a.shape[-2:]
    n = b.shape[-2] if transpose_b else b.shape[-1]
    if min(m, k, n) >= _SMALL and n <= _WIDEST and suits(a) and suits(b):
        return _matmul(a, b, transpose_a, transpose_b)
    batch = tuple(range(a.ndim - 2))
    contract = ((a.ndim - 1 - transpose_a,), (b.ndim - 2 + transpose_b,))
    return lax.dot_general(
        a, b, (contract, (batch, batch)), preferred_element_type=preferred_element_type
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _matmul(a, b, transpose_a, transpose_b):
    m = a.shape[-1] if transpose_a else a.shape[-2]
    n = b.shape[-2] if transpose_b else b.shape[-1]
    config = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    return _call("matmul", {"onednn_matmul_config": config}, (*a.shape[:-2], m, n), a, b)


def _forward(a, b, transpose_a, transpose_b):
    return _matmul(a, b, transpose_a, transpose_b), (a, b)


def _backward(transpose_a, transpose_b, saved, grad):
    a, b = saved
    if transpose_a:
        da = matmul(b, grad, transpose_b, True)
    else:
        da = matmul(grad, b, False, not transpose_b)
    if transpose_b:
        db = matmul(grad, a, True, transpose_a)
    else:
        db = matmul(a, grad, not transpose_a, False)
    return da, db


_matmul.defvjp(_forward, _backward)


def _call(name, config, shape, *operands):
    return jax.ffi.ffi_call(
        f"__onednn${name}",
        jax.ShapeDtypeStruct(shape, operands[0].dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"outer_dimension_partitions": [], **config}),
        vmap_method="sequential",
    )(*operands)
