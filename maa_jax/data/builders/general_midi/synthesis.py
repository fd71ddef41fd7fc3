"""Renders scores with a soundfont, by TinySoundFont (MIT licence)."""

import functools
import os
from collections.abc import Sequence

import numpy as np

from maa_jax.audio.io import SAMPLE_RATE, resample
from maa_jax.audio.levels import loudest
from maa_jax.data.builders.general_midi.instruments import DRUM_BANK, INSTRUMENTS
from maa_jax.data.builders.general_midi.score import Event, Note, Score

HELP = (
    "General MIDI soundfonts under the MIT licence are in Debian's packages"
    " fluidr3mono-gm-soundfont (24 MB) and fluid-soundfont-gm (148 MB)"
)
# Rendered at a higher rate, since TinySoundFont does not filter what a lower one cannot hold.
_RATE = 2 * SAMPLE_RATE
_TAIL_S = 0.25  # what is discarded of the voices of an earlier clip
_PEAK = 0.95
# Level of an event beside the clip's other events, in dB.
LEVELS_DB = {"soft": -12.0, "medium": -6.0, "loud": 0.0}


class Soundfont:
    """A General MIDI soundfont.

    Args:
      path: path of an SF2 or SF3 file.

    Raises:
      ValueError: there is no soundfont at `path`, or it lacks a preset of General MIDI; or the
        package tinysoundfont is missing.
    """

    def __init__(self, path: str | os.PathLike[str]):
        try:
            from tinysoundfont import Synth
        except ModuleNotFoundError as error:
            # It is in no extra, since it requires pyaudio, which has no wheels and only plays.
            raise ValueError(
                "soundfonts are rendered by TinySoundFont: pip install --no-deps tinysoundfont"
            ) from error
        self._synth = Synth(samplerate=_RATE)
        try:
            self._font = self._synth.sfload(os.fspath(path))
        except Exception as error:  # the library's own class, or RuntimeError
            raise ValueError(f"{path} is not a soundfont ({error}). {HELP}") from error
        presets = sorted({(i.bank, i.program) for i in INSTRUMENTS})
        missing = [p for p in presets if self._synth.sfpreset_name(self._font, *p) is None]
        if missing:
            raise ValueError(
                f"{path} is no General MIDI soundfont: it lacks the presets (bank, program)"
                f" {missing[:5]}. {HELP}"
            )

    def render(self, score: Score, seconds: float, loudness: float) -> np.ndarray:
        """Returns the clip of a score, float32 [samples] at 16 kHz.

        Args:
          score: what is played.
          seconds: length of the clip.
          loudness: level of the loudest 0.4 s, in dB of full scale; lower where the peak would
            exceed 0.95.

        Raises:
          ValueError: the soundfont has no sound for an event.
        """
        # Presets differ by 40 dB: each event gets the level of its loudness.
        wav = np.sum([self._event(event, seconds) for event in score.events], axis=0)
        wav -= wav.mean()
        gain = 10 ** ((loudness - loudest(wav)) / 20)
        return wav * np.float32(min(gain, _PEAK / np.abs(wav).max()))

    def _event(self, event: Event, seconds: float) -> np.ndarray:
        """Returns an event's part of the clip, at the level of its loudness."""
        wav = self._play(event.notes, seconds)
        wav = resample(wav, _RATE, SAMPLE_RATE)[: round(seconds * SAMPLE_RATE)]
        if not np.abs(wav).max() > 0:
            raise ValueError(f"the soundfont has no sound for {event.instrument}; take another")
        return wav * np.float32(10 ** ((LEVELS_DB[event.loudness] - loudest(wav)) / 20))

    def _play(self, notes: Sequence[Note], seconds: float) -> np.ndarray:
        synth = self._synth
        presets = sorted({(n.bank, n.program) for n in notes})
        channels = {preset: i for i, preset in enumerate(presets)}
        for (bank, program), channel in channels.items():
            synth.program_select(channel, self._font, bank, program, bank == DRUM_BANK)
        changes = [(n.onset, 1, n) for n in notes] + [(n.onset + n.seconds, 0, n) for n in notes]
        now, parts = 0, []
        for time, begins, note in sorted(changes, key=lambda c: c[:2]):
            sample = min(round(time * _RATE), round(seconds * _RATE))
            if sample > now:
                parts.append(self._generate(sample - now))
                now = sample
            channel = channels[note.bank, note.program]
            if begins:
                synth.noteon(channel, note.key, note.velocity)
            else:
                synth.noteoff(channel, note.key)
        parts.append(self._generate(round(seconds * _RATE) - now))
        for channel in channels.values():
            synth.sounds_off(channel)
        self._generate(round(_TAIL_S * _RATE))
        return np.concatenate(parts)

    def _generate(self, samples: int) -> np.ndarray:
        if not samples:
            return np.zeros(0, np.float32)
        stereo = np.frombuffer(self._synth.generate(samples), np.float32)
        return stereo.reshape(-1, 2).mean(axis=1)


@functools.lru_cache(maxsize=1)
def soundfont(path: str) -> Soundfont:
    """Returns the soundfont at a path; each process reads it once."""
    return Soundfont(path)
