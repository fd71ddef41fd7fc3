"""Scores sounds that a model generates from a dataset's captions, recordings, or a folder's sounds.

    python -m maa_jax.evaluate --model=bundled --dataset=sonic_sounds --split=train --out=scores
    python -m maa_jax.evaluate --model=bundled --evaluators=label_accuracy,clap_score --out=scores
    python -m maa_jax.evaluate --sounds=FOLDER --evaluators=clap_score --out=scores
    python -m maa_jax.evaluate --recordings --split=test --evaluators=waveform --out=scores
    python -m maa_jax.evaluate --model=bundled --evaluators=vocoder --split=test --out=scores
    python -m maa_jax.evaluate --model=models/retriever --evaluators=recall --out=scores

Evaluators:

    label_accuracy  whether the recording nearest to a sound, or one of the five nearest, shares a
                    label with the recording whose caption the sound was generated from
    clap_score      mean cosine of the CLAP embeddings of sounds and their captions
    recall          how often a retriever, which is then the model, finds recordings and captions
    events          whether number, order, instruments and registers of events are those of the
                    captions, by a classifier (--classifier); for datasets that know the truth
    waveform        offset, clipping, loudness and clicks of sounds
    vocoder         distance of the model's vocoder from recordings, beside Griffin-Lim's

With --recordings the dataset's own recordings are scored, which shows what a perfect model reaches.
The captions of a folder's sounds are read from its samples.jsonl, as maa_jax.sample writes it, or
from a CSV file with the columns file, caption and label (--captions_file). The processes of a run
divide the sounds among them. Scores are printed and written to OUT/scores.json, with the options
that led to them.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maa_jax import command, options
from maa_jax.checks import differences, nearest
from maa_jax.evaluators import EVALUATORS, find, make
from maa_jax.files import file_names, make_folder, read_json, write_json
from maa_jax.options import FINE, REQUIRED, Options, option
from maa_jax.pipeline.request import Request

if TYPE_CHECKING:
    from maa_jax.data.config import DataConfig
    from maa_jax.evaluators.base import Sounds

# The file of the scores, in the output folder.
SCORES = "scores.json"


def _check_evaluators(names: tuple[str, ...], _: Options) -> str:
    unknown = [name for name in names if name not in EVALUATORS]
    if unknown:
        near = nearest(unknown[0], EVALUATORS)
        return f"{near!r} instead of {unknown[0]!r}; there are {', '.join(EVALUATORS)}"
    return FINE if names else f"some of {', '.join(EVALUATORS)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Request):
    """Options of an evaluation; the fields of `Request` are those of generating the sounds."""

    out: str = option(REQUIRED, "Folder for scores.json.", path=True, recorded=False)
    evaluators: tuple[str, ...] = option(
        ("label_accuracy",),
        f"Evaluators: {', '.join(EVALUATORS)}.",
        check=_check_evaluators,
    )
    model: str = option("bundled", 'Model folder, hub id, or "bundled".')
    sounds: str | None = option(
        None, "Folder of wav files to score instead of a model's sounds.", path=True
    )
    recordings: bool = option(False, "Score the dataset's recordings instead of a model's sounds.")
    captions_file: str | None = option(
        None, "CSV file with file,caption[,label] of those wav files.", path=True
    )
    dataset: str = option("sonic_sounds", "Dataset of the captions and reference recordings.")
    data_dir: str | None = option(
        None, "Where TFDS keeps datasets; TFDS's own place by default.", path=True, recorded=False
    )
    split: str = option("train", "Split of the dataset.")
    num_prompts: int = option(0, "Captions used as prompts, evenly spread; 0 for all.", least=0)
    captions_per_recording: int = option(
        1, "Captions of a recording used as prompts; 0 for all.", least=0
    )
    clap: str = option("bundled", 'CLAP that scores: model folder, hub id, or "bundled".')
    classifier: str = option("", "Model folder of the classifier of events.")
    keep_wavs: bool = option(False, "Write the sounds to OUT/wavs.", recorded=False)
    cache: str | None = option(
        None, "Folder in which features are cached for later runs.", path=True, recorded=False
    )

    def __post_init__(self):
        super().__post_init__()
        if (self.output, self.num_samples, self.start_index) != ("wav", 1, 0):
            raise ValueError(
                f"output={self.output!r}, num_samples={self.num_samples}, start_index="
                f"{self.start_index}: give 'wav', 1 and 0; one sound is scored for each caption"
            )
        if self.recordings and self.sounds:
            raise ValueError(
                f"recordings=True, sounds={self.sounds!r}: score one of them at a time"
            )


def define_flags() -> None:
    """Defines the flags, which other programs also define: call it only from this program."""
    options.define_flags(Evaluation)


def evaluate(request: Evaluation) -> dict[str, float]:
    """Computes scores, prints them and writes `out/scores.json`.

    Args:
      request: options of the evaluation.

    Returns:
      The scores by name.

    Raises:
      ValueError: something named does not exist, or an input that an evaluator needs is missing.
    """
    if request.sounds and not any("sounds" in find(name).needs for name in request.evaluators):
        raise ValueError(
            f"sounds={request.sounds!r}: none of {', '.join(request.evaluators)} scores sounds; "
            "leave it out or add another evaluator"
        )
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    from maa_jax.devices import hold_folder

    with hold_folder(request.out) as folder:
        _check_earlier(request, folder)
        return _evaluate(request, folder)


def _check_earlier(request: Evaluation, folder: pathlib.Path) -> None:
    """Raises a ValueError if the folder holds the scores of other options."""
    if not (folder / SCORES).exists():
        return
    different = differences(read_json(folder / SCORES), _options(request))
    if different:
        raise ValueError(
            f"--out={folder} holds the scores of another evaluation: {'; '.join(different)}; give "
            "another folder, or remove that one"
        )


def _options(request: Evaluation) -> dict[str, Any]:
    """Returns the options that scores depend on; those of sampling only if sounds are made."""
    record = request.record()
    given = request.sounds or request.recordings
    if given or not any("sounds" in find(name).needs for name in request.evaluators):
        record = {key: value for key, value in record.items() if key not in request.keywords()}
    return record


def _evaluate(request: Evaluation, folder: pathlib.Path) -> dict[str, float]:
    import jax

    import maa_jax
    from maa_jax.audio.io import SAMPLE_RATE
    from maa_jax.data import truth
    from maa_jax.data.config import DataConfig
    from maa_jax.evaluators import base, sources
    from maa_jax.evaluators.features import Networks

    start = time.perf_counter()
    networks = Networks(
        clap=request.clap,
        retriever=request.model,
        vocoder=request.model,
        classifier=request.classifier,
        batch_size=request.batch_size,
        cache=request.cache,
    )
    evaluators = make(request.evaluators, networks)
    data = DataConfig(dataset=request.dataset, data_dir=request.data_dir, split=request.split)
    sounds = base.no_sounds()
    made_by: dict[str, str] = {}
    truths: list[dict[str, Any]] = []
    if any("truths" in evaluator.needs for evaluator in evaluators):
        truths = truth.truths(data)
    if any("sounds" in evaluator.needs for evaluator in evaluators):
        if request.recordings:
            samples = _samples(request)
            sounds = sources.recordings(data, samples, truths=truths, batch_size=request.batch_size)
        elif request.sounds:
            sounds = sources.folder(
                request.sounds, request.captions_file, batch_size=request.batch_size
            )
        else:
            sounds, made_by = _generated(request, data, truths)
    scores: dict[str, float] = {}
    for samples in dict.fromkeys(evaluator.samples for evaluator in evaluators):
        group = [evaluator for evaluator in evaluators if evaluator.samples == samples]
        references = base.no_sounds()
        if any("references" in evaluator.needs for evaluator in group):
            if samples is None:
                samples = round(sounds.samples * SAMPLE_RATE / sounds.sample_rate)
            references = sources.recordings(data, samples, batch_size=request.batch_size)
        scores |= base.values(base.run(group, base.Inputs(sounds, references)))
    if jax.process_index() == 0:
        heard = {n.name: n.digest for evaluator in evaluators for n in evaluator.networks}
        result = {
            **_options(request),
            **made_by,
            "networks": heard,
            "sounds_scored": len(sounds),
            "maa_jax": maa_jax.__version__,
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "seconds": round(time.perf_counter() - start, 1),
            "scores": scores,
        }
        write_json(folder / SCORES, result)
        for name, value in scores.items():
            print(f"{name:<30}{value:>9.4g}")
        print(f"All scores: {folder / SCORES}")
    return scores


def _samples(request: Evaluation) -> int:
    """Returns the length of the sounds that the model would generate, at 16 kHz."""
    from maa_jax.audio.io import SAMPLE_RATE
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import load_index

    (seconds,) = request.durations(
        load_index(hub.resolve(request.model), meta=("max_duration",))["max_duration"], 1
    )
    return round(seconds * SAMPLE_RATE)


def _generated(
    request: Evaluation, data: "DataConfig", truths: Sequence[Mapping[str, Any]]
) -> "tuple[Sounds, dict[str, str]]":
    """Returns sounds that a model generates on demand from captions, and the model's record."""
    import jax
    import numpy as np

    from maa_jax.audio import io
    from maa_jax.evaluators import sources
    from maa_jax.model_folder.index import content_hash
    from maa_jax.pipeline.pipeline import Pipeline, Ranked

    several = jax.local_device_count() > 1
    pipe = Pipeline.from_pretrained(request.model, devices=jax.local_devices() if several else None)
    recordings = sources.metadata(data)
    prompts = sources.choose_prompts(
        [recording["captions"] for recording in recordings],
        request.captions_per_recording,
        request.num_prompts,
    )
    captions = [caption for _, caption in prompts]
    labels = [recordings[number]["labels"] for number, _ in prompts]
    (seconds,) = request.durations(pipe.max_duration, 1)
    keep = None
    if request.keep_wavs:
        wavs, files = make_folder(f"{request.out}/wavs"), file_names(captions)
        rows = zip(files, captions, labels, strict=True)
        lines = [json.dumps(dict(file=f, prompt=c, labels=list(of))) for f, c, of in rows]
        (wavs / sources.TABLE).write_text("\n".join(lines) + "\n", "utf-8")
        keep = lambda number, wav: io.write_wav(wavs / files[number], wav, pipe.sample_rate)

    def generate(some: list[str], first: int) -> np.ndarray:
        made = pipe(some, **request.keywords() | {"start_index": first * request.tries})
        return np.asarray(made.sounds if isinstance(made, Ranked) else made)

    sounds = sources.generated(
        generate,
        captions,
        pipe.sample_rate,
        round(seconds * pipe.sample_rate),
        labels=labels,
        truths=[truths[number] for number, _ in prompts] if truths else (),
        batch_size=request.batch_size,
        keep=keep,
    )
    return sounds, {"model_sha256": content_hash(pipe.path)}


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    request = options.from_flags(Evaluation)
    devices.initialize()
    evaluate(request)


def run() -> None:
    """Entry point of `python -m maa_jax.evaluate` and of `maa-evaluate`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
