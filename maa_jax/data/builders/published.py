"""Base of the datasets that others publish: their files, put in place by hand, and their tables.

A dataset's files go into `downloads/manual/NAME` of `data_dir`, unpacked as its publisher packs
them; its `MANUAL_DOWNLOAD_INSTRUCTIONS` say which and from where.
"""

import abc
import csv
import hashlib
import io
import re
from collections.abc import Iterator
from typing import ClassVar

from absl import logging
from etils import epath

from maa_jax.data.builders.base import AudioBuilder, Recording

_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")


class PublishedAudio(AudioBuilder, skip_registration=True):
    """Base of the published datasets.

    Attributes:
      FILES: What must be in the dataset's folder before anything is read.
    """

    FILES: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Yields the recordings that the tables in `folder` name; reads no audio."""

    def recordings(self, dl_manager):
        """Those of `read`; without the ones that the user has not (`audio` is None)."""
        try:
            folder = dl_manager.manual_dir / self.name
        except AssertionError as error:  # TFDS's, where the folder above is missing or empty.
            raise FileNotFoundError(f"dataset {self.name}: {error}") from error
        what = f"to build {self.name}, put into {folder}: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        for file in self.FILES:
            if not (folder / file).exists():
                raise FileNotFoundError(f"{folder / file} is missing; {what}")
        there, absent = [], 0
        for recording in self.read(folder):
            if recording.audio is None:
                absent += 1
            else:
                there.append(recording)
        if not there:
            raise FileNotFoundError(f"{folder} holds no sound file that is known; {what}")
        if absent:
            logging.warning("%s: %d sound files are not there", self.name, absent)
        return there


def table(path: epath.Path, *columns: str, encoding: str = "utf-8-sig") -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file; raises ValueError where it lacks one of `columns`."""
    reader = csv.DictReader(io.StringIO(path.read_bytes().decode(encoding), newline=""))
    for column in columns:
        if column not in (reader.fieldnames or ()):
            raise ValueError(
                f"{path} has no column {column!r} but {reader.fieldnames}; take the publisher's"
            )
    return reader


def sound_files(folder: epath.Path) -> dict[str, epath.Path]:
    """The sound files of a folder at any depth, by their path in it, in order."""
    found, left = {}, [folder]
    while left:
        for path in left.pop().iterdir():
            if path.name.startswith("."):  # macOS unpacks a "._" file beside each file.
                continue
            if path.suffix.lower() in _SUFFIXES:
                found[path.relative_to(folder).as_posix()] = path
            elif path.is_dir():
                left.append(path)
    return dict(sorted(found.items()))


def by_stem(folder: epath.Path) -> dict[str, epath.Path]:
    """The sound files of a folder at any depth, by their name without suffix."""
    return {path.stem: path for path in sound_files(folder).values()}


def youtube_files(folder: epath.Path) -> dict[str, epath.Path]:
    """Clips by YouTube's id (11 characters), which names each file; PANNs writes a Y before it."""
    files = by_stem(folder)
    return {s.removeprefix("Y") if len(s) == 12 else s: path for s, path in files.items()}


def youtube(video: str, start: str) -> str:
    """Address of a clip, the same in all datasets: a recording in two of them has one source."""
    return f"https://www.youtube.com/watch?v={video}&t={int(float(start))}s"


def freesound(sound: str) -> str:
    """Address of a recording, the same in all datasets."""
    return f"https://freesound.org/s/{sound}/"


def words(name: str) -> str:
    """The words of a file's name: no digits or punctuation, lower case.

    "SFX_LargeWave Splash 21" gives "sfx large wave splash".
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[^\W\d_]+(?:'[a-z]+)?", apart)).lower()


def name_labels(path: str) -> tuple[str, ...]:
    """Labels from a file's path: the words of its name, then those of the innermost folder.

    Of a folder "Vendor - Library" the library counts.
    """
    *folders, file = path.split("/")
    names = (file.rpartition(".")[0], *(f.rpartition(" - ")[2] for f in folders[-1:]))
    return tuple(dict.fromkeys(filter(None, map(words, names))))


def group_split(group: str) -> str:
    """A split that hangs on `group` alone: about 80 % train, 10 % validation, 10 % test."""
    digit = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
    return {0: "validation", 1: "test"}.get(digit, "train")
