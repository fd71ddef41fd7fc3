"""Options declared once: the fields of a frozen dataclass define the keywords of a call, the flags
of a program, the checks of both, and the record of their values.

    @dataclasses.dataclass(frozen=True)
    class Request(Options):
        steps: int = option(100, "Steps of the sampler.", least=1, most=1000)
        sampler: str = option("ddim", "The sampler.", choices=("ddim", "plms"))

    define_flags(Request)                    # --steps and --sampler
    request = from_flags(Request)            # checked
    request = Request(steps=50)              # checked, too
    request.record()                         # {"steps": 50, "sampler": "ddim"}

Nothing here needs JAX, so that a program's --help and mistakes in its flags answer at once.
"""

import dataclasses
import inspect
import os
import re
import textwrap
import types
import typing
from collections.abc import Callable, Collection
from typing import Any, Self, TypeVar

from maa_jax import schema
from maa_jax.checks import check_name, check_text
from maa_jax.files import user_path

REQUIRED: Any = dataclasses.MISSING
# Result of a check of a valid value.
FINE = ""


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Collection[str] | None = None,
    path: bool = False,
    check: Callable[[Any, Any], str] | None = None,
    flag: type | bool = True,
    repeated: bool = False,
    recorded: bool = True,
) -> Any:
    """Declares a field of an `Options`.

    Args:
      default: default value; `REQUIRED` for none.
      help: description of the option, with its unit; shown by --help.
      least: smallest number allowed.
      most: largest number allowed.
      choices: names allowed; an unknown one is an error that names the nearest.
      path: whether the value is a path, to be made absolute and its `~` expanded.
      check: function (value, all options) that returns `FINE`, or what to give instead, such as "a
        number from 0 to 1".
      flag: type of the flag where it is not that of the field; False for no flag.
      repeated: whether the flag may be given several times, for a tuple of strings.
      recorded: whether `record` includes the field.
    """
    metadata = dict(
        help=help,
        least=least,
        most=most,
        choices=choices,
        path=path,
        check=check,
        flag=flag,
        repeated=repeated,
        recorded=recorded,
    )
    if isinstance(default, list | dict):
        raise TypeError(f"default={default!r}: give a tuple or another constant")
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of options, which checks every field on construction.

    Raises:
      ValueError: a field is invalid; the error names it, its value and what to give instead.
    """

    def __post_init__(self):
        types_ = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.metadata["path"] and value is not None:
                value = user_path(value)
                object.__setattr__(self, field.name, value)
            _check(self, field, types_[field.name], value)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some options changed; it is checked again."""
        return dataclasses.replace(self, **changes)

    def record(self) -> dict[str, Any]:
        """Returns the recorded fields as JSON values."""
        fields = [field for field in dataclasses.fields(self) if field.metadata["recorded"]]
        return {field.name: _plain(getattr(self, field.name)) for field in fields}


Kind = TypeVar("Kind", bound=Options)
Function = TypeVar("Function", bound=Callable[..., Any])


def define_flags(kind: type[Options]) -> None:
    """Defines a flag for each option that has one.

    Only programs call it, and never on import: the flags of two programs would clash.
    """
    from absl import flags

    types_ = typing.get_type_hints(kind)
    for field in _with_flags(kind):
        required = field.default is REQUIRED
        default: Any = None if required else field.default
        flag_type = field.metadata["flag"]
        base = _base(types_[field.name]) if flag_type is True else flag_type
        define: Callable[..., Any]
        if field.metadata["repeated"]:
            define, default = flags.DEFINE_multi_string, list(default or ())
        elif base is tuple:
            define, default = flags.DEFINE_list, list(default or ())
        else:
            kinds: dict[Any, Callable[..., Any]] = {
                bool: flags.DEFINE_boolean,
                int: flags.DEFINE_integer,
                float: flags.DEFINE_float,
                str: flags.DEFINE_string,
            }
            define = kinds[base]
        define(field.name, default, field.metadata["help"], required=required)


def from_flags(kind: type[Kind], **given: Any) -> Kind:
    """Returns options from the parsed flags, and from `given` for those without a flag."""
    from absl import flags

    values = {}
    for field in _with_flags(kind):
        value = flags.FLAGS[field.name].value
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values | given)


def keywords(kind: type[Options]) -> Callable[[Function], Function]:
    """Documents a function's `**options` as keywords with the names of the fields of `kind`.

    They enter its signature with their defaults, and the line "**options" of its docstring is
    replaced by a line for each, so that `help` and editors show what the fields declare.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        annotations = typing.get_type_hints(kind)
        *own, _ = signature.parameters.values()
        fields = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is REQUIRED else field.default,
                annotation=annotations[field.name],
            )
            for field in dataclasses.fields(kind)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *fields])  # type: ignore
        line = re.search(r"^( *)\*\*options.*\n", function.__doc__ or "", re.M)
        if function.__doc__ and line:
            described = [
                textwrap.fill(
                    f"{field.name}: {field.metadata['help']}",
                    100,
                    initial_indent=line[1],
                    subsequent_indent=line[1] + "  ",
                )
                for field in dataclasses.fields(kind)
            ]
            function.__doc__ = function.__doc__.replace(line[0], "\n".join(described) + "\n")
        return function

    return decorate


def _with_flags(kind: type[Options]) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(kind) if f.metadata["flag"] is not False]


def _base(annotation: Any) -> type:
    """Returns the type of `annotation` without None: `int` for `int | None`."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = [a for a in typing.get_args(annotation) if a is not type(None)]
    return typing.get_origin(annotation) or annotation


def _check(options: Options, field: dataclasses.Field, annotation: Any, value: Any) -> None:
    """Raises a ValueError unless a field's value agrees with its declaration."""
    known = field.metadata
    if known["check"] is not None:
        remedy = known["check"](value, options)
    elif isinstance(value, str) and known["choices"] is not None:
        check_name(field.name, value, known["choices"])
        return
    else:
        limits = schema.Limits(known["least"], known["most"], known["choices"])
        fits = schema.fits(value, annotation, limits)
        remedy = FINE if fits else schema.describe(annotation, limits)
    if remedy != FINE:
        raise ValueError(f"{field.name}={value!r}: give {remedy}")
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not known["path"]:
            check_text(field.name, text)


def _plain(value: Any) -> Any:
    """Returns a value as a JSON value."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return getattr(value, "__name__", repr(value)) if callable(value) else value
