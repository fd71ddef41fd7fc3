"""Networks that compute features of sounds, for evaluators that compare them."""

import contextlib
import functools
import hashlib
import os
import pathlib
import zlib
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig, log_mel
from maa_jax.encoders.batching import Batches
from maa_jax.encoders.clap import LAION_FILES, ClapScore
from maa_jax.encoders.classifiers import SoundClassifier
from maa_jax.encoders.events import EventAudio
from maa_jax.encoders.retriever import Embedder
from maa_jax.files import replace_file
from maa_jax.model_folder import hub


class Network(Protocol):
    """Computes features of sounds, in float32 with the highest matrix product precision.

    Attributes:
      name: name in scores, such as "clap".
      digest: hash that distinguishes its features from those of other networks.
    """

    name: str
    digest: str

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns features [n, width] of sounds [n, samples] at `sample_rate` Hz."""
        ...


class ClapAudio:
    """A CLAP's audio tower: embeddings of unit length."""

    name = "clap"

    def __init__(self, clap: ClapScore):
        self.digest = f"clap {clap.digest}"
        self._clap = clap

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        return self._clap.audio_embeddings(wavs, sample_rate)


class ClapWindow:
    """A CLAP's audio tower on a window of each sound, as the authors' code hears it.

    The window has 5 s at the sound's own rate, but is taken after resampling: 1.8 s of a sound at
    16 kHz. The authors draw it at random; here its place follows from the sound's samples.
    """

    name = "clap"
    _SECONDS = 5

    def __init__(self, clap: ClapScore):
        self.digest = f"clap window {clap.digest}"
        self._clap = clap

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        length = self._SECONDS * sample_rate
        windows = []
        for wav in io.resample_all(wavs, sample_rate, self._clap.sample_rate):
            start = 0
            if len(wav) > length:
                rng = np.random.default_rng(zlib.crc32(wav.tobytes()))
                start = int(rng.integers(len(wav) - length))
            windows.append(np.resize(wav[start : start + length], length))
        return self._clap.window_embeddings(np.stack(windows))


class ClassifierAudio:
    """Features of a classifier of sounds, several of them side by side.

    Attributes:
      sample_rate: sample rate of the classifier, to which sounds are resampled.
      seconds: length that it cuts or fills sounds to; None if it hears all.
    """

    def __init__(
        self,
        classifier: SoundClassifier,
        keys: tuple[str, ...],
        *,
        centred: bool = False,
        least_seconds: float = 0.0,
    ):
        """Takes the classifier.

        Args:
          classifier: the classifier.
          keys: names of its features, as `SoundClassifier.features` returns them.
          centred: whether sounds lose their mean first.
          least_seconds: length up to which zeros are appended.
        """
        self.name = classifier.name
        self.digest = f"{classifier.digest} {keys} centred={centred} least={least_seconds}"
        self.sample_rate = classifier.sample_rate
        samples = classifier.samples
        self.seconds = None if samples is None else samples / self.sample_rate
        self._classifier, self._keys = classifier, keys
        self._centred, self._least = centred, round(least_seconds * self.sample_rate)

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        if self._centred:
            wavs = wavs - wavs.mean(axis=1, keepdims=True)
        wavs = io.resample_all(wavs, sample_rate, self.sample_rate)
        wavs = np.pad(wavs, ((0, 0), (0, max(0, self._least - wavs.shape[1]))))
        found = self._classifier.features(wavs)
        return np.concatenate([found[key].reshape(len(wavs), -1) for key in self._keys], axis=1)

    def unpack(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the features by name, [n, width], or [n, frames, width] of VGGish."""
        widths = [self._classifier.widths[key] for key in self._keys]
        if len(widths) == 1 and rows.shape[1] > widths[0]:
            return {self._keys[0]: rows.reshape(len(rows), -1, widths[0])}
        parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
        return dict(zip(self._keys, parts, strict=True))


class Peaks:
    """The largest size of each sound's samples."""

    name = digest = "peaks"

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        del sample_rate
        return np.abs(wavs).max(axis=1, keepdims=True)


class RetrieverAudio:
    """A retriever's audio side: embeddings of unit length."""

    name = "retriever"

    def __init__(self, embedder: Embedder):
        self.digest = f"retriever {embedder.digest}"
        self._embedder = embedder

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        return self._embedder.audio(io.resample_all(wavs, sample_rate, self._embedder.sample_rate))


class LogMel:
    """Mean and standard deviation of a log-mel spectrogram over time; nothing is learned."""

    name = "log_mel"
    digest = "log_mel"

    def __init__(self, batches: Batches):
        self._batches = batches
        self._statistics = jax.jit(_mel_statistics)

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        wavs = io.resample_all(wavs, sample_rate, io.SAMPLE_RATE)
        with jax.default_matmul_precision("highest"):
            return self._batches.run(self._statistics, {}, wavs)


def _mel_statistics(params: dict, wavs: jax.Array) -> jax.Array:
    """Returns [b, 2 * n_mels] of waveforms [b, samples] at 16 kHz."""
    del params
    mel = log_mel(wavs, MelConfig())
    return jnp.concatenate([mel.mean(axis=1), mel.std(axis=1)], axis=1)


class ScaledMel:
    """A log-mel spectrogram at 16 kHz whose usual range, -5 to 1.5, is scaled to 0 to 1."""

    name = digest = "mel"

    def __init__(self, batches: Batches):
        self._batches = batches
        self._run = jax.jit(_scaled_mel)

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        wavs = io.resample_all(wavs, sample_rate, io.SAMPLE_RATE)
        with jax.default_matmul_precision("highest"):
            return self._batches.run(self._run, {}, wavs)


def _scaled_mel(params: dict, wavs: jax.Array) -> jax.Array:
    """Returns [b, frames * n_mels] of waveforms [b, samples] at 16 kHz."""
    del params
    mel = log_mel(wavs, MelConfig())
    return jnp.clip((mel + 5) / 6.5, 0, 1).reshape(len(wavs), -1)


class Cached:
    """A network whose features are cached on disk, keyed by hashes of the network and the batch."""

    def __init__(self, network: Network, folder: pathlib.Path):
        self.name, self.digest = network.name, network.digest
        self._network = network
        self._folder = folder / hashlib.sha256(network.digest.encode()).hexdigest()[:16]

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        key = hashlib.sha256(f"{wavs.shape} {wavs.dtype} {sample_rate} ".encode())
        key.update(wavs.tobytes())
        path = self._folder / f"{key.hexdigest()}.npy"
        if path.is_file():
            with contextlib.suppress(ValueError, OSError, EOFError):  # a copy that is not whole
                return np.load(path)
        features = self._network(wavs, sample_rate)
        self._folder.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as new:
            np.save(new, features)
        return features


class Networks:
    """The networks that evaluators use, each read once, on first use."""

    def __init__(
        self,
        *,
        clap: str | os.PathLike[str] = "bundled",
        retriever: str | os.PathLike[str] = "",
        vocoder: str | os.PathLike[str] = "bundled",
        classifier: str | os.PathLike[str] = "",
        melception: str | os.PathLike[str] = "",
        cnn14: str | os.PathLike[str] = "",
        vggish: str | os.PathLike[str] = "",
        resamples: int = 0,
        batch_size: int = 8,
        devices: Sequence[jax.Device] | None = None,
        cache: str | os.PathLike[str] | None = None,
    ):
        """Stores the locations; nothing is read yet.

        Args:
          clap: folder that `ClapScore` opens, a hub id, or "bundled".
          retriever: model folder of the retriever whose recall is measured.
          vocoder: model folder whose vocoder is measured.
          classifier: model folder of the classifier that hears events.
          melception: model folder of the Melception that protocols use.
          cnn14: model folder of their Cnn14.
          vggish: model folder of their VGGish.
          resamples: resamples of the sounds for the intervals of scores; 0 for none.
          batch_size: sounds embedded at a time, over all devices.
          devices: devices that share every batch, by default all of this process.
          cache: folder in which features are cached by content; None for no cache.
        """
        self._clap_folder, self._retriever_folder = clap, retriever
        self._vocoder_folder, self._classifier_folder = vocoder, classifier
        self._sound_classifiers = {"melception": melception, "cnn14": cnn14, "vggish": vggish}
        self._read: dict[str, SoundClassifier] = {}
        self.resamples = resamples
        self._batch_size, self._devices = batch_size, devices or jax.local_devices()
        self._cache = None if cache is None else pathlib.Path(cache)

    @functools.cached_property
    def clap(self) -> ClapScore:
        """Both towers of the CLAP."""
        folder = hub.fetch(str(self._clap_folder), LAION_FILES)
        return ClapScore(folder, batch_size=self._batch_size, devices=self._devices)

    @functools.cached_property
    def retriever(self) -> Embedder:
        """Both sides of the retriever."""
        if not self._retriever_folder:
            raise ValueError("recall measures a retriever: give its model folder")
        return Embedder(self._retriever_folder, batch_size=self._batch_size, devices=self._devices)

    @functools.cached_property
    def clap_audio(self) -> Network:
        """The CLAP's audio tower."""
        return self.kept(ClapAudio(self.clap))

    @functools.cached_property
    def retriever_audio(self) -> Network:
        """The retriever's audio side."""
        return self.kept(RetrieverAudio(self.retriever))

    @functools.cached_property
    def log_mel(self) -> Network:
        """Statistics of log-mel spectrograms, too cheap to cache on disk."""
        return LogMel(self._batches())

    @functools.cached_property
    def mel(self) -> Network:
        """Log-mel spectrograms, too cheap to cache on disk."""
        return ScaledMel(self._batches())

    @functools.cached_property
    def vocoder(self) -> Network:
        """The vocoder's sounds of recordings, beside Griffin-Lim's."""
        from maa_jax.evaluators.reconstruction import VocoderSounds

        return self.kept(VocoderSounds(self._vocoder_folder, self._batches()))

    @functools.cached_property
    def events(self) -> EventAudio:
        """The classifier of events."""
        if not self._classifier_folder:
            raise ValueError(
                "events are heard by a classifier: train one with --config=configs/"
                "event_classifier.py, and give its model folder as classifier"
            )
        return EventAudio(self._classifier_folder, self._batches())

    @functools.cached_property
    def events_audio(self) -> Network:
        """The classifier's logits."""
        return self.kept(self.events)

    def sound_classifier(self, kind: str) -> SoundClassifier:
        """Returns the Melception, Cnn14 or VGGish that protocols use.

        Args:
          kind: "melception", "cnn14" or "vggish".

        Raises:
          ValueError: its folder was not given, or holds another network.
        """
        if kind in self._read:
            return self._read[kind]
        folder = self._sound_classifiers[kind]
        if not folder:
            raise ValueError(
                f"{kind}='': give the model folder of the published weights (maa_jax.convert "
                "--from=classifier), or of weights trained here (configs/audio_classifier.py)"
            )
        found = SoundClassifier(folder, self._batches())
        if not found.name.startswith(kind):
            raise ValueError(f"{kind}={str(folder)!r} holds {found.name}: give a {kind}'s folder")
        self._read[kind] = found
        return found

    def _batches(self) -> Batches:
        return Batches(self._batch_size, self._devices)

    def kept(self, network: Network) -> Network:
        """Returns a network whose features are cached on disk, if there is a cache."""
        return network if self._cache is None else Cached(network, self._cache)
