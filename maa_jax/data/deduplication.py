"""Recordings that occur in several datasets, found by an index of each split.

An index holds 26 bytes per recording. It is computed once from the dataset's files, without
decoding any audio, and kept in the dataset's folder.
"""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import logging
from etils import epath

from maa_jax.data.mixtures import EVALUATION_SPLITS, Part, pieces, wait_for
from maa_jax.files import replace_file

_LISTED = 5  # dropped recordings that a report names


@dataclasses.dataclass(frozen=True)
class Index:
    """Hashes by which the recordings of a split are compared, in the split's order.

    Attributes:
      audio: hash of the samples, uint64 [n].
      id: hash of the dataset's name and the recording's id, uint64 [n]. Recordings of an enhanced
        dataset keep the name and id of their original dataset.
      source: hash of the web address of the recording, uint64 [n]; 0 if it has none. A file name is
        not an address: it means nothing outside its dataset.
      labels: number of labels, uint8 [n].
      held_out: whether the recording is in an evaluation split of its original dataset, bool [n].
    """

    audio: np.ndarray
    id: np.ndarray
    source: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def matches(self, other: "Index", same_dataset: bool) -> np.ndarray:
        """Returns which recordings are also in another index, bool [n].

        Within one dataset, excerpts of the same source are different recordings.
        """
        found = np.isin(self.audio, other.audio) | np.isin(self.id, other.id)
        if not same_dataset:
            found |= (self.source != 0) & np.isin(self.source, other.source)
        return found


def index_of(part: Part, folder: epath.Path, process_index: int = 0) -> Index:
    """Returns the index of a part; process 0 writes it if it is missing, the others wait.

    Args:
      part: split of the dataset, or slices or sums of its splits.
      folder: folder of the built dataset.
      process_index: index of this process.
    """
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(folder).info.splits
    pieces = []
    for piece in tfds.core.ReadInstruction.from_spec(part.split).to_absolute(splits):
        index = _index(part.dataset, piece.splitname, folder, process_index)
        pieces.append([getattr(index, f.name)[piece.from_ : piece.to] for f in _FIELDS])
    return Index(*map(np.concatenate, zip(*pieces, strict=True)))


_FIELDS = dataclasses.fields(Index)


def _index(dataset: str, split: str, folder: epath.Path, process_index: int) -> Index:
    # In the dataset's folder, so that it is removed along with the dataset.
    path = folder / f"index-{split}.npz"
    if not path.exists():
        if process_index:
            wait_for(path)
        else:
            _write_index(dataset, split, folder, path)
    with np.load(io.BytesIO(path.read_bytes())) as arrays:
        return Index(**arrays)


def _write_index(dataset: str, split: str, folder: epath.Path, path: epath.Path) -> None:
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(folder).as_data_source(split)
    rows = []
    for i in tqdm.trange(len(source), desc=f"Indexing {dataset}:{split}", delay=5):
        example = source[i]
        if "audio_hash" not in example:
            raise ValueError(
                f"the dataset in {folder} has no audio_hash: an earlier version built it; remove"
                " that folder to build it again"
            )
        origin = Part(dataset, split)
        if "dataset" in example:  # enhanced: "NAME/VERSION:SPLIT"
            name, _, origin_split = example["dataset"].decode().partition(":")
            origin = Part(name.rpartition("/")[0], origin_split)
        address = example["source"] if b"://" in example["source"] else b""
        rows.append(
            (
                int(example["audio_hash"][:16], 16),
                _digest(f"{origin.dataset}\0".encode() + example["id"]),
                _digest(address) if address else 0,
                min(len(example["labels"]), 255),
                any(name.lower() in EVALUATION_SPLITS for _, name in pieces(origin)),
            )
        )
    columns = zip(*rows, strict=True) if rows else [()] * len(_FIELDS)
    kinds = (np.uint64, np.uint64, np.uint64, np.uint8, np.bool_)
    arrays: dict[str, Any] = {
        field.name: np.array(column, kind)
        for field, column, kind in zip(_FIELDS, columns, kinds, strict=True)
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    try:
        with replace_file(path) as new:
            new.write_bytes(content.getvalue())
    except OSError as error:
        raise ValueError(
            f"{path}, the index that finds duplicates, cannot be written ({error}); make the folder"
            " writable for the first run"
        ) from error


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


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
                found |= index.matches(theirs, dataset == other)
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
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(folder).as_data_source(part.split)
    names = [source[place]["id"].decode() for place in first[:_LISTED]]
    more = ["..."] if len(first) > _LISTED else []
    logging.warning("%s: %s and not trained on: %s", part, what, ", ".join(names + more))
