"""Several datasets as one: the line that names them, and what training must not draw from them.

audiocaps:train + enhanced/fsd50k*2.0 + sonic_sounds:train[:50%]
"""

import bisect
import dataclasses
import itertools
import math
import re
import time
from collections.abc import Sequence

from absl import logging
from etils import epath

# Names of splits that training never draws from.
EVALUATION_SPLITS = ("validation", "test", "evaluation", "eval", "valid", "val", "dev")
# Nor from this one of an enhanced dataset: no caption of its recordings passed.
REJECTED = "rejected"
# How long the other processes wait for what process 0 builds.
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
    """A dataset's split and how often it is drawn.

    Attributes:
      dataset: "NAME" or "NAME/VARIANT".
      split: As TFDS writes it, slices and sums included.
      weight: Times the number of recordings, it is the part's share of the draws: with all weights
        1, every recording of the mixture is as likely as any other.
    """

    dataset: str
    split: str
    weight: float = 1.0

    def __str__(self):
        return f"{self.dataset}:{self.split}"


def parse(key: str, expression: str, split: str) -> tuple[Part, ...]:
    """Reads a mixture.

    Args:
      key: Of the config, for errors.
      expression: Parts joined by +.
      split: Of the parts that name none.

    Raises:
      ValueError: Naming the part at fault and showing the form.
    """
    parts = []
    for text in expression.split("+"):
        match = _PART.fullmatch(text.strip())
        try:
            weight = float(match["weight"] or 1) if match else 0.0
        except ValueError:
            weight = 0.0
        if not (0 < weight < math.inf):
            fault = f"weight {match['weight']} is no positive number" if match else "not understood"
            raise ValueError(f"{key} is {expression!r}: part {text.strip()!r}: {fault}; {_FORM}")
        parts.append(Part(match["dataset"], match["split"] or split, weight))
    return tuple(parts)


def refuse_untrainable(key: str, parts: Sequence[Part], evaluation: Sequence[Part]) -> None:
    """Checks what a config would train on, by its names alone.

    Args:
      key: Of the config, for errors.
      parts: What would be trained on.
      evaluation: What is evaluated on.

    Raises:
      ValueError: A part is evaluation data, or recordings that enhancement found no caption for.
    """
    for part in parts:
        for split, name in pieces(part):
            if part.dataset.startswith("enhanced/") and name == REJECTED:
                raise ValueError(
                    f"{key}: part '{part}' holds recordings whose captions did not pass the"
                    f" threshold, and which are not trained on; take {part.dataset}:train, or"
                    " enhance under another name with a lower threshold"
                )
            # Two slices of one split may be disjoint; what they share is dropped by its id.
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
    """The summands of a part's split, each with its name without slice."""
    pieces = [piece.strip() for piece in part.split.split("+")]
    return [(piece, piece.split("[")[0]) for piece in pieces]


class Joined(Sequence):
    """Random-access sources, one after another."""

    def __init__(self, sources: Sequence[Sequence[dict]]):
        self._sources = sources
        self._ends = list(itertools.accumulate(map(len, sources)))
        self.offsets = [0, *self._ends[:-1]]  # Where each source begins.

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict:
        which = bisect.bisect_right(self._ends, index)
        return self._sources[which][index - self.offsets[which]]


def wait_for(path: epath.Path) -> None:
    """Waits until process 0 has made a file.

    Raises:
      TimeoutError: It did not get done, or has another `data_dir`.
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


def has_split(part: Part, folder: epath.Path) -> bool:
    """Whether a built dataset has the splits of a part."""
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(folder).info.splits
    return all(name in splits for _, name in pieces(part))


def evaluation_splits(dataset: str, folder: epath.Path) -> list[Part]:
    """The splits of a built dataset that are never trained on."""
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(folder).info.splits
    return [Part(dataset, split) for split in splits if split.lower() in EVALUATION_SPLITS]
