"""How often a retriever finds the recording of a caption, and a caption of a recording.

Reported as in Koepke et al. 2022: recall at 1, 5 and 10 in both directions, over a whole split.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from maa_jax.evaluators.base import Inputs, Score
from maa_jax.evaluators.features import Network, Networks
from maa_jax.evaluators.neighbours import nearest

TOPS = (1, 5, 10)


class Recall:
    """An `Evaluator` of a retriever, on recordings with captions."""

    name = "recall"
    needs = frozenset({"references", "captions"})

    def __init__(self, networks: Networks):
        self.networks: Sequence[Network] = (networks.retriever_audio,)
        self._retriever = networks.retriever
        self.samples: int | None = networks.retriever.config.max_samples

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields scores, for K in 1, 5 and 10.

        Yields:
          ("captions", number of different captions); ("recordings", number of recordings);
          ("text_to_audio/recall_at_K", share of captions with one of their recordings among the K
          nearest); ("audio_to_text/recall_at_K", share of recordings with one of their captions
          among the K nearest).
        """
        references = inputs.references
        captions = sorted({text for texts in references.captions for text in texts})
        place = {caption: number for number, caption in enumerate(captions)}
        of_recording = [{place[text] for text in texts} for texts in references.captions]
        of_caption: list[set[int]] = [set() for _ in captions]
        for recording, numbers in enumerate(of_recording):
            for number in numbers:
                of_caption[number].add(recording)

        (audio,) = references.features(self.networks)
        text = self._retriever.text(captions)
        recordings_found = nearest(text, audio, max(TOPS))
        captions_found = nearest(audio, text, max(TOPS))
        yield Score("captions", float(len(captions)))
        yield Score("recordings", float(len(references)))
        for k in TOPS:
            yield Score(f"text_to_audio/recall_at_{k}", recall(recordings_found[:, :k], of_caption))
            yield Score(f"audio_to_text/recall_at_{k}", recall(captions_found[:, :k], of_recording))


def recall(found: np.ndarray, right: Sequence[set[int]]) -> float:
    """Returns the share of queries that found a correct item.

    Args:
      found: indices of the items that each query found, int [queries, k].
      right: correct items of each query.
    """
    hits = [not of.isdisjoint(row) for row, of in zip(found.tolist(), right, strict=True)]
    return float(np.mean(hits))
