"""The retrieval expert: a recording's captions are the nearest ones of a bank (section 3.2.1)."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.encoders.retriever import Embedder
from maa_jax.enhancement import bank as banks
from maa_jax.model_folder import hub
from maa_jax.model_folder.index import content_hash


class Retrieval:
    """An expert: proposes for each recording the captions of a bank that are nearest to it."""

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
            bank: folder of a bank that it embedded.
            k: captions proposed of each recording.
            batch_size: clips embedded at a time.
            dtype: of the retriever's computation.

        Raises:
            ValueError: either folder is not whole, or the bank is another retriever's.
        """
        self._embedder = Embedder(folder, batch_size=batch_size, dtype=dtype)
        rate = self._embedder.config.audio_encoder.sample_rate
        if rate != SAMPLE_RATE:
            raise ValueError(f"{folder} hears at {rate} Hz: use a retriever of {SAMPLE_RATE} Hz")
        self._bank, self._k = banks.Bank(bank), k
        if not 1 <= k <= len(self._bank):
            raise ValueError(f"k={k}, but {bank} has {len(self._bank)} captions: choose from 1 on")
        if self._bank.retriever != _identity(folder):
            raise ValueError(
                f"the bank {bank} was not embedded by the retriever in {folder}: write it again "
                "with python -m maa_jax.embed --retriever"
            )

    def propose(self, audio: np.ndarray, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns the k nearest captions of each recording, the nearest first.

        Args:
            audio: float32 [n, samples] at 16 kHz.
            labels: of each recording; not looked at.
        """
        return self._bank.search(self._embedder.audio(audio), self._k)[1]


def write_bank(
    folder: str | os.PathLike[str],
    captions: Iterable[str],
    out: str | os.PathLike[str],
    *,
    batch_size: int = 64,
) -> int:
    """Embeds captions with a retriever into a bank; every process of a run takes a part.

    Args:
        folder: model folder of the retriever.
        captions: all of them, the same ones in every process.
        out: folder for the bank.
        batch_size: captions embedded at a time.

    Returns:
        The number of captions that this process wrote.
    """
    embedder = Embedder(folder, batch_size=batch_size)
    return banks.build(
        out,
        captions,
        embedder.text,
        retriever=_identity(folder),
        batch_size=embedder.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _identity(folder: str | os.PathLike[str]) -> str:
    """Returns what tells a retriever from others, wherever its folder is."""
    return content_hash(pathlib.Path(hub.resolve(folder), "retriever"))
