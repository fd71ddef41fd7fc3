"""How near a vocoder comes to recordings from their mels, beside Griffin-Lim (1984)."""

from collections.abc import Iterator, Sequence

import numpy as np

from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks

_ITERATIONS = 60
_SILENT_DB = -60.0


class VocoderDistance:
    """An `Evaluator` of a model's vocoder on recordings."""

    name = "vocoder"
    needs = frozenset({"references"})
    samples: int | None = 65_536

    def __init__(self, networks: Networks):
        self.networks: Sequence[Network] = (networks.vocoder,)

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields scores.

        Yields:
          ("vocoder/distance", mean of `log_spectral_distances` to the recording);
          ("vocoder/griffin_lim", that of Griffin-Lim's with 60 iterations); ("vocoder/ratio", of
          these two); ("vocoder/offset", median of the mean's size over the RMS);
          ("vocoder/skewness", share of sounds whose skewness is within 1 of the recording's);
          ("vocoder/silence", share of the recordings with silence where the sound is below -60 dB
          too).
        """
        (found,) = inputs.references.features(self.networks)
        distance, griffin_lim, offset, skewness, silence = found.T
        yield Score("vocoder/distance", float(distance.mean()))
        yield Score("vocoder/griffin_lim", float(griffin_lim.mean()))
        yield Score("vocoder/ratio", float(distance.mean() / griffin_lim.mean()))
        yield Score("vocoder/offset", float(np.median(offset)))
        yield Score("vocoder/skewness", float(np.mean(skewness <= 1)))
        if (silence > -np.inf).any():
            yield Score("vocoder/silence", float(np.mean(silence[silence > -np.inf] < _SILENT_DB)))
