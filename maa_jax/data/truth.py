"""What is truly heard in the recordings of a dataset that knows it, such as `general_midi`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maa_jax.data import datasets

# A table of targets, {"count": [n], "family": [n, events], "register": [n, events]}, int32; -1 for
# events that a recording lacks.
Targets = dict[str, np.ndarray]


def truths(config: datasets.Config, split: str | None = None) -> list[dict[str, Any]]:
    """Returns the truth of each recording, in the order of `datasets.metadata`.

    Args:
      config: data config.
      split: split of the evaluation data, as in `datasets.metadata`.

    Raises:
      ValueError: a dataset does not know it.
    """
    found = []
    source = datasets.Datasets(config).open_split(split)
    for example in source:
        if "truth" not in example:
            raise ValueError(
                f"{example['id'].decode()} has no truth, what is played in it; take a dataset that"
                " knows it, such as general_midi"
            )
        found.append(json.loads(example["truth"]))
    return found


def targets(
    found: Sequence[Mapping[str, Any]],
    families: tuple[str, ...],
    registers: tuple[str, ...],
    events: int,
) -> Targets:
    """Returns the classes of recordings.

    Two events that begin together have no order; they are put in that of their families' names.

    Args:
      found: truth of each recording.
      families: names of the families of instruments.
      registers: names of the registers.
      events: largest number of events.

    Raises:
      ValueError: a recording has more events, or of another family.
    """
    table: Targets = {
        "count": np.array([len(truth["events"]) for truth in found], np.int32),
        "family": np.full((len(found), events), -1, np.int32),
        "register": np.full((len(found), events), -1, np.int32),
    }
    for row, truth in enumerate(found):
        if len(truth["events"]) > events:
            raise ValueError(f"a recording has {len(truth['events'])} events, more than {events}")
        order = list(truth["events"])
        if truth["together"]:
            order[:2] = sorted(order[:2], key=lambda event: families.index(event["family"]))
        for place, event in enumerate(order):
            for kind, names in (("family", families), ("register", registers)):
                if event[kind] not in names:
                    raise ValueError(f"{kind} {event[kind]!r} is none of {', '.join(names)}")
                table[kind][row, place] = names.index(event[kind])
    return table
