"""How well sounds fit their captions: the mean cosine of CLAP embeddings."""

from collections.abc import Iterator, Sequence

import numpy as np

from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks


class ClapSimilarity:
    """An `Evaluator` that compares each sound with its captions."""

    name = "clap_score"
    needs = frozenset({"sounds", "captions"})
    samples: int | None = None

    def __init__(self, networks: Networks):
        self.networks: Sequence[Network] = (networks.clap_audio,)
        self._clap = networks.clap

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields ("clap_score", mean cosine of all pairs of a sound and its caption)."""
        (heard,) = inputs.sounds.features(self.networks)
        pairs = [(i, text) for i, texts in enumerate(inputs.sounds.captions) for text in texts]
        words = self._clap.text_embeddings([text for _, text in pairs])
        sounds = heard[[sound for sound, _ in pairs]]
        yield Score("clap_score", float(np.mean(np.sum(words * sounds, axis=1))))
