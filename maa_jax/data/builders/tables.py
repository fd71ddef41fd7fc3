"""Tables of recordings, as users and publishers write them: CSV, TSV and JSON lines.

A cell is either what its author wrote or an error that names file, line and remedy. Programs that
write tables cut sentences at commas, let a quote swallow lines, save in other encodings or turn
empty cells into "nan"; none of this is repaired by guessing.
"""

import codecs
import contextlib
import csv
import difflib
import functools
import io
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NoReturn, TypeVar

from etils import epath

from maa_jax.files import check_regular

T = TypeVar("T")

_LONGEST = 2**20  # characters of a line
_QUOTING = (
    'a cell that holds a separator, a quote or a line break is written "in quotes", and each quote'
    ' inside it is doubled ("")'
)
# What no table of text holds: control characters but for tab and line ends, a byte order mark
# behind the first line's start, and the halves of surrogate pairs, by which Python also stands for
# bytes that are not UTF-8.
_UNREADABLE = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ud800-\udfff]")
# What programs write into a cell that has no value or whose formula failed.
_MISSING = re.compile(
    r"[-+]?nan|null|none|<na>|#?n/a|#n/a n/a|#na|undefined|#(value|ref|name|div/0|null|num)[!?]"
)
_PRINTED = re.compile(r"""\[\s*(['"]).*\1\s*,?\s*\]|\{\s*(['"]).*:.*\}|\[\s*\]""", re.DOTALL)
_SOUND_FILE = re.compile(
    r"[^\n]+\.(wave?|bwf|flac|og[ga]|opus|mp3|aif[fc]?|caf|w64|rf64|au|snd|m4a)", re.IGNORECASE
)


class Row(dict[str, Any]):
    """A line of a table: {column: cell}. Cells are str; in JSON lines also other values.

    Attributes:
      where: file and line, for errors.
    """

    def __init__(self, where: str, cells: Mapping[str, Any]):
        super().__init__(cells)
        self.where = where

    def fail(self, message: str) -> NoReturn:
        """Raises a ValueError that names the line."""
        raise ValueError(f"{self.where}: {message}")

    def text(self, column: str) -> str:
        """Returns a cell without blanks around it; "" if it is empty, null or not there.

        Raises:
          ValueError: the cell is no text.
        """
        return self._text(column, self.get(column))

    def required(self, column: str) -> str:
        """Returns a sentence that must not be empty."""
        return self.sentence(column) or self.fail(f"{column!r} is empty; write a text")

    def texts(self, column: str) -> tuple[str, ...]:
        """Returns the sentences of a cell that is a text, or in JSON lines a list of texts."""
        cell = self.get(column)
        if not isinstance(cell, list):
            return (self.sentence(column),) if self.text(column) else ()
        found = [self._sentence(column, self._text(column, item)) for item in cell]
        if "" in found:
            self.fail(f"an item of {column!r} is empty or null; leave it out of the list")
        return tuple(found)

    def sentence(self, column: str) -> str:
        """Returns a cell that people write, such as a caption or a label; "" if it is empty.

        Raises:
          ValueError: the cell is what a program writes for a missing value, or a printed list.
        """
        return self._sentence(column, self.text(column))

    def one_of(self, column: str, known: Mapping[str, T]) -> T:
        """Returns what a cell, one of the keys of `known`, stands for."""
        text = self.text(column)
        if text not in known:
            self.fail(f"{column} is {text!r}; use {', '.join(known)}")
        return known[text]

    def _text(self, column: str, cell: Any) -> str:
        if cell is None:
            return ""
        if not isinstance(cell, str):
            shown = json.dumps(cell)
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            self.fail(f"{column!r} is {shown}, which is not a text; write it in quotes")
        if found := _UNREADABLE.search(cell):
            self.fail(f"{column!r}: {_unreadable(found[0])}")
        return cell.strip()

    def _sentence(self, column: str, text: str) -> str:
        if text == "NA" or _MISSING.fullmatch(text.lower()):
            self.fail(
                f"{column!r} is {text!r}, which programs write for a missing value; leave the cell"
                " empty (in pandas: to_csv(..., na_rep='')), or write a sentence"
            )
        if _PRINTED.fullmatch(text):
            self.fail(
                f"{column!r} is {text[:40]!r}, a printed list; write each item into a column of its"
                " own, caption_1, caption_2, ..., or JSON lines with a list"
            )
        return text


def read(
    path: epath.Path,
    columns: Sequence[str] = (),
    *,
    known: re.Pattern[str] | None = None,
    header: bool = True,
    encoding: str = "utf-8-sig",
) -> Iterator[Row]:
    """Yields the rows of a .csv, .tsv or .jsonl file, which are read as they are needed.

    Blank lines are skipped. Columns that the caller does not know are allowed, unless their name is
    nearly that of a known one.

    Args:
      path: file, local or in a bucket.
      columns: columns that a CSV or TSV file must have.
      known: names of the columns that the caller reads if they are there.
      header: whether the first line names the columns. A file without names has `columns`, and its
        lines that begin with # are comments.
      encoding: encoding of the file; a byte order mark of UTF-8 is skipped.

    Raises:
      ValueError: the file is of another kind, or a line is broken; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _json_rows(path, known)
    if suffix not in (".csv", ".tsv"):
        raise ValueError(f"{path} is neither .csv, .tsv nor .jsonl; write one of these")
    text = lines(path, encoding)
    if not header:
        text = ("\n" if line.startswith("#") else line for line in text)
    given = None if header else list(columns)
    return _cell_rows(path, text, "," if suffix == ".csv" else "\t", given, columns, known)


def lines(path: epath.Path, encoding: str = "utf-8-sig") -> Iterator[str]:
    """Yields the lines of a text file with "\\n" at their ends, decoded and checked one by one.

    Raises:
      ValueError: the file cannot be opened; or a line is no text in this encoding, or is too long:
        the message names it.
    """
    with contextlib.ExitStack() as stack:
        raw = stack.enter_context(open_bytes(path))
        # Bytes that are not UTF-8 become surrogates, so that their line is known.
        text = io.TextIOWrapper(raw, encoding, errors="surrogateescape")
        stack.enter_context(text)
        for number in itertools.count(1):
            line = text.readline(_LONGEST + 1)
            if not line:
                return
            fault = ""
            if number == 1 and line.startswith(("\udcff\udcfe", "\udcfe\udcff")):
                fault = "is UTF-16; save the table as UTF-8 (in Excel: CSV UTF-8)"
            elif found := _UNREADABLE.search(line):
                fault = _unreadable(found[0])
            elif len(line) > _LONGEST:
                fault = f"has more than {_LONGEST} characters; is it a table?"
            if fault:
                raise ValueError(f"{path}, line {number}: {fault}")
            yield line


def open_bytes(path: epath.Path) -> BinaryIO:
    """Opens a table; raises ValueError if it is no regular file or cannot be read."""
    try:
        check_regular(path)
        return io.BytesIO(path.read_bytes()) if "://" in os.fspath(path) else open(path, "rb")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror or error}); correct the path"
        ) from error


def _unreadable(character: str) -> str:
    """Returns what is wrong with a character that no text holds, and the remedy."""
    if "\udc80" <= character <= "\udcff":
        byte = character.encode("utf-8", "surrogateescape")[0]
        return f"byte {byte:#x} is not UTF-8; save the table as UTF-8 (in Excel: CSV UTF-8)"
    if character == codecs.BOM_UTF8.decode():
        return "holds a byte order mark, as where two files were joined; remove it"
    if character == "\0":
        return "holds a NUL character, as UTF-16 does; save the table as UTF-8"
    if "\ud800" <= character <= "\udfff":
        return f"holds half a surrogate pair (U+{ord(character):04X}), which is no character"
    return f"holds the control character U+{ord(character):04X}; remove it"


def _cell_rows(
    path: epath.Path,
    text: Iterator[str],
    delimiter: str,
    header: list[str] | None,
    columns: Sequence[str],
    known: re.Pattern[str] | None,
) -> Iterator[Row]:
    """Yields the rows of a CSV or TSV file; its first line is the header unless that is given."""
    reader = csv.reader(text, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        first = reader.line_num + 1
        where = f"{path}, line {first}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            to = f" to {reader.line_num}" if reader.line_num > first else ""
            raise ValueError(f"{where}{to}: {error}; {_QUOTING}") from error
        if cells is None:
            break
        if len(cells) < 2 and not "".join(cells).strip():
            continue
        if header is None:
            header = _header(cells, path, where, columns, known)
            continue
        row = Row(where, dict(zip(header, cells, strict=False)))
        if len(cells) != len(header):
            row.fail(f"{len(cells)} cells for the {len(header)} columns {header}; {_QUOTING}")
        if reader.line_num > first:
            _check_swallowed(row, delimiter)
        yield row
    if header is None:
        raise ValueError(f"{path} is empty; write a first line with the names of the columns")


def _header(
    names: list[str],
    path: epath.Path,
    where: str,
    columns: Sequence[str],
    known: re.Pattern[str] | None,
) -> list[str]:
    """Returns the names of the columns once they are checked."""
    for name in names:
        if not name.strip():
            raise ValueError(
                f"{where}: column {names.index(name) + 1} has no name; name it, or remove it (in"
                " pandas: to_csv(..., index=False))"
            )
        if names.count(name) > 1:
            raise ValueError(f"{where}: two columns are named {name!r}; rename or remove one")
        _check_name(name, where, known)
    if lacking := [column for column in columns if column not in names]:
        raise ValueError(
            f"{path} has no column {lacking[0]!r} but {names}; it lacks {', '.join(lacking)}: take"
            " the right file, or name its columns in the first line"
        )
    return names


def _check_name(name: str, where: str, known: re.Pattern[str] | None) -> None:
    """Raises for a column or key that would be ignored although a known one is meant."""
    if known and (meant := _meant(name, known)):
        raise ValueError(
            f"{where}: {name!r} is not a known column; write {meant!r} if that is meant, or rename"
            " or remove it"
        )


@functools.lru_cache(maxsize=1000)
def _meant(name: str, known: re.Pattern[str]) -> str | None:
    if known.fullmatch(name):
        return None
    plain = re.sub(r"\W+", "_", name.strip()).lower()
    if known.fullmatch(plain):
        return plain
    names = filter(str.isidentifier, known.pattern.split("|"))
    near = difflib.get_close_matches(plain, list(names), 1, 0.8)
    return near[0] if near else None


def _check_swallowed(row: Row, delimiter: str) -> None:
    """Raises if a cell that spans lines seems to hold whole lines of the table.

    A quote that is opened and not closed takes in all that follows up to the next quote. A sentence
    may span lines too: a line of the table has a file where this row has one, or as many cells as
    the table without the blanks that follow the commas of a sentence.
    """
    places = [i for i, cell in enumerate(row.values()) if _SOUND_FILE.fullmatch(cell.strip())]
    for column, cell in row.items():
        for line in cell.split("\n")[1:]:
            parts = [part.strip('"') for part in line.split(delimiter)]
            files = [i < len(parts) and _SOUND_FILE.fullmatch(parts[i].strip(' "')) for i in places]
            whole = len(parts) >= len(row) > 2 and not any(part[:1] == " " for part in parts)
            if whole or (len(parts) > 1 and any(files)):
                row.fail(
                    f"a quote opens in {column!r} and takes in the line {line[:60]!r}; close it, or"
                    " double it if it belongs to the text"
                )


def _json_rows(path: epath.Path, known: re.Pattern[str] | None) -> Iterator[Row]:
    """Yields the rows of a file of JSON lines."""
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            cells = json.loads(line, object_pairs_hook=_unique, parse_constant=_no_constant)
        except RecursionError:
            raise ValueError(f"{where}: nested too deeply; write one flat object a line") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}; write one JSON object a line, {{...}}") from error
        if not isinstance(cells, dict):
            raise ValueError(f"{where}: not a JSON object; write one a line, {{...}}")
        for name in cells:
            _check_name(name, where, known)
        yield Row(where, cells)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice; join its values in a list")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
