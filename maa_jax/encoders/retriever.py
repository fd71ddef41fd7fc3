"""A trained retriever: captions and recordings to embeddings."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.devices import batch_sharding, create_local_mesh, replicated
from maa_jax.model_folder import hub, networks
from maa_jax.models.clap import unit_length
from maa_jax.text.tokenizer import Tokenizer


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
        folder = hub.resolve(folder)
        self._tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        graph, params = networks.load_network(folder, "retriever", dtype=dtype)
        self.config = networks.load_config(folder, "retriever")
        known = self.config.text_encoder.vocab_size
        if self._tokenizer.vocab_size > known:
            raise ValueError(
                f"{folder}: the tokenizer has {self._tokenizer.vocab_size} tokens and the "
                f"retriever {known}: bring the tokenizer that the retriever was trained with."
            )
        mesh = create_local_mesh(devices or jax.local_devices())
        self.batch_size = -(-batch_size // mesh.size) * mesh.size
        self._rows = batch_sharding(mesh)
        self._params = jax.device_put(params, replicated(mesh))
        self._text = jax.jit(lambda params, *of: networks.build(graph, params).text_embedding(*of))
        self._clips = jax.jit(
            lambda params, wav: networks.build(graph, params).audio_embedding(wav)
        )

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
