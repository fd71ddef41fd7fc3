"""Whether sounds hold the events that their captions state, judged by a classifier."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maa_jax.data.truth import targets
from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks

# Words by which a caption states a register.
_STATED = {
    "low": re.compile(r"\b(low|far down)\b"),
    "high": re.compile(r"\bhigh\b"),
}


class Events:
    """An `Evaluator` that compares what a classifier hears with the truth of the captions."""

    name = "events"
    needs = frozenset({"sounds", "captions", "truths"})

    def __init__(self, networks: Networks):
        self._classifier = networks.events
        self.networks: Sequence[Network] = (networks.events_audio,)
        self.samples: int | None = None

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields scores, each followed by that of guessing.

        Yields:
          ("events/family", share of single events whose instrument's family is right);
          ("events/count", share of sounds with the right number of events); ("events/order", share
          of two events in succession whose families are likelier in the right order);
          ("events/register", share of single events in a register that a caption states, low or
          high, that are heard in it). Guessing a family or a register is drawing one at random,
          guessing a number is always saying the most frequent one.
        """
        sounds = inputs.sounds
        (found,) = sounds.features(self.networks)
        c = self._classifier.config
        logits = self._classifier.unpack(found)
        truths = sounds.truths
        right = targets(truths, c.families, c.registers, c.events)
        single = right["count"] == 1
        if single.any():
            family = logits["family"][:, 0].argmax(-1) == right["family"][:, 0]
            yield Score("events/family", float(family[single].mean()))
            yield Score("events/family_chance", 1 / len(c.families))
        yield Score(
            "events/count", float((logits["count"].argmax(-1) + 1 == right["count"]).mean())
        )
        yield Score("events/count_chance", float(np.bincount(right["count"]).max() / len(truths)))
        if (pairs := _pairs(truths)).any():
            first, second = right["family"][pairs, :2].T
            heard = logits["family"][pairs]
            rows = np.arange(len(first))
            ours = heard[rows, 0, first] + heard[rows, 1, second]
            other = heard[rows, 0, second] + heard[rows, 1, first]
            yield Score("events/order", float((ours > other).mean()))
            yield Score("events/order_chance", 0.5)
        stated = single & _states_register(sounds.captions, truths)
        if stated.any():
            register = logits["register"][:, 0].argmax(-1) == right["register"][:, 0]
            yield Score("events/register", float(register[stated].mean()))
            yield Score("events/register_chance", 1 / len(c.registers))


def _pairs(truths: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns bool [n]: whether a sound has two events of different families in succession."""
    return np.array(
        [
            len(t["events"]) == 2
            and not t["together"]
            and t["events"][0]["family"] != t["events"][1]["family"]
            for t in truths
        ]
    )


def _states_register(
    captions: Sequence[Sequence[str]], truths: Sequence[Mapping[str, Any]]
) -> np.ndarray:
    """Returns bool [n]: whether a caption of a sound states its first event's register."""

    def states(texts: Sequence[str], truth: Mapping[str, Any]) -> bool:
        words = _STATED.get(truth["events"][0]["register"])
        return words is not None and any(words.search(text) for text in texts)

    return np.array([states(*pair) for pair in zip(captions, truths, strict=True)])
