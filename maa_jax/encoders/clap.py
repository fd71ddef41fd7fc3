"""CLAP: embeddings of sounds and sentences, whose cosine measures how well they match.

Two families share the name and this interface: Microsoft's of 2022 (BERT and Cnn14, each with a
projection, as a model folder holds them) and LAION's (Wu et al. 2023; transformers' `ClapModel`, as
its folder on the hub, or that folder as `clap/` inside a model folder).
"""

import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from maa_jax.audio import io
from maa_jax.audio.clap_features import ClapFeatures
from maa_jax.encoders.base import Tree
from maa_jax.encoders.batching import Batches
from maa_jax.files import FolderError, read_json
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import content_hash, networks_in
from maa_jax.model_folder.registry import class_of
from maa_jax.models.clap import unit_length
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.text.tokenizer import Tokenizer

TOWERS = {
    "text_encoder": "BertModel",
    "text_projection": "Projection",
    "audio_encoder": "Cnn14",
    "audio_projection": "Projection",
}
LAION = "clap"  # the folder of a ClapModel inside a model folder, preferred to the four towers
LAION_FILES = ("tokenizer.json", "preprocessor_config.json")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raises a FolderError unless a folder holds both towers of a CLAP; reads only its configs."""
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
    """Returns the folder of a ClapModel, the given one or `clap/` inside it, or None."""
    for path in (folder, folder / LAION):
        if (path / "config.json").is_file():
            if class_of(read_json(path / "config.json")) == "ClapModel":
                return path
    return None


class _Family(Protocol):
    """The networks of one family.

    Attributes:
      digest: hash of the networks' files.
      tokenizer: tokenizer of the text tower.
      params: weights of both towers.
      sample_rate: sample rate in Hz that the audio tower was trained with.
      published: "clap-ms" or "clap-laion" if its sizes are those of the published networks.
    """

    digest: str
    tokenizer: Tokenizer
    params: Tree
    sample_rate: int
    published: str | None

    def front_end(self, wavs: np.ndarray) -> Tree:
        """Returns the audio tower's inputs for sounds [n, samples]; on the host."""
        ...

    def text(self, params: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Returns embeddings [n, size] of ids and their padding mask, [n, length] each; pure."""
        ...

    def audio(self, params: Tree, inputs: Tree) -> jax.Array:
        """Returns embeddings [n, size] of the output of `front_end`; pure."""
        ...


# Length in seconds up to which Microsoft's code repeats a sound that is shorter.
_RELEASED_SECONDS = 5


class _Microsoft:
    """BERT and Cnn14, whose audio tower takes waveforms; a `_Family`.

    The released tower, the only one at 44.1 kHz, hears short sounds repeated up to 5 s without the
    digital silence at their ends, as in Microsoft's code; longer ones are heard whole, and not
    cropped at random as there. One trained here hears zeros after a short sound, as in its
    training.
    """

    def __init__(self, folder: pathlib.Path):
        hashes = [content_hash(folder / name) for name in (*TOWERS, "tokenizer")]
        self.digest = hashlib.sha256("".join(hashes).encode()).hexdigest()
        self.tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        self._graphs, self.params = {}, {}
        for name in TOWERS:
            self._graphs[name], self.params[name] = networks.load_network(folder, name)
        text, head, config, other = (networks.load_config(folder, name) for name in TOWERS)
        self.tokenizer.check_fits(text.vocab_size, text.max_tokens)
        for here, value, there, wanted in (
            ("text_projection: in_size", head.in_size, "text_encoder", text.hidden_size),
            ("audio_projection: in_size", other.in_size, "audio_encoder", config.channels[-1]),
            ("audio_projection: out_size", other.out_size, "text_projection", head.out_size),
        ):
            if value != wanted:
                raise FolderError(
                    f"{folder}: {here}={value}, but {there} has {wanted}; combine networks that "
                    "were trained for each other"
                )
        self.sample_rate = config.sample_rate
        self._min_samples = config.min_samples
        self._repeats = self.sample_rate == Cnn14Config.clap_2022().sample_rate
        large = config.channels == Cnn14Config.clap_2022().channels and text.hidden_size == 768
        self.published = "clap-ms" if self._repeats and large else None

    def front_end(self, wavs: np.ndarray) -> np.ndarray:
        if self._repeats:
            length = max(_RELEASED_SECONDS * self.sample_rate, wavs.shape[1])
            return np.stack([np.resize(_without_end(wav), length) for wav in wavs])
        return np.pad(wavs, ((0, 0), (0, max(0, self._min_samples - wavs.shape[1]))))

    def text(self, params: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        hidden = self._build(params, "text_encoder")(tokens, mask)
        return unit_length(self._build(params, "text_projection")(hidden[:, 0]))

    def audio(self, params: Tree, inputs: Tree) -> jax.Array:
        hidden = self._build(params, "audio_encoder")(inputs)
        return unit_length(self._build(params, "audio_projection")(hidden["embedding"]))

    def _build(self, params: Tree, name: str) -> Any:
        return networks.build(self._graphs[name], params[name])


class _Laion:
    """RoBERTa and HTSAT, whose audio tower takes log-mels; a `_Family`.

    Recordings over 10 s are cropped, always in the same places. A shorter one is repeated (see
    `ClapFeatures.padding`) without the digital silence at its end.
    """

    def __init__(self, folder: pathlib.Path):
        self.digest = content_hash(folder)
        self.tokenizer = Tokenizer.from_folder(folder)
        self._graph, self.params = networks.load_network(folder, ".")
        config = networks.load_config(folder, ".")
        self.tokenizer.check_fits(config.text_config.vocab_size, config.text_config.max_tokens)
        path = folder / "preprocessor_config.json"
        try:
            self._features = ClapFeatures.from_hf(read_json(path))
        except FolderError:
            raise
        except ValueError as e:
            raise FolderError(f"{path}: {e}") from e
        bands = config.audio_config.num_mel_bins
        if self._features.feature_size != bands:
            raise FolderError(
                f"{path}: feature_size={self._features.feature_size}, but config.json: "
                f"num_mel_bins={bands}; take both files from one model"
            )
        self.sample_rate = self._features.sampling_rate
        sizes = config.text_config.hidden_size, config.projection_dim
        self.published = "clap-laion" if sizes == (768, 512) else None

    def front_end(self, wavs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mels, longer = zip(*map(self._features, map(_without_end, wavs)), strict=True)
        return np.stack(mels), np.array(longer)

    def text(self, params: Tree, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        return networks.build(self._graph, params).text_embedding(tokens, mask)

    def audio(self, params: Tree, inputs: Tree) -> jax.Array:
        mels, longer = inputs
        return networks.build(self._graph, params).audio_embedding(mels, longer)


def _without_end(wav: np.ndarray) -> np.ndarray:
    """Returns a sound [samples] without the digital silence at its end, unless it is silent."""
    part = np.trim_zeros(wav, "b")
    return part if len(part) else wav


class ClapScore:
    """Scores sounds against sentences, in float32.

    Attributes:
      sample_rate: sample rate of the audio tower in Hz; other sounds are resampled.
      digest: hash of the networks' files, which identifies this CLAP.
      name: "clap-ms" or "clap-laion" for networks of the published sizes, else "clap" with a hash.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        batch_size: int = 8,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Reads both towers.

        Args:
          folder: model folder with the four parts of a Microsoft CLAP, or with a LAION CLAP as
            `clap/`; or the folder of a LAION CLAP itself.
          batch_size: number of sentences or sounds embedded at a time, over all devices.
          devices: devices that share every batch; by default the first one of this process.

        Raises:
          FolderError: the folder lacks a part.
        """
        folder = pathlib.Path(folder)
        check_folder(folder)
        laion = _laion(folder)
        self._clap: _Family = _Laion(laion) if laion else _Microsoft(folder)
        self.sample_rate = self._clap.sample_rate
        self.digest = self._clap.digest
        self.name = self._clap.published or f"clap_{self.digest[:8]}"
        self._batches = Batches(batch_size, devices or jax.local_devices()[:1])
        self._params = self._batches.put(self._clap.params)
        self._text, self._audio = jax.jit(self._clap.text), jax.jit(self._clap.audio)

    def text_embeddings(self, sentences: Sequence[str]) -> np.ndarray:
        """Returns the embeddings of sentences, float32 [n, size] of unit length, n at least 1."""
        tokens = self._clap.tokenizer(sentences)
        return self._run(self._text, tokens, self._clap.tokenizer.mask(tokens))

    def audio_embeddings(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the embeddings of sounds, float32 [n, size] of unit length.

        Args:
          wavs: waveforms [n, samples], n at least 1.
          sample_rate: sample rate of the sounds in Hz.
        """
        wavs = io.resample_all(wavs, sample_rate, self.sample_rate)
        return self._run(self._audio, self._clap.front_end(wavs))

    def window_embeddings(self, wavs: np.ndarray) -> np.ndarray:
        """Returns the embeddings of waveforms [n, samples] at `sample_rate`, heard as they are.

        Raises:
          ValueError: this is no Microsoft CLAP, whose audio tower alone takes waveforms.
        """
        if not isinstance(self._clap, _Microsoft):
            raise ValueError("a LAION CLAP hears no windows of waveforms: give Microsoft's")
        return self._run(self._audio, wavs)

    def __call__(self, prompts: Sequence[str], wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns the score of each sound for its prompt, float32 [n] in [-1, 1].

        Args:
          prompts: n prompts or captions.
          wavs: waveforms [n, samples].
          sample_rate: sample rate of the sounds in Hz.
        """
        words = self.text_embeddings(prompts)
        return np.sum(words * self.audio_embeddings(wavs, sample_rate), axis=1)

    def _run(self, function: Callable[..., jax.Array], *rows: Tree) -> np.ndarray:
        with jax.default_matmul_precision("highest"):  # the scores that are ranked differ little
            return self._batches.run(function, self._params, *rows)
