"""Waveforms to latents and back, of any length: the pipeline's autoencoder and vocoder."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from maa_jax.devices import LocalDevices
from maa_jax.latents import LatentCodec
from maa_jax.pipeline import programs
from maa_jax.pipeline.windows import Growing, Part, Windows, join, pieces
from maa_jax.vocoder import FADE_SECONDS, LOUDEST, Vocoder

Array = Any  # of numpy or JAX


class Coder:
    """Runs the networks on whole sounds, or by windows on those that are longer.

    Args:
      codec: codec of the model.
      vocoder: its vocoder.
      networks: its networks, read when they are first needed.
      devices: devices that share every batch.
      run: function (name of a part, function, arguments) that runs and times it.
    """

    def __init__(
        self,
        codec: LatentCodec,
        vocoder: Vocoder,
        networks: programs.Networks,
        devices: LocalDevices,
        run: Callable[..., Any],
    ):
        self.codec, self.vocoder = codec, vocoder
        self._networks, self._devices, self._run = networks, devices, run

    def encode(self, audio: Array, windows: Windows | None = None) -> Array:
        """Returns scaled latents [b, h, w, c] of waveforms [b, samples]."""
        _, params = self._networks.load("vae")
        encode = functools.partial(programs.encode, self.codec, params)
        run = lambda wavs: self._run("autoencoder", encode, self._devices.split(wavs))
        return join(run, [self._wavs(audio)], windows, axis=2, size=1)

    def masked(self, audio: Array, mask: Array, windows: Windows | None = None) -> Array:
        """Returns what an inpainting U-Net takes beside latents; see `LatentCodec.masked`."""
        _, params = self._networks.load("vae")
        encode = functools.partial(programs.encode_masked, self.codec, params)
        run = lambda *x: self._run("autoencoder", encode, *map(self._devices.split, x))
        parts = [self._wavs(audio), Part(mask, 2, self.codec.downscale)]
        return join(run, parts, windows, axis=2, size=1)

    def mels(self, audio: Array, windows: Windows | None = None) -> Array:
        """Returns log mels [b, frames, n_mels] of waveforms [b, samples]."""
        run = lambda wavs: programs.front_end(self.codec, self._devices.split(wavs))
        return join(run, [self._wavs(audio)], windows, axis=1, size=self.codec.downscale)

    def decode(self, latents: Array, windows: Windows | None = None) -> Array:
        """Returns log mels [b, frames, n_mels] of scaled latents [b, h, w, c]."""
        _, params = self._networks.load("vae")
        decode = functools.partial(programs.decode, self.codec, params)
        run = lambda z: self._run("autoencoder", decode, self._devices.split(z))
        return join(run, [Part(latents, 2, 1)], windows, axis=1, size=self.codec.downscale)

    def decode_pieces(self, latents: Growing, windows: Windows) -> Iterator[np.ndarray]:
        """Yields what `decode` returns of latents that grow, as soon as it is known."""

        def decode(window: int) -> Array:
            start = int(windows.starts[window])
            return self.decode(latents.read(start, start + windows.width))

        return pieces(decode, windows, axis=1, size=self.codec.downscale)

    def vocode(
        self, mels: Array, ends: np.ndarray | None = None, windows: Windows | None = None
    ) -> tuple[Array, Array]:
        """Returns waveforms [b, samples] of log mels, and the share of clipped samples, [b].

        `ends` is the length of each sound, at most that of the mels.
        """
        if windows is None:
            return self._vocode(mels, ends)
        clipped: list[np.ndarray] = []
        wavs = join(
            functools.partial(self._vocode_window, clipped),
            [Part(mels, 1, self.codec.downscale)],
            windows,
            axis=1,
            size=self.codec.samples(1),
        )
        if ends is not None and not windows.loop:
            self._fade(wavs, ends)
        (wavs,) = limited(iter([wavs]))
        return wavs, np.mean(clipped, axis=0)

    def vocode_pieces(
        self, mels: Growing, windows: Windows, ends: np.ndarray, clipped: list[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yields the waveforms of `vocode` of mels that grow, as soon as they are known.

        The share of clipped samples of each window, [b], is added to `clipped`.
        """

        def vocode(window: int) -> Array:
            start, size = int(windows.starts[window]), self.codec.downscale
            mel = mels.read(start * size, (start + windows.width) * size)
            return self._vocode_window(clipped, mel)

        def faded() -> Iterator[np.ndarray]:
            done = 0
            for wavs in pieces(vocode, windows, axis=1, size=self.codec.samples(1)):
                self._fade(wavs, ends - done)
                done += wavs.shape[1]
                yield wavs

        return limited(faded())

    def _vocode(
        self, mels: Array, ends: np.ndarray | None = None, bounded: bool = True
    ) -> tuple[Array, Array]:
        _, params = self._networks.load("vocoder")
        vocode = functools.partial(programs.vocode, self.vocoder, params, bounded=bounded)
        lengths = None if ends is None else self._devices.split(ends.astype(np.int32))
        return self._run("vocoder", vocode, self._devices.split(mels), lengths)

    def _vocode_window(self, clipped: list[np.ndarray], mels: Array) -> Array:
        wavs, share = self._vocode(mels, bounded=False)
        clipped.append(np.asarray(share))
        return wavs

    def _fade(self, wavs: np.ndarray, ends: np.ndarray) -> None:
        """Fades waveforms [b, samples] out before each one's end."""
        fade = round(FADE_SECONDS * self.codec.mel.sample_rate)
        for wav, end in zip(wavs, ends, strict=True):
            if end - fade < len(wav):
                first = max(0, int(end) - fade)
                wav[first:] *= np.clip((end - np.arange(first, len(wav))) / fade, 0, 1)

    def _wavs(self, audio: Array) -> Part:
        return Part(audio, 1, self.codec.samples(1))


def limited(made: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the pieces [b, samples] of waveforms, quieter where they would exceed full scale.

    A piece is as quiet as it and its neighbours need, and its gain changes evenly from one end to
    the other: nothing is clipped, and no step is heard.
    """
    before = needed = left = np.empty(0, np.float32)
    for wavs in made:
        peak = np.abs(wavs).max(axis=1, keepdims=True)
        gain = np.where(peak > 1, LOUDEST / np.maximum(peak, 1), 1)
        if before.size:
            right = np.minimum(needed, gain)
            yield _scaled(before, left, right)
            left = right
        else:
            left = gain
        before, needed = wavs, gain
    yield _scaled(before, left, needed)


def _scaled(wavs: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    way = (np.arange(wavs.shape[1]) + 0.5) / wavs.shape[1]
    return (wavs * (left + (right - left) * way)).astype(np.float32)
