"""Recordings that are in several datasets, found by an index of each split.

An index holds 26 bytes a recording. It is made once from the dataset's files, without decoding a
sound, and kept in the dataset's folder.
"""

import dataclasses
import functools
import hashlib
import io
from collections.abc import Mapping, Sequence

import numpy as np
import tqdm
from absl import logging
from etils import epath

from maa_jax.data.mixtures import EVALUATION_SPLITS, Part, pieces, wait_for
from maa_jax.files import replace_file

_LISTED = 5  # Dropped recordings that a report names.


@dataclasses.dataclass(frozen=True)
class Index:
    """What is compared of a split's recordings, in their order.

    Attributes:
      audio: uint64 [n], of the hash of the samples.
      id: uint64 [n], of the dataset's name and the id in it. An enhanced dataset's recordings keep
        those of the dataset that they are from.
      source: uint64 [n], of the address that the recording is from; 0 where it has none, such as
        the name of a file, which says nothing outside its dataset.
      labels: uint8 [n], their number.
      held_out: bool [n], whether the recording was in an evaluation split where it is from.
    """

    audio: np.ndarray
    id: np.ndarray
    source: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def matches(self, other: "Index", same_dataset: bool) -> np.ndarray:
        """Which recordings are in another index too, bool [n].

        Excerpts of one source that a dataset holds are different recordings within it.
        """
        found = np.isin(self.audio, other.audio) | np.isin(self.id, other.id)
        if not same_dataset:
            found |= (self.source != 0) & np.isin(self.source, other.source)
        return found


def index_of(part: Part, folder: epath.Path, process_index: int = 0) -> Index:
    """The index of a part; process 0 makes it where it is missing, the others wait.

    Args:
      part: A split, or slices or sums of splits, that the dataset has.
      folder: Of the built dataset.
      process_index: This process.
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
    # In the dataset's own folder: it goes when the dataset is removed or built anew.
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
                " that folder and build it again"
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
    content = io.BytesIO()
    np.savez(
        content,
        **{
            field.name: np.array(column, kind)
            for field, column, kind in zip(_FIELDS, columns, kinds, strict=True)
        },
    )
    try:
        with replace_file(path) as new:
            new.write_bytes(content.getvalue())
    except OSError as error:
        raise ValueError(
            f"{path}, which finds recordings that are in several datasets, cannot be written"
            f" ({error}); make the folder writable for the first run"
        ) from error


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


def without_duplicates(
    parts: Sequence[Part],
    evaluation: Sequence[Part],
    folders: Mapping[str, epath.Path],
    process_index: int = 0,
) -> list[np.ndarray]:
    """Finds the recordings that training may draw, and reports the others once.

    Left out are those that are in an evaluation split or in an earlier part: with the same samples,
    the same id in the same dataset, or the same address in another dataset.

    Args:
      parts: The mixture.
      evaluation: Splits evaluated on, of any datasets.
      folders: The built datasets, by name.
      process_index: This process.

    Returns:
      For each part the places in it that are left, int64.

    Raises:
      ValueError: Nothing is left of a part.
    """

    def opened(part: Part) -> tuple[str, Index]:
        return part.dataset, index_of(part, folders[part.dataset], process_index)

    held_out, earlier, kept = list(map(opened, evaluation)), [], []
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


@functools.cache  # Once, however often a run opens its data.
def _report(part: Part, folder: epath.Path, what: str, first: tuple[int, ...]) -> None:
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(folder).as_data_source(part.split)
    names = [source[place]["id"].decode() for place in first[:_LISTED]]
    more = ["..."] if len(first) > _LISTED else []
    logging.warning("%s: %s and not trained on: %s", part, what, ", ".join(names + more))
