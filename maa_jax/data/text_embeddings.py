"""Contexts of a caption set, computed once and read in training.

A frozen encoder as large as T5-Large costs more in every step than the denoiser's own text side:
its states of all captions are kept on disk instead. A folder of contexts holds one pair of files a
process that wrote it, `contexts-i-of-n.npy` (float16 [captions, 77, width], read as a memory map)
and `contexts-i-of-n.txt` (a digest of each caption a line), and `index.json`.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

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
      folder: for the contexts; all processes must see it.
      captions: all of them, in any order, the same ones in every process.
      encode: `batch_size` captions to contexts [batch_size, 77, width].
      text_encoder: what the contexts are of, as the config names it.
      batch_size: captions encoded at a time.
      process_index: this process.
      process_count: all of them.

    Returns:
      The number of contexts written.
    """
    mine = sorted(set(captions))[process_index::process_count]
    if not mine:
        raise ValueError(f"{process_count} processes have fewer captions than that: use one.")
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
    """Looks up the contexts of captions; takes a tokenizer's place in the input pipeline.

    Args:
      folder: that `write` filled.

    Raises:
      ValueError: the folder is none, or lacks shards: all are named.
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
        return Contexts, (self._folder,)  # a worker maps the files anew and copies nothing

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the contexts of captions, float16 [n, 77, width].

        Raises:
          ValueError: naming the captions that have none.
        """
        places = [self._rows.get(_digest(caption)) for caption in captions]
        lost = [caption for caption, place in zip(captions, places, strict=True) if place is None]
        if lost:
            raise ValueError(
                f"{self._folder} has no context of {', '.join(map(repr, lost[:5]))}"
                f"{' and others' if len(lost) > 5 else ''}: write it again with "
                "python -m maa_jax.embed and this run's config"
            )
        return np.stack([self._shards[shard][row] for shard, row in places])


def _digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:32]
