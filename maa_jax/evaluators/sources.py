"""Sources of the sounds to score: a model, the recordings of a dataset, a folder."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath

from maa_jax.audio.io import SAMPLE_RATE, as_read, load, sample_rate
from maa_jax.data import datasets, input_pipeline, mixtures
from maa_jax.data.builders import tables
from maa_jax.data.config import DataConfig
from maa_jax.devices import share
from maa_jax.evaluators.base import Sounds
from maa_jax.files import user_path
from maa_jax.model_folder import hub
from maa_jax.model_folder.index import load_index

Batch = tuple[np.ndarray, np.ndarray]  # indices of sounds [b], waveforms [b, samples]
TABLE = "samples.jsonl"
_COLUMNS = re.compile("file|caption|label")  # of a table of captions


def metadata(data: DataConfig | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the examples of `data.split` without their audio: see `datasets.metadata`.

    Process 0 builds the dataset if it is missing, and the others wait.
    """
    found = datasets.Datasets(data, jax.process_index())
    return found.describe(found.parts_of(None))


def choose_prompts(
    captions: Sequence[Sequence[str]], per_recording: int, count: int
) -> list[tuple[int, str]]:
    """Returns (recording, caption) pairs to generate sounds from, spread evenly over a dataset.

    Args:
      captions: captions of each recording.
      per_recording: number of captions per recording, 0 for all.
      count: number of pairs, 0 for all.
    """
    prompts = [
        (recording, caption)
        for recording, of in enumerate(captions)
        for caption in of[: per_recording or None]
    ]
    if not count or count >= len(prompts):
        return prompts
    return [prompts[i] for i in np.arange(count) * len(prompts) // count]


def generated(
    generate: Callable[[list[str], int], np.ndarray],
    captions: Sequence[str],
    sample_rate: int,
    samples: int,
    *,
    labels: Sequence[Collection[str]] | None = None,
    truths: Sequence[Mapping[str, Any]] = (),
    recordings: Sequence[str] = (),
    batch_size: int = 8,
    keep: Callable[[int, np.ndarray], None] | None = None,
) -> Sounds:
    """Returns the sounds that a model generates from captions, on demand.

    They are heard as from their files, rounded to 16 bits. The processes of a run divide the
    captions among them.

    Args:
      generate: function from some captions and the index of the first, on which alone its noise
        should depend, to sounds [b, samples].
      captions: caption of each sound.
      sample_rate: sample rate of the sounds in Hz.
      samples: length of each sound.
      labels: labels that each sound should have, where known.
      truths: what should truly be heard in each sound, where known.
      recordings: name of the recording whose caption each sound is made from, where known.
      batch_size: number of sounds generated at a time.
      keep: function called with the index and waveform [samples] of each sound that this process
        generated.
    """

    def batches() -> Iterator[Batch]:
        mine = share(np.arange(len(captions)))
        with tqdm.tqdm(total=len(mine), desc="Sampling", unit="sound") as bar:
            for start in range(0, len(mine), batch_size):
                numbers = mine[start : start + batch_size]
                wavs = generate([captions[i] for i in numbers], int(numbers[0]))
                if keep is not None:
                    for number, wav in zip(numbers, wavs, strict=True):
                        keep(int(number), wav)
                bar.update(len(numbers))
                yield numbers, as_read(wavs)

    return Sounds(
        batches,
        sample_rate,
        samples,
        names=captions,
        captions=[[caption] for caption in captions],
        labels=[()] * len(captions) if labels is None else labels,
        truths=truths,
        recordings=recordings,
    )


def recordings(
    data: DataConfig | Mapping[str, Any],
    samples: int,
    *,
    truths: Sequence[Mapping[str, Any]] = (),
    batch_size: int = 8,
) -> Sounds:
    """Returns the recordings of `data.split`, read on demand.

    The processes of a run divide the recordings among them.

    Args:
      data: dataset; its `samples` is replaced.
      samples: length of the clips at 16 kHz. Longer recordings are cropped at random, always in the
        same place; shorter ones are padded with zeros.
      truths: what is truly heard in each recording, where known.
      batch_size: number of recordings read at a time, in each process.
    """
    config = _as_evaluated(data, samples)
    examples = metadata(data)

    def batches() -> Iterator[Batch]:
        mine = len(share(np.arange(len(examples))))
        with tqdm.tqdm(total=mine, desc="Hearing recordings", unit="clip") as bar:
            for batch in input_pipeline.eval_batches(
                config,
                batch_size=batch_size * jax.process_count(),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ):
                valid = batch["valid"]
                if valid.any():
                    yield batch["index"][valid], batch["audio"][valid]
                    bar.update(int(valid.sum()))

    return Sounds(
        batches,
        SAMPLE_RATE,
        samples,
        names=[example["id"] for example in examples],
        captions=[example["captions"] for example in examples],
        labels=[example["labels"] for example in examples],
        truths=truths,
        recordings=[example["id"] for example in examples],  # each is its own
    )


def clips(data: DataConfig | Mapping[str, Any], samples: int) -> Callable[[int], np.ndarray]:
    """Returns the function from a recording's index to its clip; see `recordings`."""
    return input_pipeline.eval_clips(_as_evaluated(data, samples))


def _as_evaluated(data: DataConfig | Mapping[str, Any], samples: int) -> dict[str, Any]:
    data = DataConfig.of(data)
    evaluated = {"eval_dataset": data.dataset, "eval_split": data.split, "samples": samples}
    return {**vars(data), **evaluated}


def references(
    reference: str,
    data: DataConfig | Mapping[str, Any],
    samples: int,
    *,
    batch_size: int = 8,
) -> Sounds:
    """Returns the recordings that sounds are compared with.

    Args:
      reference: "DATASET:SPLIT", a folder of wav files, or "" for `data`.
      data: dataset of the captions.
      samples: length of a dataset's clips at 16 kHz; see `recordings`.
      batch_size: number of recordings read at a time, in each process.
    """
    if reference and os.path.isdir(user_path(reference)):
        return folder(user_path(reference), batch_size=batch_size)
    if not reference:
        return recordings(data, samples, batch_size=batch_size)
    parts = mixtures.parse("reference", reference, "")
    if len(parts) != 1 or not parts[0].split or parts[0].weight != 1:
        raise ValueError(
            f"reference={reference!r}: there is no such folder; give one, or DATASET:SPLIT"
        )
    other = dataclasses.replace(DataConfig.of(data), dataset=parts[0].dataset, split=parts[0].split)
    return recordings(other, samples, batch_size=batch_size)


def check_unseen(model: str, data: DataConfig) -> None:
    """Raises a ValueError if a model was trained on a split whose captions are to be its prompts.

    A split is known by its name, and by its content where the model's index has its digest, as
    that of a model of a run here has: the same recordings under another name are the same split.

    Args:
      model: model folder, hub id, or "bundled".
      data: dataset of the prompts.
    """
    index = load_index(hub.resolve(model))
    record, known = index.get("data") or {}, index.get("digests") or {}
    if not record:
        return
    trained = mixtures.parse("data.dataset", record["dataset"], record["split"])
    asked = mixtures.parse("dataset", data.dataset, data.split)
    whole = lambda part: (part.dataset, part.split.partition("[")[0])
    both = [str(part) for part in asked if whole(part) in {whole(other) for other in trained}]
    if not both and known:
        names = {digest: name for name, digest in known.items()}
        found = datasets.digests(data, jax.process_index())
        both = [f"{name} holds what {names[x]} does" for name, x in found.items() if x in names]
    if both:
        raise ValueError(
            f"{both[0]}: the captions of this split were in the training of model={model!r}: give "
            "a split that was held out, as --split=test"
        )


def folder(
    path: str | os.PathLike[str],
    captions_file: str | os.PathLike[str] | None = None,
    *,
    batch_size: int = 8,
) -> Sounds:
    """Returns the wav files of a folder, read on demand.

    The processes of a run divide the files among them. They keep their sample rate, and are padded
    with zeros to the length of the longest.

    Args:
      path: folder of the wav files.
      captions_file: CSV file with the columns `file`, `caption` and optionally `label` (several
        separated by `;`); by default the folder's samples.jsonl, as maa_jax.sample and
        maa_jax.evaluate write it, if there is one. Its `recording` names the recording that a
        sound was made after, which is else the name of the file.
      batch_size: number of files read at a time.

    Raises:
      ValueError: there is no wav file, their sample rates differ, or the table is broken or lacks a
        file.
    """
    path = pathlib.Path(path)
    files = sorted(path.glob("*.wav"))
    if not files:
        raise ValueError(f"{str(path)!r} holds no wav file: give a folder with wav files")
    rates = {file: sample_rate(file) for file in files}
    rate = rates[files[0]]
    other = [file for file in files if rates[file] != rate]
    if other:
        raise ValueError(
            f"{str(path)!r} holds sounds of {rate} Hz, such as {files[0].name}, and of "
            f"{rates[other[0]]} Hz, such as {other[0].name}: resample them to one rate"
        )
    rows = _read_table(path, captions_file)
    missing = [file.name for file in files if file.name not in rows] if rows else []
    if missing:
        raise ValueError(
            f"{captions_file or path / TABLE} lacks {len(missing)} of the {len(files)} wav files, "
            f"such as {missing[0]}: add a row for each"
        )
    lengths = [len(load(file, rate)) for file in files]
    samples = max(lengths)

    def batches() -> Iterator[Batch]:
        mine = share(np.arange(len(files)))
        for start in tqdm.trange(0, len(mine), batch_size, desc="Hearing files", unit="batch"):
            numbers = mine[start : start + batch_size]
            wavs = np.zeros((len(numbers), samples), np.float32)
            for wav, number in zip(wavs, numbers, strict=True):
                content = load(files[number], rate)
                wav[: len(content)] = content
            yield numbers, wavs

    known = [rows.get(file.name, _Row()) for file in files]
    return Sounds(
        batches,
        rate,
        samples,
        names=[file.name for file in files],
        captions=[row.captions for row in known],
        labels=[row.labels for row in known],
        recordings=[row.recording or file.name for row, file in zip(known, files, strict=True)],
        lengths=lengths,
    )


@dataclasses.dataclass
class _Row:
    """What a table says about a sound."""

    captions: list[str] = dataclasses.field(default_factory=list)
    labels: list[str] = dataclasses.field(default_factory=list)
    recording: str = ""


def _read_table(path: pathlib.Path, table: str | os.PathLike[str] | None) -> dict[str, _Row]:
    """Returns {file: its row}, empty where there is no table."""
    found: dict[str, _Row] = {}
    if table is None:
        if (path / TABLE).is_file():
            for row in tables.read(epath.Path(path / TABLE)):
                found[row.text("file")] = _Row(
                    [row.text("prompt")], list(row.texts("labels")), row.text("recording")
                )
        return found
    rows = tables.read(epath.Path(table), ("file", "caption"), known=_COLUMNS)
    for row in rows:
        known = found.setdefault(row.text("file"), _Row())
        known.captions += filter(None, [row.sentence("caption")])
        known.labels += filter(None, map(str.strip, row.sentence("label").split(";")))
    return found
