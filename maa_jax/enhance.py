"""Captions for recordings that have none: experts propose, CLAP chooses (paper section 3.2.1).

    python -m maa_jax.enhance --dataset=fsd50k --name=fsd50k --out=DATA_DIR --withhold_labels \
        --captioner=models/captioner --retriever=models/retriever --bank_captions=audiocaps

Writes the TFDS dataset enhanced/NAME beside the datasets that it reads, all of them in OUT, and a
report of scores and examples beside that. Training reads it by its name. The same command goes on
where it stopped: what experts and CLAP found is kept a shard at a time. Several processes share
the shards; OUT must be a place that all of them see. With --beam_options Apache Beam (extra: beam)
writes the dataset, and its workers must see OUT too:

    --beam_options="--runner=DirectRunner"                              # this machine
    --beam_options="--runner=FlinkRunner --flink_master=HOST:8081"      # or Spark, Dataflow

Experts and CLAP hear one clip of a recording: its middle, where it is longer than the clip, and
zeros behind it, where it is shorter. The dataset holds the recordings whole, as they are.
"""

import io
import json
import re
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

EXPERTS = ("captioning", "retrieval")
THRESHOLD = 0.3


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    needed = {"required": True}
    flags.DEFINE_string("dataset", None, "NAME, NAME:SPLIT or several, joined by ' + '.", **needed)
    flags.DEFINE_string("folder", None, "Sound files of --dataset=audio_folder/NAME, if not built.")
    flags.DEFINE_string("out", None, "Where TFDS keeps datasets: those read, this one.", **needed)
    flags.DEFINE_string("name", None, "It becomes enhanced/NAME; the first dataset's by default.")
    flags.DEFINE_list(
        "experts", [*EXPERTS], "Of captioning, retrieval, labels, package.module:Class."
    )
    flags.DEFINE_string(
        "clap", "bundled", "Chooses: a model folder, LAION CLAP's folder or hub id."
    )
    flags.DEFINE_string("captioner", None, "Model folder of captioning.")
    flags.DEFINE_string("retriever", None, "Model folder of retrieval.")
    flags.DEFINE_string("bank", None, "Bank of captions that retrieval searches.")
    flags.DEFINE_string(
        "bank_captions", None, "Makes the bank: a text file, a line each; datasets."
    )
    flags.DEFINE_float("threshold", THRESHOLD, "CLAP score from which on the best is accepted.")
    flags.DEFINE_float("clip_seconds", 10.0, "How much is heard; as in the networks' training.")
    flags.DEFINE_integer("batch_size", 32, "Recordings at a time, over this process's devices.")
    flags.DEFINE_integer("shard_size", 512, "Recordings a shard: what a killed run does again.")
    flags.DEFINE_boolean("withhold_labels", False, "Neither experts nor the result have labels.")
    flags.DEFINE_string("beam_options", None, "Writes with Beam, e.g. '--runner=DirectRunner'.")


def enhance(
    dataset: str,
    out: str,
    *,
    folder: str | None = None,
    name: str | None = None,
    experts: Sequence[str] = EXPERTS,
    clap: str = "bundled",
    captioner: str | None = None,
    retriever: str | None = None,
    bank: str | None = None,
    bank_captions: str | None = None,
    threshold: float = THRESHOLD,
    clip_seconds: float = 10.0,
    batch_size: int = 32,
    shard_size: int = 512,
    withhold_labels: bool = False,
    beam_options: str | None = None,
) -> dict[str, Any]:
    """Builds enhanced/NAME and its report, and prints a summary.

    Args:
        dataset: built or buildable datasets: "NAME:SPLIT", joined by " + ".
        out: TFDS's data_dir.
        folder: recordings without captions that "audio_folder/NAME" is built of.
        name: of the result; the first dataset's by default.
        experts: keys of `prompts.distill.EXPERTS`, or "package.module:Class".
        clap: model folder, LAION CLAP's folder or hub id, or "bundled".
        captioner: model folder of the expert captioning.
        retriever: model folder of the expert retrieval.
        bank: folder of a bank of captions.
        bank_captions: a text file, or datasets whose captions become a bank in the work folder.
        threshold: score from which on the best candidate is accepted.
        clip_seconds: how much of a recording is heard.
        batch_size: recordings at a time.
        shard_size: recordings whose result is written at once.
        withhold_labels: whether neither experts nor the result have labels.
        beam_options: of Beam's pipeline; without them this process writes.

    Returns:
        The summary: see `enhance_report.summarize`.

    Raises:
        ValueError: naming the argument, its value and the remedy, before any long work.
    """
    # After the flags, so that --help and a mistake in them answer at once.
    import jax
    import tensorflow_datasets as tfds
    from etils import epath

    import maa_jax
    from maa_jax import bundle, enhance_report
    from maa_jax.data.builders.enhanced import Enhanced, has_record
    from maa_jax.evaluators.clap_score import LAION_FILES, ClapScore, check_folder
    from maa_jax.prompts import distill

    if name is None:
        name = re.split(r"[:\s]", dataset.strip())[0].rpartition("/")[2]
    if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*", name):
        raise ValueError(f"name={name!r}: use letters, digits, _, . and - alone")
    for key, value, least in (
        ("batch_size", batch_size, 1),
        ("shard_size", shard_size, 1),
        ("clip_seconds", clip_seconds, 0.1),
        ("threshold", threshold, -1),
    ):
        if value < least:
            raise ValueError(f"{key}={value}: give {least} or more")
    _check_needs(experts, captioner, retriever, bank, bank_captions, withhold_labels)
    classes = distill.find_experts(experts)
    beam = _beam(beam_options)
    given = {"captioner": captioner, "retriever": retriever, "clap": clap}
    paths = {
        key: bundle.fetch(model, LAION_FILES if key == "clap" else ())
        for key, model in given.items()
        if model
    }
    check_folder(paths["clap"])
    shards = _shards(dataset, out, folder, shard_size)

    final = epath.Path(out) / "enhanced" / name / str(Enhanced.VERSION)
    work = final.parent / f"{final.name}-work"
    settings = {
        "datasets": list(dict.fromkeys(shard.dataset for shard in shards)),
        "recordings": sum(map(len, shards)),
        "experts": list(experts),
        **{f"{key}_sha256": bundle.content_hash(path) for key, path in paths.items()},
        **{key: model for key, model in given.items() if model},
        "bank": bank or bank_captions or "",
        "clip_seconds": clip_seconds,
        "shard_size": shard_size,
        "withhold_labels": withhold_labels,
    }
    first, several = jax.process_index() == 0, jax.process_count() > 1
    _check_same(work / "settings.json", settings)
    _check_same(final / "metadata.json", settings | {"threshold": threshold})
    if first and not (work / "settings.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        (work / ".settings.part").write_text(json.dumps(settings, indent=2) + "\n")
        (work / ".settings.part").replace(work / "settings.json")

    start = time.perf_counter()
    mine = shards[jax.process_index() :: jax.process_count()]
    # Of all shards: where processes share a bank and meet, they must come to the same answer, and
    # one that has nothing left to do takes part for the others.
    if not all(has_record(work, shard) for shard in shards):
        if bank_captions:
            from maa_jax.prompts import retrieval

            bank = str(work / "bank")
            retrieval.write_bank(paths["retriever"], _captions(bank_captions, out), bank)
        if several:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("bank")
        arguments = {
            "captioning": {"folder": paths.get("captioner")},
            "retrieval": {"folder": paths.get("retriever"), "bank": bank},
        }
        _find(
            mine,
            work,
            [cls(**arguments.get(key, {})) for key, cls in zip(experts, classes, strict=True)],
            ClapScore(paths["clap"], devices=jax.local_devices()),
            samples=round(clip_seconds * distill.SAMPLE_RATE),
            batch_size=batch_size,
            threshold=threshold,
            withhold_labels=withhold_labels,
        )
    # Files, not a barrier: the other processes may need hours more.
    while not (all(has_record(work, s) for s in shards) if first else _is_built(final)):
        time.sleep(1)
    if first:
        builder = Enhanced(
            data_dir=out,
            config=name,
            shards=shards,
            work=str(work),
            threshold=threshold,
            withhold_labels=withhold_labels,
            settings=settings | {"threshold": threshold, "maa_jax": maa_jax.__version__},
        )
        config = tfds.download.DownloadConfig(**beam)
        builder.download_and_prepare(download_config=config)
    summary = enhance_report.summarize(shards, work, threshold)
    if first:
        report = final.parent / f"{final.name}-report.html"
        report.write_text(enhance_report.page(f"enhanced/{name}", settings, summary))
        seconds = time.perf_counter() - start
        print(enhance_report.text(f"enhanced/{name}", summary))
        print(f"{seconds:.0f} s; dataset: {final}; report with examples to hear: {report}")
    return summary


def _check_needs(
    experts: Sequence[str],
    captioner: str | None,
    retriever: str | None,
    bank: str | None,
    bank_captions: str | None,
    withhold_labels: bool,
) -> None:
    """Raises a ValueError unless each expert has what it needs, and nothing is left over."""
    for key, value, expert in (
        ("captioner", captioner, "captioning"),
        ("retriever", retriever, "retrieval"),
        ("bank or bank_captions", bank or bank_captions, "retrieval"),
    ):
        if expert in experts and not value:
            raise ValueError(f"experts: {expert!r} needs {key}; give it or leave the expert out")
        if value and expert not in experts:
            raise ValueError(f"{key}={value!r} is for the expert {expert!r}: add that to experts")
    if bank and bank_captions:
        raise ValueError(f"bank={bank!r} and bank_captions={bank_captions!r}: give one of them")
    if withhold_labels and "labels" in experts:
        raise ValueError("experts: 'labels' has nothing to say with withhold_labels: drop either")


def _beam(options: str | None) -> dict[str, Any]:
    """Returns TFDS's settings of a Beam pipeline; none without options."""
    if options is None:
        return {}
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
        from apache_beam.runners import create_runner
    except ImportError as e:
        raise ValueError(
            f"beam_options={options!r}: Apache Beam cannot be imported ({e}); install the extra"
            ' (pip install -e ".[beam]"), or leave beam_options out to write in this process'
        ) from e
    parsed = PipelineOptions(shlex.split(options))
    runner = parsed.view_as(StandardOptions).runner or "DirectRunner"
    return {"beam_options": parsed, "beam_runner": create_runner(runner)}


def _shards(expression: str, out: str, sounds: str | None, size: int) -> list:
    """Returns the shards of all datasets of an expression; builds datasets that are missing."""
    import jax
    import tensorflow_datasets as tfds

    from maa_jax.data import input_pipeline, mixtures
    from maa_jax.data.builders.enhanced import Shard

    parts = mixtures.parse("dataset", expression, "train")
    weighted = [str(part) for part in parts if part.weight != 1]
    if weighted:
        raise ValueError(f"dataset={expression!r}: weights are for training; name {weighted} alone")
    shards = []
    for part in parts:
        # Evaluation splits may be enhanced, too: what is refused is to train on them.
        config = input_pipeline.DataConfig(part.dataset, data_dir=out, folder=sounds)
        folder = input_pipeline.prepare(config, jax.process_index())
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


def _captions(source: str, out: str) -> list[str]:
    """Returns the captions of a text file, a line each, or of datasets."""
    from etils import epath

    from maa_jax.data import input_pipeline

    if epath.Path(source).is_file():
        return epath.Path(source).read_text().splitlines()
    return input_pipeline.captions({"dataset": source, "data_dir": out})


def _check_same(path, settings: dict[str, Any]) -> None:
    """Raises a ValueError where something else was begun, or built, under the same name."""
    if not path.exists():
        return
    there = json.loads(path.read_text())
    different = [
        f"{key}: {there.get(key)!r} there, {value!r} here"
        for key, value in settings.items()
        if there.get(key) != value
    ]
    if different:
        raise ValueError(
            f"{path.parent} is of other settings ({'; '.join(different)}): give another name, or "
            "remove that folder"
        )


def _is_built(folder) -> bool:
    return (folder / "dataset_info.json").exists()


def _find(
    shards: Sequence,
    work,
    experts: Sequence,
    clap,
    *,
    samples: int,
    batch_size: int,
    threshold: float,
    withhold_labels: bool,
) -> None:
    """Writes the record of each shard that has none; decodes in threads, ahead of the device."""
    import grain
    import numpy as np
    import tqdm

    from maa_jax.data.builders.enhanced import has_record, open_split, read_record, write_record
    from maa_jax.prompts.distill import best, distill

    def load(batch):
        shard, start = batch
        source = open_split(shard.folder, shard.split)
        examples = [source[i] for i in range(start, min(start + batch_size, shard.stop))]
        rows = np.arange(batch_size) % len(examples)  # filled up: experts see one shape alone
        wavs = np.stack([middle_clip(example["audio"], samples) for example in examples])
        labels = [
            [] if withhold_labels else [label.decode() for label in example["labels"]]
            for example in examples
        ]
        ids = [example["id"].decode() for example in examples]
        return shard, ids, wavs[rows], [labels[row] for row in rows]

    def accepted(rows) -> int:
        return sum(best(candidates, threshold) is not None for _, candidates in rows)

    done = {shard for shard in shards if has_record(work, shard)}
    batches = [
        (shard, start)
        for shard in shards
        if shard not in done
        for start in range(shard.start, shard.stop, batch_size)
    ]
    ahead = grain.MapDataset.source(batches).map(load).to_iter_dataset(grain.ReadOptions(4, 4))
    seen, kept = sum(map(len, done)), sum(accepted(read_record(work, shard)) for shard in done)
    rows = []
    with tqdm.tqdm(
        total=sum(map(len, shards)), initial=seen, desc="Enhancing", unit="recording"
    ) as bar:
        for shard, ids, wavs, labels in ahead:
            found = distill(wavs, labels, experts, clap)[: len(ids)]
            new = list(zip(ids, found, strict=True))
            rows += new
            seen, kept = seen + len(new), kept + accepted(new)
            if len(rows) == len(shard):
                write_record(work, shard, rows)
                rows = []
            bar.set_postfix_str(f"{kept / seen:.1%} accepted", refresh=False)
            bar.update(len(new))


def middle_clip(data: bytes, samples: int):
    """Decodes the middle of a recording (FLAC bytes), float32 [samples]; zeros behind a short one.

    Only that part is decoded.
    """
    import soundfile

    with soundfile.SoundFile(io.BytesIO(data)) as file:
        file.seek(max(0, file.frames - samples) // 2)
        return file.read(samples, dtype="float32", fill_value=0.0)


def main(argv: Sequence[str]) -> None:
    """Runs the program that this module's docstring describes."""
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag")
    f = flags.FLAGS
    from maa_jax.bundle import enable_compilation_cache
    from maa_jax.training.sharding import initialize_distributed

    logging.set_verbosity(logging.WARNING)  # TFDS tells of every dataset it opens.
    enable_compilation_cache()
    initialize_distributed()
    names = ("folder", "name", "experts", "clap", "captioner", "retriever", "bank", "bank_captions")
    names += ("threshold", "clip_seconds", "batch_size", "shard_size", "withhold_labels")
    try:
        enhance(f.dataset, f.out, beam_options=f.beam_options, **{n: f[n].value for n in names})
    except (ValueError, FileNotFoundError) as e:
        sys.exit(f"maa_jax.enhance: {e}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
