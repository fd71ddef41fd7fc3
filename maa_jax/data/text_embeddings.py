"""Contexts of a set of captions, computed once and read from disk in training.

Encoding captions with an encoder as large as T5-Large would take a large part of every step. A
folder of contexts has `index.json` and a pair of files for each process that wrote it:
`contexts-i-of-n.npy` (float16 [captions, length, width], read as a memory map) and
`contexts-i-of-n.txt` (the digest of a caption on each line).
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from maa_jax.devices import share
from maa_jax.files import write_array

INDEX = "index.json"


def write(
    folder: str | os.PathLike[str],
    captions: Iterable[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    text_encoder: str,
    batch_size: int = 32,
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Computes and writes this process's share of the contexts.

    Args:
      folder: folder for the contexts, to which all processes have access.
      captions: all captions, in any order, the same in every process.
      encode: function from up to `batch_size` captions to contexts [n, length, width].
      text_encoder: name of the text encoder that computes them, as in the config.
      batch_size: number of captions encoded at a time.
      process_index: index of this process.
      process_count: number of processes.

    Returns:
      The number of contexts written.
    """
    mine = share(sorted(set(captions)), process_index, process_count)
    if not mine:
        raise ValueError(f"fewer captions than the {process_count} processes: use one process.")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"contexts-{process_index:05}-of-{process_count:05}"
    write_array(folder / f"{name}.npy", mine, encode, batch_size=batch_size)
    (folder / f"{name}.txt").write_text("".join(f"{_digest(c)}\n" for c in mine))
    if process_index == 0:
        content = {"text_encoder": str(text_encoder), "shards": process_count}
        (folder / INDEX).write_text(json.dumps(content, indent=2) + "\n")
    return len(mine)


class Contexts:
    """Looks up the contexts of captions, in place of a tokenizer in the input pipeline.

    Args:
      folder: folder that `write` filled.

    Attributes:
      text_encoder: name of the text encoder that computed the contexts.
      width: channels of the contexts.

    Raises:
      ValueError: the folder has no contexts, or lacks files, all of which are named.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = pathlib.Path(folder)
        remedy = "write it with python -m maa_jax.embed"
        if not (self._folder / INDEX).is_file():
            raise ValueError(f"{self._folder / INDEX} is missing; {remedy}")
        index: dict[str, Any] = json.loads((self._folder / INDEX).read_text())
        self.text_encoder: str = index["text_encoder"]
        names = [f"contexts-{i:05}-of-{index['shards']:05}" for i in range(index["shards"])]
        files = [f"{name}.{end}" for name in names for end in ("npy", "txt")]
        missing = [file for file in files if not (self._folder / file).is_file()]
        if missing:
            raise ValueError(f"{self._folder} lacks {', '.join(missing)}; {remedy}, every process")
        self._shards = [np.load(self._folder / f"{n}.npy", mmap_mode="r") for n in names]
        self._rows = {
            digest: (shard, row)
            for shard, name in enumerate(names)
            for row, digest in enumerate((self._folder / f"{name}.txt").read_text().split())
        }
        self.width: int = self._shards[0].shape[-1]

    def __reduce__(self):
        return Contexts, (
            self._folder,
        )  # a worker process maps the files itself instead of unpickling contexts

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the contexts of captions, float16 [n, length, width].

        Raises:
          ValueError: some captions have no context; the error names them.
        """
        digests = [_digest(caption) for caption in captions]
        lost = [c for c, digest in zip(captions, digests, strict=True) if digest not in self._rows]
        if lost:
            raise ValueError(
                f"{self._folder} has no context for {', '.join(map(repr, lost[:5]))}"
                f"{' and others' if len(lost) > 5 else ''}: write it again with "
                "python -m maa_jax.embed and this run's config"
            )
        places = [self._rows[digest] for digest in digests]
        return np.stack([self._shards[shard][row] for shard, row in places])


def _digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:32]
