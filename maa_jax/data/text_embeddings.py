"""Contexts of a set of captions, computed once and read from disk in training.

Encoding captions with an encoder as large as T5-Large would take a large part of every step.
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from maa_jax.data import encoded

_REMEDY = "write it with python -m maa_jax.embed"


def write(
    folder: str | os.PathLike[str],
    captions: Iterable[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    text_encoder: str,
    text_encoder_sha256: str,
    dtype: str = "float32",
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
      text_encoder_sha256: digest of its files, by which a run knows its contexts.
      dtype: type of the contexts on disk, float32 or float16.
      batch_size: number of captions encoded at a time.
      process_index: index of this process.
      process_count: number of processes.

    Returns:
      The number of contexts written.

    Raises:
      ValueError: there are fewer captions than processes, or a context is not finite.
    """
    return encoded.write(
        folder,
        sorted(set(captions)),
        encode,
        facts={"text_encoder": text_encoder, "text_encoder_sha256": text_encoder_sha256},
        line=_digest,
        dtype=dtype,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


class Contexts:
    """Looks up the contexts of captions, in place of a tokenizer in the input pipeline.

    Args:
      folder: folder that `write` filled.

    Attributes:
      text_encoder: name of the text encoder that computed the contexts.
      text_encoder_sha256: digest of its files.
      width: channels of the contexts.

    Raises:
      ValueError: the folder has no contexts, lacks files, all of which are named, or is broken.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = pathlib.Path(folder)
        stored = encoded.Encoded(folder, _REMEDY)
        if "text_encoder_sha256" not in stored.facts:
            raise ValueError(f"{folder} holds no contexts of captions: {_REMEDY}")
        self.text_encoder: str = stored.facts["text_encoder"]
        self.text_encoder_sha256: str = stored.facts["text_encoder_sha256"]
        self._shards = stored.rows
        self._rows = {
            digest: (shard, row)
            for shard, digests in enumerate(stored.lines)
            for row, digest in enumerate(digests)
        }
        self.width: int = self._shards[0].shape[-1]

    def __reduce__(self):
        return Contexts, (
            self._folder,
        )  # a worker process maps the files itself instead of unpickling contexts

    def require(self, captions: Iterable[str]) -> None:
        """Checks that captions have contexts.

        Raises:
          ValueError: some have none; the error names them.
        """
        lost = [caption for caption in captions if _digest(caption) not in self._rows]
        if lost:
            raise ValueError(
                f"{self._folder} has no context for {', '.join(map(repr, lost[:5]))}"
                f"{f' and {len(lost) - 5} others' if len(lost) > 5 else ''}: write it again with "
                "python -m maa_jax.embed and this run's config"
            )

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the contexts of captions, float32 [n, length, width].

        Raises:
          ValueError: some captions have no context; the error names them.
        """
        self.require(captions)
        places = [self._rows[_digest(caption)] for caption in captions]
        rows = [self._shards[shard][row] for shard, row in places]
        return np.stack(rows).astype(np.float32, copy=False)


def _digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()[:32]
