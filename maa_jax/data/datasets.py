"""Datasets of a run: found by name, built where they are missing, opened."""

import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maa_jax.data import deduplication, mixtures, transforms
from maa_jax.data.config import DataConfig
from maa_jax.data.reprogram import vocabulary


def num_examples(config: DataConfig | Mapping[str, Any], split: str | None = None) -> int:
    """Number of recordings that training draws, or of a split; `split` as in `metadata`."""
    config = DataConfig.of(config)
    if split in (None, config.split):
        return sum(map(len, training(config, config.parts())[1]))
    return len(source(config, split))


def metadata(config: DataConfig | Mapping[str, Any], split: str | None = None) -> list[dict]:
    """All examples but their audio: id, source, seconds, captions, labels, as str.

    An example's place in the list is its `index` in the batches; captions are never empty.

    Args:
      config: The datasets.
      split: Of what is evaluated on; default, or `config.split`: the mixture that is trained on,
        whole, with what training leaves out.
    """
    config = DataConfig.of(config)
    return [describe(example) for example in source(config, split)]


def captions(config: DataConfig | Mapping[str, Any], split: str | None = None) -> list[str]:
    """All captions in the order of their records; `split` as in `metadata`.

    Of the mixture that is trained on: without those of records that training leaves out, and with
    the labels and words that reprogramming adds.
    """
    config = DataConfig.of(config)
    if split not in (None, config.split):
        return [c for example in metadata(config, split) for c in example["captions"]]
    source, kept, _ = training(config, config.parts())
    records = np.concatenate(kept).tolist()
    found = [c for record in records for c in describe(source[record])["captions"]]
    if config.reprogram.events:
        source, kept, _ = events(config)
        for record in np.concatenate(kept).tolist():
            found += describe(source[record])["labels"]
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
            deduplication.index_of(part, folders[part.dataset], process_index)
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


def source(config: DataConfig, split: str | None) -> mixtures.Joined:
    """What `split` stands for in `metadata`, as a random-access source of example dicts."""
    if split in (None, config.split):
        return open_parts(config, config.parts())
    return open_parts(config, dataclasses.replace(config, eval_split=split).eval_parts())


def open_parts(
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


def training(
    config: DataConfig, parts: Sequence[mixtures.Part], process_index: int = 0
) -> tuple[mixtures.Joined, list[np.ndarray], np.ndarray]:
    """Parts that are trained on.

    Returns:
      Their source; the records of each part in it that training may draw; and their weights.
    """
    source = open_parts(config, parts, process_index)
    folders = _folders(config, process_index)
    held_out = _held_out(config, folders)
    kept = deduplication.without_duplicates(parts, held_out, folders, process_index)
    kept = [places + begin for places, begin in zip(kept, source.offsets, strict=True)]
    return source, kept, np.array([part.weight for part in parts])


def events(
    config: DataConfig, process_index: int = 0
) -> tuple[mixtures.Joined, list[np.ndarray], np.ndarray]:
    """As `_training`, of the recordings with exactly one label of the events' database."""
    parts, folders = config.event_parts(), _folders(config, process_index)
    source, kept, weights = training(config, parts, process_index)
    labels = [deduplication.index_of(part, folders[part.dataset]).labels for part in parts]
    single = np.concatenate(labels) == 1
    kept = [records[single[records]] for records in kept]
    for part, records in zip(parts, kept, strict=True):
        if not len(records):
            raise ValueError(
                f"data.reprogram.events: no recording of part '{part}' has exactly one label; take"
                " another dataset"
            )
    return source, kept, weights


def describe(example: dict) -> dict[str, Any]:
    """Returns an example without its audio, texts as str; see `metadata`."""
    return {
        "id": example["id"].decode(),
        "source": example["source"].decode(),
        "seconds": float(example["seconds"]),
        "captions": transforms.all_captions(example),
        "labels": [label.decode() for label in example["labels"]],
    }
