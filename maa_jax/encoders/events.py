"""A trained classifier of events: sounds to logits of what is heard in them."""

import os

import jax
import numpy as np

from maa_jax.audio import io
from maa_jax.encoders.batching import Batches
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import content_hash


class EventAudio:
    """A classifier's logits of sounds.

    Args:
      folder: model folder of the classifier.
      batches: batches in which it computes.

    Attributes:
      config: configuration of the classifier.
    """

    name = "events"

    def __init__(self, folder: str | os.PathLike[str], batches: Batches):
        folder = hub.resolve(folder)
        graph, params = networks.load_network(folder, "event_classifier")
        self.config = networks.load_config(folder, "event_classifier")
        self.digest = f"events {content_hash(folder / 'event_classifier')}"
        self._batches, self._params = batches, batches.put(params)
        self._run = jax.jit(lambda params, wavs: networks.build(graph, params)(wavs))

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        wavs = io.resample_all(wavs, sample_rate, self.config.encoder.sample_rate)
        with jax.default_matmul_precision("highest"):
            found = self._batches.run(self._run, self._params, wavs)
        parts = (found[name].reshape(len(wavs), -1) for name in ("count", "family", "register"))
        return np.concatenate(list(parts), axis=1)

    def unpack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the logits `count` [n, events], `family` and `register` [n, events, classes]."""
        c = self.config
        sizes = (c.events, c.events * len(c.families))
        count, family, register = np.split(rows, np.cumsum(sizes), axis=1)
        shape = (len(rows), c.events, -1)
        return {
            "count": count,
            "family": family.reshape(shape),
            "register": register.reshape(shape),
        }
