"""Windows of recordings; shards of them, the units of work; and the candidates of each shard."""

import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
from etils import epath

from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.data import stored
from maa_jax.data.mixtures import Part
from maa_jax.enhancement.distill import Candidate
from maa_jax.files import replace_file


@dataclasses.dataclass(frozen=True)
class Source:
    """A split of a built dataset, heard in windows.

    Attributes:
      dataset: name of the dataset, "esc50".
      folder: folder of the dataset, to which the workers of a Beam runner need access too.
      split: split in TFDS's notation.
      samples: length of a window at 16 kHz.
      most: most windows of a recording; None for all.
    """

    dataset: str
    folder: str
    split: str
    samples: int
    most: int | None = None

    @property
    def label(self) -> str:
        """Name, version and split of the dataset, "esc50/1.0.0:train"."""
        return f"{self.dataset}/{epath.Path(self.folder).name}:{self.split}"


@dataclasses.dataclass(frozen=True)
class Shard:
    """Consecutive windows of a source whose candidates are written together.

    Attributes:
      index: index among all shards of a run.
      source: split that the windows are of.
      start: index of the first window in the source; see `Windows`.
      stop: index after the last window.
    """

    index: int
    source: Source
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Windows(Sequence[dict[str, Any]]):
    """The windows of a split as examples: recordings of at most a clip's length, in random access.

    A recording has as many windows as it is clips long, rounded, and at least one; where that is
    more than `most`, as many are taken at equal distances. The first window begins where the
    recording begins and the last one ends where it ends; a single one is the middle. An example has
    the recording's fields, `audio_hash` included, by which its copies in other datasets are found;
    `audio` and `seconds` are the window's, and `start` is its first sample at 16 kHz.
    """

    def __init__(self, source: Source):
        self._samples = source.samples
        folder, part = epath.Path(source.folder), Part(source.dataset, source.split)
        self._whole = stored.index_of(part, folder).windows(source.samples / SAMPLE_RATE)
        self._taken = np.minimum(self._whole, source.most or self._whole.max())
        self._ends = np.cumsum(self._taken)
        # The windows of one recording are read one after another.
        read = stored.Recordings(source.folder, source.split).__getitem__
        self._recording = functools.lru_cache(maxsize=4)(read)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def recordings(self) -> int:
        """Number of recordings."""
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        record = int(np.searchsorted(self._ends, index, side="right"))
        taken, whole = int(self._taken[record]), int(self._whole[record])
        window = int(index - self._ends[record] + taken)
        number = (2 * window + 1) * whole // (2 * taken)  # of `whole`
        return self._cut(self._recording(record), number, whole)

    def _cut(self, example: dict, number: int, whole: int) -> dict:
        with soundfile.SoundFile(io.BytesIO(example["audio"])) as file:
            beyond = file.frames - self._samples
            if beyond <= 0:
                return {**example, "start": 0}
            start = beyond * number // (whole - 1) if whole > 1 else beyond // 2
            file.seek(start)
            wav = file.read(self._samples, dtype="int16")
        audio = io.BytesIO()
        soundfile.write(audio, wav, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
        seconds = self._samples / SAMPLE_RATE
        return {**example, "audio": audio.getvalue(), "seconds": seconds, "start": start}


@functools.lru_cache(maxsize=8)
def open_windows(source: Source) -> Windows:
    """Returns the windows of a source."""
    return Windows(source)


def write_record(
    work: epath.PathLike, shard: Shard, rows: Sequence[tuple[str, list[Candidate]]]
) -> None:
    """Writes the (recording's id, candidates) of a shard's windows, whole or not at all.

    A resumed run skips a shard if its file, of JSON lines, exists.
    """
    lines = [json.dumps([id, [dataclasses.astuple(c) for c in found]]) for id, found in rows]
    with replace_file(_record_path(work, shard)) as new:
        new.write_text("\n".join(lines) + "\n")


def has_record(work: epath.PathLike, shard: Shard) -> bool:
    """Returns whether a shard is done."""
    return _record_path(work, shard).exists()


def has_records(work: epath.PathLike) -> bool:
    """Returns whether any shard is done."""
    return any(epath.Path(work).glob("*.jsonl"))


def read_record(work: epath.PathLike, shard: Shard) -> list[tuple[str, list[Candidate]]]:
    """Returns the record that `write_record` wrote.

    Raises:
      ValueError: the file is broken.
    """
    path = _record_path(work, shard)
    try:
        lines = path.read_text().splitlines()
        if len(lines) != len(shard):
            raise ValueError(f"{len(lines)} of {len(shard)} windows")
        return [
            (id, [Candidate(*fields) for fields in found]) for id, found in map(json.loads, lines)
        ]
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is broken ({error}): remove it and run the same command again"
        ) from error


def _record_path(work: epath.PathLike, shard: Shard) -> epath.Path:
    return epath.Path(work) / f"{shard.index:06d}.jsonl"
