"""How near a sound is to the recording that it was made from: 1 - MSE (paper, Figure 5)."""

from collections.abc import Iterator, Sequence

import numpy as np

from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks
from maa_jax.evaluators.protocols import paired


class Similarity:
    """An `Evaluator` of sounds that were made from recordings.

    The paper does not say of what the error is; here it is that of log mels scaled to [0, 1].
    """

    name = "similarity"
    needs = frozenset({"sounds", "references"})
    samples: int | None = None

    def __init__(self, networks: Networks):
        self.networks: Sequence[Network] = (networks.mel,)

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields ("similarity", mean of 1 - MSE of a sound and its recording).

        Raises:
          ValueError: a sound has no recording among the references.
        """
        pairs = paired(inputs)
        if not len(pairs):
            raise ValueError(
                "similarity compares each sound with its own recording, and not every sound has "
                "one in the reference: give files of the same names"
            )
        (sounds,), (recordings,) = (
            side.features(self.networks) for side in (inputs.sounds, inputs.references)
        )
        errors = np.square(sounds.astype(np.float64) - recordings[pairs]).mean(axis=1)
        yield Score("similarity", float(1 - errors.mean()))
