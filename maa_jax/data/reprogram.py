"""Dynamic reprogramming: new pairs of sound and caption from old ones (paper section 3.2.2).

N of {0, 1, 2} events from datasets with single labels are added to each pair: a template joins the
captions (Appendix F), and the sounds are concatenated in the order that the sentence states.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from maa_jax import schema
from maa_jax.audio.io import SAMPLE_RATE, SILENCE

# The templates of Appendix F, each with whether the pair's sound comes first. `x` is the pair's
# caption, `e` (& in the paper) the event's label. In "e, following x" the event comes second, and
# what happens "in front of" hearing an event happens before it.
TEMPLATES = (
    ("before {v} {q} {a} {n} of {e}, {x}", True),
    ("{x} before {v} {q} {a} {n} of {e},", True),
    ("in front of {v} {q} {a} {n} of {e}, {x}", True),
    ("first is {x} second is {q} {a} {n} of {e}", True),
    ("after {x}, {v} {q} {a} {n} of {e}", True),
    ("after {v} {q} {a} {n} of {e}, {x}", False),
    ("behind {v} {q} {a} {n} of {e}, {x}", False),
    ("{v} {q} {a} {n} of {e}, then {x}", False),
    ("{v} {q} {a} {n} of {e}, following {x}", True),
    ("{v} {q} {a} {n} of {e}, later {x}", False),
    ("{x} after {v} {q} {a} {n} of {e}", False),
    ("before {x}, {v} {q} {a} {n} of {e}", False),
)
WORDS = {
    "v": ("hearing", "noticing", "listening to", "appearing"),
    "a": ("clear", "noisy", "close-up", "weird", "clean"),
    "n": ("audio", "sound", "voice"),
    "q": ("a", "the", "some"),
}

# Both ends of a sound are trimmed where they are this much quieter than its peak.
_TRIM_DB = -60.0


@dataclasses.dataclass(frozen=True)
class ReprogramConfig:
    """Settings of reprogramming; a run's `config.data.reprogram`.

    Attributes:
      events: mixture as in `config.data.dataset`, whose recordings with exactly one label are
        drawn; "" turns reprogramming off.
      n_events: weights of the probabilities of 0, 1 and 2 events.
      gain_db: range of an event's loudness (RMS) relative to the pair's, in dB; drawn uniformly.
      crossfade: overlap of neighbouring sounds in seconds, at equal power.
    """

    events: str = ""
    n_events: tuple[float, float, float] = schema.field((1.0, 1.0, 1.0), least=0, most=1e9)
    gain_db: tuple[float, float] = schema.field((-6.0, 6.0), least=-120, most=120)
    crossfade: float = schema.field(0.05, least=0, most=60)

    def __post_init__(self):
        schema.check(self)
        if not any(self.n_events):
            raise ValueError(f"n_events={self.n_events}: one of the weights must be above 0")
        low, high = self.gain_db
        if low > high:
            raise ValueError(
                f"gain_db={self.gain_db}: give the lowest and the highest, as {high, low}"
            )


@dataclasses.dataclass(frozen=True)
class Reprogram:
    """Transform of examples with `audio`, float32 [samples], and `caption`.

    Attributes:
      config: settings of reprogramming.
      draw: function that returns a random event, its label and its sound, float32 [n].
      samples: length of a clip in samples.
      sample_rate: sample rate of the sounds in Hz.
    """

    config: ReprogramConfig
    draw: Callable[[np.random.Generator], tuple[str, np.ndarray]]
    samples: int
    sample_rate: int = SAMPLE_RATE

    def __call__(self, example: Mapping, rng: np.random.Generator) -> dict:
        """Returns the example with new `audio` and `caption`.

        It is unchanged if no event is drawn, or if it is silent or has no caption. Silent events
        are left out.
        """
        weights = np.array(self.config.n_events, float)
        count = rng.choice(3, p=weights / weights.sum())
        caption = example["caption"]
        if not count or not caption:
            return dict(example)
        sounds = [trim(example["audio"])]
        if not len(sounds[0]):
            return dict(example)
        loudness = _rms(sounds[0])
        for _ in range(count):
            label, event = self.draw(rng)
            event = trim(event)
            if not len(event):
                continue
            gain = 10 ** (rng.uniform(*self.config.gain_db) / 20) * loudness / _rms(event)
            caption, pair_first = join_captions(caption, label, rng)
            event = event * np.float32(gain)
            sounds = [*sounds, event] if pair_first else [event, *sounds]
        if len(sounds) == 1:
            return dict(example)
        crossfade = round(self.config.crossfade * self.sample_rate)
        return {
            **example,
            "caption": caption,
            "audio": join_sounds(sounds, self.samples, crossfade),
        }


def join_captions(caption: str, label: str, rng: np.random.Generator) -> tuple[str, bool]:
    """Joins a caption and an event's label by a random template with random words.

    Returns:
      The new caption, and whether the given caption's sound comes first in it.
    """
    template, pair_first = TEMPLATES[rng.integers(len(TEMPLATES))]
    words = {key: choices[rng.integers(len(choices))] for key, choices in WORDS.items()}
    # One of Appendix F's templates ends in a comma.
    return template.format(x=caption, e=label, **words).removesuffix(","), pair_first


def vocabulary() -> list[str]:
    """Returns sentences that together contain all words of the templates."""
    blank = dict.fromkeys("vaqnxe", "")
    choices = [words for key in WORDS for words in WORDS[key]]
    return [*(template.format(**blank) for template, _ in TEMPLATES), *choices]


def join_sounds(sounds: Sequence[np.ndarray], samples: int, crossfade: int) -> np.ndarray:
    """Concatenates sounds into a clip in which all of them can be heard.

    Sounds that fit are kept whole. Otherwise each gets an equal share of the clip; what a short
    sound leaves of its share goes to the longer ones, which are cut to one length, each to its
    loudest part. A clip that would exceed 1 is attenuated as a whole.

    Args:
      sounds: sounds to join, float32 [n] each, none empty.
      samples: length of the clip; a shorter one is padded with zeros at the end.
      crossfade: overlap of neighbouring sounds in samples, at equal power; at most half of the
        shortest sound.

    Returns:
      float32 [samples].
    """
    lengths = [len(sound) for sound in sounds]
    crossfade = min(crossfade, min(lengths) // 2, samples // (2 * len(sounds)))
    left = samples + crossfade * (len(sounds) - 1)
    shares = {}
    for rank, which in enumerate(np.argsort(lengths, kind="stable").tolist()):
        shares[which] = min(lengths[which], left // (len(sounds) - rank))
        left -= shares[which]
    # Equal power: the squares of the two sum to one.
    rise = np.sin(np.pi / 2 * (np.arange(crossfade) + 0.5) / max(crossfade, 1)).astype(np.float32)
    clip, end = np.zeros(samples, np.float32), 0
    for i, sound in enumerate(sounds):
        part = _loudest(sound, shares[i])
        if crossfade and i:
            part[:crossfade] *= rise
        if crossfade and i < len(sounds) - 1:
            part[-crossfade:] *= rise[::-1]
        begin = max(0, end - crossfade)
        end = begin + len(part)
        clip[begin:end] += part
    return clip / max(1.0, np.abs(clip).max())


def trim(wav: np.ndarray) -> np.ndarray:
    """Trims both ends of a sound [n] below -60 dB of its peak; a silent sound becomes empty."""
    level = np.abs(wav)
    peak = level.max(initial=0)
    if peak < SILENCE:
        return wav[:0]
    heard = level >= peak * 10 ** (_TRIM_DB / 20)
    return wav[heard.argmax() : len(wav) - heard[::-1].argmax()]


def _loudest(wav: np.ndarray, samples: int) -> np.ndarray:
    """Returns a copy of the excerpt of `samples` samples with the most energy."""
    energy = np.concatenate([[0.0], np.cumsum(np.square(wav, dtype=np.float64))])
    start = np.argmax(energy[samples:] - energy[: len(energy) - samples])
    return wav[start : start + samples].copy()


def _rms(wav: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wav, dtype=np.float64))))
