"""Classifiers of sounds, whose features and logits the scores of the field compare."""

import os

import jax
import numpy as np

from maa_jax.encoders.batching import Batches
from maa_jax.files import FolderError
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import content_hash
from maa_jax.model_folder.registry import PARTS
from maa_jax.models.inception import MelceptionConfig

PART = "audio_classifier"


class SoundClassifier:
    """Features of sounds by a Melception, a Cnn14 or a VGGish.

    Args:
      folder: model folder with an `audio_classifier/`, or the classifier's own folder.
      batches: batches in which it computes.

    Attributes:
      name: "melception", "cnn14_16k", "cnn14_32k" or "vggish" for the published weights. Others,
        such as those trained here, have their class and a hash, "melception_1a2b3c4d": what they
        score is not what the published ones do.
      digest: hash that distinguishes its features from those of other networks.
      sample_rate: sample rate of its sounds, in Hz.
      labels: names of the classes, () where they are not known.
      samples: length that it cuts sounds, or fills them up with zeros, to; None if it hears all.
      widths: width of each of its features.

    Raises:
      FolderError: there is no such folder, or it holds no classifier of sounds.
    """

    def __init__(self, folder: str | os.PathLike[str], batches: Batches):
        path = hub.resolve(folder)
        path = path / PART if (path / PART).is_dir() else path
        config = networks.load_config(path, ".")
        kind = config.to_hf()["architectures"][0]
        if kind not in PARTS[PART]:
            raise FolderError(
                f"{path}: class {kind!r} is no classifier of sounds; give the folder of a "
                f"{' or '.join(PARTS[PART])}, as maa_jax.convert and training write it"
            )
        graph, params = networks.load_network(path, ".")
        hashed = content_hash(path)
        self.name: str = config.published or f"{kind.lower()}_{hashed[:8]}"
        self.digest = f"{PART} {hashed}"
        self.sample_rate: int = config.sample_rate
        self.labels: tuple[str, ...] = config.labels or ()
        self.samples = config.samples if isinstance(config, MelceptionConfig) else None
        self._batches, self._params = batches, batches.put(params)
        self._run = jax.jit(lambda params, wavs: networks.build(graph, params)(wavs))
        clip = jax.ShapeDtypeStruct((1, self.samples or 2 * self.sample_rate), np.float32)
        found = jax.eval_shape(self._run, self._params, clip)
        self.widths: dict[str, int] = {name: value.shape[-1] for name, value in found.items()}

    def features(self, wavs: np.ndarray) -> dict[str, np.ndarray]:
        """Returns features and logits of sounds, float32.

        Args:
          wavs: sounds [n, samples] in [-1, 1] at `sample_rate`, n at least 1.

        Returns:
          Of a Melception `embedding`, `embedding_768`, `logits` and `logits_unbiased`; of a Cnn14
          `embedding`, `logits` and `clipwise`, all [n, width]; of a VGGish `embedding_linear` and
          `embedding`, [n, examples, width]. The networks in maa_jax.models describe them.

        Raises:
          ValueError: the sounds are too short for the network.
        """
        with jax.default_matmul_precision("highest"):
            return self._batches.run(self._run, self._params, wavs)
