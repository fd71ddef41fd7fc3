"""Writes report.html, a self-contained page on the results of the demo.

    python -m maa_jax.report --workdir=demo

Reads the folder that launch/demo.sh fills: `bundled/` and `trained/` (the output of
maa_jax.sample), the workdir of each stage, the model folder `models/t2a`, and times.tsv.
"""

import dataclasses
import datetime
import functools
import io
import json
import os
import pathlib
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from maa_jax import command, pages
from maa_jax.files import lock, replace_file, user_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from maa_jax.audio.mel import MelConfig

STAGES = {
    "clap": ("CLAP", "which caption belongs to which sound"),
    "retriever": ("Retriever", "captions of other recordings that match a recording"),
    "autoencoder": ("Autoencoder", "spectrogram to latent and back"),
    "vocoder": ("Vocoder", "spectrogram to waveform"),
    "t2a": ("Diffusion", "prompt to latent"),
}
STEPS = {
    "bundled": "Sounds of the bundled model",
    "data": "Building the dataset",
    **{name: f"Training: {title}" for name, (title, _) in STAGES.items()},
    "enhanced": "Finding captions",
    "trained": "Sounds of the model trained here",
}
RECORDINGS = 4  # shown with their reconstructions
# Scalars that describe a run's settings, not its progress.
_NOT_LOSSES = ("learning_rate", "grad_norm")
_MAX_CURVES = 6  # per stage
_COLOURS = "magma"
_LEVELS = (-4.5, 1.0)  # log10 mel magnitudes at both ends of the colours
_LIGHT = {"ink": "#3d4148", "grid": "#e3e5e8", "train": "#8d2b7e", "validation": "#e0761a"}
_DARK = {"ink": "#c3c7ce", "grid": "#33373e", "train": "#d27ac6", "validation": "#fca35d"}

Scalars = dict[str, list[tuple[int, float]]]
Draw = Callable[["Figure", Mapping[str, str]], None]


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture in both of the page's themes.

    Attributes:
      light: data URI of the PNG on a light background.
      dark: data URI of the PNG on a dark background.
      about: description of the picture, its alternative text.
    """

    light: str
    dark: str
    about: str


@dataclasses.dataclass(frozen=True)
class Sound:
    """A sound's title, spectrogram and player.

    Attributes:
      title: source of the sound.
      about: title and caption.
      image: spectrogram.
      audio: data URI of the FLAC file.
    """

    title: str
    about: str
    image: Picture
    audio: str


@dataclasses.dataclass(frozen=True)
class Row:
    """Sounds that belong to one caption."""

    heading: str
    note: str
    sounds: Sequence[Sound]


@dataclasses.dataclass(frozen=True)
class Run:
    """The training of one stage, with a picture of each of its losses."""

    title: str
    what: str
    note: str
    curves: Sequence[Picture]


def define_flags() -> None:
    """Defines this program's flags."""
    flags.DEFINE_string("workdir", None, "Folder that launch/demo.sh filled.", required=True)


# Pictures and sounds.


def picture(draw: Draw, size: tuple[float, float], about: str) -> Picture:
    """Draws a figure in both themes.

    Args:
      draw: function that draws a figure in the colours of a theme.
      size: width and height in inches.
      about: description of the picture.
    """
    light, dark = (_png(draw, size, theme) for theme in (_LIGHT, _DARK))
    return Picture(light, dark, about)


def _png(draw: Draw, size: tuple[float, float], theme: Mapping[str, str]) -> str:
    """Returns the data URI of a drawing on a transparent background."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    ink = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(ink, theme["ink"]) | {"font.size": 8}
    settings |= dict.fromkeys(("axes.edgecolor", "grid.color"), theme["grid"])
    with matplotlib.rc_context(settings):
        figure = Figure(size, dpi=160, layout="constrained")
        draw(figure, theme)
        file = io.BytesIO()
        figure.savefig(file, transparent=True)
    return pages.data_uri(file.getvalue(), "image/png")


def spectrogram(mel: np.ndarray, config: "MelConfig", about: str) -> Picture:
    """Returns a picture of a log mel [frames, n_mels] with axes in s and kHz."""
    from maa_jax.audio.mel import mel_frequencies

    seconds = len(mel) * config.hop_length / config.sample_rate
    centres = mel_frequencies(config.n_mels + 2, config.fmin, config.fmax)[1:-1]
    ticks = [f for f in (500, 1000, 2000, 4000, 8000) if f <= centres[-1] * 1.1]

    def draw(figure, theme):
        axes = figure.add_subplot()
        axes.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            cmap=_COLOURS,
            vmin=_LEVELS[0],
            vmax=_LEVELS[1],
            extent=(0, seconds, -0.5, config.n_mels - 0.5),
        )
        axes.set_yticks(np.interp(ticks, centres, np.arange(config.n_mels)))
        axes.set_yticklabels([f"{f / 1000:g}" for f in ticks])
        axes.set_xlabel("s")
        axes.set_ylabel("kHz")
        axes.spines[:].set_visible(False)

    return picture(draw, (3.2, 1.7), f"spectrogram: {about}")


def sound(title: str, wav: np.ndarray, config: "MelConfig", caption: str) -> Sound:
    """Returns a waveform [samples] with its spectrogram and caption, for the page."""
    import jax.numpy as jnp

    from maa_jax.audio.io import encode_flac
    from maa_jax.audio.mel import log_mel

    about = f"{title}: {caption}"
    mel = np.asarray(log_mel(jnp.asarray(wav)[None], config))[0]
    flac = encode_flac(wav, config.sample_rate)
    return Sound(title, about, spectrogram(mel, config, about), pages.data_uri(flac, "audio/flac"))


# Parts of the page.


def prompts(workdir: pathlib.Path, config: "MelConfig") -> list[Row]:
    """Returns a row for each prompt: sounds of the bundled model and of the one trained here."""
    from maa_jax.audio.io import load

    titles = {"bundled": "Bundled model", "trained": "Trained here"}
    files = {name: read_samples(workdir / name) for name in titles}
    return [
        Row(
            prompt,
            "",
            [
                sound(title, load(files[name][prompt], config.sample_rate), config, prompt)
                for name, title in titles.items()
                if prompt in files[name]
            ],
        )
        for prompt in files["bundled"]
    ]


def read_samples(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {prompt: first wav file} for a folder that maa_jax.sample wrote."""
    files: dict[str, pathlib.Path] = {}
    for line in read(folder / "samples.jsonl").splitlines():
        entry = json.loads(line)
        files.setdefault(entry["prompt"], folder / entry["file"])
    return files


def reconstructions(workdir: pathlib.Path, config: "MelConfig") -> list[Row]:
    """Returns a row for each of some held-out recordings.

    A row has the recording itself, its reconstruction by autoencoder and vocoder, and a sample for
    its caption.
    """
    from maa_jax.data import datasets, input_pipeline
    from maa_jax.pipeline.pipeline import Pipeline
    from maa_jax.training.workdir_files import read_config

    data = read_config(str(workdir / "t2a")).data
    examples = datasets.metadata(data, data.eval_split)
    chosen = longest_of_each_class(examples)[:RECORDINGS]
    batches = input_pipeline.eval_batches(data, batch_size=1)
    audio = np.concatenate([batch["audio"] for batch in batches])[chosen]
    captions = [examples[i]["captions"][0] for i in chosen]

    pipe = Pipeline.from_pretrained(workdir / "models" / "t2a")
    sounds: dict[str, Any] = {
        "Recording": audio,
        "Reconstruction": pipe.decode(pipe.encode(audio))[:, : audio.shape[1]],
        "Sample for its caption": pipe(captions, seed=0),
    }
    return [
        Row(
            captions[i],
            examples[index]["id"],
            [sound(title, wavs[i], config, captions[i]) for title, wavs in sounds.items()],
        )
        for i, index in enumerate(chosen)
    ]


def longest_of_each_class(examples: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the index of each class's longest recording, longest first.

    The shortest ones have little to see or hear. A recording without labels is a class of its own.
    """
    order = sorted(range(len(examples)), key=lambda i: -examples[i]["seconds"])
    classes: dict[Any, int] = {}
    for i in order:
        classes.setdefault(tuple(examples[i]["labels"]) or examples[i]["id"], i)
    return list(classes.values())


def read_scalars(run: pathlib.Path) -> Scalars:
    """Returns {name: [(step, value)]} of a run's TensorBoard events.

    A resumed run may have two values for a step; the later one counts.
    """
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(run), size_guidance={"tensors": 0}).Reload()
    scalars = {}
    for name in events.Tags()["tensors"]:
        if name.startswith(("train/", "validation/")):
            points = {
                e.step: tensor_util.make_ndarray(e.tensor_proto) for e in events.Tensors(name)
            }
            scalars[name] = [(step, float(value)) for step, value in sorted(points.items())]
    return scalars


def curves(stage: str, scalars: Scalars) -> list[Picture]:
    """Returns a picture of each loss, with training and validation curves."""
    names = dict.fromkeys(key.split("/", 1)[1] for key in scalars)
    losses = [name for name in names if name.split("/")[0] not in _NOT_LOSSES]
    # The total loss comes before its parts, and losses of both splits before the others.
    losses.sort(key=lambda key: (key != "loss", f"validation/{key}" not in scalars))

    def draw(figure, theme, key):
        axes = figure.add_subplot()
        axes.set_title(key.replace("_", " "), fontsize=9)
        for split in ("train", "validation"):
            points = scalars.get(f"{split}/{key}")
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    ".-" if len(points) < 30 else "-",
                    color=theme[split],
                    label=split,
                    linewidth=1.2,
                    markersize=4,
                )
        axes.grid(linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=7)

    return [
        picture(functools.partial(draw, key=key), (2.8, 1.9), f"{key} of {stage} by step")
        for key in losses[:_MAX_CURVES]
    ]


def training(workdir: pathlib.Path) -> list[Run]:
    """Returns the loss curves of every stage."""
    runs = []
    for name, (title, what) in STAGES.items():
        config = json.loads(read(workdir / name / "config.json"))
        scalars = read_scalars(workdir / name)
        if not scalars:
            raise ValueError(f"{workdir / name} holds no TensorBoard scalars: train this stage")
        seconds = config["data"]["samples"] / config["mel"]["sample_rate"]
        note = f"{config['total_steps']:,} steps of {config['batch_size']} clips of {seconds:.3g} s"
        runs.append(Run(title, what, note, curves(title, scalars)))
    return runs


def times(workdir: pathlib.Path) -> list[tuple[str, str]]:
    """Returns the total time of each step of the demo over all its attempts, and their sum."""
    seconds = dict.fromkeys(STEPS, 0)
    for line in read(workdir / "times.tsv").splitlines():
        name, took = line.split("\t")
        if name in seconds:
            seconds[name] += int(took)
    rows = [(STEPS[name], clock(took)) for name, took in seconds.items()]
    return [*rows, ("Total", clock(sum(seconds.values())))]


def clock(seconds: int) -> str:
    """Returns a time as minutes and seconds."""
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def machine() -> list[tuple[str, str]]:
    """Returns the hardware and software that this runs on."""
    import jax

    import maa_jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = f"maa_jax {maa_jax.__version__}, jax {jax.__version__}"
    return [
        ("Processor", f"{processor()}, {cores} cores"),
        ("Memory", f"{memory:.0f} GiB"),
        ("Computed on", f"{len(jax.devices())} × {jax.devices()[0].device_kind}"),
        ("System", f"{platform.system()} {platform.machine()}"),
        ("Versions", f"{versions}, Python {platform.python_version()}"),
    ]


def processor() -> str:
    """Returns the processor's name, if the system states it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read(path: pathlib.Path) -> str:
    """Returns a file's text.

    Raises:
      ValueError: the file is missing because the demo did not get that far.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: run launch/demo.sh with this workdir first")
    return path.read_text("utf-8")


def page(workdir: pathlib.Path) -> str:
    """Returns the whole page."""
    from maa_jax.data import datasets
    from maa_jax.model_folder.model import read_model
    from maa_jax.training.workdir_files import read_config

    # The quick parts first: they fail if the demo did not finish.
    took, runs = times(workdir), training(workdir)
    mel = read_model(workdir / "models" / "t2a").mel
    return pages.render(
        "demo.html",
        times=took,
        runs=runs,
        recordings=len(datasets.metadata(read_config(str(workdir / "t2a")).data)),
        prompts=prompts(workdir, mel),
        reconstructions=reconstructions(workdir, mel),
        machine=machine(),
        today=datetime.date.today(),
        workdir=workdir,
    )


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes workdir/report.html, whole or not at all, and returns its path."""
    content = page(workdir)
    path = workdir / "report.html"
    with lock(workdir), replace_file(path) as new:
        new.write_text(content, "utf-8")
    return path


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    path = write_report(pathlib.Path(user_path(flags.FLAGS.workdir)))
    print(f"Wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def run() -> None:
    """Entry point of `python -m maa_jax.report` and of `maa-report`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
