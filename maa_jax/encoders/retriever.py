"""A trained retriever: captions and recordings to embeddings."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.encoders.batching import Batches
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import content_hash
from maa_jax.models.clap import unit_length
from maa_jax.text.tokenizer import Tokenizer


class Embedder:
    """A trained retriever: captions and recordings to embeddings of unit length.

    Attributes:
      config: configuration of the retriever.
      digest: hash of the retriever's files, which identifies it wherever its folder is.
      sample_rate: sample rate in Hz of the recordings that it was trained with.
      batch_size: number of captions or clips embedded at a time.
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
          folder: path of the model folder.
          batch_size: number of captions or clips embedded at a time, over all devices; rounded up
            to a multiple of their number.
          dtype: compute dtype of the network.
          devices: devices that share every batch, by default all of this process.

        Raises:
          ValueError: the folder lacks either, or they do not belong together.
        """
        folder = hub.resolve(folder)
        self._tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        graph, params = networks.load_network(folder, "retriever", dtype=dtype)
        self.config = networks.load_config(folder, "retriever")
        self.digest = content_hash(folder / "retriever")
        self.sample_rate: int = self.config.audio_encoder.sample_rate
        known = self.config.text_encoder.vocab_size
        if self._tokenizer.vocab_size > known:
            raise ValueError(
                f"{folder}: the tokenizer has {self._tokenizer.vocab_size} tokens and the "
                f"retriever {known}: bring the tokenizer that the retriever was trained with."
            )
        self._batches = Batches(batch_size, devices)
        self.batch_size = self._batches.batch_size
        self._params = self._batches.put(params)
        self._text = jax.jit(
            lambda params, tokens, mask: networks.build(graph, params).text_embedding(tokens, mask)
        )
        self._clips = jax.jit(
            lambda params, wavs: networks.build(graph, params).audio_embedding(wavs)
        )

    def text(self, captions: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of captions, float32 [n, width]."""
        tokens = self._tokenizer(captions)
        return self._run(self._text, tokens, self._tokenizer.mask(tokens))

    def audio(self, wavs: np.ndarray) -> np.ndarray:
        """Returns the embeddings of recordings, float32 [n, width].

        A recording longer than the training clips is covered by as few windows as possible, whose
        mean is its embedding; a shorter one is padded with zeros at the end, as in training. Zeros
        at a recording's end are taken for padding and ignored.

        Args:
          wavs: waveforms [n, samples] at `sample_rate`.
        """
        window, clips, counts = self.config.max_samples, [], []
        for wav in np.asarray(wavs, np.float32):
            wav = np.trim_zeros(wav, "b")
            wav = np.pad(wav, (0, max(0, window - len(wav))))
            counts.append(-(-len(wav) // window))
            starts = np.linspace(0, len(wav) - window, counts[-1]).astype(int)
            clips += [wav[start : start + window] for start in starts]
        rows = self._run(self._clips, np.array(clips))
        if not counts:
            return rows
        means = [part.mean(axis=0) for part in np.split(rows, np.cumsum(counts)[:-1])]
        return np.asarray(unit_length(jnp.array(means)))

    def _run(self, function: Callable[..., jax.Array], *rows: np.ndarray) -> np.ndarray:
        if not len(rows[0]):
            return np.zeros((0, self.config.embedding_size), np.float32)
        # Nearest neighbours differ little. An accelerator would multiply in 8 to 11 bits.
        with jax.default_matmul_precision("highest"):
            return self._batches.run(function, self._params, *rows)
