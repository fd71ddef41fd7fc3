"""What the metrics share: checks of their input, and a mean with its deviation."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Spread:
    """Scores of parts of the sounds.

    Attributes:
      mean: mean of the scores.
      deviation: their standard deviation, with n in the denominator, as the tools print it. It says
        how the parts differ, and is no error of the mean: see `intervals`.
    """

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: list[float]) -> "Spread":
        """Returns the mean and deviation of scores."""
        return cls(float(np.mean(scores)), float(np.std(scores)))


def checked(name: str, values: np.ndarray, *, dims: int = 2, least: int = 1) -> np.ndarray:
    """Returns an array of numbers, of which it makes no copy.

    Args:
      name: name of the array in errors.
      values: real numbers of any type.
      dims: number of its dimensions; the first counts rows, such as clips.
      least: number of rows that are needed.

    Raises:
      ValueError: the shape is wrong, there are too few rows, or something is no finite number.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub":
        raise ValueError(f"{name} has the type {values.dtype}: give real numbers")
    if values.ndim != dims or 0 in values.shape[1:]:
        wanted = "[n, width]" if dims == 2 else "[n]"
        raise ValueError(f"{name} has the shape {list(values.shape)}: give {wanted}")
    if len(values) < least:
        raise ValueError(f"{name} has {len(values)} rows: give {least} or more")
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
        raise ValueError(f"{name} has NaN or infinity in row {bad}: leave that sound out")
    return values


def checked_pair(
    names: tuple[str, str], first: np.ndarray, second: np.ndarray, *, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns two arrays [n, width] and [m, width]; for the rest see `checked`."""
    first, second = (
        checked(name, values, least=least)
        for name, values in zip(names, (first, second), strict=True)
    )
    check_widths(names, first.shape[1], second.shape[1])
    return first, second


def check_widths(names: tuple[str, str], first: int, second: int) -> None:
    """Raises a ValueError unless two arrays have rows of one width."""
    if first != second:
        raise ValueError(
            f"{names[0]} has rows of {first} numbers, {names[1]} of {second}: take both from one "
            "network"
        )


def check_lengths(**lengths: int) -> None:
    """Raises a ValueError unless all arrays have as many rows."""
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length} rows" for name, length in lengths.items())
        raise ValueError(f"{found}: give a row of each for every clip, in one order")
