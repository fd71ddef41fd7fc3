"""Encodings of texts, computed once and read from disk: contexts of captions, banks of captions.

A folder has `index.json` and, for each process that wrote it, a pair of files: `RUN-i-of-n.npy`
([texts, ...], a row for each text) and `RUN-i-of-n.txt` (a line for each row). RUN is a digest of
all that the rows depend on, and the index, which names it, is written after them: a folder that is
written anew, or whose writer is killed, never pairs the lines of one run with the rows of another.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from maa_jax.devices import share
from maa_jax.files import replace_file, write_json

INDEX = "index.json"


def write(
    folder: str | os.PathLike[str],
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    facts: Mapping[str, str],
    line: Callable[[str], str],
    dtype: str,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Computes and writes this process's share of some texts' encodings.

    Args:
      folder: folder for the files, to which all processes have access.
      texts: all texts, each once, the same in every process.
      encode: function from up to `batch_size` texts to rows [n, ...].
      facts: what the rows depend on besides the texts; kept in the index.
      line: function from a text to its line in the file of lines.
      dtype: "float16" or "float32", of the rows on disk.
      batch_size: number of texts encoded at a time.
      process_index: index of this process.
      process_count: number of processes.

    Returns:
      The number of rows written.

    Raises:
      ValueError: there are fewer texts than processes, or a row is not finite.
    """
    mine = share(texts, process_index, process_count)
    if not mine:
        raise ValueError(
            f"{len(texts)} captions for {process_count} processes: give more captions or use fewer"
            " processes"
        )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {**facts, "dtype": dtype}
    run = hashlib.sha256(json.dumps([facts, *texts]).encode()).hexdigest()[:16]
    name = _name(run, process_index, process_count)
    with replace_file(folder / f"{name}.txt") as new, replace_file(folder / f"{name}.npy") as rows:
        new.write_text("".join(f"{line(text)}\n" for text in mine), "utf-8")
        _write_rows(rows, mine, encode, dtype, batch_size)
    if process_index == 0:
        content = {**facts, "run": run, "shards": process_count, "rows": len(texts)}
        write_json(folder / INDEX, content)
        # Those of the run before. Other processes may still write: their temporaries begin with "."
        for path in [*folder.glob("[!.]*-of-*.npy"), *folder.glob("[!.]*-of-*.txt")]:
            if not path.name.startswith(f"{run}-"):
                path.unlink(missing_ok=True)
    return len(mine)


def _write_rows(
    path: pathlib.Path,
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    dtype: str,
    batch_size: int,
) -> None:
    # Not as a memory map: writing to one ends the process when the disk is full.
    with path.open("wb") as file:
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            with np.errstate(over="ignore"):
                rows = np.asarray(encode(batch)).astype(dtype)
            if not np.isfinite(rows).all():
                bad = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))[0]
                raise ValueError(
                    f"the encoding of {batch[bad]!r} is not finite as {dtype}: use float32, or"
                    " another network"
                )
            if not start:
                shape = (len(texts), *rows.shape[1:])
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(rows.tobytes())


class Encoded:
    """An open folder of encodings.

    Attributes:
      facts: content of the index.
      rows: rows of each process's file, read as memory maps.
      lines: lines of each process's file.
    """

    def __init__(self, folder: str | os.PathLike[str], remedy: str):
        """Opens a folder.

        Args:
          folder: folder that `write` filled.
          remedy: how to write it, for errors.

        Raises:
          ValueError: the folder is not one of encodings, lacks files, all of which are named, or
            holds broken ones.
        """
        folder = pathlib.Path(folder)
        self.facts = read_index(folder, remedy)
        count = self.facts["shards"]
        names = [_name(self.facts["run"], i, count) for i in range(count)]
        files = [f"{name}.{end}" for name in names for end in ("npy", "txt")]
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}: {remedy}, with every process")
        try:
            self.rows = [np.load(folder / f"{name}.npy", mmap_mode="r") for name in names]
            texts = [(folder / f"{name}.txt").read_bytes().decode() for name in names]
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{folder} is broken ({error}): {remedy}") from error
        self.lines = [text.split("\n")[:-1] for text in texts]
        rows, lines = list(map(len, self.rows)), list(map(len, self.lines))
        if rows != lines or sum(rows) != self.facts["rows"]:
            raise ValueError(
                f"{folder} is broken (its files have {rows} rows and {lines} lines, and its index"
                f" {self.facts['rows']}): {remedy}"
            )


def read_index(folder: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Returns the index of a folder of encodings.

    Raises:
      ValueError: there is none, or it is broken.
    """
    path = pathlib.Path(folder, INDEX)
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy}")
    try:
        facts = json.loads(path.read_bytes())
        for key, kind in (("run", str), ("shards", int), ("rows", int)):
            if not isinstance(facts, dict) or type(facts.get(key)) is not kind:
                raise ValueError(f"no {key}")
    except ValueError as error:
        raise ValueError(
            f"{path} is broken, or of an earlier version ({error}): {remedy}"
        ) from error
    return facts


def _name(run: str, index: int, count: int) -> str:
    return f"{run}-{index:05}-of-{count:05}"
