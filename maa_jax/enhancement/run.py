"""A run of prompt enhancement: shards of recordings, candidates for each, a dataset, a report."""

import io
import json
import shlex
import time
from collections.abc import Mapping, Sequence
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
from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.checks import differences
from maa_jax.data import datasets, mixtures
from maa_jax.data.config import DataConfig
from maa_jax.devices import share
from maa_jax.encoders.clap import LAION_FILES, ClapScore, check_folder
from maa_jax.enhancement import report
from maa_jax.enhancement.dataset import Enhanced
from maa_jax.enhancement.distill import Candidate, Expert, best, distill, find_experts
from maa_jax.enhancement.request import Enhancement
from maa_jax.enhancement.shards import Shard, has_record, open_split, read_record, write_record
from maa_jax.files import write_json
from maa_jax.model_folder import hub
from maa_jax.model_folder.index import content_hash


def enhance(request: Enhancement) -> dict[str, Any]:
    """Builds enhanced/NAME and its report, and prints a summary.

    Returns:
      The summary: see `enhancement.report.summarize`.

    Raises:
      ValueError: an option is invalid; raised before any long work, with the remedy.
    """
    classes = find_experts(request.experts)
    beam = _beam(request.beam_options)
    models = _fetch(request)
    shards = make_shards(request)
    settings = _settings(request, models, shards)
    final = epath.Path(request.out) / request.result / str(Enhanced.VERSION)
    work = final.parent / f"{final.name}-work"
    check_same(work / "settings.json", settings)
    check_same(final / "metadata.json", settings | {"threshold": request.threshold})
    first = jax.process_index() == 0
    if first and not (work / "settings.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        write_json(work / "settings.json", settings)

    start = time.perf_counter()
    # Checks all shards, not only this process's: processes that write a bank together synchronise
    # and must agree on it, and one that has nothing left to do takes part for the others.
    if not all(has_record(work, shard) for shard in shards):
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
    while not (all(has_record(work, s) for s in shards) if first else is_built(final)):
        time.sleep(1)
    if first:
        Enhanced(
            data_dir=request.out,
            config=final.parent.name,
            shards=shards,
            work=str(work),
            threshold=request.threshold,
            withhold_labels=request.withhold_labels,
            settings=settings | {"threshold": request.threshold, "maa_jax": maa_jax.__version__},
        ).download_and_prepare(download_config=tfds.download.DownloadConfig(**beam))
    summary = report.summarize(shards, work, request.threshold)
    if first:
        page = final.parent / f"{final.name}-report.html"
        page.write_text(report.page(request.result, settings, summary))
        seconds = time.perf_counter() - start
        print(report.text(request.result, summary))
        print(f"{seconds:.0f} s; dataset: {final}; report with examples: {page}")
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
    return {
        "datasets": list(dict.fromkeys(shard.dataset for shard in shards)),
        "recordings": sum(map(len, shards)),
        "experts": list(request.experts),
        **{f"{key}_sha256": content_hash(folder) for key, folder in models.items()},
        **{key: getattr(request, key) for key in models},
        "bank": request.bank or request.bank_captions or "",
        "clip_seconds": request.clip_seconds,
        "shard_size": request.shard_size,
        "withhold_labels": request.withhold_labels,
    }


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
        splits = tfds.builder_from_directory(folder).info.splits
        try:
            count = splits[part.split].num_examples
        except (KeyError, ValueError) as e:
            raise ValueError(
                f"dataset={expression!r}: {part.dataset} has no split {part.split!r}; use one of "
                f"{list(splits)}"
            ) from e
        label = f"{part.dataset}/{folder.name}:{part.split}"
        for start in range(0, count, size):
            stop = min(start + size, count)
            shards.append(Shard(len(shards), label, str(folder), part.split, start, stop))
    if not shards:
        raise ValueError(f"dataset={expression!r} holds no recording; take a larger part")
    return shards


def read_captions(source: str, out: str) -> list[str]:
    """Returns the captions of a text file, one per line, or of datasets."""
    if epath.Path(source).is_file():
        return epath.Path(source).read_text().splitlines()
    return datasets.captions({"dataset": source, "data_dir": out})


def check_same(path: epath.Path, settings: dict[str, Any]) -> None:
    """Raises a ValueError if a run with other settings was begun or built under the same name."""
    if not path.exists():
        return
    different = differences(json.loads(path.read_text()), settings)
    if different:
        raise ValueError(
            f"{path.parent} has other settings ({'; '.join(different)}): give another name, or "
            "remove that folder"
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
    with tqdm.tqdm(total=total, initial=seen, desc="Enhancing", unit="recording") as bar:
        for shard, ids, wavs, labels in _batches(todo, request):
            new = list(zip(ids, distill(wavs, labels, experts, clap), strict=True))
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
    size, samples = request.batch_size, round(request.clip_seconds * SAMPLE_RATE)

    def load(place: tuple[Shard, int]) -> tuple[Shard, list[str], np.ndarray, list[list[str]]]:
        shard, start = place
        source = open_split(shard.folder, shard.split)
        examples = [source[i] for i in range(start, min(start + size, shard.stop))]
        wavs = np.stack([middle_clip(example["audio"], samples) for example in examples])
        labels = [
            [] if request.withhold_labels else [label.decode() for label in example["labels"]]
            for example in examples
        ]
        ids = [example["id"].decode() for example in examples]
        return shard, ids, wavs, labels

    places = [(shard, i) for shard in shards for i in range(shard.start, shard.stop, size)]
    return grain.MapDataset.source(places).map(load).to_iter_dataset(grain.ReadOptions(4, 4))


def middle_clip(data: bytes, samples: int) -> np.ndarray:
    """Decodes the middle of a recording (FLAC bytes), float32 [samples], zero-padded at the end.

    Only that part is decoded.
    """
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.seek(max(0, file.frames - samples) // 2)
        return file.read(samples, dtype="float32", fill_value=0.0)
