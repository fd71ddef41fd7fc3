"""Built datasets on disk: opened, read, and indexed.

What is needed of all recordings at once is kept in an index of each split, so that neither finding
duplicates nor listing captions reads any audio. It is made once from the dataset's files, lies in
the dataset's folder, and is removed along with it. A recording takes 30 bytes and its texts.
"""

import dataclasses
import errno
import hashlib
import json
import zipfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm
from etils import epath

from maa_jax.data import transforms
from maa_jax.data.mixtures import EVALUATION_SPLITS, Part, pieces, wait_for
from maa_jax.files import replace_file

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class DatasetError(ValueError):
    """A built dataset that is broken or has changed; the message has its folder and the remedy."""


def open_builder(folder: epath.PathLike) -> "tfds.core.DatasetBuilder":
    """Returns TFDS's builder of a built dataset.

    Raises:
      DatasetError: the files that describe the dataset cannot be read.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS, protobuf, JSON and the file system have one each
        raise DatasetError(_broken(folder, error)) from error


def split_names(folder: epath.PathLike) -> list[str]:
    """Returns the names of the splits of a built dataset."""
    return list(open_builder(folder).info.splits)


def has_split(part: Part, folder: epath.PathLike) -> bool:
    """Returns whether a built dataset has the splits of a part."""
    return {name for _, name in pieces(part)} <= set(split_names(folder))


def evaluation_splits(dataset: str, folder: epath.PathLike) -> list[Part]:
    """Returns the splits of a built dataset that are never trained on."""
    names = [split for split in split_names(folder) if split.lower() in EVALUATION_SPLITS]
    return [Part(dataset, split) for split in names]


def spans(part: Part, folder: epath.PathLike) -> list[tuple[str, int, int]]:
    """Returns the splits that a part consists of, each with its first recording and its end.

    Raises:
      ValueError: the dataset lacks a split, a slice is not understood, or the part is empty.
    """
    import tensorflow_datasets as tfds

    splits = open_builder(folder).info.splits
    missing = [name for _, name in pieces(part) if name not in splits]
    if missing:
        use = f"use one of {list(splits)}"
        if len(splits) == 1:  # as of one or two recordings, or of a folder without a table
            only = next(iter(splits))
            use = (
                f"it has {only!r} alone, of which slices can be taken if it holds two recordings or"
                f" more (data.split='{only}[50%:]' and data.eval_split='{only}[:50%]')"
            )
        raise ValueError(
            f"split {part.split!r}: the dataset in {folder} has no split {missing[0]!r}; {use}, or"
            " evaluate on another dataset by data.eval_dataset"
        )
    try:
        found = tfds.core.ReadInstruction.from_spec(part.split).to_absolute(splits)
    except Exception as error:  # asserts and ValueErrors
        raise ValueError(
            f"split {part.split!r} of the dataset in {folder}: {str(error).splitlines()[-1]} Write"
            " slices as train[:50%], train[100:200] or train[-10%:]"
        ) from error
    # A slice that begins or ends beyond its split is cut to it.
    ends = [
        (x.splitname, *slice(x.from_, x.to).indices(splits[x.splitname].num_examples)[:2])
        for x in found
    ]
    if all(begin >= end for _, begin, end in ends):
        raise ValueError(
            f"split {part.split!r} of the dataset in {folder} is empty; take a larger part"
        )
    return ends


class Recordings(Sequence[dict[str, Any]]):
    """The examples of a split of a built dataset, in random access."""

    def __init__(self, folder: epath.PathLike, split: str):
        """Opens a split, or slices or sums of splits, in TFDS's notation.

        Raises:
          DatasetError: the dataset is broken.
        """
        self._folder, self._split = folder, split
        builder = open_builder(folder)
        try:
            self._source = builder.as_data_source(split)
        except Exception as error:
            raise DatasetError(_broken(folder, error)) from error

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        """Returns an example.

        Raises:
          DatasetError: its bytes are damaged, wherever it is read: in a thread or a worker process.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self._source[index]
        except MemoryError:
            raise
        except Exception as error:  # ArrayRecord's and protobuf's have no class of their own
            what = f"recording {index} of {self._split}: {_reason(error)}"
            raise DatasetError(_broken(self._folder, what)) from error


def _broken(folder: epath.PathLike, why: object) -> str:
    why = _reason(why) if isinstance(why, Exception) else why
    return f"the dataset in {folder} is broken ({why}): delete {folder} and build it again"


def _reason(error: object) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def describe(example: dict) -> dict[str, Any]:
    """Returns an example without its audio, with texts as str: id, source, seconds, captions,
    labels; captions are never empty."""
    return {
        "id": example["id"].decode(),
        "source": example["source"].decode(),
        "seconds": float(example["seconds"]),
        "captions": transforms.all_captions(example),
        "labels": [label.decode() for label in example["labels"]],
    }


@dataclasses.dataclass(frozen=True)
class Index:
    """What is known of the recordings of a split, in the split's order.

    Attributes:
      audio: hash of the samples, uint64 [n].
      id: hash of the dataset's name and the recording's id, uint64 [n]. Recordings of an enhanced
        dataset keep the name and id of their original dataset.
      source: hash of the web address of the recording, uint64 [n]; 0 if it has none. A file name is
        not an address: it means nothing outside its dataset.
      labels: number of labels, uint8 [n].
      held_out: whether the recording is in an evaluation split of its original dataset, bool [n].
      seconds: length, float32 [n].
    """

    audio: np.ndarray
    id: np.ndarray
    source: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    seconds: np.ndarray

    def __len__(self) -> int:
        return len(self.id)

    def windows(self, seconds: float) -> np.ndarray:
        """Returns how many examples of a clip's length each recording is, int64 [n]."""
        return np.maximum(1, np.rint(self.seconds / seconds)).astype(np.int64)


_FIELDS = [field.name for field in dataclasses.fields(Index)]
_KINDS = (np.uint64, np.uint64, np.uint64, np.uint8, np.bool_, np.float32)


def index_of(part: Part, folder: epath.Path, process_index: int = 0) -> Index:
    """Returns the index of a part; process 0 writes it if it is missing, the others wait.

    Args:
      part: split of the dataset, or slices or sums of its splits.
      folder: folder of the built dataset.
      process_index: index of this process.

    Raises:
      DatasetError: the dataset or the index is broken, or the dataset was changed in its place.
    """
    columns = []
    for split, begin, end in spans(part, folder):
        found = _index(part.dataset, split, folder, process_index, _FIELDS)
        columns.append([found[name][begin:end] for name in _FIELDS])
    return Index(*map(np.concatenate, zip(*columns, strict=True)))


def descriptions(part: Part, folder: epath.Path, process_index: int = 0) -> list[dict[str, Any]]:
    """Returns the examples of a part without their audio; see `describe`, `index_of`."""
    found: list[dict[str, Any]] = []
    for split, begin, end in spans(part, folder):
        texts = _index(part.dataset, split, folder, process_index, ["texts"])["texts"]
        found += map(json.loads, texts.tobytes().splitlines()[begin:end])
    return found


def digest(part: Part, folder: epath.Path, process_index: int = 0) -> str:
    """Returns a digest of a part's recordings, their order and texts; see `index_of`."""
    pieces = [
        (str(_index(part.dataset, split, folder, process_index, ["digest"])["digest"]), begin, end)
        for split, begin, end in spans(part, folder)
    ]
    return hashlib.sha256(json.dumps(pieces).encode()).hexdigest()


def _index(
    dataset: str, split: str, folder: epath.Path, process_index: int, names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Returns arrays of a split's index, which is written if it is missing."""
    path = folder / f"recordings-{split}.npz"
    if not path.exists():
        if process_index:
            wait_for(path)
        else:
            _write_index(dataset, split, folder, path)
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            found, files = {name: arrays[name] for name in names}, str(arrays["files"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"{path}, the index of a dataset, is broken ({_reason(error)}): delete it; the next run"
            " writes it again"
        ) from error
    if files != _files(split, folder):
        raise DatasetError(
            f"the dataset in {folder} has other files than when {path.name} was made from it (then"
            f" {files}, now {_files(split, folder)}): delete {folder} and build it again, or, if"
            f" the change is meant, delete {path.name} alone"
        )
    return found


def _files(split: str, folder: epath.Path) -> str:
    """Returns the number of files of a split and their sizes, which a torn file changes."""
    paths = [epath.Path(path) for path in open_builder(folder).info.splits[split].filepaths]
    missing = [path.name for path in paths if not path.exists()]
    if missing:
        return f"{missing[0]} is missing"
    sizes = [path.stat().length for path in paths]
    listed = hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:8]
    return f"{len(paths)} of {sum(sizes):,} bytes, {listed}"


def _write_index(dataset: str, split: str, folder: epath.Path, path: epath.Path) -> None:
    source = Recordings(folder, split)
    rows, texts = [], []
    for i in tqdm.trange(len(source), desc=f"Indexing {dataset}:{split}", delay=5):
        example = source[i]
        if "audio_hash" not in example:
            raise DatasetError(
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
                _hash(f"{origin.dataset}\0".encode() + example["id"]),
                _hash(address) if address else 0,
                min(len(example["labels"]), 255),
                any(name.lower() in EVALUATION_SPLITS for _, name in pieces(origin)),
                example["seconds"],
            )
        )
        texts.append(json.dumps(describe(example)))
    columns = zip(*rows, strict=True) if rows else [()] * len(_FIELDS)
    arrays: dict[str, Any] = {
        name: np.array(column, kind)
        for name, column, kind in zip(_FIELDS, columns, _KINDS, strict=True)
    }
    arrays["texts"] = np.frombuffer("\n".join(texts).encode(), np.uint8)
    content = hashlib.sha256(b"".join(array.tobytes() for array in arrays.values()))
    arrays |= {"digest": content.hexdigest(), "files": _files(split, folder)}
    try:
        with replace_file(path) as new, new.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise ValueError(
            f"{path}, the dataset's index, cannot be written ({error}); make the folder writable"
            " for the first run"
        ) from error


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
