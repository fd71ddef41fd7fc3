"""Base of the published datasets, whose files the user puts in place by hand.

A dataset's files go into `downloads/manual/NAME` of `data_dir`, unpacked in the publisher's layout;
its `MANUAL_DOWNLOAD_INSTRUCTIONS` state which files they are and where they come from.
"""

import abc
import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import tensorflow_datasets as tfds
import yaml
from absl import logging
from etils import epath

from maa_jax.data.builders import origins, tables
from maa_jax.data.builders.base import AudioBuilder, Recording
from maa_jax.data.builders.listing import sound_files
from maa_jax.files import check_regular


class PublishedAudio(AudioBuilder, skip_registration=True):
    """Base of the published datasets.

    Attributes:
      FILES: files and folders that must exist in the dataset's folder before anything is read.
    """

    FILES: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Yields the recordings that the tables in `folder` name, without reading their audio."""

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Lists the recordings that `read` yields, except those whose file is missing."""
        try:
            folder = dl_manager.manual_dir / self.name
        except AssertionError as error:  # from TFDS, where the parent folder is missing or empty
            raise FileNotFoundError(f"dataset {self.name}: {error}") from error
        what = f"to build {self.name}, put into {folder}: {self.MANUAL_DOWNLOAD_INSTRUCTIONS}"
        for file in self.FILES:
            if not (folder / file).exists():
                raise FileNotFoundError(f"{folder / file} is missing; {what}")
        seen = {file: origins.look(folder / file) for file in self.FILES}
        self._tables = {file: found for file, found in seen.items() if found}
        self._folder = folder
        there, absent = [], 0
        for recording in self.read(folder):
            if recording.audio is None:
                absent += 1
            else:
                there.append(recording)
        if not there:
            raise FileNotFoundError(f"{folder} holds no sound file of the dataset; {what}")
        if absent:
            logging.warning("%s: %d sound files are missing", self.name, absent)
        return there

    def origin(self) -> origins.Origin | None:
        """Returns the tables, without the recordings, of which there may be millions."""
        return origins.Origin(os.path.abspath(self._folder), self._tables)


def table(path: epath.Path, *columns: str, encoding: str = "utf-8-sig") -> Iterator[tables.Row]:
    """Yields the rows of a CSV file; raises ValueError if it lacks one of `columns`."""
    return tables.read(path, columns, encoding=encoding)


@contextlib.contextmanager
def as_published(path: epath.Path) -> Iterator[None]:
    """Turns what goes wrong in reading a JSON or YAML file into an error that names it."""
    try:
        check_regular(path)
        yield
    except (
        *(LookupError, TypeError, AttributeError, ValueError, RecursionError),
        yaml.YAMLError,
    ) as error:
        raise ValueError(
            f"{path} is not as published ({type(error).__name__}: {error}); use the publisher's"
            " file"
        ) from error


def inside(folder: epath.Path, name: str, row: tables.Row) -> epath.Path:
    """Returns the file in a folder that a line of a table names.

    Raises:
      ValueError: the name leads out of the folder.
    """
    if not name or name.startswith("/") or ".." in name.split("/"):
        row.fail(f"{name!r} is no file in {folder}; use the publisher's file")
    return folder / name


def by_stem(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns {name without suffix: file} of the sound files at any depth."""
    return {path.stem: path for path in sound_files(folder).values()}


def youtube_files(folder: epath.Path) -> dict[str, epath.Path]:
    """Returns {YouTube id: file}; files are named by the id (11 characters) or by Y and the id."""
    files = by_stem(folder)
    return {s.removeprefix("Y") if len(s) == 12 else s: path for s, path in files.items()}


def youtube(video: str, start: str, row: tables.Row) -> str:
    """Returns a clip's address, the same in all datasets, so that it identifies duplicates."""
    if not re.fullmatch(r"\d+(\.\d*)?", start):
        row.fail(f"the clip's start is {start!r}; write seconds")
    return f"https://www.youtube.com/watch?v={video}&t={int(float(start))}s"


def freesound(sound: str) -> str:
    """Returns the address of a Freesound recording, the same in all datasets."""
    return f"https://freesound.org/s/{sound}/"


def words(name: str) -> str:
    """Returns the words of a file's name in lower case, without digits and punctuation.

    "SFX_LargeWave Splash 21" gives "sfx large wave splash".
    """
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[^\W\d_]+(?:'[a-z]+)?", apart)).lower()


def name_labels(path: str) -> tuple[str, ...]:
    """Returns labels from a file's path: the words of its name, then those of its folder.

    Of a folder "Vendor - Library", only "Library" is used.
    """
    *folders, file = path.split("/")
    names = (file.rpartition(".")[0], *(f.rpartition(" - ")[2] for f in folders[-1:]))
    return tuple(dict.fromkeys(filter(None, map(words, names))))


def group_split(group: str) -> str:
    """Returns a split that depends only on `group`: 80 % train, 10 % validation, 10 % test."""
    digit = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 10
    return {0: "validation", 1: "test"}.get(digit, "train")
