"""From TFDS datasets' ArrayRecord files to batches of waveforms, by grain; no TensorFlow.

The order of records and every random choice hang on the seed and the position in the stream alone:
neither the number of processes nor of workers changes a global batch, in content or in order.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from maa_jax.data import transforms
from maa_jax.data.config import DataConfig
from maa_jax.data.datasets import describe, events, open_parts, prepare, training
from maa_jax.data.reprogram import Reprogram
from maa_jax.data.text_embeddings import Contexts

PrepareText = Callable[[Sequence[str]], Any]  # n captions to a tree of arrays [n, ...]


def train_iterator(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    prepare_text: PrepareText | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless batches in a new random order each epoch; builds datasets where they are missing.

    Each part of a mixture has epochs of its own, and the parts take turns by their shares, which
    are kept to within 1 %. What is evaluated on and what an earlier part has too is left out.

    Args:
      config: The datasets and the clips.
      batch_size: The global one, over all processes.
      seed: Decides the order, the crops, the captions and the events.
      prepare_text: Makes `text` of the picked captions; pickled where there are workers.
      process_index: This process.
      process_count: All of them; they take consecutive parts of each global batch.

    Returns:
      Iterator with `get_state` and `set_state` (or grain.checkpoint under Orbax) of dicts:
      `audio` float32 `[b, samples]`, `index` int64 `[b]` (the record's place in `metadata`) and,
      with `prepare_text`, `text`, a tree of arrays `[b, ...]`; b = batch_size / process_count.

    Raises:
      ValueError: Something named cannot be found, or evaluation data or recordings without an
        accepted caption would be trained on.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    if config.reprogram.events and isinstance(prepare_text, Contexts):
        raise ValueError(
            "data.reprogram.events makes captions that text_embeddings cannot hold; set one of them"
            " to ''"
        )
    prepare(config, process_index)
    open_parts(config, config.eval_parts(), process_index)  # For its errors: training comes first.
    source, kept, weights = training(config, config.parts(), process_index)
    load = functools.partial(
        _load, source, config.samples, seed, prepare_text, _reprogram(config, process_index)
    )
    # Batches of (record, position) first: a process reads only the records of its own rows.
    batches = (
        _order(kept, weights, seed)
        .map_with_index(lambda position, record: np.array([record, position]))
        .batch(batch_size)
        .map(lambda chosen: chosen[rows])
        .map(load)
    )
    return iter(_ahead(batches, config))


def eval_batches(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    prepare_text: PrepareText | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """One pass over what is evaluated on: crops and captions hang on the record alone.

    Arguments as in `train_iterator`. Every process gets the same number of batches; the last one is
    filled up with the last record.

    Returns:
      Iterable of batches as in `train_iterator`, and `valid` bool `[b]`, False on filled-up rows.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    source = open_parts(config, config.eval_parts(), process_index)

    def choose(batch: int) -> np.ndarray:
        position = batch * batch_size + np.arange(batch_size)[rows]
        record = np.minimum(position, len(source) - 1)
        return np.stack([record, position], axis=1)

    def load(chosen: np.ndarray) -> dict[str, np.ndarray]:
        batch = _load(source, config.samples, 0, prepare_text, None, chosen)
        return {**batch, "valid": chosen[:, 0] == chosen[:, 1]}

    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(choose).map(load)
    return _ahead(batches, config)


def _order(kept: Sequence[np.ndarray], weights: np.ndarray, seed: int) -> grain.MapDataset:
    """Records in the order of training."""
    orders = [
        grain.MapDataset.range(len(records))
        .seed(int(np.random.SeedSequence((seed, part)).generate_state(1)[0]) if part else seed)
        .shuffle()
        .repeat()
        .map(lambda place, records=records: records[place])
        for part, records in enumerate(kept)
    ]
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.mix(orders, (weights * list(map(len, kept))).tolist())


def _reprogram(config: DataConfig, process_index: int) -> Reprogram | None:
    if not config.reprogram.events:
        return None
    source, kept, weights = events(config, process_index)
    shares = weights * list(map(len, kept))
    draw = functools.partial(_draw, source, kept, shares / shares.sum(), config.samples)
    return Reprogram(config.reprogram, draw, config.samples)


def _draw(
    source: Sequence[dict],
    kept: Sequence[np.ndarray],
    shares: np.ndarray,
    samples: int,
    rng: np.random.Generator,
) -> tuple[str, np.ndarray]:
    """An event's label and clip."""
    records = kept[rng.choice(len(kept), p=shares)]
    event = transforms.clip_audio(source[int(rng.choice(records))], rng, samples)
    return describe(event)["labels"][0], event["audio"]


def _local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; use a positive multiple of the {process_count} processes"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _load(
    source: Sequence[dict],
    samples: int,
    seed: int,
    prepare_text: PrepareText | None,
    reprogram: Reprogram | None,
    chosen: np.ndarray,
) -> dict[str, np.ndarray]:
    """Reads the records of `chosen` (`[b, 2]`: record, position) into a batch."""
    examples = []
    for record, position in chosen.tolist():
        rng = np.random.default_rng((seed, position))
        example = transforms.clip_audio(source[record], rng, samples)
        example = transforms.pick_caption(example, rng)
        examples.append(reprogram(example, rng) if reprogram else example)
    batch = {"audio": np.stack([example["audio"] for example in examples]), "index": chosen[:, 0]}
    if prepare_text is not None:
        batch["text"] = prepare_text([example["caption"] for example in examples])
    return batch


def _ahead(batches: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """Makes batches in threads of this process, or in worker processes, ahead of their use."""
    reading = grain.ReadOptions(config.prefetch, config.prefetch)
    ahead = batches.to_iter_dataset(reading)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags; a library has none.
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(config.workers))
    return ahead
