"""Sentences that describe a score, differently worded each time."""

from collections.abc import Mapping

import numpy as np

from maa_jax.data.builders.general_midi.score import Event, Score

_ADJECTIVES = {
    "soft": ("soft", "quiet", "gentle"),
    "loud": ("loud", "forceful"),
    "slow": ("slow",),
    "fast": ("fast", "quick"),
    "low": ("low",),
    "high": ("high",),
}
_ADVERBS = {
    "soft": ("softly", "quietly", "gently"),
    "loud": ("loudly",),
    "slow": ("slowly",),
    "fast": ("quickly", "fast"),
}
_REGISTERS = {
    "low": ("in the low register", "far down"),
    "high": ("in the high register", "high up"),
}
_TIMES = {1: "once", 2: "twice", 3: "three times", 4: "four times", 5: "five times", 6: "six times"}
_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}
# Probability that a caption states a loudness, a tempo or a register that is not the medium one.
_STATED = 0.75
# Instruments whose names are not those of one thing that is struck.
_SOUND = ("hand clap", "orchestra hit", "side stick", "reversed cymbal")
_SHAKEN = ("maraca", "tambourine", "cabasa")
_PLURAL = ("timpani",)


def captions(score: Score, rng: np.random.Generator, count: int = 3) -> tuple[str, ...]:
    """Returns different sentences about a score.

    Args:
      score: what the clip plays.
      rng: generator of the choice of words.
      count: number of sentences.
    """
    found: dict[str, None] = {}
    for _ in range(20 * count):
        found[_sentence(score, rng)] = None
        if len(found) == count:
            break
    return tuple(found)


def _sentence(score: Score, rng: np.random.Generator) -> str:
    clause = [_clause(event, rng) for event in score.events]
    noun = [_noun(event, rng) for event in score.events]
    if len(noun) == 1:
        forms = [clause[0], noun[0]]
    elif score.together:
        forms = [
            f"{clause[0]} while {clause[1]}",
            f"{noun[0]} together with {noun[1]}",
            f"{noun[0]} and, at the same time, {noun[1]}",
            f"{clause[1]} as {clause[0]}",
        ]
        if len(noun) == 3:
            forms = [f"{form}, then {noun[2]}" for form in forms]
            forms.append(f"{noun[2]} after {noun[0]} together with {noun[1]}")
    elif len(noun) == 2:
        forms = [
            f"{clause[0]}, then {clause[1]}",
            f"{noun[0]}, then {noun[1]}",
            f"{noun[0]} followed by {noun[1]}",
            f"{noun[0]} before {noun[1]}",
            f"{clause[1]} after {noun[0]}",
            f"after {noun[0]}, {clause[1]}",
        ]
    else:
        forms = [
            f"{clause[0]}, then {clause[1]}, then {clause[2]}",
            f"{noun[0]}, then {noun[1]}, and finally {noun[2]}",
            f"first {noun[0]}, then {noun[1]}, and at the end {noun[2]}",
            f"{noun[0]} followed by {noun[1]} and {noun[2]}",
        ]
    return str(rng.choice(forms))


def _clause(event: Event, rng: np.random.Generator) -> str:
    """Returns a main clause, "a flute plays a rising scale quickly"."""
    name, kind = event.instrument.name, event.instrument.kind
    words = _Words(event, rng)
    times = _TIMES[event.times]
    if event.instrument.clause:
        text = event.instrument.clause
        return f"{text} {times}" if event.times > 1 else text
    if kind == "hit" and event.pattern != "roll":
        verb = "is shaken" if name in _SHAKEN else "sounds" if name in _SOUND else "is struck"
        verb = verb.replace("is ", "are ") if name in _PLURAL else verb
        subject = with_article(words.before("register") + name)
        return f"{subject} {verb}{words.after('loudness', 'tempo')} {times}"
    verb = "play" if name in _PLURAL else "plays"
    figure = _figure(event, words, adjectives=bool(rng.random() < 0.4))
    return f"{with_article(name)} {verb} {figure}{words.rest()}"


def _noun(event: Event, rng: np.random.Generator) -> str:
    """Returns a noun phrase, "a quick rising scale on a flute"."""
    instrument = event.instrument
    name, words = instrument.name, _Words(event, rng)
    if instrument.clause:
        if event.times > 1:
            return f"{with_article(name)}, {_TIMES[event.times]}"
        return with_article(name)
    if instrument.kind == "hit" and event.pattern != "roll":
        if name in (*_SOUND, *_SHAKEN):
            text = with_article(words.before("loudness", "register") + name)
            return f"{text}, {_TIMES[event.times]}" if event.times > 1 else text
        adjectives = words.before("loudness", "tempo", "register")
        if event.times == 1:
            return f"{with_article(adjectives + 'stroke')} on {with_article(name)}"
        return f"{_NUMBERS[event.times]} {adjectives}strokes on {with_article(name)}"
    figure = _figure(event, words, adjectives=True)
    on = "drums" if instrument.kind == "kit" else with_article(name)
    return str(rng.choice([f"{figure} on {on}", f"{on} playing {figure}"]))


def _figure(event: Event, words: "_Words", *, adjectives: bool) -> str:
    """Returns what is played, "a soft rising scale"; without `adjectives`, adverbs follow it."""
    qualities = ("loudness", "tempo", "register") if adjectives else ("register",)
    # A register may also follow, "in the low register".
    qualities = qualities if adjectives or words.rng.random() < 0.6 else ()
    before = words.before(*qualities)
    if event.pattern == "repeated note":
        if words.rng.integers(2):
            return f"{_NUMBERS[event.times]} {before}notes of the same pitch"
        return f"the same {before}note {_TIMES[event.times]}"
    thing = "single note" if event.pattern == "note" and words.rng.random() < 0.5 else event.pattern
    return with_article(before + thing)


class _Words:
    """The qualities of an event that a caption states, each of them once.

    Args:
      event: the event.
      rng: generator of the choice of words.
    """

    def __init__(self, event: Event, rng: np.random.Generator):
        self.rng = rng
        qualities = {"loudness": event.loudness, "tempo": event.tempo, "register": event.register}
        self._left = {
            quality: value
            for quality, value in qualities.items()
            if value not in ("medium", "middle") and rng.random() < _STATED
        }
        if event.pattern in ("note", "chord", "trill", "roll"):
            self._left.pop("tempo", None)

    def before(self, *qualities: str) -> str:
        """Returns adjectives, each followed by a space."""
        return "".join(f"{self._pick(_ADJECTIVES, q)} " for q in qualities if q in self._left)

    def after(self, *qualities: str) -> str:
        """Returns adverbs, preceded by a space."""
        found = [self._pick(_ADVERBS, q) for q in qualities if q in self._left]
        return f" {' and '.join(found)}" if found else ""

    def rest(self) -> str:
        """Returns adverbs for all that was not stated yet."""
        place = f" {self._pick(_REGISTERS, 'register')}" if "register" in self._left else ""
        return place + self.after("tempo", "loudness")

    def _pick(self, words: Mapping[str, tuple[str, ...]], quality: str) -> str:
        return str(self.rng.choice(words[self._left.pop(quality)]))


def with_article(noun: str) -> str:
    """Returns a noun phrase with its article."""
    if noun.split()[-1] in _PLURAL:
        return noun
    if noun.startswith("roar of"):
        return f"the {noun}"
    vowel = noun[0] in "aeioAEIO" or noun.startswith(("upright", "unseen"))
    return f"{'an' if vowel else 'a'} {noun}"
