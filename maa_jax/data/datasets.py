"""Datasets of a run: found by name, built if missing, opened."""

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.checks import nearest
from maa_jax.data import deduplication, mixtures, stored
from maa_jax.data.config import DataConfig
from maa_jax.data.reprogram import vocabulary

Config = DataConfig | Mapping[str, Any]

# Datasets of the user's files, {name: what these are}.
_OWN = {"audio_folder": "sound", "image_folder": "picture"}


class Drawn(NamedTuple):
    """Recordings that training draws from.

    A recording is as many examples as it has windows, its length in clips, rounded, and at least
    one: so hours and not files are equally likely, and an epoch hears all of a recording.

    Attributes:
      source: all recordings of the parts.
      records: indices into `source` that may be drawn, int64, for each part.
      windows: number of windows of each of these recordings, int64, for each part.
      weights: weight of each part.
    """

    source: mixtures.Joined
    records: list[np.ndarray]
    windows: list[np.ndarray]
    weights: np.ndarray

    @property
    def sizes(self) -> list[int]:
        """Number of examples of each part."""
        return [int(windows.sum()) for windows in self.windows]

    @property
    def shares(self) -> np.ndarray:
        """Unnormalised probability of each part."""
        return self.weights * self.sizes


class Datasets:
    """The datasets that a config names, each found, or built if missing, once.

    Process 0 builds; the others wait for it.

    Attributes:
      config: data config.
      folders: folders of the built datasets, by name.

    Raises:
      ValueError: a dataset is unknown, or the user's folder is not given, or what a dataset was
        built from has changed.
      TimeoutError: process 0 did not finish, or has another `data_dir`.
    """

    def __init__(self, config: Config, process_index: int = 0):
        self.config = DataConfig.of(config)
        self._process = process_index
        c = self.config
        names = dict.fromkeys(p.dataset for p in (*c.parts(), *c.eval_parts(), *c.event_parts()))
        # All datasets are looked up before the first one is built.
        found = {name: _find(self.config, name) for name in names}
        self.folders = {name: self._built(name, *place) for name, place in found.items()}

    def _built(self, name: str, folder: epath.Path, build: Callable[[], None] | None) -> epath.Path:
        from maa_jax.data.builders import origins

        ready = folder / "dataset_info.json"
        if ready.exists():
            if not self._process:
                own = name.partition("/")[0] in _OWN
                paths = (self.config.folder, self.config.captions_file) if own else ()
                origins.check(name, folder, *paths)
        elif self._process or build is None:
            mixtures.wait_for(ready)
        else:
            build()
        return folder

    @functools.cached_property
    def held_out(self) -> list[mixtures.Part]:
        """The evaluation splits of all datasets, from which training never draws."""
        splits = [
            split
            for name, folder in self.folders.items()
            for split in stored.evaluation_splits(name, folder)
        ]
        own = [part for part in self.config.eval_parts() if part not in splits]
        return splits + [p for p in own if stored.has_split(p, self.folders[p.dataset])]

    def write_indices(self) -> None:
        """Writes the index of each split that is searched for duplicates, unless it exists."""
        for part in (*self.config.parts(), *self.config.event_parts(), *self.held_out):
            if stored.has_split(part, self.folders[part.dataset]):
                self._index(part)

    def _index(self, part: mixtures.Part) -> stored.Index:
        return stored.index_of(part, self.folders[part.dataset], self._process)

    def open(self, parts: Sequence[mixtures.Part]) -> mixtures.Joined:
        """Returns parts as one random-access source of example dicts.

        Raises:
          ValueError: a dataset lacks a split, or a split is empty.
        """
        for part in parts:
            stored.spans(part, self.folders[part.dataset])  # raises the errors
        return mixtures.Joined(
            [stored.Recordings(self.folders[part.dataset], part.split) for part in parts]
        )

    def describe(self, parts: Sequence[mixtures.Part]) -> list[dict[str, Any]]:
        """Returns what `open` returns, without audio; see `metadata`."""
        found = [
            stored.descriptions(part, self.folders[part.dataset], self._process) for part in parts
        ]
        return [example for examples in found for example in examples]

    def parts_of(self, split: str | None) -> tuple[mixtures.Part, ...]:
        """Returns the parts of the evaluation data with `split`, or of all training data."""
        if split in (None, self.config.split):
            return self.config.parts()
        return dataclasses.replace(self.config, eval_split=split).eval_parts()

    def open_split(self, split: str | None) -> mixtures.Joined:
        """Returns the evaluation data with `split`, or all training data; see `metadata`."""
        return self.open(self.parts_of(split))

    def training(self) -> Drawn:
        """Returns the recordings that training may draw."""
        return self._drawn(self.config.parts())

    def events(self) -> Drawn:
        """Returns the recordings of the events' datasets that have exactly one label.

        Each counts once, however long it is: a long one would be heard in most pairs.
        """
        parts = self.config.event_parts()
        drawn = self._drawn(parts)
        single = np.concatenate([self._index(part).labels for part in parts]) == 1
        records = [places[single[places]] for places in drawn.records]
        for part, places in zip(parts, records, strict=True):
            if not len(places):
                raise ValueError(
                    f"data.reprogram.events: no recording of part '{part}' has exactly one label;"
                    " take another dataset"
                )
        return drawn._replace(records=records, windows=[np.ones_like(r) for r in records])

    def _drawn(self, parts: Sequence[mixtures.Part]) -> Drawn:
        source = self.open(parts)
        kept = deduplication.without_duplicates(parts, self.held_out, self.folders, self._process)
        clip = self.config.samples / SAMPLE_RATE
        windows = [
            self._index(part).windows(clip)[places]
            for part, places in zip(parts, kept, strict=True)
        ]
        records = [places + begin for places, begin in zip(kept, source.offsets, strict=True)]
        return Drawn(source, records, windows, np.array([part.weight for part in parts]))


def prepare(config: Config, process_index: int = 0) -> epath.Path:
    """Builds missing datasets and indices on process 0, while the other processes wait.

    Returns:
      The folder of the first part's dataset.

    Raises:
      ValueError: see `Datasets`; or training is not allowed on a part (see
        `mixtures.refuse_untrainable`).
      TimeoutError: see `Datasets`.
    """
    datasets = open_for_training(config, process_index)
    return datasets.folders[datasets.config.parts()[0].dataset]


def open_for_training(config: Config, process_index: int = 0) -> Datasets:
    """Returns the datasets of a run once everything that training reads exists; see `prepare`."""
    config = DataConfig.of(config)
    evaluation = config.eval_parts()
    mixtures.refuse_untrainable("data.dataset", config.parts(), evaluation)
    mixtures.refuse_untrainable("data.reprogram.events", config.event_parts(), evaluation)
    datasets = Datasets(config, process_index)
    datasets.write_indices()
    return datasets


def contents(config: Config, process_index: int = 0) -> dict[str, str]:
    """Returns {split: digest of its recordings and texts} of all data of a run; see `prepare`.

    By it a run that goes on knows whether its data are those that it began with.
    """
    datasets = open_for_training(config, process_index)
    c = datasets.config
    return _digests(datasets, (*c.parts(), *c.eval_parts(), *c.event_parts()), process_index)


def digests(config: Config, process_index: int = 0) -> dict[str, str]:
    """Returns {split: digest} as `contents` does, of the splits of `config.dataset` alone."""
    datasets = Datasets(config, process_index)
    return _digests(datasets, datasets.config.parts(), process_index)


def _digests(
    datasets: Datasets, parts: Iterable[mixtures.Part], process_index: int
) -> dict[str, str]:
    found = {}
    for part in parts:
        folder = datasets.folders[part.dataset]
        for split in {name for _, name in mixtures.pieces(part)} & set(stored.split_names(folder)):
            whole = mixtures.Part(part.dataset, split)
            found[str(whole)] = stored.digest(whole, folder, process_index)
    return found


def num_examples(config: Config, split: str | None = None) -> int:
    """Returns the number of examples of an epoch of training, or of recordings of a split.

    For `split` see `metadata`; for the difference between the two see `Drawn`.
    """
    datasets = Datasets(config)
    if split in (None, datasets.config.split):
        return sum(datasets.training().sizes)
    return len(datasets.open_split(split))


def metadata(config: Config, split: str | None = None) -> list[dict[str, Any]]:
    """Returns all examples without their audio: id, source, seconds, captions, labels, as str.

    An example's position in the list is its `index` in the batches; captions are never empty.

    Args:
      config: data config.
      split: split of the evaluation data; by default, or if it is `config.split`, all training
        data, including the recordings that training leaves out.
    """
    datasets = Datasets(config)
    return datasets.describe(datasets.parts_of(split))


def captions(config: Config, split: str | None = None) -> list[str]:
    """Returns all captions in the order of their records; for `split` see `metadata`.

    Those of the training data exclude the records that training leaves out, and include the labels
    and words that reprogramming adds.
    """
    datasets = Datasets(config)
    if split not in (None, datasets.config.split):
        examples = datasets.describe(datasets.parts_of(split))
        return [caption for example in examples for caption in example["captions"]]
    parts, drawn = datasets.config.parts(), datasets.training()
    found = [c for example in _described(datasets, parts, drawn) for c in example["captions"]]
    if datasets.config.reprogram.events:
        parts, drawn = datasets.config.event_parts(), datasets.events()
        found += [c for example in _described(datasets, parts, drawn) for c in example["labels"]]
        found += vocabulary()
    return found


def _described(
    datasets: Datasets, parts: Sequence[mixtures.Part], drawn: Drawn
) -> list[dict[str, Any]]:
    examples = datasets.describe(parts)
    return [examples[record] for record in np.concatenate(drawn.records).tolist()]


def _find(config: DataConfig, name: str) -> tuple[epath.Path, Callable[[], None] | None]:
    """Returns a dataset's folder, and a function that builds it if it is missing and buildable."""
    from maa_jax.data.builders import BUILDERS, builder_class

    data_dir = epath.Path(
        config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    ).expanduser()
    base, _, variant = name.partition("/")
    if variant in (".", ".."):
        raise ValueError(f"dataset is {name!r}; give it a name, {base}/NAME")
    if base not in BUILDERS:
        built = {}  # newest version of each
        for depth in ("*/*", "*/*/*"):
            for path in sorted(data_dir.glob(f"{depth}/dataset_info.json")):
                if not path.parent.name.startswith("incomplete."):  # of a build, killed or not
                    built[str(path.parent.parent.relative_to(data_dir))] = path.parent
        if name in built:
            return built[name], None
        known = dict.fromkeys([*BUILDERS, *built])
        raise ValueError(
            f"dataset is {name!r}; the known ones are {', '.join(known)} (built ones in {data_dir},"
            f" data.data_dir); did you mean {nearest(name, known)!r}?"
        )
    builder = builder_class(base)
    arguments: dict[str, Any] = {"config": variant} if variant else {}
    if base in _OWN:
        if config.folder:
            if base == "image_folder" and not config.captions_file:
                raise ValueError(
                    "data.dataset is 'image_folder': set data.captions_file to the table of its"
                    " captions"
                )
            variant = variant or _folder_name(config, base, data_dir, str(builder.VERSION))
            arguments = {
                "folder": config.folder,
                "captions_file": config.captions_file,
                "config": variant,
            }
        elif not variant:
            raise ValueError(
                f"data.dataset is {base!r}: set data.folder (the {_OWN[base]} files) and, for their"
                " captions, data.captions_file (.csv, .tsv or .jsonl), or name a built one as"
                f" data.dataset={base}/NAME"
            )
    if base == "general_midi":
        variant = variant or builder.DEFAULT
        arguments = {"soundfont": config.soundfont, "config": variant}
    folder = data_dir / base / variant / str(builder.VERSION)
    if base == "general_midi" and not (folder / "dataset_info.json").exists():
        builder.check(variant, config.soundfont)
    if not (folder / "dataset_info.json").exists() and base in _OWN:
        if "folder" not in arguments:
            raise ValueError(
                f"data.dataset is {name!r}, but {folder} is not there; set data.data_dir to where"
                " it was built, or data.folder and data.captions_file to build it"
            )
    return folder, lambda: builder(data_dir=str(data_dir), **arguments).download_and_prepare()


def _folder_name(config: DataConfig, base: str, data_dir: epath.Path, version: str) -> str:
    """Returns the name of the dataset of a user's folder, from its paths and its table."""
    from maa_jax.data.builders import origins
    from maa_jax.data.builders.audio_folder import config_name

    folder, table = config.folder, config.captions_file
    if folder and not all(epath.Path(path).exists() for path in (folder, table) if path):
        # As on another machine: the dataset is all that is needed, if there is just one.
        names = origins.built_from(data_dir / base, version, folder, table)
        own = [name for name in names if re.fullmatch(r".+-[0-9a-f]{8}", name)]
        if len(own) == 1:
            return own[0]
        if names:
            raise ValueError(
                f"{folder} or {table} is not there; to use a dataset that was built from them, name"
                f" it: {', '.join(f'data.dataset={base}/{name}' for name in names)}"
            )
    return config_name(folder, table)
