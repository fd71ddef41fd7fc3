"""Bilinear operations with separate implementations for CPUs.

Such an operation f(a, b) defines the trilinear form T(a, b, c) = <f(a, b), c>. The partial
derivatives of T are f and its two adjoints, <f(a, b), c> = <a, left(c, b)> = <b, right(a, c)>, and
each is the derivative or the transpose of the others. So three primitives cover every derivative of
f, forward and reverse, of any order, and each can have its own implementation for CPUs without a
custom differentiation rule.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# Read once: already compiled programs would not follow a change.
CPU_FORMS = os.environ.get("MAA_JAX_CPU_KERNELS", "1") != "0"

Form = Callable[..., jax.Array]


def bilinear(
    name: str, default: Form, cpu: Form, cpu_left: Form | None = None, cpu_right: Form | None = None
) -> tuple[Form, Form]:
    """Returns a function f(a, b, **options) that is `default`, or `cpu` in programs for CPUs.

    Its adjoint left(c, b, shape=a.shape, **options) is returned with it.

    The choice is made when a program is lowered, by its target platform. Under `jax.vmap` the
    function is `default` everywhere. The precision of matrix products is that of
    `jax.default_matmul_precision` where the function is traced, for its derivatives as well.

    Args:
      name: name of the operation in programs.
      default: implementation in JAX, linear in `a` and in `b`; options are hashable.
      cpu: implementation for CPUs.
      cpu_left: adjoint (c, b, shape=a.shape, **options) -> a for CPUs; by default the transpose of
        `cpu`.
      cpu_right: adjoint (a, c, shape=b.shape, **options) -> b for CPUs; by default the transpose of
        `cpu`.
    """
    value = _primitive(name, default, cpu)
    left = _primitive(f"{name}_left", _left(default), cpu_left or _left(cpu))
    right = _primitive(f"{name}_right", _right(default), cpu_right or _right(cpu))

    # A transpose rule gets the cotangent and both operands; the linear one is only a type.
    ad.defbilinear(
        value,
        lambda ct, a, b, **options: left.bind(ct, b, shape=a.aval.shape, **options),
        lambda ct, a, b, **options: right.bind(a, ct, shape=b.aval.shape, **options),
    )
    ad.defbilinear(
        left,
        lambda ct, c, b, shape, **options: value.bind(ct, b, **options),
        lambda ct, c, b, shape, **options: right.bind(ct, c, shape=b.aval.shape, **options),
    )
    ad.defbilinear(
        right,
        lambda ct, a, c, shape, **options: left.bind(c, ct, shape=a.aval.shape, **options),
        lambda ct, a, c, shape, **options: value.bind(a, ct, **options),
    )
    return _traced(value), _traced(left)


def _traced(primitive: Primitive) -> Form:
    def bind(*args: jax.Array, **options: Any) -> jax.Array:
        # An option of the primitive: its forms are traced when the program is lowered, outside of
        # the context in which it was bound.
        precision = jax.config.jax_default_matmul_precision
        return primitive.bind(*args, precision=precision, **options)

    return bind


def _at_precision(form: Form) -> Form:
    def traced(*args: jax.Array, precision: str | None, **options: Any) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return form(*args, **options)

    return traced


def _left(form: Form) -> Form:
    def adjoint(c, b, *, shape, **options):
        a = jax.ShapeDtypeStruct(shape, c.dtype)
        return jax.linear_transpose(lambda a: form(a, b, **options), a)(c)[0]

    return adjoint


def _right(form: Form) -> Form:
    def adjoint(a, c, *, shape, **options):
        b = jax.ShapeDtypeStruct(shape, a.dtype)
        return jax.linear_transpose(lambda b: form(a, b, **options), b)(c)[0]

    return adjoint


def _primitive(name: str, default: Form, cpu: Form) -> Primitive:
    primitive = Primitive(name)
    default, cpu = _at_precision(default), _at_precision(cpu)

    @primitive.def_impl
    def _(*args: jax.Array, **options: Any) -> jax.Array:
        return _compiled(primitive, tuple(options.items()))(*args)

    @primitive.def_abstract_eval
    def _(*args: jax.core.ShapedArray, **options: Any) -> jax.core.ShapedArray:
        out = jax.eval_shape(functools.partial(default, **options), *args)
        return jax.core.ShapedArray(out.shape, out.dtype)

    def batched(args, dims, **options):
        return jax.vmap(functools.partial(default, **options), dims)(*args), 0

    batching.primitive_batchers[primitive] = batched
    mlir.register_lowering(primitive, mlir.lower_fun(default, multiple_results=False))
    if CPU_FORMS:
        rule = mlir.lower_fun(cpu, multiple_results=False)
        mlir.register_lowering(primitive, rule, platform="cpu")
    return primitive


@functools.cache
def _compiled(primitive: Primitive, options: tuple[tuple[str, Any], ...]) -> Callable:
    """Returns a jitted program of one primitive, for calls outside `jax.jit`."""
    return jax.jit(functools.partial(primitive.bind, **dict(options)))
