"""Waveforms to latents and back, of any length: the pipeline's autoencoder and vocoder."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from maa_jax.devices import LocalDevices
from maa_jax.latents import LatentCodec
from maa_jax.pipeline import programs
from maa_jax.pipeline.windows import Part, Windows, join
from maa_jax.vocoder import FADE_SECONDS, Vocoder

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

    def vocode(
        self, mels: Array, ends: np.ndarray | None = None, windows: Windows | None = None
    ) -> tuple[Array, Array]:
        """Returns waveforms [b, samples] of log mels, and the share of clipped samples, [b].

        `ends` is the length of each sound, at most that of the mels.
        """
        _, params = self._networks.load("vocoder")
        vocode = functools.partial(programs.vocode, self.vocoder, params)
        if windows is None:
            lengths = None if ends is None else self._devices.split(ends.astype(np.int32))
            return self._run("vocoder", vocode, mels, lengths)
        clipped = []

        def run(part: Array) -> Array:
            wavs, share = self._run("vocoder", vocode, self._devices.split(part))
            clipped.append(np.asarray(share))
            return wavs

        wavs = join(
            run, [Part(mels, 1, self.codec.downscale)], windows, axis=1, size=self.codec.samples(1)
        )
        if ends is not None and not windows.loop:
            for wav, end in zip(wavs, ends, strict=True):
                fade = min(end, round(FADE_SECONDS * self.codec.mel.sample_rate))
                wav[end - fade : end] *= 1 - np.arange(fade, dtype=np.float32) / fade
        return wavs, np.mean(clipped, axis=0)

    def _wavs(self, audio: Array) -> Part:
        return Part(audio, 1, self.codec.samples(1))
