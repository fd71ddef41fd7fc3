"""From TFDS datasets' ArrayRecord files to batches of waveforms, by grain; no TensorFlow.

The order of records and every random choice hang on the seed and the position in the stream alone:
neither the number of processes nor of workers changes a global batch, in content or in order.
"""

import dataclasses
import difflib
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags
from etils import epath

from maa_jax.data import mixtures, transforms
from maa_jax.data.embeddings import Embeddings
from maa_jax.prompts.reprogram import Reprogram, ReprogramConfig, vocabulary

Tokenize = Callable[[Sequence[str]], np.ndarray]  # n strings to int32 [n, length]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Datasets and how clips are taken from them; a run's `config.data`.

    Attributes:
      dataset: "sonic_sounds", "audio_folder", or "audio_folder/NAME" to give the user's folder a
        name of its own, under which it is found again without `folder`; any other built dataset by
        its folder in `data_dir`, "enhanced/NAME"; or several, with splits and weights:
        "audiocaps:train + enhanced/fsd50k*2.0 + sonic_sounds:train[:50%]". A weight multiplies a
        dataset's size: with all at 1, the default, each recording is as likely as any other.
      data_dir: Where TFDS keeps datasets; default $TFDS_DATA_DIR or ~/tensorflow_datasets. All
        processes must see it.
      folder: audio_folder's sound files.
      captions_file: audio_folder's CSV, TSV or JSONL; without it its recordings have no captions.
      split: Trained on, of parts that name none; TFDS's slices work ("train[:50%]").
      eval_split: Evaluated on.
      eval_dataset: Evaluated on; like `dataset` but without weights. Default: its first part's.
      samples: Clip length at 16 kHz; the default is the paper's 624 mel frames.
      workers: Processes that decode; 0 for threads in this one.
      prefetch: Batches made ahead, by as many threads.
      reprogram: Events that are added to the training pairs.
    """

    dataset: str = "sonic_sounds"
    data_dir: str | None = None
    folder: str | None = None
    captions_file: str | None = None
    split: str = "train"
    eval_split: str = "validation"
    eval_dataset: str | None = None
    samples: int = 624 * 256
    workers: int = 0
    prefetch: int = 4
    reprogram: ReprogramConfig = dataclasses.field(default_factory=ReprogramConfig)

    def __post_init__(self):
        for key, least in (("samples", 1), ("workers", 0), ("prefetch", 1)):
            if getattr(self, key) < least:
                raise ValueError(f"data.{key} is {getattr(self, key)}; use {least} or more")

    @classmethod
    def of(cls, config: "DataConfig | Mapping[str, Any]") -> "DataConfig":
        """Reads a ConfigDict; an unknown key is an error that names the nearest known one."""
        if isinstance(config, cls):
            return config
        config = _known("data", cls, config)
        reprogram = config.get("reprogram", ReprogramConfig())
        if not isinstance(reprogram, ReprogramConfig):
            reprogram = ReprogramConfig(**_known("data.reprogram", ReprogramConfig, reprogram))
        return cls(**{**config, "reprogram": reprogram})

    def parts(self) -> tuple[mixtures.Part, ...]:
        """What is trained on."""
        return mixtures.parse("data.dataset", self.dataset, self.split)

    def eval_parts(self) -> tuple[mixtures.Part, ...]:
        """What is evaluated on."""
        name = self.eval_dataset or self.parts()[0].dataset
        parts = mixtures.parse("data.eval_dataset", name, self.eval_split)
        if any(part.weight != 1 for part in parts):
            raise ValueError(f"data.eval_dataset is {name!r}; leave the weights out")
        return parts

    def event_parts(self) -> tuple[mixtures.Part, ...]:
        """What events are drawn from; empty without reprogramming."""
        events = self.reprogram.events
        return mixtures.parse("data.reprogram.events", events, self.split) if events else ()


def _known(where: str, cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    known = [field.name for field in dataclasses.fields(cls)]
    for key in config.keys():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1, 0) or known
            raise ValueError(f"{where}.{key} is no key of the data config; nearest: {near[0]}")
    return {key: config[key] for key in config.keys()}


def train_iterator(
    config: DataConfig | Mapping[str, Any],
    *,
    batch_size: int,
    seed: int,
    tokenize: Tokenize | None = None,
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
      tokenize: Makes `tokens` of the picked captions; pickled where there are workers.
      process_index: This process.
      process_count: All of them; they take consecutive parts of each global batch.

    Returns:
      Iterator with `get_state` and `set_state` (or grain.checkpoint under Orbax) of dicts:
      `audio` float32 `[b, samples]`, `index` int64 `[b]` (the record's place in `metadata`) and,
      with `tokenize`, `tokens` int32 `[b, length]`; b = batch_size / process_count.

    Raises:
      ValueError: Something named cannot be found, or evaluation data or recordings without an
        accepted caption would be trained on.
    """
    config = DataConfig.of(config)
    rows = _local_rows(batch_size, process_index, process_count)
    if config.reprogram.events and isinstance(tokenize, Embeddings):
        raise ValueError(
            "data.reprogram.events makes captions that text_embeddings cannot hold; set one of them"
            " to ''"
        )
    prepare(config, process_index)
    _open(config, config.eval_parts(), process_index)  # For its errors: training comes first.
    source, kept, weights = _training(config, config.parts(), process_index)
    load = functools.partial(
        _load, source, config.samples, seed, tokenize, _reprogram(config, process_index)
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
    tokenize: Tokenize | None = None,
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
    source = _open(config, config.eval_parts(), process_index)

    def choose(batch: int) -> np.ndarray:
        position = batch * batch_size + np.arange(batch_size)[rows]
        record = np.minimum(position, len(source) - 1)
        return np.stack([record, position], axis=1)

    def load(chosen: np.ndarray) -> dict[str, np.ndarray]:
        batch = _load(source, config.samples, 0, tokenize, None, chosen)
        return {**batch, "valid": chosen[:, 0] == chosen[:, 1]}

    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(choose).map(load)
    return _ahead(batches, config)


def num_examples(config: DataConfig | Mapping[str, Any], split: str | None = None) -> int:
    """Number of recordings that training draws, or of a split; `split` as in `metadata`."""
    config = DataConfig.of(config)
    if split in (None, config.split):
        return sum(map(len, _training(config, config.parts())[1]))
    return len(_source(config, split))


def metadata(config: DataConfig | Mapping[str, Any], split: str | None = None) -> list[dict]:
    """All examples but their audio: id, source, seconds, captions, labels, as str.

    An example's place in the list is its `index` in the batches; captions are never empty.

    Args:
      config: The datasets.
      split: Of what is evaluated on; default, or `config.split`: the mixture that is trained on,
        whole, with what training leaves out.
    """
    config = DataConfig.of(config)
    return [_describe(example) for example in _source(config, split)]


def captions(config: DataConfig | Mapping[str, Any], split: str | None = None) -> list[str]:
    """All captions in the order of their records; `split` as in `metadata`.

    Of the mixture that is trained on: without those of records that training leaves out, and with
    the labels and words that reprogramming adds.
    """
    config = DataConfig.of(config)
    if split not in (None, config.split):
        return [c for example in metadata(config, split) for c in example["captions"]]
    source, kept, _ = _training(config, config.parts())
    records = np.concatenate(kept).tolist()
    found = [c for record in records for c in _describe(source[record])["captions"]]
    if config.reprogram.events:
        source, kept, _ = _events(config)
        for record in np.concatenate(kept).tolist():
            found += _describe(source[record])["labels"]
        found += vocabulary()
    return found


def prepare(config: DataConfig | Mapping[str, Any], process_index: int = 0) -> epath.Path:
    """Makes what training and evaluation read; process 0 builds what is missing, the others wait.

    Returns:
      The folder of the first part's dataset.

    Raises:
      ValueError: An unknown dataset, a folder of the user's that is not described, or what
        `mixtures.refuse_untrainable` refuses.
      TimeoutError: Process 0 did not get done, or has another `data_dir`.
    """
    config = DataConfig.of(config)
    parts, evaluation, events = config.parts(), config.eval_parts(), config.event_parts()
    mixtures.refuse_untrainable("data.dataset", parts, evaluation)
    mixtures.refuse_untrainable("data.reprogram.events", events, evaluation)
    folders = _folders(config, process_index)
    for part in (*parts, *events, *_held_out(config, folders)):
        if mixtures.has_split(part, folders[part.dataset]):
            mixtures.index_of(part, folders[part.dataset], process_index)
    return folders[parts[0].dataset]


def _folders(config: DataConfig, process_index: int = 0) -> dict[str, epath.Path]:
    """Folders of all datasets that a config names."""
    parts = [*config.parts(), *config.eval_parts(), *config.event_parts()]
    names = dict.fromkeys(part.dataset for part in parts)
    for name in names:  # All of them are looked for before the first one is built.
        _find(config, name)
    return {name: _build(config, name, process_index) for name in names}


def _find(config: DataConfig, name: str) -> tuple[epath.Path, Callable[[], None] | None]:
    """A dataset's folder, and what builds it where it is missing and can be built."""
    from maa_jax.data.builders import BUILDERS, builder_class

    data_dir = epath.Path(
        config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    base, _, variant = name.partition("/")
    if base not in BUILDERS:
        built = {}  # The newest version of each.
        for depth in ("*/*", "*/*/*"):
            for path in sorted(data_dir.glob(f"{depth}/dataset_info.json")):
                built[str(path.parent.parent.relative_to(data_dir))] = path.parent
        if name in built:
            return built[name], None
        known = [*BUILDERS, *built]
        near = difflib.get_close_matches(name, known, 1, 0)[0]
        raise ValueError(
            f"dataset is {name!r}; the known ones are {', '.join(known)} (built ones in {data_dir},"
            f" data.data_dir); did you mean {near!r}?"
        )
    builder = builder_class(base)
    arguments = {"config": variant} if variant else {}
    if base == "audio_folder":
        if config.folder:
            from maa_jax.data.builders.audio_folder import config_name

            variant = variant or config_name(config.folder, config.captions_file)
            arguments = {
                "folder": config.folder,
                "captions_file": config.captions_file,
                "config": variant,
            }
        elif not variant:
            raise ValueError(
                "data.dataset is 'audio_folder': set data.folder (the sound files) and, for their"
                " captions, data.captions_file (.csv, .tsv or .jsonl), or name a built one as"
                " data.dataset=audio_folder/NAME"
            )
    folder = data_dir / base / variant / str(builder.VERSION)
    if not (folder / "dataset_info.json").exists() and base == "audio_folder":
        if "folder" not in arguments:
            raise ValueError(
                f"data.dataset is {name!r}, but {folder} is not there; set data.data_dir to where"
                " it was built, or data.folder and data.captions_file to build it"
            )
    return folder, lambda: builder(data_dir=str(data_dir), **arguments).download_and_prepare()


def _build(config: DataConfig, name: str, process_index: int = 0) -> epath.Path:
    """A dataset's folder; process 0 builds it where it is missing, the others wait."""
    folder, build = _find(config, name)
    ready = folder / "dataset_info.json"
    if not ready.exists():
        if process_index == 0:
            build()
        else:
            mixtures.wait_for(ready)
    return folder


def _source(config: DataConfig, split: str | None) -> mixtures.Joined:
    """What `split` stands for in `metadata`, as a random-access source of example dicts."""
    if split in (None, config.split):
        return _open(config, config.parts())
    return _open(config, dataclasses.replace(config, eval_split=split).eval_parts())


def _open(
    config: DataConfig, parts: Sequence[mixtures.Part], process_index: int = 0
) -> mixtures.Joined:
    """Parts as one random-access source of example dicts."""
    import tensorflow_datasets as tfds

    sources = []
    for part in parts:
        folder = _build(config, part.dataset, process_index)
        builder = tfds.builder_from_directory(folder)
        splits = builder.info.splits
        name = part.split.split("[")[0]
        if not all(piece.split("[")[0].strip() in splits for piece in part.split.split("+")):
            raise ValueError(
                f"split {part.split!r}: the dataset in {folder} has no {name!r}; use one of"
                f" {list(splits)}, or evaluate on another dataset by data.eval_dataset"
            )
        if not splits[part.split].num_examples:
            raise ValueError(
                f"split {part.split!r} of the dataset in {folder} is empty; take a larger part"
            )
        sources.append(builder.as_data_source(part.split))
    return mixtures.Joined(sources)


def _held_out(config: DataConfig, folders: Mapping[str, epath.Path]) -> list[mixtures.Part]:
    """Evaluation splits of all datasets that a config names."""
    found = [s for name, path in folders.items() for s in mixtures.evaluation_splits(name, path)]
    return found + [
        part
        for part in config.eval_parts()
        if part not in found and mixtures.has_split(part, folders[part.dataset])
    ]


def _training(
    config: DataConfig, parts: Sequence[mixtures.Part], process_index: int = 0
) -> tuple[mixtures.Joined, list[np.ndarray], np.ndarray]:
    """Parts that are trained on.

    Returns:
      Their source; the records of each part in it that training may draw; and their weights.
    """
    source = _open(config, parts, process_index)
    folders = _folders(config, process_index)
    held_out = _held_out(config, folders)
    kept = mixtures.without_duplicates(parts, held_out, folders, process_index)
    kept = [places + begin for places, begin in zip(kept, source.offsets, strict=True)]
    return source, kept, np.array([part.weight for part in parts])


def _events(
    config: DataConfig, process_index: int = 0
) -> tuple[mixtures.Joined, list[np.ndarray], np.ndarray]:
    """As `_training`, of the recordings with exactly one label of the events' database."""
    parts, folders = config.event_parts(), _folders(config, process_index)
    source, kept, weights = _training(config, parts, process_index)
    labels = [mixtures.index_of(part, folders[part.dataset]).labels for part in parts]
    single = np.concatenate(labels) == 1
    kept = [records[single[records]] for records in kept]
    for part, records in zip(parts, kept, strict=True):
        if not len(records):
            raise ValueError(
                f"data.reprogram.events: no recording of part '{part}' has exactly one label; take"
                " another dataset"
            )
    return source, kept, weights


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
    source, kept, weights = _events(config, process_index)
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
    return _describe(event)["labels"][0], event["audio"]


def _describe(example: dict) -> dict[str, Any]:
    return {
        "id": example["id"].decode(),
        "source": example["source"].decode(),
        "seconds": float(example["seconds"]),
        "captions": transforms.all_captions(example),
        "labels": [label.decode() for label in example["labels"]],
    }


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
    tokenize: Tokenize | None,
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
