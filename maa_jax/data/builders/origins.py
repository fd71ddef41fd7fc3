"""What a dataset was built from, remembered in its folder, so that a change does not pass unseen.

A file counts as unchanged if its size and time of modification are the same; otherwise its content
decides, by SHA-256. So a check costs one look at each file, and copying or touching the files does
not make a dataset old.
"""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping

from etils import epath

from maa_jax.data.builders.listing import sound_files
from maa_jax.files import replace_file

FILE = "origin.json"  # in the folder of the built dataset
_LISTED = 3  # files that a message names

Seen = tuple[int, int, str]  # size in bytes, time of modification in ns, SHA-256 in hex


@dataclasses.dataclass(frozen=True)
class Origin:
    """Files that a dataset was built from.

    Attributes:
      folder: folder of the files, as an absolute path.
      files: {path in the folder: what was there}; None for a file that was missing.
      table: path of the table that names the recordings; None if there is none.
      table_seen: what the table was.
      listed: whether `files` are all sound files of the folder, so that another one is a change.
    """

    folder: str
    files: Mapping[str, Seen | None]
    table: str | None = None
    table_seen: Seen | None = None
    listed: bool = False


def look(path: str | os.PathLike[str]) -> Seen | None:
    """Returns the size, time and hash of a regular file; None if there is none, or in a bucket."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, digest


def write(dataset: epath.Path, origin: Origin) -> None:
    """Remembers in a dataset's folder what it was built from."""
    with replace_file(dataset / FILE) as new:
        new.write_text(json.dumps(dataclasses.asdict(origin)))


def read(dataset: epath.Path) -> Origin | None:
    """Returns what a dataset was built from; None if it does not say, as earlier versions'."""
    try:
        origin = Origin(**json.loads((dataset / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{dataset / FILE} is broken ({error}); remove it to use the dataset as it is"
        ) from error
    return origin


def check(
    name: str, dataset: epath.Path, folder: str | None = None, table: str | None = None
) -> None:
    """Raises if what a dataset was built from has changed since.

    Files that are not at hand, as on another machine, are not checked: those in a folder that is
    not there, or, if it is not given, in one that holds none of them any more.

    Args:
      name: name of the dataset, for errors.
      dataset: its folder.
      folder: folder of the files; by default where they were. It may have moved.
      table: path of the table, if `folder` is given.

    Raises:
      ValueError: files changed, came or went; the message names them and the remedies.
    """
    origin = read(dataset)
    if origin is None:
        return
    if folder is None:
        folder, table = origin.folder, origin.table
        if not any(os.path.exists(os.path.join(folder, file)) for file in origin.files):
            return
    if not os.path.isdir(folder):
        return
    fresh: dict[str, Seen | None] = {}
    changes = list(_changes(origin, folder, table, fresh))
    if changes:
        raise ValueError(
            f"dataset {name} in {dataset} is old: {'; '.join(changes)}. To build it anew, remove"
            f" {dataset} and give the same command, with the folder and table that it is built"
            f" from; to go on with it as it is, remove {dataset / FILE}"
        )
    if fresh:
        _refresh(dataset, origin, fresh)


def built_from(datasets: epath.Path, version: str, folder: str, table: str | None) -> list[str]:
    """Returns the names of the datasets in a folder that were built from these paths."""
    found = []
    for path in datasets.glob(f"*/{version}/{FILE}"):
        origin = read(path.parent)
        if origin and (origin.folder, origin.table) == (folder, table):
            found.append(path.parent.parent.name)
    return found


def _changes(
    origin: Origin, folder: str, table: str | None, fresh: dict[str, Seen | None]
) -> Iterator[str]:
    """Yields what has changed, and notes the new times of files that have the same content."""
    if (table is None) != (origin.table is None):
        yield f"it was built with {origin.table or 'no table'}, and not with {table or 'none'}"
    elif table is not None and os.path.exists(table) and origin.table_seen:
        if not _same(table, origin.table_seen):
            yield f"the table {table} has changed"
    changed, gone, came = [], [], []
    for file, seen in origin.files.items():
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            gone += [file] if seen else []
        elif seen is None:
            came.append(file)
        elif not _same(path, seen):
            changed.append(file)
        elif (status := os.stat(path)).st_mtime_ns != seen[1]:
            fresh[file] = (status.st_size, status.st_mtime_ns, seen[2])
    if origin.listed:
        came += [
            file
            for file in sound_files(epath.Path(folder), leave=False)
            if file not in origin.files
        ]
    for files, what in ((changed, "changed"), (gone, "gone"), (came, "new")):
        if files:
            names = ", ".join(files[:_LISTED]) + (", ..." if len(files) > _LISTED else "")
            yield f"{len(files)} of {len(origin.files)} files {what} ({names})"


def _same(path: str, seen: Seen) -> bool:
    """Returns whether a file is the one that was seen."""
    status = os.stat(path)
    if status.st_size != seen[0]:
        return False
    if status.st_mtime_ns == seen[1]:
        return True
    now = look(path)
    return now is not None and now[2] == seen[2]


def _refresh(dataset: epath.Path, origin: Origin, fresh: Mapping[str, Seen | None]) -> None:
    """Remembers new times, so that the same files are not hashed again."""
    try:
        write(dataset, dataclasses.replace(origin, files={**origin.files, **fresh}))
    except OSError:  # the dataset may lie where only others may write
        pass
