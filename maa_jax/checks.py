"""Checks of what a user gave: a value that is wrong is an error that names the right one."""

import difflib
from collections.abc import Collection


def check_name(key: str, value: object, known: Collection[str]) -> None:
    """Raises a ValueError with the nearest name unless `value` is one of the `known`."""
    if value not in known:
        near = difflib.get_close_matches(str(value), known, 1, 0)
        raise ValueError(f"{key}={value!r}: did you mean {near[0]!r}? There are {', '.join(known)}")
