"""Several datasets as one: the line that names them, and what training must not draw from them.

    audiocaps:train + enhanced/fsd50k*2.0 + sonic_sounds:train[:50%]

Recordings are compared by what an index of each split holds, 26 bytes a recording, made once from
the dataset's files without decoding a sound and kept in the dataset's folder.
"""

import bisect
import dataclasses
import functools
import hashlib
import io
import itertools
import math
import os
import re
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tqdm
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
_LISTED = 5  # Dropped recordings that a report names.


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
        for split, name in _pieces(part):
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
                for other_split, other_name in _pieces(other)
            )
            if name.lower() in EVALUATION_SPLITS or evaluated:
                raise ValueError(
                    f"{key}: part '{part}' is evaluation data, which is never trained on; take"
                    " another split, or slices: train[10%:], evaluated on"
                    " data.eval_split=train[:10%]"
                )


def _pieces(part: Part) -> list[tuple[str, str]]:
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
                any(name.lower() in EVALUATION_SPLITS for _, name in _pieces(origin)),
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
    temporary = folder / f".{path.name}.{os.getpid()}"
    try:
        temporary.write_bytes(content.getvalue())
        temporary.replace(path)
    except OSError as error:
        raise ValueError(
            f"{path}, which finds recordings that are in several datasets, cannot be written"
            f" ({error}); make the folder writable for the first run"
        ) from error


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")


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
    return all(name in splits for _, name in _pieces(part))


def evaluation_splits(dataset: str, folder: epath.Path) -> list[Part]:
    """The splits of a built dataset that are never trained on."""
    import tensorflow_datasets as tfds

    splits = tfds.builder_from_directory(folder).info.splits
    return [Part(dataset, split) for split in splits if split.lower() in EVALUATION_SPLITS]


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
