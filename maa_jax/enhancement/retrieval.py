"""The retrieval expert: the captions of a bank nearest to a recording (paper section 3.2.1)."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.encoders.retriever import Embedder
from maa_jax.enhancement import bank as banks


class Retrieval:
    """An expert that proposes the captions of a bank that are nearest to a recording."""

    name = "retrieval"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        bank: str | os.PathLike[str],
        *,
        k: int = 5,
        batch_size: int = 16,
        dtype: Any = jnp.float32,
    ):
        """Reads the retriever and the bank.

        Args:
          folder: model folder of the retriever.
          bank: folder of a bank that this retriever embedded.
          k: number of captions proposed for each recording.
          batch_size: number of clips embedded at a time.
          dtype: compute dtype of the retriever.

        Raises:
          ValueError: either folder is incomplete, or another retriever embedded the bank.
        """
        self._embedder = Embedder(folder, batch_size=batch_size, dtype=dtype)
        rate = self._embedder.sample_rate
        if rate != SAMPLE_RATE:
            raise ValueError(f"{folder} is for {rate} Hz: use a retriever for {SAMPLE_RATE} Hz")
        self._bank, self._k = banks.Bank(bank), k
        if not 1 <= k <= len(self._bank):
            size = len(self._bank)
            raise ValueError(f"k={k}, but {bank} has {size} captions: give 1 to {size}")
        if self._bank.retriever != self._embedder.digest:
            raise ValueError(
                f"the bank {bank} was not embedded by the retriever in {folder}: write it again "
                "with python -m maa_jax.embed --retriever"
            )

    def propose(self, audio: np.ndarray, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the k nearest captions of each recording, nearest first.

        Args:
          audio: waveforms, float32 [n, samples] at 16 kHz.
          labels: labels of each recording; not read.
        """
        return self._bank.search(self._embedder.audio(audio), self._k)[1]


def write_bank(
    folder: str | os.PathLike[str],
    captions: Iterable[str],
    out: str | os.PathLike[str],
    *,
    batch_size: int = 64,
) -> int:
    """Embeds captions with a retriever into a bank; the processes of a run divide the captions.

    Args:
      folder: model folder of the retriever.
      captions: all captions, the same in every process.
      out: folder for the bank.
      batch_size: number of captions embedded at a time.

    Returns:
      The number of captions that this process wrote.
    """
    embedder = Embedder(folder, batch_size=batch_size)
    return banks.build(
        out,
        captions,
        embedder.text,
        retriever=embedder.digest,
        batch_size=embedder.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
