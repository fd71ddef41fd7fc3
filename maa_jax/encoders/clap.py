"""How well a sound fits a sentence: the cosine of their CLAP embeddings.

Either family of that name: Microsoft's of 2022 (a BERT and a Cnn14, each with a projection, as a
model folder holds them) or LAION's (Wu et al. 2023; transformers' `ClapModel`, as its folder on the
hub, or that folder as `clap/` inside a model folder).
"""

import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.audio import io
from maa_jax.audio.clap_features import ClapFeatures
from maa_jax.devices import batch_sharding, create_local_mesh, replicated
from maa_jax.files import FolderError, read_json
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import networks_in
from maa_jax.model_folder.registry import class_of
from maa_jax.models.clap import unit_length
from maa_jax.text.tokenizer import Tokenizer

TOWERS = {
    "text_encoder": "BertModel",
    "text_projection": "Projection",
    "audio_encoder": "Cnn14",
    "audio_projection": "Projection",
}
LAION = "clap"  # Where a model folder holds a ClapModel; it then goes before the towers.
LAION_FILES = ("tokenizer.json", "preprocessor_config.json")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises a FolderError, from the configs alone, unless a folder holds both sides of a CLAP."""
    folder = pathlib.Path(folder)
    laion = _laion(folder)
    if laion:
        lacking = [name for name in LAION_FILES if not (laion / name).is_file()]
        if lacking:
            raise FolderError(
                f"{laion} cannot score sounds: it lacks {' and '.join(lacking)}; copy these from "
                "where its weights are from"
            )
        return
    found = networks_in(folder)
    lacking = [f"{name}/ ({kind})" for name, kind in TOWERS.items() if found.get(name) != kind]
    if lacking:
        raise FolderError(
            f"{folder} cannot rank sounds: it lacks CLAP's {', '.join(lacking)}; copy these from "
            f"the CLAP that its text encoder is of, or a LAION CLAP's folder as {LAION}/, or leave "
            "num_candidates out"
        )


def _laion(folder: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the ClapModel that a folder is or holds."""
    for path in (folder, folder / LAION):
        if (path / "config.json").is_file():
            if class_of(read_json(path / "config.json")) == "ClapModel":
                return path
    return None


class _Microsoft:
    """BERT and Cnn14: hears waveforms."""

    def __init__(self, folder: pathlib.Path):
        self.tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        self._graphs, self.params = {}, {}
        for name in TOWERS:
            self._graphs[name], self.params[name] = networks.load_network(folder, name)
        self._config = networks.load_config(folder, "audio_encoder")
        self.sample_rate = self._config.sample_rate

    def features(self, wavs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns what `audio` takes of [n, samples]."""
        return (wavs,)

    def text(self, params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns [n, size]; pure."""
        hidden = self._build(params, "text_encoder")(tokens, mask)
        return unit_length(self._build(params, "text_projection")(hidden[:, 0]))

    def audio(self, params, wavs: jax.Array) -> jax.Array:
        """Returns [n, size]; pure."""
        short = max(0, self._config.min_samples - wavs.shape[1])
        hidden = self._build(params, "audio_encoder")(jnp.pad(wavs, ((0, 0), (0, short))))
        return unit_length(self._build(params, "audio_projection")(hidden["embedding"]))

    def _build(self, params, name: str):
        return networks.build(self._graphs[name], params[name])


class _Laion:
    """RoBERTa and HTSAT: hears log-mels, whose crops of a recording over 10 s are always the same.

    A shorter one is repeated (`ClapFeatures.padding`), without the digital silence behind it.
    """

    def __init__(self, folder: pathlib.Path):
        self.tokenizer = Tokenizer.from_folder(folder)
        self._graph, self.params = networks.load_network(folder, ".")
        config = read_json(folder / "preprocessor_config.json")
        self._features = ClapFeatures.from_hf(config)
        self.sample_rate = self._features.sampling_rate

    def features(self, wavs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns what `audio` takes of [n, samples]."""
        parts = [np.trim_zeros(wav, "b") for wav in wavs]
        parts = [part if len(part) else wav for part, wav in zip(parts, wavs, strict=True)]
        mels, longer = zip(*map(self._features, parts), strict=True)
        return np.stack(mels), np.array(longer)

    def text(self, params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns [n, size]; pure."""
        return networks.build(self._graph, params).text_embedding(tokens, mask)

    def audio(self, params, mels: jax.Array, longer: jax.Array) -> jax.Array:
        """Returns [n, size]; pure."""
        return networks.build(self._graph, params).audio_embedding(mels, longer)


class ClapScore:
    """Scores sounds against sentences, in float32.

    Attributes:
      sample_rate: at which the audio tower hears; other sounds are resampled.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, devices: Sequence[jax.Device] | None = None
    ):
        """Reads both towers.

        Args:
          folder: a model folder with the four parts of a Microsoft CLAP, or with a LAION CLAP as
            `clap/`; or the folder of a LAION CLAP itself.
          devices: that batches are split over; the first of this process by default.

        Raises:
          FolderError: the folder lacks a part.
        """
        folder = pathlib.Path(folder)
        check_folder(folder)
        laion = _laion(folder)
        self._clap = _Laion(laion) if laion else _Microsoft(folder)
        self.sample_rate: int = self._clap.sample_rate
        mesh = create_local_mesh(devices or jax.local_devices()[:1])
        self._rows = batch_sharding(mesh)
        self._params = jax.device_put(self._clap.params, replicated(mesh))
        self._text, self._audio = jax.jit(self._clap.text), jax.jit(self._clap.audio)

    def text_embeddings(self, sentences: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of n sentences, float32 [n, size] of unit length."""
        tokens = self._clap.tokenizer(sentences)
        return self._run(self._text, tokens, tokens != self._clap.tokenizer.pad_id)

    def audio_embeddings(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the embeddings of n sounds, float32 [n, size] of unit length.

        Args:
          wavs: [n, samples].
          sample_rate: of the sounds, in Hz.
        """
        if sample_rate != self.sample_rate:
            wavs = np.stack([io.resample(wav, sample_rate, self.sample_rate) for wav in wavs])
        return self._run(self._audio, *self._clap.features(wavs))

    def _run(self, function, *arrays: np.ndarray) -> np.ndarray:
        """Returns rows of a function of rows, which are filled up to share them among devices."""
        count, devices = len(arrays[0]), self._rows.mesh.size
        rows = -(-count // devices) * devices
        filled = [np.resize(x, (rows, *x.shape[1:])) if rows > count else x for x in arrays]
        return np.asarray(function(self._params, *jax.device_put(filled, self._rows)))[:count]

    def __call__(self, prompts: Sequence[str], wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the score of each sound for its sentence, float32 [n] in [-1, 1].

        Args:
          prompts: n sentences.
          wavs: [n, samples].
          sample_rate: of the sounds, in Hz.
        """
        words = self.text_embeddings(prompts)
        return np.sum(words * self.audio_embeddings(wavs, sample_rate), axis=1)
