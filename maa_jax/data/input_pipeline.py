"""Batches of waveforms from TFDS datasets' ArrayRecord files, read by grain without TensorFlow.

The order of records and every random choice depend only on the seed and the position in the stream:
neither the number of processes nor that of workers changes a global batch or the order of batches.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from maa_jax.data import transforms
from maa_jax.data.config import DataConfig
from maa_jax.data.datasets import Datasets, Drawn, captions, open_for_training
from maa_jax.data.reprogram import Reprogram
from maa_jax.data.stored import describe
from maa_jax.data.stored_latents import Latents
from maa_jax.data.text_embeddings import Contexts

PrepareText = Callable[[Sequence[str]], Any]  # n captions to a tree of arrays [n, ...]
DrawMask = Callable[[np.random.Generator], np.ndarray]


def train_iterator(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    prepare_text: PrepareText | None = None,
    latents: Latents | None = None,
    draw_mask: DrawMask | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Returns endless batches, in a new random order each epoch; builds missing datasets.

    An example is a clip of one window of a recording; an epoch has each window of each once.

    The stream is a function of the seed and the number of a batch alone, so that a run goes on at
    any step, with any number of workers and processes, and without reading what lies before.

    Each part of a mixture has its own epochs, and the parts alternate in proportion to their
    shares, to within 1 %. Evaluation data and duplicates of an earlier part are left out.

    Args:
      config: data config.
      batch_size: size of the global batch, over all processes.
      seed: seed of the order, the crops, the choice of captions and the events.
      start: number of the first batch, the steps that a resumed run has made.
      prepare_text: function from the chosen captions to `text`, a tree of arrays [n, ...]; pickled
        if there are workers.
      latents: stored examples of this stream, which are read in its place, in a new random order
        each time that all were read; their batches have `moments` [b, h, w, 2 c] and no `audio`.
      draw_mask: function that draws a mask, which batches then have as `mask` bool [b, n_mels,
        frames]; not with `latents`.
      process_index: index of this process.
      process_count: number of processes, which take consecutive parts of each global batch.

    Returns:
      An iterator over dicts: `audio` float32 [b, samples], or, of an image_folder, `image` uint8
      [b, 256, 256, 3]; `index` int64 [b] (the record's index in
      `metadata`) and, with `prepare_text`, `text`, a tree of arrays [b, ...]; b = batch_size /
      process_count.

    Raises:
      ValueError: a dataset or split does not exist, or training would read evaluation data or
        recordings without an accepted caption.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    if latents is None and config.reprogram.events and isinstance(prepare_text, Contexts):
        raise ValueError(
            "data.reprogram.events makes captions that text_embeddings lacks; set one of them to"
            " '', or store both with python -m maa_jax.embed --epochs=1, and read config.latents"
        )
    datasets = open_for_training(config, process_index)
    datasets.open(config.eval_parts())  # raises its errors before training begins
    if isinstance(prepare_text, Contexts):
        prepare_text.require(latents.captions if latents else captions(config, config.split))
        prepare_text.require(captions(config, config.eval_split))
    if latents:
        places = _shuffled(len(latents), seed)
        load = functools.partial(_load_latents, latents, seed, prepare_text)
    else:
        places, read = _examples(datasets, seed)
        load = functools.partial(_load, read, prepare_text, draw_mask, seed)
    # Batches of places first, so that a process reads only the records of its rows.
    batches = (
        places.map_with_index(lambda position, place: np.array([*np.atleast_1d(place), position]))
        .batch(batch_size)
        .map(lambda chosen: chosen[rows])
        .map(load)
    )
    return iter(_ahead(batches[start:], config))


def training_examples(
    config: DataConfig | Mapping[str, Any], *, seed: int, process_index: int = 0
) -> Callable[[Sequence[int]], grain.IterDataset]:
    """Returns the function from places in a run's stream to their examples; see `train_iterator`.

    They are read ahead, by `config.workers` processes. An example is a dict: `audio` float32
    [samples], `index`, and `captions`, of which training draws one: all of the record, or the one
    that reprogramming composed.
    """
    config = DataConfig.of(config)
    places, read = _examples(open_for_training(config, process_index), seed)

    def example(position: int, place: tuple[int, int, int]) -> dict[str, Any]:
        found = read(*place, position)
        known = transforms.all_captions(found)
        caption = found["caption"]
        captions = known if caption in known else [caption]
        return {"audio": found["audio"], "index": place[0], "captions": captions}

    stream = places.map_with_index(example)
    return lambda chosen: _ahead(grain.MapDataset.source(chosen).map(stream.__getitem__), config)


def eval_batches(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    prepare_text: PrepareText | None = None,
    draw_mask: DrawMask | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """Returns one pass over the evaluation data, with crops and captions that never change.

    Every process gets the same number of batches; the last one is padded with the last record.

    Args:
      config: data config.
      batch_size: size of the global batch, over all processes.
      prepare_text: function from captions to `text`; see `train_iterator`.
      draw_mask: function that draws a mask; see there.
      process_index: index of this process.
      process_count: number of processes.

    Returns:
      An iterable of batches like those of `train_iterator`, with `valid` bool [b], False for
      padding.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    source = Datasets(config, process_index).open(config.eval_parts())
    read = functools.partial(_read, source, config.samples, 0, None)

    def choose(batch: int) -> np.ndarray:
        position = batch * batch_size + np.arange(batch_size)[rows]
        record = np.minimum(position, len(source) - 1)
        return np.stack([record, np.zeros_like(record), np.ones_like(record), position], axis=1)

    def load(chosen: np.ndarray) -> dict[str, np.ndarray]:
        batch = _load(read, prepare_text, draw_mask, 0, chosen)
        return {**batch, "valid": chosen[:, 0] == chosen[:, -1]}

    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(choose).map(load)
    return _ahead(batches, config)


def eval_clips(config: DataConfig | Mapping[str, Any]) -> Callable[[int], np.ndarray]:
    """Returns the function from an index to the clip [samples] that `eval_batches` has of it."""
    config = DataConfig.of(config)
    source = Datasets(config).open(config.eval_parts())
    read = functools.partial(_read, source, config.samples, 0, None)
    return lambda index: read(index, 0, 1, index)["audio"]


def _order(drawn: Drawn, seed: int) -> grain.MapDataset:
    """Returns the examples in training order: (record, window, the record's windows)."""

    def examples(records: np.ndarray, windows: np.ndarray) -> Callable[[int], tuple[int, int, int]]:
        ends = np.cumsum(windows)

        def place(example: int) -> tuple[int, int, int]:
            which = np.searchsorted(ends, example, side="right")
            return records[which], example - ends[which] + windows[which], windows[which]

        return place

    orders = [
        _shuffled(
            size, int(np.random.SeedSequence((seed, part)).generate_state(1)[0]) if part else seed
        ).map(examples(drawn.records[part], drawn.windows[part]))
        for part, size in enumerate(drawn.sizes)
    ]
    if len(orders) == 1:
        return orders[0]
    return grain.MapDataset.mix(orders, drawn.shares.tolist())


def _shuffled(count: int, seed: int) -> grain.MapDataset:
    """Returns the numbers below `count`, all of them again and again, each time in a new order."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat()


def _examples(datasets: Datasets, seed: int) -> tuple[grain.MapDataset, Callable[..., dict]]:
    """Returns the places of a run's examples, and the function that reads one; see `_read`."""
    drawn = datasets.training()
    samples, change = datasets.config.samples, _reprogram(datasets)
    return _order(drawn, seed), functools.partial(_read, drawn.source, samples, seed, change)


def _reprogram(datasets: Datasets) -> Reprogram | None:
    config = datasets.config
    if not config.reprogram.events:
        return None
    draw = functools.partial(_draw, datasets.events(), config.samples)
    return Reprogram(config.reprogram, draw, config.samples)


def _draw(events: Drawn, samples: int, rng: np.random.Generator) -> tuple[str, np.ndarray]:
    """Returns a random event's label and clip."""
    shares = events.shares / events.shares.sum()
    records = events.records[rng.choice(len(events.records), p=shares)]
    event = transforms.clip_audio(events.source[int(rng.choice(records))], rng, samples)
    return describe(event)["labels"][0], event["audio"]


def _local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; use a positive multiple of the {process_count} processes"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _read(
    source: Sequence[dict],
    samples: int,
    seed: int,
    reprogram: Reprogram | None,
    record: int,
    window: int,
    windows: int,
    position: int,
) -> dict[str, Any]:
    """Returns an example: one of a record's windows, and one of its captions.

    Everything random depends on the seed and the example's position in the stream.
    """
    rng = np.random.default_rng((seed, position))
    example = source[record]
    if "image" in example:
        example = transforms.picture(example)
    else:
        example = transforms.clip_audio(example, rng, samples, window, windows)
    example = transforms.pick_caption(example, rng)
    return reprogram(example, rng) if reprogram else example


def _load(
    read: Callable[..., dict[str, Any]],
    prepare_text: PrepareText | None,
    draw_mask: DrawMask | None,
    seed: int,
    chosen: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns the batch of `chosen`, int [b, 4], whose rows are the last arguments of `_read`."""
    examples = [read(*row) for row in chosen.tolist()]
    kind = "image" if "image" in examples[0] else "audio"
    batch = {kind: np.stack([example[kind] for example in examples]), "index": chosen[:, 0]}
    if prepare_text is not None:
        batch["text"] = prepare_text([example["caption"] for example in examples])
    if draw_mask is not None:
        rngs = (np.random.default_rng((seed, position, 1)) for position in chosen[:, -1].tolist())
        batch["mask"] = np.stack([draw_mask(rng) for rng in rngs])
    return batch


def _load_latents(
    latents: Latents, seed: int, prepare_text: PrepareText | None, chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the batch of `chosen`, int [b, 2]: the examples' places, and those in the stream."""
    examples = [latents[place] for place in chosen[:, 0].tolist()]
    batch = {
        "moments": np.stack([example["moments"] for example in examples]),
        "index": np.array([example["index"] for example in examples]),
    }
    if prepare_text is not None:
        rngs = (np.random.default_rng((seed, position)) for position in chosen[:, 1].tolist())
        pairs = zip(examples, rngs, strict=True)
        batch["text"] = prepare_text([str(rng.choice(x["captions"])) for x, rng in pairs])
    return batch


def _ahead(batches: grain.MapDataset, config: DataConfig) -> grain.IterDataset:
    """Prefetches batches, by threads of this process or by worker processes."""
    reading = grain.ReadOptions(config.prefetch, config.prefetch)
    ahead = batches.to_iter_dataset(reading)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # grain's workers read absl's flags
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(config.workers))
    return ahead
