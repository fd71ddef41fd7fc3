"""Convolution, filters and attention: the only code that depends on the type of processor.

Each function consists of XLA's own operations, with another form in programs compiled for CPUs
where that is faster. The platform that a program is lowered for decides, not the machine that
lowers it: a program lowered for a TPU topology on a CPU host is the TPU's. All can be
differentiated in forward and reverse mode, any number of times.

With MAA_JAX_CPU_KERNELS=0 in the environment, CPUs use the common forms too. It is read once, when
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
