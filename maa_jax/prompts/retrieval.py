"""The retrieval expert: a recording's captions are the nearest ones of a bank (section 3.2.1)."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax import bundle, conditioning
from maa_jax.models.clap import unit_length
from maa_jax.prompts import bank as banks
from maa_jax.training import sharding

_SAMPLE_RATE = 16_000  # of what experts hear


class Embedder:
    """A trained retriever: captions and recordings to embeddings of unit length.

    Attributes:
        config: the retriever's configuration.
        batch_size: texts or clips embedded at a time.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 16,
        dtype: Any = jnp.float32,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Reads `retriever/` and `tokenizer/` of a model folder.

        Args:
            folder: the model folder.
            batch_size: at a time over all devices; rounded up to a multiple of their number.
            dtype: of the computation.
            devices: that share a batch, by default all of this process.

        Raises:
            ValueError: the folder lacks either, or they do not belong together.
        """
        folder = bundle.resolve(folder)
        self._tokenizer = conditioning.Tokenizer.from_folder(folder / "tokenizer")
        graph, params = bundle.load_network(folder, "retriever", dtype=dtype)
        self.config = bundle.load_config(folder, "retriever")
        known = self.config.text_encoder.vocab_size
        if self._tokenizer.vocab_size > known:
            raise ValueError(
                f"{folder}: the tokenizer has {self._tokenizer.vocab_size} tokens and the "
                f"retriever {known}: bring the tokenizer that the retriever was trained with."
            )
        mesh = sharding.create_local_mesh(devices or jax.local_devices())
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = sharding.batch_sharding(mesh)
        self._params = jax.device_put(params, sharding.replicated(mesh))
        self._text = jax.jit(lambda params, *of: bundle.build(graph, params).text_embedding(*of))
        self._clips = jax.jit(lambda params, wav: bundle.build(graph, params).audio_embedding(wav))

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of captions, float32 [n, width]."""
        tokens = self._tokenizer(captions)
        return self._in_batches(self._text, tokens, tokens != self._tokenizer.pad_id)

    def audio(self, wavs: np.ndarray) -> np.ndarray:
        """Returns the embeddings of recordings, float32 [n, width].

        Of a recording longer than the clips in training, the mean of those of as few windows as
        cover it; a shorter one is padded behind, as it is there. Zeros at a recording's end, with
        which a batch is filled up, are no part of it.

        Args:
            wavs: [n, samples] at the audio encoder's rate.
        """
        window, clips, counts = self.config.max_samples, [], []
        for wav in np.asarray(wavs, np.float32):
            wav = np.trim_zeros(wav, "b")
            wav = np.pad(wav, (0, max(0, window - len(wav))))
            counts.append(-(-len(wav) // window))
            starts = np.linspace(0, len(wav) - window, counts[-1]).astype(int)
            clips += [wav[start : start + window] for start in starts]
        rows = self._in_batches(self._clips, np.array(clips))
        if not counts:
            return rows
        means = [part.mean(axis=0) for part in np.split(rows, np.cumsum(counts)[:-1])]
        return np.asarray(unit_length(np.array(means)))

    def _in_batches(self, function, *arrays: np.ndarray) -> np.ndarray:
        rows = []
        for start in range(0, len(arrays[0]), self.batch_size):
            parts = [x[start : start + self.batch_size] for x in arrays]
            count = len(parts[0])
            # Always of one size, so that one program is compiled.
            parts = [np.resize(x, (self.batch_size, *x.shape[1:])) for x in parts]
            rows.append(np.asarray(function(self._params, *jax.device_put(parts, self._rows))))
            rows[-1] = rows[-1][:count]
        return np.concatenate(rows) if rows else np.zeros((0, self.config.embedding_size), "f")


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
        if rate != _SAMPLE_RATE:
            raise ValueError(f"{folder} hears at {rate} Hz: use a retriever of {_SAMPLE_RATE} Hz")
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
    return bundle.content_hash(pathlib.Path(bundle.resolve(folder), "retriever"))
