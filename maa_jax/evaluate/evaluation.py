"""One evaluation: its options, the sounds that it scores, and what it writes."""

import contextlib
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maa_jax.checks import differences, nearest
from maa_jax.data.masks import MASKS, draw
from maa_jax.evaluators import EVALUATORS, PROTOCOLS, comparison, find, make
from maa_jax.files import file_names, make_folder, read_json
from maa_jax.options import FINE, Options, option
from maa_jax.pipeline.request import Request

if TYPE_CHECKING:
    from maa_jax.data.config import DataConfig
    from maa_jax.evaluators.base import Sounds

# The file of the scores, in the output folder.
SCORES = "scores.json"


def _known(names: tuple[str, ...], known: Collection[str]) -> str:
    unknown = [name for name in names if name not in known]
    if unknown:
        near = nearest(unknown[0], known)
        return f"{near!r} instead of {unknown[0]!r}; there are {', '.join(known)}"
    return FINE


def _check_evaluators(names: tuple[str, ...], _: Options) -> str:
    return _known(names, EVALUATORS)


def _check_protocols(names: tuple[str, ...], _: Options) -> str:
    return _known(names, PROTOCOLS)


def _check_compared(files: tuple[str, ...], _: Options) -> str:
    return FINE if len(files) in (0, 2) else "two files, A/scores.json,B/scores.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Request):
    """Options of an evaluation; the fields of `Request` are those of generating the sounds."""

    out: str | None = option(None, "Folder for scores.json.", path=True, recorded=False)
    evaluators: tuple[str, ...] = option(
        (),
        f"Evaluators: {', '.join(EVALUATORS)}; label_accuracy if there is no --protocol.",
        check=_check_evaluators,
    )
    protocol: tuple[str, ...] = option(
        (), f"Protocols: {', '.join(PROTOCOLS)}.", check=_check_protocols
    )
    compare: tuple[str, ...] = option(
        (),
        "Two scores.json files to compare; nothing is scored.",
        check=_check_compared,
        recorded=False,
    )
    model: str = option("bundled", 'Model folder, hub id, or "bundled".')
    workdir: str | None = option(
        None, "Run of maa_jax.train whose latest checkpoint is the model.", path=True
    )
    sounds: str | None = option(
        None, "Folder of wav files to score instead of a model's sounds.", path=True
    )
    recordings: bool = option(False, "Score the dataset's recordings instead of a model's sounds.")
    captions_file: str | None = option(
        None, "CSV file with file,caption[,label] of those wav files.", path=True
    )
    reference: str = option(
        "",
        "Recordings to compare with: DATASET:SPLIT, or a folder of wav files; those of --dataset "
        "and --split by default.",
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
    start_from: str = option(
        "",
        "Recordings that the sounds are made from: own, each caption's own; or next, that of the "
        "next recording. By default none; see --strength, --edit and --fill.",
        choices=("", "own", "next"),
    )
    fill: str = option(
        "",
        f"Kind of the masks in which recordings are made anew: {', '.join(MASKS)}.",
        choices=("", *MASKS),
    )
    clap: str = option("bundled", 'CLAP that scores: model folder, hub id, or "bundled".')
    classifier: str = option("", "Model folder of the classifier of events.")
    melception: str = option("", "Model folder of the melception of protocols.")
    cnn14: str = option("", "Model folder of the Cnn14 of protocols.")
    vggish: str = option("", "Model folder of the VGGish of protocols.")
    resamples: int = option(
        200, "Resamples of the sounds for the 95 % intervals; 0 for none.", least=0, most=100_000
    )
    keep_wavs: bool = option(False, "Write the sounds to OUT/wavs.", recorded=False)
    cache: str | None = option(
        None, "Folder in which features are cached for later runs.", path=True, recorded=False
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.compare and self.out is None:
            raise ValueError("out=None: give the folder for scores.json")
        if not (self.evaluators or self.protocol):
            object.__setattr__(self, "evaluators", ("label_accuracy",))
        if (self.output, self.num_samples, self.start_index) != ("wav", 1, 0):
            raise ValueError(
                f"output={self.output!r}, num_samples={self.num_samples}, start_index="
                f"{self.start_index}: give 'wav', 1 and 0; one sound is scored for each caption"
            )
        if self.fill:
            self.check_masked()
        if not self.start_from:
            self.check_unedited(fill=self.fill)
        elif self.duration is not None:
            raise ValueError(
                f"duration={self.duration!r}: edited sounds have the length of their recordings, "
                "the model's limit: leave it out"
            )
        scored = {name: getattr(self, name) for name in ("sounds", "recordings", "workdir")}
        given = {name: value for name, value in scored.items() if value}
        if len(given) > 1:
            listed = ", ".join(f"{name}={value!r}" for name, value in given.items())
            raise ValueError(f"{listed}: score one of them at a time")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the evaluators and protocols."""
        return (*self.evaluators, *self.protocol)


def evaluate(request: Evaluation) -> dict[str, float]:
    """Computes scores, prints them and writes `out/scores.json`; or compares two such files.

    Args:
      request: options of the evaluation.

    Returns:
      The scores by name, or the differences.

    Raises:
      ValueError: something named does not exist, or an input that an evaluator needs is missing.
    """
    if request.compare:
        return comparison.show(*map(pathlib.Path, request.compare))
    if request.sounds and not any("sounds" in find(name).needs for name in request.names):
        raise ValueError(
            f"sounds={request.sounds!r}: none of {', '.join(request.names)} scores sounds; "
            "leave it out or add another evaluator"
        )
    # Imported after the flags are parsed, so that --help and mistakes in them are answered at once.
    from maa_jax.devices import hold_folder

    assert request.out is not None  # by its check
    with hold_folder(request.out) as folder, contextlib.ExitStack() as stack:
        _check_earlier(request, folder)
        model = request.model
        if request.workdir:
            model = str(stack.enter_context(_exported(request.workdir)))
        known = _known_scores(request, folder, model)
        if known is not None:
            print(f"Scored before: {folder / SCORES}")
            return known
        return _evaluate(request, folder, model)


def _known_scores(request: Evaluation, folder: pathlib.Path, model: str) -> dict[str, float] | None:
    """Returns the scores in the folder if the same model made the sounds of the same options."""
    if not (folder / SCORES).exists():
        return None
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import content_hash

    content = read_json(folder / SCORES)
    made_by = content.get("model_sha256")
    same = made_by is not None and made_by == content_hash(hub.resolve(model))
    return content["scores"] if same else None


@contextlib.contextmanager
def _exported(workdir: str) -> Iterator[pathlib.Path]:
    """Yields a model folder of a run's latest checkpoint, which is removed afterwards."""
    from maa_jax.stages.export import restored

    stage, state = restored(workdir)
    with tempfile.TemporaryDirectory() as folder:
        stage.export(state.weights(), state.extra, pathlib.Path(folder))
        yield pathlib.Path(folder)


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
    if given or not any("sounds" in find(name).needs for name in request.names):
        record = {key: value for key, value in record.items() if key not in request.keywords()}
    return record


def _evaluate(request: Evaluation, folder: pathlib.Path, model: str) -> dict[str, float]:
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
        retriever=model,
        vocoder=model,
        classifier=request.classifier,
        melception=request.melception,
        cnn14=request.cnn14,
        vggish=request.vggish,
        resamples=request.resamples,
        batch_size=request.batch_size,
        cache=request.cache,
    )
    evaluators = make(request.names, networks)
    data = DataConfig(dataset=request.dataset, data_dir=request.data_dir, split=request.split)
    sounds = base.no_sounds()
    made_by: dict[str, str] = {}
    truths: list[dict[str, Any]] = []
    if any("truths" in evaluator.needs for evaluator in evaluators):
        truths = truth.truths(data)
    if any("sounds" in evaluator.needs for evaluator in evaluators):
        if request.recordings:
            samples = _samples(request, model)
            sounds = sources.recordings(data, samples, truths=truths, batch_size=request.batch_size)
        elif request.sounds:
            sounds = sources.folder(
                request.sounds, request.captions_file, batch_size=request.batch_size
            )
        else:
            if request.protocol:
                sources.check_unseen(model, data)
            sounds, made_by = _generated(request, data, truths, model)
    scores: list[base.Score] = []
    for samples in dict.fromkeys(evaluator.samples for evaluator in evaluators):
        group = [evaluator for evaluator in evaluators if evaluator.samples == samples]
        references = base.no_sounds()
        if any("references" in evaluator.needs for evaluator in group):
            if samples is None:
                samples = round(sounds.samples * SAMPLE_RATE / sounds.sample_rate)
            references = sources.references(
                request.reference, data, samples, batch_size=request.batch_size
            )
        scores += base.run(group, base.Inputs(sounds, references))
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
            "scores": base.values(scores),
        }
        comparison.write(folder, SCORES, result, scores)
        for score in scores:
            ends = (
                f"   {score.interval[0]:.4g} to {score.interval[1]:.4g}" if score.interval else ""
            )
            print(f"{score.name:<30}{score.value:>9.4g}{ends}")
        for note in dict.fromkeys(note for score in scores for note in score.notes):
            print(f"Note: {note}")
        print(f"All scores: {folder / SCORES}")
    return base.values(scores)


def _samples(request: Evaluation, model: str) -> int:
    """Returns the length of the sounds that the model would generate, at 16 kHz."""
    from maa_jax.audio.io import SAMPLE_RATE
    from maa_jax.model_folder import hub
    from maa_jax.model_folder.index import load_index

    (seconds,) = request.durations(
        load_index(hub.resolve(model), meta=("max_duration",))["max_duration"], 1
    )
    return round(seconds * SAMPLE_RATE)


def _generated(
    request: Evaluation, data: "DataConfig", truths: Sequence[Mapping[str, Any]], model: str
) -> "tuple[Sounds, dict[str, str]]":
    """Returns sounds that a model generates on demand from captions, and the model's record."""
    import jax
    import numpy as np

    from maa_jax.audio import io
    from maa_jax.evaluators import sources
    from maa_jax.model_folder.index import content_hash
    from maa_jax.pipeline.pipeline import Pipeline, Ranked

    several = jax.local_device_count() > 1
    pipe = Pipeline.from_pretrained(model, devices=jax.local_devices() if several else None)
    recordings = sources.metadata(data)
    prompts = sources.choose_prompts(
        [recording["captions"] for recording in recordings],
        request.captions_per_recording,
        request.num_prompts,
    )
    captions = [caption for _, caption in prompts]
    labels = [recordings[number]["labels"] for number, _ in prompts]
    (seconds,) = request.durations(pipe.max_duration, 1)
    samples = round(seconds * pipe.sample_rate)
    step = 1 if request.start_from == "next" else 0
    begun = [(number + step) % len(recordings) for number, _ in prompts]
    names = [recordings[number]["id"] for number in begun]
    editing: dict[str, Any] = {}
    clip = sources.clips(data, samples) if request.start_from else None
    keep = None
    if request.keep_wavs:
        wavs, files = make_folder(f"{request.out}/wavs"), file_names(captions)
        rows = zip(files, captions, labels, names, strict=True)
        lines = [
            json.dumps(dict(file=f, prompt=c, labels=list(of), recording=name))
            for f, c, of, name in rows
        ]
        (wavs / sources.TABLE).write_text("\n".join(lines) + "\n", "utf-8")
        keep = lambda number, wav: io.write_wav(wavs / files[number], wav, pipe.sample_rate)

    def generate(some: list[str], first: int) -> np.ndarray:
        if clip is not None:
            editing["audio"] = [clip(begun[first + i]) for i in range(len(some))]
        if request.fill:
            frames = -(-samples // pipe.model.mel.hop_length)
            rngs = (np.random.default_rng((request.seed, first + i)) for i in range(len(some)))
            drawn = [draw(request.fill, pipe.model.mel.n_mels, frames, rng) for rng in rngs]
            editing["mask"] = np.stack(drawn)
        options = request.keywords() | {"start_index": first * request.tries}
        made = pipe(some, **editing, **options)
        return np.asarray(made.sounds if isinstance(made, Ranked) else made)

    sounds = sources.generated(
        generate,
        captions,
        pipe.sample_rate,
        samples,
        labels=labels,
        truths=[truths[number] for number, _ in prompts] if truths else (),
        recordings=names,
        batch_size=request.batch_size,
        keep=keep,
    )
    return sounds, {"model_sha256": content_hash(pipe.path)}
