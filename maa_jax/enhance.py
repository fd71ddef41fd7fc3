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

import json
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from maa_jax import command
from maa_jax.enhancement.run import check_needs, check_same, find_captions, is_built, make_shards

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
        experts: keys of `enhancement.distill.EXPERTS`, or "package.module:Class".
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
        The summary: see `enhancement.report.summarize`.

    Raises:
        ValueError: naming the argument, its value and the remedy, before any long work.
    """
    # After the flags, so that --help and a mistake in them answer at once.
    import jax
    import tensorflow_datasets as tfds
    from etils import epath

    import maa_jax
    from maa_jax.encoders.clap import LAION_FILES, ClapScore, check_folder
    from maa_jax.enhancement import distill, report
    from maa_jax.enhancement.dataset import Enhanced
    from maa_jax.enhancement.shards import has_record
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import content_hash

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
    check_needs(experts, captioner, retriever, bank, bank_captions, withhold_labels)
    classes = distill.find_experts(experts)
    beam = _beam(beam_options)
    given = {"captioner": captioner, "retriever": retriever, "clap": clap}
    paths = {
        key: hub.fetch(model, LAION_FILES if key == "clap" else ())
        for key, model in given.items()
        if model
    }
    check_folder(paths["clap"])
    shards = make_shards(dataset, out, folder, shard_size)

    final = epath.Path(out) / "enhanced" / name / str(Enhanced.VERSION)
    work = final.parent / f"{final.name}-work"
    settings = {
        "datasets": list(dict.fromkeys(shard.dataset for shard in shards)),
        "recordings": sum(map(len, shards)),
        "experts": list(experts),
        **{f"{key}_sha256": content_hash(path) for key, path in paths.items()},
        **{key: model for key, model in given.items() if model},
        "bank": bank or bank_captions or "",
        "clip_seconds": clip_seconds,
        "shard_size": shard_size,
        "withhold_labels": withhold_labels,
    }
    first, several = jax.process_index() == 0, jax.process_count() > 1
    check_same(work / "settings.json", settings)
    check_same(final / "metadata.json", settings | {"threshold": threshold})
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
            from maa_jax.enhancement import retrieval
            from maa_jax.enhancement.run import read_captions

            bank = str(work / "bank")
            retrieval.write_bank(paths["retriever"], read_captions(bank_captions, out), bank)
        if several:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("bank")
        arguments = {
            "captioning": {"folder": paths.get("captioner")},
            "retrieval": {"folder": paths.get("retriever"), "bank": bank},
        }
        find_captions(
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
    while not (all(has_record(work, s) for s in shards) if first else is_built(final)):
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
    summary = report.summarize(shards, work, threshold)
    if first:
        page = final.parent / f"{final.name}-report.html"
        page.write_text(report.page(f"enhanced/{name}", settings, summary))
        seconds = time.perf_counter() - start
        print(report.text(f"enhanced/{name}", summary))
        print(f"{seconds:.0f} s; dataset: {final}; report with examples to hear: {page}")
    return summary


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


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    f = flags.FLAGS
    names = ("folder", "name", "experts", "clap", "captioner", "retriever", "bank", "bank_captions")
    names += ("threshold", "clip_seconds", "batch_size", "shard_size", "withhold_labels")
    enhance(f.dataset, f.out, beam_options=f.beam_options, **{n: f[n].value for n in names})


def run() -> None:
    """Entry point of `python -m maa_jax.enhance` and of `maa-enhance`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
