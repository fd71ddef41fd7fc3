"""Scores: which instruments a clip has, in which order, and each note that they play.

Everything random comes from a generator, so that a clip depends only on its seed and number.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from maa_jax.data.builders.general_midi.instruments import INSTRUMENTS, Instrument

# Velocity of each loudness, and seconds between notes of each tempo.
VELOCITIES = {"soft": 48, "medium": 84, "loud": 120}
INTERVALS = {"slow": 0.55, "medium": 0.32, "fast": 0.16}
# Shares of the combinations of instrument, pattern and register that training never has.
HELD_OUT = {"validation": 0.06, "test": 0.06}
# Probabilities of one, two and three events.
_EVENTS = (0.55, 0.33, 0.12)
# Major, minor, pentatonic.
_SCALES = ((0, 2, 4, 5, 7, 9, 11, 12), (0, 2, 3, 5, 7, 8, 10, 12), (0, 2, 4, 7, 9, 12))
_CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 10), (0, 7, 12))
# Beats of a bar, in eighths: (kick, snare, closed hi-hat), and the bar's length.
_BEATS: Mapping[str, tuple[tuple[Sequence[float], Sequence[float], Sequence[float]], int]] = {
    "rock beat": (((0, 4, 5), (2, 6), range(8)), 8),
    "disco beat": (((0, 2, 4, 6), (2, 6), (1, 3, 5, 7)), 8),
    "hip-hop beat": (((0, 1.5, 5), (2, 6), (0, 1, 2, 3, 4, 5, 6, 6.5, 7)), 8),
    "waltz": (((0,), (2, 4), (0, 2, 4)), 6),
    "march": (((0, 4), (0, 1, 2, 2.5, 3, 4, 5, 6, 6.5, 7), ()), 8),
    "bossa nova": (((0, 3, 4, 7), (0, 3, 6), range(8)), 8),
}
_KICK, _SNARE, _HIHAT = 36, 38, 42


@dataclasses.dataclass(frozen=True)
class Note:
    """A note.

    Attributes:
      onset: beginning in the clip, in seconds.
      seconds: time until the key is released.
      bank: bank of the preset.
      program: number of the preset.
      key: MIDI key.
      velocity: MIDI velocity, 1 to 127.
    """

    onset: float
    seconds: float
    bank: int
    program: int
    key: int
    velocity: int


@dataclasses.dataclass(frozen=True)
class Event:
    """One instrument playing one pattern.

    Attributes:
      instrument: what plays.
      pattern: one of the instrument's patterns.
      register: one of the instrument's registers.
      loudness: key of `VELOCITIES`.
      tempo: key of `INTERVALS`; "medium" for patterns without one.
      notes: all notes, in order of time.
      times: number of strokes of a repeated note, else 1.
    """

    instrument: Instrument
    pattern: str
    register: str
    loudness: str
    tempo: str
    notes: tuple[Note, ...]
    times: int = 1


@dataclasses.dataclass(frozen=True)
class Score:
    """What a clip plays.

    Attributes:
      events: events in order of time.
      together: whether the first two events sound at the same time; the others follow each other.
    """

    events: tuple[Event, ...]
    together: bool

    def truth(self) -> dict[str, Any]:
        """Returns all that is known about the clip, as JSON values."""
        events = []
        for event in self.events:
            entry = dataclasses.asdict(event)
            entry["instrument"] = event.instrument.name
            entry["family"] = event.instrument.family
            entry["notes"] = [[n.onset, n.seconds, n.key, n.velocity] for n in event.notes]
            entry["bank"], entry["program"] = event.instrument.bank, event.instrument.program
            events.append(entry)
        return {"together": self.together, "events": events}


def split_of(instrument: Instrument, pattern: str, register: str) -> str:
    """Returns the split in which a combination is heard; it is heard in no other."""
    text = f"{instrument.bank}/{instrument.program}/{instrument.low}/{pattern}/{register}"
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
    for split, share in HELD_OUT.items():
        if place < share:
            return split
        place -= share
    return "train"


def combinations(split: str | None) -> list[list[tuple[Instrument, str, str]]]:
    """Returns the combinations (instrument, pattern, register) of a split, or all, by family.

    An instrument whose patterns and registers are a single combination is always in train.
    """
    families: dict[str, list[tuple[Instrument, str, str]]] = {}
    for instrument in INSTRUMENTS:
        own = [(instrument, p, r) for p in instrument.patterns for r in instrument.registers]
        for combination in own:
            place = split_of(*combination) if len(own) > 2 else "train"
            if split in (place, None):
                families.setdefault(instrument.family, []).append(combination)
    return list(families.values())


def compose(
    rng: np.random.Generator,
    families: Sequence[Sequence[tuple[Instrument, str, str]]],
    seconds: float,
) -> Score:
    """Returns a random score.

    Args:
      rng: generator of all random choices.
      families: combinations to choose from; families are equally likely.
      seconds: length of the clip.
    """
    most = max(1, min(3, int(seconds / 1.3)))  # an event needs time to be recognised
    shares = np.array(_EVENTS[:most]) / sum(_EVENTS[:most])
    count = 1 + int(rng.choice(most, p=shares))
    together = count > 1 and bool(rng.random() < 0.35)
    slots = count - together
    begins = [0.0, *(seconds * (i / slots) for i in range(1, slots))]
    events: list[Event] = []
    for i in range(count):
        others = {event.instrument.family for event in events}
        group = families[int(rng.integers(len(families)))]
        while len(families) > count and group[0][0].family in others:
            group = families[int(rng.integers(len(families)))]
        slot = max(0, i - together)
        begin = begins[slot] + float(rng.uniform(0, 0.06))
        events.append(_event(rng, *group[int(rng.integers(len(group)))], begin, seconds / slots))
    return Score(tuple(events), together)


def _event(
    rng: np.random.Generator,
    instrument: Instrument,
    pattern: str,
    register: str,
    begin: float,
    seconds: float,
) -> Event:
    """Returns an event that begins at `begin` and plays for up to `seconds`."""
    loudness = str(rng.choice(list(VELOCITIES)))
    tempo = str(rng.choice(list(INTERVALS)))
    velocity = VELOCITIES[loudness]
    interval = INTERVALS[tempo] * float(rng.uniform(0.9, 1.1))
    low, high = instrument.keys(register)
    times = 1

    if pattern in _BEATS:
        strokes = _beat(pattern, interval / 1.6, seconds)
    else:
        fitting = max(2, int((seconds - 0.3) / interval))  # notes that the time has room for
        if pattern in ("note", "chord", "trill", "roll"):
            tempo = "medium"
        if pattern == "note":
            steps: Sequence[Sequence[int]] = [[0]]
            interval = seconds * float(rng.uniform(0.6, 0.95))
        elif pattern == "chord":
            steps = [_CHORDS[rng.integers(len(_CHORDS))]]
            interval = seconds * float(rng.uniform(0.7, 0.95))
        elif pattern == "repeated note":
            times = int(rng.integers(2, min(6, fitting) + 1))
            steps = [[0]] * times
        elif pattern in ("trill", "roll"):
            interval = 0.085 if pattern == "trill" else 0.062
            count = int(seconds * float(rng.uniform(0.6, 0.9)) / interval)
            second = int(rng.integers(1, 3)) if pattern == "trill" else 0
            steps = [[second * (i % 2)] for i in range(count)]
        elif pattern == "arpeggio":
            chord = _CHORDS[rng.integers(2)]
            up = [*chord, 12, *(12 + step for step in chord[1:])]
            line = up[: max(4, min(fitting, 6))]
            steps = [[step] for step in (line if rng.random() < 0.7 else line + line[-2::-1])]
        else:
            scale = _SCALES[rng.integers(len(_SCALES))][: max(4, min(fitting, 8))]
            steps = [[step] for step in (scale if pattern == "rising scale" else scale[::-1])]
        # All notes fit into the slot, and the pattern stays within the instrument's range.
        interval = min(interval, (seconds - 0.2) / len(steps)) if len(steps) > 1 else interval
        top = max(max(step) for step in steps)
        base = int(rng.integers(low, max(low, min(high, instrument.high - top)) + 1))
        strokes = [(i * interval, base + step) for i, many in enumerate(steps) for step in many]
    held = interval * (0.95 if len(strokes) > 1 else 1.0)
    notes = tuple(
        Note(
            round(begin + onset, 4),
            round(held, 4),
            instrument.bank,
            instrument.program,
            min(key, 127),
            int(np.clip(velocity + rng.integers(-6, 7), 1, 127)),
        )
        for onset, key in strokes
    )
    return Event(instrument, pattern, register, loudness, tempo, notes, times)


def _beat(pattern: str, eighth: float, seconds: float) -> list[tuple[float, int]]:
    """Returns (onset, key) of a drum pattern, repeated until `seconds` are filled."""
    drums, length = _BEATS[pattern]
    bars = max(1, int(np.ceil(seconds / (eighth * length))))
    strokes = [
        (eighth * (bar * length + place), key)
        for bar in range(bars)
        for key, places in zip((_KICK, _SNARE, _HIHAT), drums, strict=True)
        for place in places
    ]
    return sorted((onset, key) for onset, key in strokes if onset < seconds - 0.15)
