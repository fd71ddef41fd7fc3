"""Expert distillation: experts propose captions, CLAP chooses (paper section 3.2.1, Appendix E.2).

An expert is any class with a name and one method. Your own is given as "package.module:Class"
wherever experts are chosen, and is constructed without arguments.

    class Weather:
        name = "weather"

        def propose(self, audio, labels):
            return [["rain falls", "wind blows"] for _ in audio]
"""

import dataclasses
import importlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.checks import nearest
from maa_jax.data.transforms import LABEL_CAPTION
from maa_jax.encoders.clap import ClapScore
from maa_jax.text.normalize import normalize

# Imported when needed, since each needs its own networks.
EXPERTS = {
    "captioning": "maa_jax.enhancement.captioning:Captioning",
    "retrieval": "maa_jax.enhancement.retrieval:Retrieval",
    "labels": "maa_jax.enhancement.distill:Labels",
}


class Expert(Protocol):
    """Proposes captions.

    Attributes:
      name: name of the expert in the records of a run.
    """

    name: str

    def propose(self, audio: np.ndarray, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns any number of captions for each of n recordings.

        The captions of a recording must not depend on the other recordings.

        Args:
          audio: waveforms, float32 [n, samples] at 16 kHz; shorter ones are padded with zeros.
          labels: labels of each recording, empty where it has none or they are withheld.
        """
        ...


class Labels:
    """An expert that forms "the sound of a dog barking" from a recording's labels, if any."""

    name = "labels"

    def propose(self, audio: np.ndarray, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Returns one caption for a recording with labels, none for another; see `Expert`."""
        return [[LABEL_CAPTION.format(" and ".join(words))] if words else [] for words in labels]


def find_expert(name: str) -> type[Expert]:
    """Returns the class of an expert.

    Args:
      name: name of the expert, a key of `EXPERTS` or "package.module:Class".

    Raises:
      ValueError: there is no such expert; the error names the nearest one, or what a class lacks.
    """
    path = EXPERTS.get(name, name)
    module, colon, attribute = path.partition(":")
    if not colon:
        raise ValueError(
            f"experts: {name!r} is not known; nearest: {nearest(name, EXPERTS)!r}. There are "
            f"{', '.join(EXPERTS)}; your own is given as 'package.module:Class'"
        )
    try:
        expert = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"experts: {name!r} cannot be imported ({e}); correct the path") from e
    lacking = [part for part in ("name", "propose") if not hasattr(expert, part)]
    if lacking:
        raise ValueError(f"experts: {name!r} lacks {' and '.join(lacking)}; see {__name__}")
    return expert


def find_experts(names: Sequence[str]) -> list[type[Expert]]:
    """Returns the classes of some experts; see `find_expert`.

    Raises:
      ValueError: an expert is unknown, no name is given, or two experts have the same name.
    """
    if not names:
        raise ValueError(f"experts: none is given; give some of {', '.join(EXPERTS)}")
    classes = [find_expert(name) for name in names]
    called = [cls.name for cls in classes]
    if len(set(called)) < len(called):
        raise ValueError(f"experts: two of {', '.join(called)} have the same name; leave one out")
    return classes


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A proposed caption, the name of its expert, and its CLAP score in [-1, 1]."""

    caption: str
    expert: str
    score: float


def distill(
    audio: np.ndarray,
    labels: Sequence[Sequence[str]],
    experts: Sequence[Expert],
    clap: ClapScore,
) -> list[list[Candidate]]:
    """Returns all candidates of each recording with their scores, in the experts' order.

    Captions are normalised first (section 5.1). An expert's repetitions count once; a caption that
    two experts propose is a candidate of each.

    Args:
      audio: waveforms, float32 [n, samples] at 16 kHz.
      labels: labels of each recording, which may be empty.
      experts: experts that propose captions.
      clap: CLAP that scores them.

    Raises:
      ValueError: an expert did not return a list for every recording.
    """
    # Each recording's (caption, expert) pairs; a dict keeps them in order and drops repetitions.
    proposed: list[dict[tuple[str, str], None]] = [{} for _ in audio]
    for expert in experts:
        answers = expert.propose(audio, labels)
        if len(answers) != len(audio):
            raise ValueError(
                f"expert {expert.name!r} answered for {len(answers)} of {len(audio)} recordings: "
                "propose() must return a list for each, empty if it has no caption"
            )
        for pairs, captions in zip(proposed, answers, strict=True):
            for caption in (" ".join(normalize(caption).split()) for caption in captions):
                if caption:
                    pairs[caption, expert.name] = None
    captions = list(dict.fromkeys(caption for pairs in proposed for caption, _ in pairs))
    words = dict(zip(captions, clap.text_embeddings(captions), strict=True)) if captions else {}
    sounds = clap.audio_embeddings(audio, SAMPLE_RATE)
    return [
        [
            Candidate(caption, expert, round(float(np.dot(words[caption], sound)), 5))
            for caption, expert in pairs
        ]
        for pairs, sound in zip(proposed, sounds, strict=True)
    ]


def best(candidates: Sequence[Candidate], threshold: float) -> Candidate | None:
    """Returns the candidate with the highest score, or None if that is below the threshold."""
    first = max(candidates, key=lambda candidate: candidate.score, default=None)
    return first if first and first.score >= threshold else None
