"""Shards of a dataset, the units of work of an enhancement, and the candidates of each."""

import dataclasses
import functools
import json
from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.enhancement.distill import Candidate
from maa_jax.files import replace_file


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive recordings of a built dataset whose candidates are written together.

    Attributes:
      index: index among all shards of a run.
      dataset: name, version and split of the dataset, "esc50/1.0.0:train".
      folder: folder of the dataset, to which the workers of a Beam runner need access too.
      split: split in TFDS's notation.
      start: index of the first recording in the split.
      stop: index after the last recording.
    """

    index: int
    dataset: str
    folder: str
    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@functools.lru_cache(maxsize=8)
def open_split(folder: str, split: str) -> Sequence[dict]:
    """Returns a split of a built dataset as a random-access source of example dicts."""
    return tfds.builder_from_directory(folder).as_data_source(split)


def write_record(
    work: epath.PathLike, shard: Shard, rows: Sequence[tuple[str, list[Candidate]]]
) -> None:
    """Writes the (id, candidates) of a shard's recordings, whole or not at all.

    A resumed run skips a shard if its file, of JSON lines, exists.
    """
    lines = [json.dumps([id, [dataclasses.astuple(c) for c in found]]) for id, found in rows]
    with replace_file(_record_path(work, shard)) as new:
        new.write_text("\n".join(lines) + "\n")


def has_record(work: epath.PathLike, shard: Shard) -> bool:
    """Returns whether a shard is done."""
    return _record_path(work, shard).exists()


def read_record(work: epath.PathLike, shard: Shard) -> list[tuple[str, list[Candidate]]]:
    """Returns the record that `write_record` wrote."""
    lines = _record_path(work, shard).read_text().splitlines()
    if len(lines) != len(shard):
        raise ValueError(
            f"{_record_path(work, shard)} holds {len(lines)} of {len(shard)} recordings; remove it"
            " and run the same command again"
        )
    return [(id, [Candidate(*fields) for fields in found]) for id, found in map(json.loads, lines)]


def _record_path(work: epath.PathLike, shard: Shard) -> epath.Path:
    return epath.Path(work) / f"{shard.index:06d}.jsonl"
