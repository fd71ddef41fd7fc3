"""From a TFDS dataset's ArrayRecord files to batches of waveforms, by grain; no TensorFlow.

The order of records and every random choice hang on the seed and the position in the stream alone:
neither the number of processes nor of workers changes a global batch, in content or in order.
"""

import dataclasses
import difflib
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging
from etils import epath

from maa_jax.data import transforms

Tokenize = Callable[[Sequence[str]], np.ndarray]  # n strings to int32 [n, length]

# How long the other processes wait for process 0 to build a dataset.
BUILD_TIMEOUT_S = 3600


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset and how clips are taken from it; a run's `config.data`.

    Attributes:
      dataset: "sonic_sounds", "audio_folder", or "audio_folder/NAME" to give the user's folder a
        name of its own, under which it is found again without `folder`.
      data_dir: Where TFDS keeps datasets; default $TFDS_DATA_DIR or ~/tensorflow_datasets. All
        processes must see it.
      folder: audio_folder's sound files.
      captions_file: audio_folder's CSV, TSV or JSONL.
      split: Trained on; TFDS's slices work ("train[:50%]").
      eval_split: Evaluated on.
      samples: Clip length at 16 kHz; the default is the paper's 624 mel frames.
      workers: Processes that decode; 0 for threads in this one.
      prefetch: Batches made ahead, by as many threads.
    """

    dataset: str = "sonic_sounds"
    data_dir: str | None = None
    folder: str | None = None
    captions_file: str | None = None
    split: str = "train"
    eval_split: str = "validation"
    samples: int = 624 * 256
    workers: int = 0
    prefetch: int = 4

    def __post_init__(self):
        for key, least in (("samples", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"data.{key} is {getattr(self, key)}; use {least} or more")

    @classmethod
    def of(cls, config: "DataConfig | Mapping[str, Any]") -> "DataConfig":
        """Reads a ConfigDict; an unknown key is an error that names the nearest known one."""
        if isinstance(config, cls):
            return config
        known = [field.name for field in dataclasses.fields(cls)]
        for key in config.keys():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1, 0) or known
                raise ValueError(f"data.{key} is no key of the data config; nearest: {near[0]}")
        return cls(**{key: config[key] for key in config.keys()})


def train_iterator(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator:
    """Endless batches in a new random order each epoch; builds the dataset where it is missing.

    Args:
      config: The dataset and the clips.
      batch_size: The global one, over all processes.
      seed: Decides the order, the crops and the captions.
      tokenize: Makes `tokens` of the picked captions; pickled where there are workers.
      process_index: This process.
      process_count: All of them; they take consecutive parts of each global batch.

    Returns:
      Iterator with `get_state` and `set_state` (or grain.checkpoint under Orbax) of dicts:
      `audio` float32 `[b, samples]`, `index` int64 `[b]` (the record's place in the split) and,
      with `tokenize`, `tokens` int32 `[b, length]`; b = batch_size / process_count.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    source = _source(config, config.split, process_index)
    # Batches of (record, position) first: a process reads only the records of its own rows.
    batches = (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .map_with_index(lambda position, record: np.array([record, position]))
        .batch(batch_size)
        .map(lambda chosen: chosen[rows])
        .map(functools.partial(_load, source, config.samples, seed, tokenize))
    )
    return iter(_ahead(batches, config))


def eval_batches(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    tokenize: Tokenize | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.IterDataset:
    """One pass over `eval_split`, the same each time: crops and captions hang on the record alone.

    Arguments as in `train_iterator`. Every process gets the same number of batches; the last one is
    filled up with the last record.

    Returns:
      Iterable of batches as in `train_iterator`, and `valid` bool `[b]`, False on filled-up rows.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    source = _source(config, config.eval_split, process_index)

    def choose(batch: int) -> np.ndarray:
        position = batch * batch_size + np.arange(batch_size)[rows]
        record = np.minimum(position, len(source) - 1)
        return np.stack([record, position], axis=1)

    def load(chosen: np.ndarray) -> dict[str, np.ndarray]:
        batch = _load(source, config.samples, 0, tokenize, chosen)
        return {**batch, "valid": chosen[:, 0] == chosen[:, 1]}

    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(choose).map(load)
    return _ahead(batches, config)


def num_examples(config: DataConfig | Mapping[str, Any], split: str | None = None) -> int:
    """Number of recordings in a split (default: the one trained on)."""
    config = DataConfig.of(config)
    return len(_source(config, split or config.split))


def metadata(config: DataConfig | Mapping[str, Any], split: str | None = None) -> list[dict]:
    """All of a split's examples but their audio: id, source, seconds, captions, labels, as str.

    An example's place in the list is its `index` in the batches; captions are never empty.
    """
    config = DataConfig.of(config)
    source = _source(config, split or config.split)
    return [
        {
            "id": example["id"].decode(),
            "source": example["source"].decode(),
            "seconds": float(example["seconds"]),
            "captions": transforms.all_captions(example),
            "labels": [label.decode() for label in example["labels"]],
        }
        for example in (source[index] for index in range(len(source)))
    ]


def captions(config: DataConfig | Mapping[str, Any], split: str | None = None) -> list[str]:
    """All captions of a split, in the order of its records."""
    return [caption for example in metadata(config, split) for caption in example["captions"]]


def prepare(config: DataConfig | Mapping[str, Any], process_index: int = 0) -> epath.Path:
    """Returns the dataset's folder; process 0 builds it where it is missing, the others wait.

    Raises:
      ValueError: An unknown dataset, or a folder of the user's that is not described.
      TimeoutError: Process 0 did not get done, or has another `data_dir`.
    """
    from maa_jax.data.builders import builder_class

    config = DataConfig.of(config)
    name, _, variant = config.dataset.partition("/")
    data_dir = epath.Path(
        config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    builder = builder_class(name)
    arguments = {}
    if name == "audio_folder":
        if config.folder and config.captions_file:
            from maa_jax.data.builders.audio_folder import config_name

            variant = variant or config_name(config.folder, config.captions_file)
            arguments = {
                "folder": config.folder,
                "captions_file": config.captions_file,
                "config": variant,
            }
        elif not variant:
            raise ValueError(
                "data.dataset is 'audio_folder': set data.folder (the sound files) and"
                " data.captions_file (.csv, .tsv or .jsonl), or name a built one as"
                " data.dataset=audio_folder/NAME"
            )
    folder = data_dir / name / variant / str(builder.VERSION)
    ready = folder / "dataset_info.json"
    if ready.exists():
        return folder
    if name == "audio_folder" and not arguments:
        raise ValueError(
            f"data.dataset is {config.dataset!r}, but {folder} is not there; set data.data_dir to"
            " where it was built, or data.folder and data.captions_file to build it"
        )
    if process_index == 0:
        builder(data_dir=str(data_dir), **arguments).download_and_prepare()
        return folder
    logging.info("waiting for process 0 to build %s", folder)
    deadline = time.monotonic() + BUILD_TIMEOUT_S
    while not ready.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"no dataset in {folder} after {BUILD_TIMEOUT_S} s; see process 0's log, and set"
                " data.data_dir to a place that all processes share"
            )
        time.sleep(0.5)
    return folder


def _source(config: DataConfig, split: str, process_index: int = 0):
    """The split as a random-access source of example dicts."""
    import tensorflow_datasets as tfds

    folder = prepare(config, process_index)
    builder = tfds.builder_from_directory(folder)
    splits = builder.info.splits
    name = split.split("[")[0]
    if not all(part.split("[")[0].strip() in splits for part in split.split("+")):
        raise ValueError(
            f"split {split!r}: the dataset in {folder} has no {name!r}; use one of {list(splits)}"
        )
    if not splits[split].num_examples:
        raise ValueError(f"split {split!r} of the dataset in {folder} is empty; take a larger part")
    return builder.as_data_source(split)


def _local_rows(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}; use a positive multiple of the {process_count} processes"
        )
    share = batch_size // process_count
    return slice(process_index * share, (process_index + 1) * share)


def _load(
    source: Sequence[dict], samples: int, seed: int, tokenize: Tokenize | None, chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Reads the records of `chosen` (`[b, 2]`: record, position) into a batch."""
    examples = []
    for record, position in chosen.tolist():
        rng = np.random.default_rng((seed, position))
        example = transforms.clip_audio(source[record], rng, samples)
        examples.append(transforms.pick_caption(example, rng))
    batch = {"audio": np.stack([example["audio"] for example in examples]), "index": chosen[:, 0]}
    if tokenize is not None:
        batch["tokens"] = tokenize([example["caption"] for example in examples])
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
