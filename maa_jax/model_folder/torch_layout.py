"""Strict conversion of parameters to and from PyTorch's names and layouts.

Modules here have the attribute names of the PyTorch classes, so the path of a parameter joined by
dots is its PyTorch name, except for the leaf: kernel, scale and embedding are `weight`, mean and
var are `running_mean` and `running_var`. Kernels differ only in layout: [*space, in, out] here is
[out, in, *space] in PyTorch (a transposed convolution, which flax stores as [*space, out, in] with
`transpose_kernel=True`, is [in, out, *space] in PyTorch by the same rule).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_KERNELS = ("kernel", "weight_v", "weight_g")
# Counters and constants that PyTorch stores with the parameters and no network here reads.
_IGNORED = ("num_batches_tracked", "position_ids")
# Types of stored parameters. Integers are those of a quantized network, whose scales are elsewhere.
_FLOATS = ("float64", "float32", "float16", "bfloat16")
_LISTED = 20  # problems that one error lists


def _walk(tree: Mapping, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, (*path, key))
        else:
            yield (*path, key), value


def torch_name(path: tuple) -> str:
    """Returns the PyTorch name of the parameter at a path, a tuple of str and int keys."""
    *parents, leaf = map(str, path)
    return ".".join([*parents, _LEAVES.get(leaf, leaf)])


def is_ignored(name: str) -> bool:
    """Whether an entry of PyTorch's file is a counter or constant that no network here reads."""
    return name.rsplit(".", 1)[-1] in _IGNORED


def shapes(state: nnx.State) -> dict[str, tuple[int, ...]]:
    """Returns {PyTorch name: shape in PyTorch's layout} of the arrays of a module's state."""
    found = {}
    for path, value in _walk(nnx.to_pure_dict(state)):
        axes = _torch_axes(path, len(value.shape))
        found[torch_name(path)] = tuple(value.shape[axis] for axis in axes)
    return found


def _torch_axes(path: tuple, ndim: int) -> tuple[int, ...]:
    """Returns the permutation of axes from our layout to PyTorch's."""
    if path[-1] not in _KERNELS or ndim < 2:
        return tuple(range(ndim))
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns {PyTorch name: array in PyTorch's layout} of a nested dict of arrays."""
    tensors = {}
    for path, value in _walk(params):
        value = np.asarray(value)
        value = value.transpose(_torch_axes(path, value.ndim))
        tensors[torch_name(path)] = np.require(value, requirements="C")  # scalars stay scalars
    return tensors


def from_torch(
    module: nnx.Module | nnx.State | Mapping[str, Any],
    tensors: Mapping[str, Any],
    *,
    rename: Callable[[str], str] | None = None,
) -> dict[str, Any]:
    """Returns the nested dict of arrays that `module` expects, from PyTorch tensors.

    Args:
      module: module (concrete, or abstract from `nnx.eval_shape`), its state, or a nested dict of
        anything with a shape and a dtype.
      tensors: {name: array}; counters and constants such as `num_batches_tracked` are skipped.
      rename: function from a name in `tensors` to one in `module`; by default they are the same.

    Raises:
      ValueError: names are missing or unknown, shapes differ, or values are not finite floats; all
        are listed.
    """
    if isinstance(module, nnx.Module):
        module = nnx.state(module)
    if isinstance(module, nnx.State):
        module = nnx.to_pure_dict(module)
    given: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems = []
    for name, value in tensors.items():
        if is_ignored(name):
            continue
        new = rename(name) if rename else name
        if new in given:
            problems.append(f"twice: {new}, as {origin[new]} and as {name}")
        given[new], origin[new] = value, name

    # All are compared before any is read: `tensors` may be in a file, and larger than memory.
    found: list[tuple[tuple, Any, Any]] = []
    for path, expected in _walk(module):
        name = torch_name(path)
        if name not in given:
            problems.append(f"missing: {name}")
            continue
        value = given.pop(name)
        value = value if hasattr(value, "shape") else np.asarray(value)
        wanted = tuple(expected.shape[a] for a in _torch_axes(path, len(expected.shape)))
        if tuple(value.shape) != wanted:
            problems.append(f"shape of {name}: {tuple(value.shape)}, expected {wanted}")
        elif jnp.issubdtype(expected.dtype, jnp.floating) and str(value.dtype) not in _FLOATS:
            problems.append(f"type of {name}: {value.dtype}, expected a float")
        found.append((path, expected, value))
    problems += [f"no place for: {name}" for name in given]
    _raise(problems, "do not fit the network (is the configuration that of these weights?)")

    filled: dict[str, Any] = {}
    for path, expected, value in found:
        axes = _torch_axes(path, len(expected.shape))
        value = np.asarray(value).transpose(np.argsort(axes))
        with np.errstate(over="ignore"):  # reported below, by name
            value = np.require(value, jnp.dtype(expected.dtype), "C")
        if not np.isfinite(value).all():
            problems.append(f"{torch_name(path)}: NaN, or beyond {value.dtype}")
        elif path[-1] == "var" and (value < 0).any():
            problems.append(f"{torch_name(path)}: a negative variance")
        node = filled
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    _raise(problems, "hold values that no network can have")
    return filled


def _raise(problems: list[str], what: str) -> None:
    """Raises a ValueError that lists problems, of which there may be thousands, unless none."""
    if problems:
        lines = problems[:_LISTED] + ["..."] * (len(problems) > _LISTED)
        raise ValueError(f"{len(problems)} tensors {what}:\n  " + "\n  ".join(lines))
