"""Convolution, filters and attention: the only place that knows kinds of processors.

Each function is made of XLA's own operations, and has another form in programs that are compiled
for CPUs, where that is quicker. What a program is lowered for decides, not the machine that lowers
it: a program lowered for a TPU topology on a host with CPUs alone is the TPU's. All can be
differentiated forward and in reverse, any number of times.

MAA_JAX_CPU_KERNELS=0 in the environment leaves CPUs the common forms too. It is read once, when
this package is imported.
"""

from maa_jax.models.kernels.convolution import (
    conv1d,
    conv2d,
    conv_transpose1d,
    filter1d,
    upsample_conv2d,
)
from maa_jax.models.kernels.dot_product_attention import attention

__all__ = ["attention", "conv1d", "conv2d", "conv_transpose1d", "filter1d", "upsample_conv2d"]
