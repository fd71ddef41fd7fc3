"""Declared fields of configurations: type, bounds and choices of each, checked before any work.

@dataclasses.dataclass(frozen=True)
class UNetConfig:
    block_out_channels: tuple[int, ...] = schema.size((320, 640))
    layers_per_block: int = schema.size(2, most=8)

    def __post_init__(self):
        schema.check(self)

schema.build(UNetConfig, {"layers_per_block": 2.5}, "config.unet")
# ValueError: config.unet.layers_per_block=2.5: give a whole number from 1 to 8
"""

import dataclasses
import math
import numbers
import os
import reprlib
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from maa_jax.checks import nearest

Kind = TypeVar("Kind")

MISSING: Any = dataclasses.MISSING
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the values of a field may be, beside its type; the parts of a tuple share them.

    Attributes:
      least: smallest number.
      most: largest number.
      choices: values allowed; None for any.
      length: least and greatest number of parts of a tuple.
    """

    least: float | None = None
    most: float | None = None
    choices: Collection[Any] | None = None
    length: tuple[int, int] = (0, 1_000)


def field(
    default: Any = MISSING,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Collection[Any] | None = None,
    length: tuple[int, int] = (0, 1_000),
    default_factory: Any = MISSING,
) -> Any:
    """Declares a field of a dataclass with limits; see `Limits`."""
    limits = Limits(least, most, choices, length)
    return dataclasses.field(
        default=default, default_factory=default_factory, metadata={"limits": limits}
    )


def size(default: Any = MISSING, *, most: int = 65_536, **limits: Any) -> Any:
    """Declares a width, length or count, or a tuple of them: whole numbers from 1."""
    return field(default, least=1, most=most, **limits)


def rate(default: Any = MISSING) -> Any:
    """Declares a rate of dropout."""
    return field(default, least=0, most=0.99)


def epsilon(default: Any = MISSING) -> Any:
    """Declares what a normalisation adds to a variance."""
    return field(default, least=1e-16, most=0.1)


def check(config: Any, where: str = "") -> None:
    """Checks the type and the limits of every field of a dataclass.

    Args:
      config: the dataclass; usually called by its `__post_init__`.
      where: prefix of the fields' names in errors, such as "config.unet".

    Raises:
      ValueError: fields are invalid; all are named, with their value and what to give instead.
    """
    kinds = typing.get_type_hints(type(config))
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    _raise_all(_problems(type(config), kinds, values, where))


def build(
    kind: type[Kind], values: Mapping[str, Any], where: str = "", *, complete: bool = False
) -> Kind:
    """Makes a dataclass from a mapping, such as a block of a config or the content of a JSON file.

    Lists become tuples, and mappings the dataclasses that the fields' annotations name.

    Args:
      kind: the dataclass.
      values: values by the fields' names.
      where: name of the mapping in errors, such as "config.unet" or a file's path.
      complete: whether a key is an error if it is absent although its field has a default, which
        need not be what the writer of the mapping meant.

    Raises:
      ValueError: keys are unknown (the nearest is named) or missing, or values are invalid; all are
        named.
    """
    if not isinstance(values, Mapping) and not hasattr(values, "items"):
        raise ValueError(f"{where or kind.__name__}={shown(values)}: give keys and values")
    kinds = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    problems, given = [], {}
    for key, value in values.items():
        if key not in fields:
            near = nearest(str(key), list(fields))
            problems.append(f"{_join(where, key)} is not a key; did you mean {near!r}?")
        else:
            given[key] = _converted(kinds[key], value, _join(where, key), complete)
    for name, f in fields.items():
        default = f.default is not MISSING or f.default_factory is not MISSING
        if name not in given and not (fits(None, kinds[name]) if complete else default):
            problems.append(f"{_join(where, name)} is missing")
    problems += _problems(kind, kinds, given, where)
    _raise_all(problems)
    try:
        return kind(**given)
    except ValueError as error:  # fields that do not agree with each other
        raise ValueError(f"{where}: {error}" if where else str(error)) from error


def fits(value: Any, annotation: Any, limits: Limits = Limits()) -> bool:
    """Whether a value has the type of an annotation, and is within limits."""
    if annotation is Any:
        return True
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(fits(value, part, limits) for part in typing.get_args(annotation))
    if annotation in (None, types.NoneType):
        return value is None
    base = typing.get_origin(annotation) or annotation
    if base is tuple:
        if not isinstance(value, tuple):
            return False
        parts = typing.get_args(annotation)
        if not parts or parts[-1] is ...:
            low, high = limits.length
            part = parts[0] if parts else Any
            return low <= len(value) <= high and all(fits(v, part, limits) for v in value)
        return len(value) == len(parts) and all(
            fits(v, part, limits) for v, part in zip(value, parts, strict=True)
        )
    if base in (int, float):
        good = is_finite(value) and (base is float or isinstance(value, numbers.Integral))
        good = good and (limits.least is None or value >= limits.least)
        good = good and (limits.most is None or value <= limits.most)
    elif base is bool:
        good = isinstance(value, bool)
    elif base is str:
        good = isinstance(value, str | os.PathLike)
    else:
        good = isinstance(value, base)
    return good and (limits.choices is None or value in limits.choices)


def describe(annotation: Any, limits: Limits = Limits()) -> str:
    """Returns what an annotation and limits allow, in words: "a whole number from 1 to 64"."""
    if limits.choices is not None:
        return "one of " + ", ".join(map(repr, limits.choices))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [describe(part, limits) for part in typing.get_args(annotation)]
        return " or ".join(parts)
    if annotation in (None, types.NoneType):
        return "None"
    base = typing.get_origin(annotation) or annotation
    if base is tuple:
        parts = [part for part in typing.get_args(annotation) if part is not ...] or [Any]
        parts = [describe(part, limits) for part in parts]
        low, high = limits.length
        several = f"{low} to {high} entries" if limits.length != Limits.length else "entries"
        return f"{several}, each {parts[0]}" if len(set(parts)) == 1 else f"({', '.join(parts)})"
    if base in (int, float):
        low, high = limits.least, limits.most
        span = f" from {low} to {high}" if None not in (low, high) else ""
        span = span or (f" from {low}" if low is not None else "")
        span = span or (f" up to {high}" if high is not None else "")
        return ("a whole number" if base is int else "a number") + span
    names = {bool: "True or False", str: "a string", dict: "keys and values", Any: "a value"}
    return names.get(base, f"a {getattr(base, '__name__', base)}")


def shown(value: Any) -> str:
    """Returns a value as errors show it: its `repr`, cut if it is long."""
    return _REPR.repr(value)


def is_finite(value: Any) -> bool:
    """Whether a value is a real, finite number, and not a bool."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        return real and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _problems(
    kind: Any, kinds: Mapping[str, Any], values: Mapping[str, Any], where: str
) -> list[str]:
    """Returns a sentence for each invalid value."""
    problems = []
    for name, value in values.items():
        (declared,) = (f for f in dataclasses.fields(kind) if f.name == name)
        limits = declared.metadata.get("limits", Limits())
        if not fits(value, kinds[name], limits):
            remedy = describe(kinds[name], limits)
            problems.append(f"{_join(where, name)}={shown(value)}: give {remedy}")
    return problems


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


def _join(where: str, name: Any) -> str:
    return f"{where}.{name}" if where else str(name)


def _converted(annotation: Any, value: Any, where: str, complete: bool) -> Any:
    """Returns a plain value as its annotation has it: lists as tuples, mappings as dataclasses."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        annotation = parts[0]
    if dataclasses.is_dataclass(annotation) and hasattr(value, "items"):
        return build(typing.cast(type, annotation), value, where, complete=complete)
    if (typing.get_origin(annotation) or annotation) is tuple and isinstance(value, list | tuple):
        parts = list(typing.get_args(annotation)) or [Any]
        kinds = [parts[0]] * len(value) if parts[-1] is ... else parts
        if len(kinds) != len(value):
            return tuple(value)  # `fits` refuses it
        pairs = enumerate(zip(kinds, value, strict=True))
        return tuple(_converted(part, v, f"{where}[{i}]", complete) for i, (part, v) in pairs)
    return value
