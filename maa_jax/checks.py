"""Checks of user input, whose errors suggest the right value, and warnings that repeat."""

import difflib
import warnings
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


def check_text(key: str, value: str) -> None:
    """Raises a ValueError unless a text can be written as UTF-8.

    A terminal in another encoding passes on bytes that stand for no character.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{key}={value!r}: {value[error.start]!r} is no character; type it in a terminal that "
            "uses UTF-8"
        ) from None


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


class Repeated:
    """A warning that a long run has reason to give many times.

    It is shown the first, the 10th, the 100th time and so on, with the number of times so far.
    """

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, message: str) -> None:
        """Counts the warning, and shows it if it is time."""
        self._count += 1
        if str(self._count).strip("0") == "1":
            so_far = f" ({self._count} so far)" if self._count > 1 else ""
            warnings.warn(message + so_far, stacklevel=2)
