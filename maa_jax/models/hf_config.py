"""Checks that a network here supports a Hugging Face config.json."""

from collections.abc import Collection, Mapping
from typing import Any


def check(
    config: Mapping[str, Any],
    fixed: Mapping[str, Any],
    read: Collection[str],
    ignored: Collection[str],
) -> None:
    """Raises a ValueError unless a network here supports `config`.

    Args:
      config: content of config.json.
      fixed: {key: only supported value}; an absent key means that value.
      read: keys that the network reads.
      ignored: keys that have no effect here, as do keys that start with an underscore and keys that
        are null or false.

    Raises:
      ValueError: keys are missing, unsupported or unknown; all are named, with value and remedy.
    """
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    problems = [f"{key} is missing" for key in read if key not in config]
    for key, value in config.items():
        if key in read or key in ignored or key.startswith("_"):
            continue
        if key in fixed:
            if plain(value) != plain(fixed[key]):
                problems.append(f"{key}={value!r}: only {fixed[key]!r} is supported")
        elif value is not None and value is not False:
            problems.append(f"{key}={value!r} is not supported: leave it out")
    if problems:
        raise ValueError("config.json: " + "; ".join(problems))
