"""Which sounds of a request are on the disk."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from maa_jax.checks import differences
from maa_jax.files import replace_file


class Journal:
    """Which sounds of a request are there: samples.jsonl, and what unfinished runs wrote down.

    Every process appends to a file of its own, samples.part-N.jsonl, a line a sound; in the end
    all of them become samples.jsonl.

    Attributes:
      rows: {file's name: its line} of the sounds that need not be made again.
    """

    def __init__(self, folder: pathlib.Path, wanted: dict[str, dict[str, Any]], process: int):
        """Reads what is there.

        Args:
          folder: of the sounds.
          wanted: {file's name: what its line must say}.
          process: this one's number.

        Raises:
          ValueError: the folder holds an unfinished run of another request.
        """
        self.rows: dict[str, dict[str, Any]] = {}
        self._folder, self._wanted = folder, wanted
        self._part = folder / f"samples.part-{process}.jsonl"
        for row in _read_rows(folder / "samples.jsonl"):
            if not _differences(wanted.get(row.get("file")), row):
                self._found(row)
        for part in self._parts():
            for row in _read_rows(part):
                other = _differences(wanted.get(row.get("file")), row)
                if other:
                    raise ValueError(
                        f"--out={folder}: {part.name} is of an unfinished run of another request "
                        f"({other}); give the same request again to go on with it, or another "
                        "folder, or delete that file"
                    )
                self._found(row)

    def begin(self) -> None:
        """Makes ready for `add`, before any sound is written."""
        if self._part.is_file() and not self._part.read_bytes().endswith(b"\n"):
            with self._part.open("ab") as file:  # ends the line that a kill cut short
                file.write(b"\n")
        table = self._folder / "samples.jsonl"
        if self._part.name == "samples.part-0.jsonl" and table.is_file():
            # Files of another request are about to be written over: its lines go, ours are kept.
            for row in list(self.rows.values()):
                self.add(row)
            table.unlink()

    def _found(self, row: dict[str, Any]) -> None:
        if (self._folder / row["file"]).is_file():
            self.rows[row["file"]] = row

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("samples.part-*.jsonl"))

    def add(self, row: dict[str, Any]) -> None:
        """Notes that a sound's file is written."""
        self.rows[row["file"]] = row
        with self._part.open("ab") as file:  # one write a line
            file.write(json.dumps(row).encode() + b"\n")

    def finish(self) -> None:
        """Writes samples.jsonl, in order, in place of all processes' notes."""
        parts = self._parts()
        rows = self.rows | {row["file"]: row for part in parts for row in _read_rows(part)}
        missing = [name for name in self._wanted if name not in rows]
        if missing:
            raise ValueError(
                f"--out={self._folder}: {len(missing)} sound(s) are not noted here, such as "
                f"{missing[0]}: give a folder that all processes share"
            )
        table = self._folder / "samples.jsonl"
        with replace_file(table) as new:
            new.write_text("".join(json.dumps(rows[name]) + "\n" for name in self._wanted))
        for part in parts:
            part.unlink()


def _read_rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yields the lines that are whole."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _differences(wanted: dict[str, Any] | None, row: dict[str, Any]) -> str:
    if wanted is None:
        return f"file={row.get('file')!r} there, not asked for here"
    return ", ".join(differences(row, wanted))
