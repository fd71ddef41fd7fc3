"""Datasets of recordings with captions that experts proposed and CLAP chose.

`maa_jax.enhance` writes them, and they are read by name, "enhanced/NAME". An example is a window of
a recording, so that a caption belongs to all that training hears of it. The split `train` holds the
windows with an accepted caption; `rejected` holds the others, without a caption, and training
refuses it. Both hold all candidates.
"""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data import stored
from maa_jax.data.builders.base import BuildsOnce, Info
from maa_jax.data.mixtures import REJECTED
from maa_jax.enhancement.distill import best
from maa_jax.enhancement.shards import Shard, open_windows, read_record

ACCEPTED = "train"


class Enhanced(BuildsOnce, tfds.core.ShardBasedBuilder, skip_registration=True):
    """Joins windows of recordings with the captions that were found for them.

    Each shard becomes a file in either split, written by this process or by Beam.

    Args:
      config: name of this dataset among the enhanced ones.
      shards: all shards, whose records are in `work`.
      work: folder of the records.
      threshold: lowest score of an accepted caption.
      withhold_labels: whether the examples have no labels.
      settings: options that the content depends on, kept in the dataset's metadata.json.
    """

    VERSION = tfds.core.Version("2.0.0")

    def __init__(
        self,
        *,
        config: str,
        shards: Sequence[Shard],
        work: epath.PathLike,
        threshold: float,
        withhold_labels: bool,
        settings: Mapping[str, Any],
        **kwargs: Any,
    ):
        self._shards, self._work = shards, os.fspath(work)
        self._threshold, self._withhold = threshold, withhold_labels
        self._settings = dict(settings)
        super().__init__(
            config=tfds.core.BuilderConfig(name=config), file_format="array_record", **kwargs
        )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        source = stored.open_builder(self._shards[0].source.folder).info.features
        return Info(
            builder=self,
            description="Recordings with captions that experts proposed and CLAP chose.",
            features=tfds.features.FeaturesDict(
                {
                    **source,
                    "start": np.int64,  # first sample of the window in the recording, at 16 kHz
                    "dataset": text,  # the recording's original dataset, in which `id` is its name
                    "score": np.float32,  # score of the best candidate; -1 without any
                    "candidates": tfds.features.Sequence(text),
                    "candidate_experts": tfds.features.Sequence(text),
                    "candidate_scores": tfds.features.Sequence(np.float32),
                }
            ),
            metadata=tfds.core.MetadataDict(self._settings),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, list[Callable]]:
        splits: dict[str, list[Callable]] = {ACCEPTED: [], REJECTED: []}
        for shard in self._shards:
            found = [candidates for _, candidates in read_record(self._work, shard)]
            accepted = {best(candidates, self._threshold) is not None for candidates in found}
            for name in accepted:
                splits[ACCEPTED if name else REJECTED].append(
                    functools.partial(
                        _examples, shard, self._work, self._threshold, self._withhold, name
                    )
                )
        return {name: generators for name, generators in splits.items() if generators}


def _examples(
    shard: Shard, work: str, threshold: float, withhold_labels: bool, accepted: bool
) -> Iterator[tuple[str, dict]]:
    """Yields either the accepted or the rejected examples of a shard."""
    windows, label = open_windows(shard.source), shard.source.label
    for index, (id, candidates) in enumerate(read_record(work, shard), shard.start):
        chosen = best(candidates, threshold)
        if (chosen is not None) != accepted:
            continue
        example = windows[index]
        if example["id"].decode() != id:
            raise ValueError(
                f"{label}: window {index} is of {example['id'].decode()!r} and was of {id!r} when"
                f" candidates were found; the dataset was rebuilt: remove {work}"
            )
        yield (
            f"{label}/{index}",
            {
                **example,
                "captions": [chosen.caption] if chosen else [],
                "labels": [] if withhold_labels else list(example["labels"]),
                "dataset": label,
                "score": max((c.score for c in candidates), default=-1.0),
                "candidates": [c.caption for c in candidates],
                "candidate_experts": [c.expert for c in candidates],
                "candidate_scores": [c.score for c in candidates],
            },
        )
