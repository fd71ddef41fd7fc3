"""Recordings that occur in several datasets, found by the datasets' indices."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from maa_jax.data.mixtures import Part
from maa_jax.data.stored import Index, Recordings, index_of

_LISTED = 5  # dropped recordings that a report names


def matches(index: Index, other: Index, same_dataset: bool) -> np.ndarray:
    """Returns which recordings of an index are also in another one, bool [n].

    Within one dataset, excerpts of the same source are different recordings.
    """
    found = np.isin(index.audio, other.audio) | np.isin(index.id, other.id)
    if not same_dataset:
        found |= (index.source != 0) & np.isin(index.source, other.source)
    return found


def without_duplicates(
    parts: Sequence[Part],
    evaluation: Sequence[Part],
    folders: Mapping[str, epath.Path],
    process_index: int = 0,
) -> list[np.ndarray]:
    """Returns the recordings that training may draw, and reports the others once.

    Recordings that are in an evaluation split or in an earlier part are left out: those with the
    same samples, the same id in the same dataset, or the same address in another dataset.

    Args:
      parts: parts of the mixture.
      evaluation: evaluation splits of any datasets.
      folders: folders of the built datasets, by name.
      process_index: index of this process.

    Returns:
      The indices that remain of each part, int64.

    Raises:
      ValueError: nothing remains of a part.
    """

    def opened(part: Part) -> tuple[str, Index]:
        return part.dataset, index_of(part, folders[part.dataset], process_index)

    held_out: list[tuple[str, Index]] = list(map(opened, evaluation))
    earlier: list[tuple[str, Index]] = []
    kept = []
    for part in parts:
        dataset, index = opened(part)
        evaluated, twice = index.held_out.copy(), np.zeros(len(index), bool)
        for seen, found in ((held_out, evaluated), (earlier, twice)):
            for other, theirs in seen:
                found |= matches(index, theirs, dataset == other)
        twice &= ~evaluated
        earlier.append((dataset, index))
        left = np.flatnonzero(~(evaluated | twice))
        if not len(left):
            raise ValueError(
                f"part '{part}': all of its {len(index)} recordings are evaluated on or in an"
                " earlier part; take it out"
            )
        kept.append(left)
        if not process_index:
            for places, why in ((evaluated, "evaluated on"), (twice, "in an earlier part")):
                if places.any():
                    what = f"{places.sum()} of {len(index)} recordings are {why}"
                    first = tuple(np.flatnonzero(places)[: _LISTED + 1].tolist())
                    _report(part, folders[dataset], what, first)
    return kept


@functools.cache  # reported once, however often a run opens its data
def _report(part: Part, folder: epath.Path, what: str, first: tuple[int, ...]) -> None:
    source = Recordings(folder, part.split)
    names = [source[place]["id"].decode() for place in first[:_LISTED]]
    more = ["..."] if len(first) > _LISTED else []
    logging.warning("%s: %s and not trained on: %s", part, what, ", ".join(names + more))
