"""Record of the sounds already written, by which a run is resumed."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from maa_jax.checks import differences
from maa_jax.files import replace_file

Row = dict[str, Any]


class Journal:
    """Metadata of the sounds in a folder: samples.jsonl, and the part files of unfinished runs.

    Every process appends one line per sound to its own file, samples.part-N.jsonl; at the end
    these are merged into samples.jsonl.

    Attributes:
      rows: {file name: its line} of the sounds that need not be made again.
      outdated: difference between the first recorded sound that must be replaced and the one
        requested; "" if there is none.
    """

    def __init__(self, folder: pathlib.Path, wanted: Mapping[str, Row], process: int):
        """Reads samples.jsonl and the part files.

        Args:
          folder: folder of the sounds.
          wanted: {file name: fields that its line must have}.
          process: index of this process, from 0.

        Raises:
          ValueError: the folder holds an unfinished run of another request.
        """
        self.rows: dict[str, Row] = {}
        self.outdated = ""
        self._folder, self._wanted = folder, wanted
        self._part = folder / f"samples.part-{process}.jsonl"
        for row in _read_rows(folder / "samples.jsonl"):
            other = self._differences(row)
            if not other:
                self._found(row)
            elif row["file"] in wanted:
                self.outdated = self.outdated or f"{row['file']}: {other}"
        for part in self._parts():
            for row in _read_rows(part):
                other = self._differences(row)
                if other:
                    raise ValueError(
                        f"--out={folder}: {part.name} belongs to an unfinished run of another "
                        f"request ({other}); repeat that request to resume it, or choose another "
                        "folder, or delete that file"
                    )
                self._found(row)

    def begin(self) -> None:
        """Opens this process's part file for `add`, before any sound is written."""
        if self._part.is_file() and not self._part.read_bytes().endswith(b"\n"):
            with self._part.open("ab") as file:  # ends a line that a kill truncated
                file.write(b"\n")
        table = self._folder / "samples.jsonl"
        if self._part.name == "samples.part-0.jsonl" and table.is_file():
            # Files of another request are about to be overwritten: drop its lines and keep ours.
            for row in list(self.rows.values()):
                self.add(row)
            table.unlink()

    def add(self, row: Row) -> None:
        """Records that a sound's file has been written."""
        self.rows[row["file"]] = row
        with self._part.open("ab") as file:  # one write per line
            file.write(json.dumps(row).encode() + b"\n")

    def finish(self) -> None:
        """Merges all processes' part files into samples.jsonl, in order.

        Raises:
          ValueError: sounds of other processes are not recorded in this folder.
        """
        parts = self._parts()
        rows = self.rows | {row["file"]: row for part in parts for row in _read_rows(part)}
        missing = [name for name in self._wanted if name not in rows]
        if missing:
            raise ValueError(
                f"--out={self._folder}: {len(missing)} sound(s) are not recorded here, such as "
                f"{missing[0]}: give a folder that all processes share"
            )
        with replace_file(self._folder / "samples.jsonl") as new:
            new.write_text("".join(json.dumps(rows[name]) + "\n" for name in self._wanted))
        for part in parts:
            part.unlink()

    def _parts(self) -> list[pathlib.Path]:
        return sorted(self._folder.glob("samples.part-*.jsonl"))

    def _found(self, row: Row) -> None:
        if (self._folder / row["file"]).is_file():
            self.rows[row["file"]] = row

    def _differences(self, row: Row) -> str:
        wanted = self._wanted.get(row["file"])
        if wanted is None:
            return f"file={row['file']!r} there, not requested here"
        return ", ".join(differences(row, wanted))


def _read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields the complete lines that name a file."""
    try:
        text = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("file"), str):
            yield row
