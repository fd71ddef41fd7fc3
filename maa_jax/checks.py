"""Checks of user input, whose errors suggest the right value."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any


def nearest(name: str, known: Collection[str]) -> str:
    """Returns the `known` name that is most similar to `name`."""
    return difflib.get_close_matches(name, known, 1, 0)[0]


def check_name(key: str, value: object, known: Collection[str]) -> None:
    """Raises a ValueError that has the nearest name unless `value` is one of the `known`."""
    if value not in known:
        raise ValueError(
            f"{key}={value!r}: did you mean {nearest(str(value), known)!r}? There are"
            f" {', '.join(known)}"
        )


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Compares recorded settings with current ones.

    Args:
      there: settings read from a file.
      here: current settings; only their keys are compared.

    Returns:
      A line for each key that differs, "key=1 there, 2 here".
    """
    return [
        f"{key}={there.get(key, 'absent')!r} there, {value!r} here"
        for key, value in here.items()
        if key not in there or there[key] != value
    ]
