"""The captioning expert: captions that a trained captioner writes (paper section 3.2.1)."""

import os
import zlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.encoders.batching import Batches
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import load_index
from maa_jax.models import captioner
from maa_jax.text.tokenizer import Tokenizer


class Captioning:
    """An expert that proposes the likeliest captions, and samples, which are more diverse.

    Args:
      folder: model folder with `captioner/` and `tokenizer/`.
      num_beams: number of captions per recording from beam search.
      num_samples: number of captions per recording from nucleus sampling.
      top_p: total probability of the words that are sampled from.
      temperature: softmax temperature of sampling; below 1 the samples are more alike.
      seed: seed of sampling; a recording's samples depend only on it and the recording.
      batch_size: number of recordings captioned at a time, over all devices.
      devices: devices that share every batch, by default all of this process.

    Raises:
      ValueError: no caption is requested, or the folder is missing or inconsistent.
    """

    name = "captioning"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        num_beams: int = 4,
        num_samples: int = 4,
        top_p: float = 0.9,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 16,
        devices: Sequence[jax.Device] | None = None,
    ):
        if min(num_beams, num_samples) < 0 or num_beams + num_samples < 1:
            raise ValueError(
                f"num_beams={num_beams}, num_samples={num_samples}: give numbers from 0, at least "
                "one of them above 0."
            )
        if not 0 < top_p <= 1 or temperature <= 0:
            raise ValueError(
                f"top_p={top_p}, temperature={temperature}: give a top_p above 0, at most 1, and a "
                "temperature above 0."
            )
        path = hub.resolve(folder)
        load_index(path, parts=("captioner", "tokenizer"))
        self._tokenizer = Tokenizer.from_folder(path / "tokenizer")
        graphdef, params = networks.load_network(path, "captioner")
        self._config = networks.load_config(path, "captioner")
        if self._tokenizer.vocab_size > self._config.vocab_size:
            raise ValueError(
                f"{path}: the tokenizer has {self._tokenizer.vocab_size} tokens and the captioner "
                f"{self._config.vocab_size}: use the tokenizer that it was trained with."
            )
        self._batches = Batches(batch_size, devices)
        self._params = self._batches.put(params)

        def write(params, audio, identities):
            network = networks.build(graphdef, params)
            memory = network.encode(audio)
            written = []
            if num_beams:
                written.append(captioner.beam_search(network, memory, width=num_beams)[0])
            if num_samples:
                fold = jax.vmap(jax.random.fold_in, (None, 0))
                keys = jax.vmap(fold, (0, None))(
                    fold(jax.random.key(seed), identities), jnp.arange(num_samples)
                )
                memory = jax.tree.map(lambda x: jnp.repeat(x, num_samples, axis=0), memory)
                drawn = captioner.sample(
                    network, memory, keys.reshape(-1), top_p=top_p, temperature=temperature
                )
                written.append(drawn.reshape(len(audio), num_samples, -1))
            return jnp.concatenate(written, axis=1)

        self._write = jax.jit(write)

    def propose(self, audio: np.ndarray, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns each recording's captions without repetitions, those of beam search first.

        One program is compiled for each length of recordings.

        Args:
          audio: waveforms, float32 [n, samples] in [-1, 1] at 16 kHz.
          labels: labels of each recording; not read.
        """
        del labels
        short = max(0, self._config.min_samples - audio.shape[1])
        audio = np.pad(audio, ((0, 0), (0, short))).astype(np.float32)
        # Keys derive from a recording's content, so that its place in a batch does not matter.
        identities = np.array([zlib.crc32(wav.tobytes()) for wav in audio], np.uint32)
        ids = self._batches.run(self._write, self._params, audio, identities)
        texts = self._tokenizer.decode(ids.reshape(-1, ids.shape[-1]))
        count = ids.shape[1]
        rows = (texts[i : i + count] for i in range(0, len(texts), count))
        return [list(dict.fromkeys(filter(None, row))) for row in rows]
