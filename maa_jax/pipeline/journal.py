"""Record of the sounds in a folder, by which a run is resumed and no sound is overwritten."""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from maa_jax.checks import differences
from maa_jax.files import check_regular, replace_file

Row = dict[str, Any]

_LONGEST = 255  # bytes of a file's name


class Journal:
    """Metadata of the sounds in a folder: samples.jsonl, and the part files of unfinished runs.

    Every process appends one line per sound to its own file, samples.part-N.jsonl; at the end
    these are merged into samples.jsonl. Sounds of other requests stay, and so do their lines.

    Attributes:
      rows: {file name: its line} of the sounds that need not be made again.
      broken: names of recorded files that are not whole, and are made again.
    """

    def __init__(self, folder: pathlib.Path, wanted: Mapping[str, Row], process: int):
        """Reads samples.jsonl and the part files.

        Args:
          folder: folder of the sounds.
          wanted: {file name: fields that its line must have}.
          process: index of this process, from 0.

        Raises:
          ValueError: a file of that name belongs to another request, or to none.
        """
        self.rows: dict[str, Row] = {}
        self.broken: list[str] = []
        self._folder, self._wanted = folder, wanted
        self._part = folder / f"samples.part-{process}.jsonl"
        known = [self._folder / "samples.jsonl", *self._parts()]
        foreign = [name for name in wanted if (folder / name).is_dir()]
        # A run that was killed has at least its part file.
        if not any(path.exists() for path in known):
            foreign += [name for name in wanted if (folder / name).exists()]
        if foreign:
            raise ValueError(
                f"--out={folder}: {foreign[0]} is there, and no record says how it was made: give "
                "another folder, or move it away"
            )
        for name, row in self._read().items():
            if name not in wanted or not (folder / name).exists():
                continue
            other = differences(row, wanted[name])
            if other:
                raise ValueError(
                    f"--out={folder}: {name} belongs to another request ({', '.join(other)}): give "
                    "another folder, or repeat that request"
                )
            if _is_whole(folder / name, row):
                self.rows[name] = row
            else:
                self.broken.append(name)

    def begin(self) -> None:
        """Makes this process's part file for `add`, before any sound is written."""
        if self._part.is_file() and not self._part.read_bytes().endswith(b"\n"):
            with self._part.open("ab") as file:  # ends a line that a kill truncated
                file.write(b"\n")
        self._part.touch()

    def add(self, row: Row) -> None:
        """Records that a sound's file has been written."""
        self.rows[row["file"]] = row
        with self._part.open("ab") as file:  # one write per line
            file.write(json.dumps(row).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Merges all processes' part files into samples.jsonl, in the order of the files' names.

        Raises:
          ValueError: sounds of other processes are not recorded in this folder.
        """
        rows = self._read() | self.rows
        missing = [name for name in self._wanted if name not in rows]
        if missing:
            raise ValueError(
                f"--out={self._folder}: {len(missing)} sound(s) are not recorded here, such as "
                f"{missing[0]}: give a folder that all processes share"
            )
        lines = [json.dumps(rows[name]) + "\n" for name in sorted(rows)]
        with replace_file(self._folder / "samples.jsonl") as new:
            new.write_text("".join(lines))
        for part in self._parts():
            part.unlink()

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("samples.part-*.jsonl"))

    def _read(self) -> dict[str, Row]:
        """Returns {file name: its last line} of the files that are there, or are wanted."""
        return {
            row["file"]: row
            for path in (self._folder / "samples.jsonl", *self._parts())
            for row in _read_rows(path)
            if row["file"] in self._wanted or (self._folder / row["file"]).exists()
        }


def _read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the complete lines that name a file of the folder."""
    try:
        check_regular(path)
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        name = row.get("file") if isinstance(row, dict) else None
        if (
            isinstance(name, str)
            and name == pathlib.PurePath(name).name
            and "\0" not in name
            and len(name.encode("utf-8", "replace")) <= _LONGEST
        ):
            yield row


def _is_whole(path: pathlib.Path, row: Row) -> bool:
    """Whether a file is the wav file of one channel that its line, a complete one, describes."""
    import soundfile

    try:
        check_regular(path)
        info = soundfile.info(path)
    except (OSError, ValueError, soundfile.LibsndfileError):
        return False
    samples = max(1, round(row["duration"] * row["sample_rate"]))
    kind = (info.format, info.subtype, info.channels)
    # libsndfile counts the samples that are there, whatever the header says.
    return kind == ("WAV", "PCM_16", 1) and (info.samplerate, info.frames) == (
        row["sample_rate"],
        samples,
    )
