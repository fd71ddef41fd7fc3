"""Mixtures of datasets: their expressions, and the parts that training must not draw from.

audiocaps:train + enhanced/fsd50k*2.0 + sonic_sounds:train[:50%]
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import logging

if TYPE_CHECKING:
    from etils import epath

# Splits that training never draws from.
EVALUATION_SPLITS = ("validation", "test", "evaluation", "eval", "valid", "val", "dev")
# Split of an enhanced dataset that training never draws from: its captions were not accepted.
REJECTED = "rejected"
# Time that the other processes wait for process 0 to build, in seconds.
BUILD_TIMEOUT_S = 3600

_PART = re.compile(
    r"(?P<dataset>[^\s:*+/]+(/[^\s:*+/]+)?)"
    r"(\s*:\s*(?P<split>[\w-]+(\[[^\]]+\])?))?"
    r"(\s*\*\s*(?P<weight>[^\s*]+))?"
)
_FORM = (
    "write NAME[/VARIANT][:SPLIT][*WEIGHT] + ..., as audiocaps:train + sonic_sounds:train[:50%]*2"
)


@dataclasses.dataclass(frozen=True)
class Part:
    """A split of a dataset, and its weight.

    Attributes:
      dataset: name of the dataset, "NAME" or "NAME/VARIANT".
      split: split in TFDS's notation, with slices and sums.
      weight: factor of the part's share of the draws, which is proportional to weight times number
        of windows: with all weights 1, every hour of the mixture is equally likely.
    """

    dataset: str
    split: str
    weight: float = 1.0

    def __str__(self):
        return f"{self.dataset}:{self.split}"


def parse(key: str, expression: str, split: str) -> tuple[Part, ...]:
    """Parses a mixture.

    Args:
      key: key of the config, for errors.
      expression: expression of the mixture, parts joined by +.
      split: split of the parts that name none.

    Raises:
      ValueError: a part is malformed; the error names it and shows the form.
    """
    parts = []
    for text in expression.split("+"):
        match, fault = _PART.fullmatch(text.strip()), "not understood"
        if match:
            weight, fault = (
                _weight(match["weight"]),
                f"weight {match['weight']} is not a positive number",
            )
        if not match or not 0 < weight < math.inf:
            raise ValueError(f"{key} is {expression!r}: part {text.strip()!r}: {fault}; {_FORM}")
        parts.append(Part(match["dataset"], match["split"] or split, weight))
    return tuple(parts)


def _weight(text: str | None) -> float:
    try:
        return float(text or 1)
    except ValueError:
        return math.nan


def refuse_untrainable(key: str, parts: Sequence[Part], evaluation: Sequence[Part]) -> None:
    """Checks, by names only, that a config's training data may be trained on.

    Args:
      key: key of the config, for errors.
      parts: parts of the training data.
      evaluation: parts of the evaluation data.

    Raises:
      ValueError: a part is evaluation data, or holds recordings whose captions were rejected.
    """
    for part in parts:
        for split, name in pieces(part):
            if part.dataset.startswith("enhanced/") and name == REJECTED:
                raise ValueError(
                    f"{key}: part '{part}' holds the recordings without an accepted caption,"
                    f" which are not trained on; take {part.dataset}:train, or enhance again, under"
                    " another name, with a lower threshold"
                )
            # Two slices of one split may be disjoint; recordings in both are dropped by their id.
            evaluated = any(
                (part.dataset, name) == (other.dataset, other_name)
                and (split == other_split or name == split or other_name == other_split)
                for other in evaluation
                for other_split, other_name in pieces(other)
            )
            if name.lower() in EVALUATION_SPLITS or evaluated:
                raise ValueError(
                    f"{key}: part '{part}' is evaluation data, which is never trained on; take"
                    " another split, or slices: train[10%:], evaluated on"
                    " data.eval_split=train[:10%]"
                )


def pieces(part: Part) -> list[tuple[str, str]]:
    """Returns the summands of a part's split, each with the name of the split that it slices."""
    pieces = [piece.strip() for piece in part.split.split("+")]
    return [(piece, piece.split("[")[0]) for piece in pieces]


class Joined(Sequence[dict[str, Any]]):
    """Random-access sources of examples, one after another.

    Attributes:
      offsets: index of each source's first example.
    """

    def __init__(self, sources: Sequence[Sequence[dict[str, Any]]]):
        self._sources = sources
        self._ends = list(itertools.accumulate(map(len, sources)))
        self.offsets = [0, *self._ends[:-1]]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: Any) -> Any:
        which = bisect.bisect_right(self._ends, index)
        return self._sources[which][index - self.offsets[which]]


def wait_for(path: epath.Path) -> None:
    """Waits until process 0 has written a file.

    Raises:
      TimeoutError: process 0 did not finish, or has another `data_dir`.
    """
    logging.info("waiting for process 0 to make %s", path)
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"no {path.name} in {path.parent} after {BUILD_TIMEOUT_S} s; see process 0's log,"
                " and set data.data_dir to a place that all processes share"
            )
        time.sleep(0.5)
