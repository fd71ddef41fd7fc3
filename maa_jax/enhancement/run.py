"""A run of prompt enhancement: shards of windows, candidates for each, a dataset, a report."""

import contextlib
import hashlib
import io
import json
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
import soundfile
import tensorflow_datasets as tfds
import tqdm
from etils import epath
from jax.experimental import multihost_utils

import maa_jax
from maa_jax.audio.io import SAMPLE_RATE, is_silent
from maa_jax.checks import differences
from maa_jax.data import datasets, mixtures, stored
from maa_jax.data.config import DataConfig
from maa_jax.devices import share
from maa_jax.encoders.clap import LAION_FILES, ClapScore, check_folder
from maa_jax.enhancement import report
from maa_jax.enhancement.bank import digest as bank_digest
from maa_jax.enhancement.dataset import Enhanced
from maa_jax.enhancement.distill import Candidate, Expert, best, distill, find_experts
from maa_jax.enhancement.request import Enhancement
from maa_jax.enhancement.shards import (
    Shard,
    Source,
    has_record,
    has_records,
    open_windows,
    read_record,
    write_record,
)
from maa_jax.files import lock, replace_file, write_json
from maa_jax.model_folder import hub
from maa_jax.model_folder.index import content_hash


def enhance(request: Enhancement) -> dict[str, Any]:
    """Builds enhanced/NAME and its report, and prints a summary.

    Returns:
      The summary: see `enhancement.report.summarize`.

    Raises:
      ValueError: an option is invalid, or another process enhances under the same name; raised
        before any long work, with the remedy. Or no caption is accepted.
    """
    classes = find_experts(request.experts)
    beam = _beam(request.beam_options)
    models = _fetch(request)
    shards = make_shards(request)
    settings = _settings(request, models, shards)
    final = epath.Path(request.out) / request.result / str(Enhanced.VERSION)
    work = final.parent / f"{final.name}-work"
    if has_records(work):
        check_same(work / "settings.json", settings)
    check_same(final / "metadata.json", settings | {"threshold": request.threshold})
    start = time.perf_counter()
    with _held(work) if jax.process_index() == 0 else contextlib.nullcontext():
        summary = _enhance(request, classes, models, shards, settings, work, final, beam)
    if jax.process_index() == 0:
        page = final.parent / f"{final.name}-report.html"
        with replace_file(page) as new:
            new.write_text(report.page(request.result, settings, summary))
        seconds = time.perf_counter() - start
        print(report.text(request.result, summary))
        print(f"{seconds:.0f} s; dataset: {final}; report with examples: {page}")
    return summary


@contextlib.contextmanager
def _held(work: epath.Path) -> Iterator[None]:
    """Holds the folder of the records; a run that fails before the first of them leaves nothing."""
    work.mkdir(parents=True, exist_ok=True)
    with lock(work):
        try:
            yield
        except BaseException:
            if not has_records(work):
                work.rmtree()
                for folder in (work.parent, work.parent.parent):
                    if not list(folder.iterdir()):
                        folder.rmdir()
            raise


def _enhance(
    request: Enhancement,
    classes: Sequence[type[Expert]],
    models: Mapping[str, Any],
    shards: Sequence[Shard],
    settings: Mapping[str, Any],
    work: epath.Path,
    final: epath.Path,
    beam: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the records that are missing, then the dataset; returns the summary."""
    first = jax.process_index() == 0
    # Checks all shards, not only this process's: processes that write a bank together synchronise
    # and must agree on it, and one that has nothing left to do takes part for the others.
    if not all(has_record(work, shard) for shard in shards):
        if first:
            write_json(work / "settings.json", settings)
        bank = _bank(request, models, work)
        arguments: dict[str, dict[str, Any]] = {
            "captioning": {"folder": models.get("captioner"), "batch_size": request.batch_size},
            "retrieval": {
                "folder": models.get("retriever"),
                "bank": bank,
                "batch_size": request.batch_size,
            },
        }
        experts = [
            kind(**arguments.get(name, {}))
            for name, kind in zip(request.experts, classes, strict=True)
        ]
        clap = ClapScore(models["clap"], batch_size=request.batch_size, devices=jax.local_devices())
        find_captions(share(shards), work, experts, clap, request)
    # Files, not a barrier: the other processes may need hours more.
    while not all(has_record(work, shard) for shard in shards):
        time.sleep(1)
    summary = report.summarize(shards, work, request.threshold)
    if not summary["accepted"]:
        raise ValueError(
            f"{report.headline(request.result, summary)}; no dataset is written. Give a lower"
            f" --threshold: the candidates are kept in {work}, so that the same command ends soon;"
            " or other experts and another --name"
        )
    if first:
        Enhanced(
            data_dir=request.out,
            config=final.parent.name,
            shards=shards,
            work=str(work),
            threshold=request.threshold,
            withhold_labels=request.withhold_labels,
            settings={**settings, "threshold": request.threshold, "maa_jax": maa_jax.__version__},
        ).download_and_prepare(download_config=tfds.download.DownloadConfig(**beam))
    while not is_built(final):
        time.sleep(1)
    return summary


def _beam(options: str | None) -> dict[str, Any]:
    """Returns TFDS's settings of a Beam pipeline; none without options."""
    if options is None:
        return {}
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners import create_runner

    parsed = PipelineOptions(shlex.split(options))
    runner = parsed.view_as(StandardOptions).runner or "DirectRunner"
    return {"beam_options": parsed, "beam_runner": create_runner(runner)}


def _fetch(request: Enhancement) -> dict[str, Any]:
    """Returns {option: folder} of the models that a request names."""
    names = {key: getattr(request, key) for key in ("captioner", "retriever", "clap")}
    folders = {
        key: hub.fetch(model, LAION_FILES if key == "clap" else ())
        for key, model in names.items()
        if model
    }
    check_folder(folders["clap"])
    return folders


def _settings(
    request: Enhancement, models: Mapping[str, Any], shards: Sequence[Shard]
) -> dict[str, Any]:
    """Returns the settings that the candidates depend on, as JSON values."""
    sources = list(dict.fromkeys(shard.source for shard in shards))
    return {
        "datasets": [source.label for source in sources],
        "recordings": sum(open_windows(source).recordings for source in sources),
        "windows": sum(map(len, shards)),
        "content": [_content(source) for source in sources],
        "experts": list(request.experts),
        **{f"{key}_sha256": content_hash(folder) for key, folder in models.items()},
        **{key: getattr(request, key) for key in models},
        "bank": request.bank or request.bank_captions or "",
        "bank_sha256": _bank_hash(request),
        "clip_seconds": request.clip_seconds,
        "max_windows": request.max_windows,
        "shard_size": request.shard_size,
        "withhold_labels": request.withhold_labels,
    }


def _content(source: Source) -> str:
    """Returns a digest of the recordings of a source and their texts."""
    part = mixtures.Part(source.dataset, source.split)
    return stored.digest(part, epath.Path(source.folder))[:16]


def _bank_hash(request: Enhancement) -> str:
    """Returns a digest of the bank's captions; "" without a bank."""
    if request.bank:
        return bank_digest(request.bank)
    if request.bank_captions:
        text = "\n".join(read_captions(request.bank_captions, request.out))
        return hashlib.sha256(text.encode()).hexdigest()
    return ""


def _bank(request: Enhancement, models: Mapping[str, Any], work: epath.Path) -> str | None:
    """Returns the folder of the bank that retrieval searches; makes it if the request says so."""
    bank = request.bank
    if request.bank_captions:
        from maa_jax.enhancement import retrieval

        bank = str(work / "bank")
        captions = read_captions(request.bank_captions, request.out)
        retrieval.write_bank(models["retriever"], captions, bank)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("bank")
    return bank


def make_shards(request: Enhancement) -> list[Shard]:
    """Returns the shards of all datasets of a request; builds datasets that are missing."""
    expression, size = request.dataset, request.shard_size
    parts = mixtures.parse("dataset", expression, "train")
    weighted = [str(part) for part in parts if part.weight != 1]
    if weighted:
        raise ValueError(
            f"dataset={expression!r}: weights are for training; remove that of {weighted}"
        )
    shards: list[Shard] = []
    for part in parts:
        # Evaluation splits may be enhanced too; only training on them is refused.
        config = DataConfig(part.dataset, data_dir=request.out, folder=request.folder)
        folder = datasets.prepare(config, jax.process_index())
        samples = round(request.clip_seconds * SAMPLE_RATE)
        source = Source(part.dataset, str(folder), part.split, samples, request.max_windows)
        count = len(open_windows(source))
        for start in range(0, count, size):
            shards.append(Shard(len(shards), source, start, min(start + size, count)))
    return shards


def read_captions(source: str, out: str) -> list[str]:
    """Returns the captions of a text file, one per line, or of datasets."""
    path = epath.Path(source)
    if not path.is_file():
        return datasets.captions({"dataset": source, "data_dir": out})
    try:
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ValueError(
            f"bank_captions={source!r}, line {line}: not UTF-8; save the file as UTF-8"
        ) from error


def check_same(path: epath.Path, settings: Mapping[str, Any]) -> None:
    """Raises a ValueError if a run with other settings was begun or built under the same name."""
    if not path.exists():
        return
    try:
        different = differences(json.loads(path.read_text()), settings)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error}): remove {path.parent}") from error
    if different:
        raise ValueError(
            f"{path.parent} was made with other settings or of other recordings"
            f" ({'; '.join(different)}): give another name, or remove that folder"
        )


def is_built(folder: epath.Path) -> bool:
    """Returns whether a dataset's folder is complete."""
    return (folder / "dataset_info.json").exists()


def find_captions(
    shards: Sequence[Shard],
    work: epath.Path,
    experts: Sequence[Expert],
    clap: ClapScore,
    request: Enhancement,
) -> None:
    """Writes the record of each shard that has none.

    Args:
      shards: shards of this process.
      work: folder of the records.
      experts: experts that propose captions.
      clap: CLAP that scores them.
      request: options of the enhancement.
    """
    done = [shard for shard in shards if has_record(work, shard)]
    todo = [shard for shard in shards if shard not in done]

    def accepted(rows: Sequence[tuple[str, list[Candidate]]]) -> int:
        return sum(best(candidates, request.threshold) is not None for _, candidates in rows)

    seen, kept = sum(map(len, done)), sum(accepted(read_record(work, shard)) for shard in done)
    rows: list[tuple[str, list[Candidate]]] = []
    total = sum(map(len, shards))
    with tqdm.tqdm(total=total, initial=seen, desc="Enhancing", unit="window") as bar:
        for shard, ids, wavs, labels in _batches(todo, request):
            found = distill(wavs, labels, experts, clap)
            # Nothing is heard in a silent stretch of a recording, so nothing is said of it.
            found = [[] if is_silent(wav) else x for wav, x in zip(wavs, found, strict=True)]
            new = list(zip(ids, found, strict=True))
            rows += new
            seen, kept = seen + len(new), kept + accepted(new)
            if len(rows) == len(shard):
                write_record(work, shard, rows)
                rows = []
            bar.set_postfix_str(f"{kept / seen:.1%} accepted", refresh=False)
            bar.update(len(new))


def _batches(shards: Sequence[Shard], request: Enhancement) -> grain.IterDataset:
    """Decodes batches in threads, ahead of the device.

    Returns:
      Iterable of (shard, ids, waveforms [b, samples], labels), each batch from one shard.
    """
    size = request.batch_size

    def load(place: tuple[Shard, int]) -> tuple[Shard, list[str], np.ndarray, list[list[str]]]:
        shard, start = place
        windows = open_windows(shard.source)
        examples = [windows[i] for i in range(start, min(start + size, shard.stop))]
        wavs = np.stack([clip(example["audio"], shard.source.samples) for example in examples])
        labels = [
            [] if request.withhold_labels else [label.decode() for label in example["labels"]]
            for example in examples
        ]
        ids = [example["id"].decode() for example in examples]
        return shard, ids, wavs, labels

    places = [(shard, i) for shard in shards for i in range(shard.start, shard.stop, size)]
    return grain.MapDataset.source(places).map(load).to_iter_dataset(grain.ReadOptions(4, 4))


def clip(data: bytes, samples: int) -> np.ndarray:
    """Decodes a window (FLAC bytes), float32 [samples], zero-padded at the end."""
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        return file.read(samples, dtype="float32", fill_value=0.0)
