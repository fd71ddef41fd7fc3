"""Files of a folder of recordings: all of them, or those that a table names."""

import functools
import os
import pathlib
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

from absl import logging
from etils import epath

# Suffixes of the formats that libsndfile decodes.
_SUFFIXES = frozenset(
    ".wav .wave .bwf .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .caf .w64 .rf64 .au .snd".split()
)
# Those of other sound and video files, which are named rather than passed over.
_OTHERS = frozenset(
    ".m4a .m4b .aac .ac3 .alac .amr .ape .dsf .mka .mkv .mov .mp4 .mpc .ra .tta .webm .wma .wv"
    " .avi .3gp".split()
)


def sound_files(folder: epath.Path, *, leave: bool = True) -> dict[str, epath.Path]:
    """Returns {path in the folder: file} of the sound files at any depth, sorted by path.

    Sound and video files that cannot be decoded are counted in a warning.

    Args:
      folder: folder, local or in a bucket.
      leave: whether links may lead out of the folder.

    Raises:
      ValueError: a name is no text, or a link leads out of the folder.
    """
    found, others = {}, Counter[str]()
    real = os.path.realpath(folder)
    for name, path in _files(folder, leave=leave):
        suffix = path.suffix.lower()
        if not leave and _leads_out(path, real) and (suffix in _SUFFIXES or path.is_dir()):
            raise ValueError(
                f"audio_folder: {name} is a link that leads out of {folder}; copy what it links to"
                " into the folder, or give the folder in which it lies"
            )
        if suffix in _SUFFIXES:
            check_name(name, folder)
            found[name] = path
        elif suffix in _OTHERS:
            others[suffix] += 1
    if others:
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        _warn(
            f"{folder}: {others.total()} files are left out, since they cannot be decoded"
            f" ({counts}); convert them, as by ffmpeg -i NAME.m4a NAME.wav"
        )
    return dict(sorted(found.items()))


@functools.cache  # said once, however often a folder is listed
def _warn(message: str) -> None:
    logging.warning("%s", message)


def check_name(name: str, where: object) -> None:
    """Raises a ValueError for a file's name that is no text, such as one in Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{where}: the name {os.fsencode(name)!r} is not UTF-8; rename the file"
        ) from None


def _leads_out(path: epath.Path, real: str) -> bool:
    """Whether a link leads out of the folder that lies at `real`."""
    if "://" in os.fspath(path) or not os.path.islink(path):
        return False
    return not pathlib.Path(os.path.realpath(path)).is_relative_to(real)


def _files(folder: epath.Path, *, leave: bool) -> Iterator[tuple[str, epath.Path]]:
    """Yields (path in the folder, file) at any depth; hidden files and loops of links are not.

    A link that leads to a folder outside is followed if `leave`, and otherwise yielded itself.
    """
    left, seen, root = [folder], set[str](), os.path.realpath(folder)
    while left:
        place = left.pop()
        if "://" not in os.fspath(place):
            real = os.path.realpath(place)
            if real in seen:
                continue
            seen.add(real)
        for path in place.iterdir():
            if path.name.startswith("."):  # macOS unpacks a "._" file beside each file
                continue
            if path.is_dir() and (leave or not _leads_out(path, root)):
                left.append(path)
            else:
                yield path.relative_to(folder).as_posix(), path


def _plain(name: str) -> str:
    """Returns a name in the form by which names that look the same are equal."""
    return unicodedata.normalize("NFC", name).strip()


class Folder:
    """Finds the files of a folder by the names that a table gives them.

    File systems and editors write "ä" as one character or as two: a name that looks the same finds
    its file. One that differs otherwise does not.
    """

    def __init__(self, path: epath.Path):
        self.path = path
        self._remote = "://" in os.fspath(path)
        self._real = os.path.realpath(path)

    def find(self, name: str) -> tuple[str, str]:
        """Returns the path in the folder of a file, and what is wrong with it, "" if nothing.

        Raises:
          ValueError: the name leads out of the folder.
        """
        if re.match(r"[/\\]|[A-Za-z]:[/\\]|\w+://", name):
            raise ValueError(f"{name!r} is an absolute path; write the path in {self.path}")
        tidy = posixpath.normpath(name)
        if tidy == "." or tidy.split("/")[0] == "..":
            raise ValueError(f"{name!r} is no file in the folder {self.path}; write its path there")
        if self._remote:
            return tidy, "" if (self.path / tidy).exists() else f"No such file in {self.path}"
        fault = self._fault(tidy)
        if fault and not os.path.lexists(self.path / tidy):
            tidy, fault = self._similar(tidy)
            fault = fault or self._fault(tidy)
        return tidy, fault

    def _fault(self, name: str) -> str:
        """Returns why a path in the folder cannot be read."""
        real = os.path.realpath(self.path / name)
        if os.path.commonpath([real, self._real]) != self._real:
            raise ValueError(
                f"{name!r} is a link that leads out of {self.path}, to {real}; copy the file into"
                " the folder, or give the folder in which it lies"
            )
        if os.path.isfile(real):
            return ""
        return "is not a regular file" if os.path.exists(real) else "No such file"

    def _similar(self, name: str) -> tuple[str, str]:
        """Returns the path of a file with a name that looks the same, or why there is none."""
        same = self._by_plain_name.get(_plain(name), [])
        if len(same) == 1:
            return same[0], ""
        if same:
            return name, f"{len(same)} files have a name that looks the same; rename one"
        fault = f"No such file in {self.path}"
        near = self._by_caseless_name.get(_plain(name.replace("\\", "/")).casefold())
        return name, f"{fault}; there is {near!r}" if near else fault

    @functools.cached_property
    def _by_plain_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, _ in _files(self.path, leave=False):
            found.setdefault(_plain(name), []).append(name)
        return found

    @functools.cached_property
    def _by_caseless_name(self) -> dict[str, str]:
        return {plain.casefold(): names[0] for plain, names in self._by_plain_name.items()}


def check_folder(key: str, path: epath.Path) -> None:
    """Raises a ValueError, with the key of the config, unless a path is a folder."""
    if not path.exists():
        raise ValueError(f"audio_folder: {key} {path} does not exist; correct the path")
    if not path.is_dir():
        raise ValueError(f"audio_folder: {key} {path} is no folder; give the one with the sounds")
