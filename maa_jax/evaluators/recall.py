"""How often a retriever finds the recording of a caption, and a caption of a recording.

As Koepke et al. 2022 report it: recall at 1, 5 and 10, both ways, over a whole split.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from maa_jax.data import datasets, input_pipeline
from maa_jax.data.config import DataConfig
from maa_jax.encoders.retriever import Embedder

TOPS = (1, 5, 10)


def run(
    model: str, data: DataConfig | Mapping[str, Any], *, batch_size: int = 16
) -> Iterator[tuple[str, float]]:
    """Scores the retriever of a model folder on `data.split`.

    Args:
        model: folder with `retriever/` and `tokenizer/`.
        data: the dataset. Of a recording longer than the retriever's clips a random part is taken,
            the same each time.
        batch_size: captions or recordings embedded at a time.

    Yields:
        (name, value): "captions" and "recordings", their numbers; "text_to_audio/recall_at_K", the
        share of captions that find a recording they are of among the K nearest;
        "audio_to_text/recall_at_K", the share of recordings that find one of their captions among
        the K nearest different ones; for K in 1, 5, 10.
    """
    embedder = Embedder(model, batch_size=batch_size)
    data = DataConfig.of(data)
    meta = datasets.metadata(data)
    captions = sorted({caption for example in meta for caption in example["captions"]})
    place = {caption: i for i, caption in enumerate(captions)}
    right = np.zeros((len(captions), len(meta)), bool)
    for recording, example in enumerate(meta):
        right[[place[caption] for caption in example["captions"]], recording] = True

    settings = {**vars(data), "eval_split": data.split, "samples": embedder.config.max_samples}
    batches = input_pipeline.eval_batches(settings, batch_size=embedder.batch_size)
    audio = np.concatenate([embedder.audio(b["audio"])[b["valid"]] for b in batches])
    cosines = embedder.text(captions) @ audio.T
    yield "captions", float(len(captions))
    yield "recordings", float(len(meta))
    for k in TOPS:
        yield f"text_to_audio/recall_at_{k}", recall(cosines, right, k)
        yield f"audio_to_text/recall_at_{k}", recall(cosines.T, right.T, k)


def recall(scores: np.ndarray, right: np.ndarray, k: int) -> float:
    """Returns the share of rows with a right column among the k of the highest scores.

    Args:
        scores: [queries, items].
        right: [queries, items], True where an item answers the query.
        k: items looked at.
    """
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(right, best, axis=1).any(axis=1).mean())
