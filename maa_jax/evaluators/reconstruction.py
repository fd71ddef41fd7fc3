"""Sounds that a vocoder, and Griffin-Lim, make of recordings' mels, and how far they are off."""

import os

import jax
import librosa
import numpy as np

from maa_jax.audio import io, levels
from maa_jax.audio.mel import MelConfig, log_mel, log_spectral_distances, mel_filters
from maa_jax.encoders.batching import Batches
from maa_jax.files import FolderError
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import content_hash, front_end
from maa_jax.vocoder import Vocoder

_ITERATIONS = 60


class VocoderSounds:
    """A vocoder's sounds of recordings: distances to them, offset, skewness and silence.

    Args:
      folder: model folder with a vocoder.
      batches: batches in which it computes.

    Raises:
      FolderError: the folder states no front end for its vocoder.
    """

    name = "vocoder"

    def __init__(self, folder: str | os.PathLike[str], batches: Batches):
        folder = hub.resolve(folder)
        mel = front_end(folder, "vocoder")
        if mel is None:
            raise FolderError(f"{folder}: its {hub.INDEX} states no front end of its vocoder")
        self._mel: MelConfig = mel
        self._vocoder = Vocoder.from_folder(folder, mel)
        self._batches = batches
        self._params = batches.put(networks.load_network(folder, "vocoder")[1])
        self._run = jax.jit(self._sounds)
        self._distances = jax.jit(lambda _, a, b: log_spectral_distances(a, b))
        self.digest = f"vocoder {content_hash(folder / 'vocoder')}"

    def __call__(self, wavs: np.ndarray, sample_rate: int) -> np.ndarray:
        """See `Network`."""
        wavs = io.resample_all(wavs, sample_rate, self._mel.sample_rate)
        wavs = wavs[:, : wavs.shape[1] // self._mel.hop_length * self._mel.hop_length]
        with jax.default_matmul_precision("highest"):
            mels, made = self._batches.run(self._run, self._params, wavs)
            other = np.stack([griffin_lim(mel, self._mel) for mel in mels])
            distances = [self._batches.run(self._distances, {}, x, wavs) for x in (made, other)]
        rows = [
            (
                levels.offset(sound),
                abs(levels.skewness(sound) - levels.skewness(wav)),
                silent_level(sound, wav, self._mel.n_fft),
            )
            for sound, wav in zip(made, wavs, strict=True)
        ]
        return np.concatenate([np.stack(distances, axis=1), np.array(rows, np.float32)], axis=1)

    def _sounds(self, params: dict, wavs: jax.Array) -> tuple[jax.Array, jax.Array]:
        mels = log_mel(wavs, self._mel)
        return mels, self._vocoder(params, mels)[0]


def griffin_lim(mel: np.ndarray, config: MelConfig) -> np.ndarray:
    """Returns the waveform [frames * hop_length] that Griffin-Lim finds for a log mel [frames, n].

    Magnitudes are the non-negative least squares solution for the mels; librosa's iterations, with
    their usual momentum, begin from the same random phases each time.
    """
    mels = np.power(10.0 if config.log == "log10" else np.e, mel.T.astype(np.float64))
    magnitudes = librosa.util.nnls(mel_filters(config).T.astype(np.float64), mels)
    wav = librosa.griffinlim(
        magnitudes.astype(np.float32),
        n_iter=_ITERATIONS,
        hop_length=config.hop_length,
        n_fft=config.n_fft,
        center=False,
        random_state=0,
    )
    begin, length = (config.n_fft - config.hop_length) // 2, len(mel) * config.hop_length
    return librosa.util.fix_length(wav[begin : begin + length], size=length)


def silent_level(sound: np.ndarray, recording: np.ndarray, margin: int) -> float:
    """Returns the level of a sound where the recording is silent, in dB; -inf if it nowhere is.

    Args:
      sound: waveform [samples].
      recording: waveform [samples].
      margin: samples around anything audible that do not count as silence.
    """
    audible = np.pad(np.abs(recording) >= io.SILENCE, margin)
    count = np.concatenate([[0], np.cumsum(audible)])  # of audible samples so far
    near = count[2 * margin + 1 :] > count[: -2 * margin - 1]
    if near.all():
        return -np.inf
    power = np.square(sound[~near], dtype=np.float64).mean()
    return float(10 * np.log10(max(power, 1e-12)))
