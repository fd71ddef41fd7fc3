"""Reads the config.json of a network, in Hugging Face's layouts or in this project's own."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from maa_jax import schema

Kind = TypeVar("Kind")


def build(
    kind: type[Kind],
    config: Mapping[str, Any],
    *,
    fixed: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    ignored: Collection[str] | None = (),
    parts: Mapping[str, Any] | None = None,
) -> Kind:
    """Makes a network's configuration from a config.json.

    Args:
      kind: the configuration's dataclass, whose fields' types and limits are checked.
      config: content of config.json.
      fixed: {key: only value that the network here supports}; an absent key means that value.
      names: {field: key of config.json} where they differ.
      ignored: keys that have no effect here, as do keys that start with an underscore and keys that
        are null or false; any other key is an error, and so is a field that is absent. With None,
        unknown keys have no effect, and absent ones mean the defaults of `kind`: transformers'
        classes have many keys, and its oldest files state few.
      parts: {key: class, with `from_hf`, of the network whose configuration is there}; an absent
        one is empty.

    Raises:
      ValueError: keys are missing, unknown or unsupported, or values invalid; all are named.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"{schema.shown(config)}: give keys and values")
    names = names or {}
    keys = {names.get(f.name, f.name): f.name for f in dataclasses.fields(kind)}  # type: ignore
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    problems = []
    for key, value in config.items():
        if key in fixed:
            if plain(value) != plain(fixed[key]):
                problems.append(f"{key}={schema.shown(value)}: only {fixed[key]!r} is supported")
        elif not (ignored is None or key in keys or key in ignored or key.startswith("_")):
            if value is not None and value is not False:
                problems.append(f"{key}={schema.shown(value)} is not supported: leave it out")
    given = {keys[key]: value for key, value in config.items() if key in keys}
    for key, inner in (parts or {}).items():
        try:
            given[key] = inner.from_hf({} if config.get(key) is None else config[key])
        except ValueError as error:
            problems.append(f"{key}: {error}")
            raise ValueError("; ".join(problems)) from error
    try:
        built = schema.build(kind, given, complete=ignored is not None)
    except ValueError as error:
        text = str(error)
        for ours, theirs in names.items():
            text = text.replace(ours, theirs)
        problems.append(text)
    if problems:
        raise ValueError("; ".join(problems))
    return built


def levels(config: Mapping[str, Any]) -> int:
    """Returns the number of levels of a U-Net or autoencoder of diffusers, 0 if it states none."""
    widths = config.get("block_out_channels")
    return len(widths) if isinstance(widths, list | tuple) else 0


def check_widths(config: Any, *names: str) -> None:
    """Raises a ValueError unless each of `block_out_channels` is a multiple of the named fields."""
    for width in config.block_out_channels:
        for name in names:
            if width % getattr(config, name):
                raise ValueError(
                    f"block_out_channels={config.block_out_channels}: {width} is not a multiple "
                    f"of {name}={getattr(config, name)}; change one of them"
                )
