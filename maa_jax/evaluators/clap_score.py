"""How well a sound fits a sentence: the cosine of their CLAP embeddings (Wu et al. 2023).

Both towers come from the model folder itself, as Microsoft's CLAP of 2022 has them: a BERT and a
Cnn14, each with a projection.
"""

import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax import bundle, conditioning
from maa_jax.audio import io
from maa_jax.models.clap import unit_length

TOWERS = {
    "text_encoder": "BertModel",
    "text_projection": "Projection",
    "audio_encoder": "Cnn14",
    "audio_projection": "Projection",
}


def check_folder(folder: pathlib.Path) -> None:
    """Raises a BundleError, from the configs alone, unless a folder holds both towers."""
    found = bundle.networks(folder)
    lacking = [f"{name}/ ({kind})" for name, kind in TOWERS.items() if found.get(name) != kind]
    if lacking:
        raise bundle.BundleError(
            f"{folder} cannot rank sounds: it lacks CLAP's {', '.join(lacking)}; copy these from "
            "the CLAP that its text encoder is of, or leave num_candidates out"
        )


class ClapScore:
    """Scores sounds against sentences, in float32.

    Attributes:
      sample_rate: at which the audio tower hears; other sounds are resampled.
    """

    def __init__(self, folder: pathlib.Path):
        """Reads both towers.

        Raises:
          BundleError: the folder lacks one.
        """
        check_folder(folder)
        self._tokenizer = conditioning.Tokenizer.from_folder(folder / "tokenizer")
        graphs, params = {}, {}
        for name in TOWERS:
            graphs[name], params[name] = bundle.load_network(folder, name)
        config = bundle.load_config(folder, "audio_encoder")
        self.sample_rate = config.sample_rate
        self._params = jax.device_put(params)

        @jax.jit
        def text(params, tokens, mask):
            network = {name: bundle.build(graphs[name], params[name]) for name in TOWERS}
            hidden = network["text_encoder"](tokens, mask)
            return unit_length(network["text_projection"](hidden[:, 0]))

        @jax.jit
        def audio(params, wavs):
            network = {name: bundle.build(graphs[name], params[name]) for name in TOWERS}
            short = max(0, config.min_samples - wavs.shape[1])
            hidden = network["audio_encoder"](jnp.pad(wavs, ((0, 0), (0, short))))
            return unit_length(network["audio_projection"](hidden["embedding"]))

        self._text, self._audio = text, audio

    def __call__(self, prompts: Sequence[str], wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the score of each sound for its sentence, float32 [n] in [-1, 1].

        Args:
          prompts: n sentences.
          wavs: [n, samples].
          sample_rate: of the sounds, in Hz.
        """
        tokens = self._tokenizer(prompts)
        words = self._text(self._params, tokens, tokens != self._tokenizer.pad_id)
        if sample_rate != self.sample_rate:
            wavs = np.stack([io.resample(wav, sample_rate, self.sample_rate) for wav in wavs])
        return np.asarray(jnp.sum(words * self._audio(self._params, wavs), axis=1))
