"""Whether sounds belong to the class that their captions name.

Top 1: the recording nearest to a sound has one of the sound's labels; top 5: one of the five
nearest has. Distances are measured twice, between the embeddings of a CLAP's audio tower and
between plain log-mel statistics, for which no network of the model can have been optimized.
"""

import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks
from maa_jax.evaluators.neighbours import nearest

TOPS = (1, 5)


class LabelAccuracy:
    """An `Evaluator` that compares the labels of sounds with those of the nearest recordings."""

    name = "label_accuracy"
    needs = frozenset({"sounds", "references", "labels"})
    samples: int | None = None

    def __init__(self, networks: Networks):
        self.networks: Sequence[Network] = (networks.clap_audio, networks.log_mel)

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields scores, for FEATURES in "clap" and "log_mel" and K in 1 and 5.

        Yields:
          ("prompts", number of sounds); ("top_K_chance", expected score of K recordings drawn at
          random); ("FEATURES/top_K", share of sounds that have a recording with one of their labels
          among the K nearest); ("FEATURES/top_K_recordings", the same for the recordings
          themselves, each compared with all others).
        """
        sounds, references = inputs.sounds, inputs.references
        yield Score("prompts", float(len(sounds)))
        for k in TOPS:
            yield Score(f"top_{k}_chance", chance(sounds.labels, references.labels, k))
        features = (side.features(self.networks) for side in (sounds, references))
        for network, ours, theirs in zip(self.networks, *features, strict=True):
            if network.name == "log_mel":  # its dimensions differ in spread
                mean, spread = theirs.mean(0), theirs.std(0) + 1e-6
                ours, theirs = (ours - mean) / spread, (theirs - mean) / spread
            made = nearest(ours, theirs, max(TOPS))
            recorded = nearest(theirs, theirs, max(TOPS), leave_out_self=True)
            for k in TOPS:
                yield Score(
                    f"{network.name}/top_{k}", top(made[:, :k], sounds.labels, references.labels)
                )
                score = top(recorded[:, :k], references.labels, references.labels)
                yield Score(f"{network.name}/top_{k}_recordings", score)


def top(
    found: np.ndarray, labels: Sequence[Collection[str]], theirs: Sequence[Collection[str]]
) -> float:
    """Returns the share of sounds that found a recording with one of their labels.

    Args:
      found: indices of the recordings that each sound found, int [n, k].
      labels: labels of each of the n sounds.
      theirs: labels of each recording.
    """
    right = [
        any(not set(of).isdisjoint(theirs[recording]) for recording in row)
        for row, of in zip(found.tolist(), labels, strict=True)
    ]
    return float(np.mean(right))


def chance(labels: Sequence[Collection[str]], theirs: Sequence[Collection[str]], k: int) -> float:
    """Returns the exact expected score of k different recordings drawn at random.

    Args:
      labels: labels of each sound.
      theirs: labels of each recording.
      k: recordings drawn for a sound.
    """
    having: dict[str, set[int]] = {}  # label: recordings
    for recording, of in enumerate(theirs):
        for label in of:
            having.setdefault(label, set()).add(recording)
    n, k = len(theirs), min(k, len(theirs))
    misses = []
    for of in labels:
        hits = len(set().union(*(having.get(label, set()) for label in of)))
        misses.append(math.comb(n - hits, k) / math.comb(n, k))
    return 1 - float(np.mean(misses))
