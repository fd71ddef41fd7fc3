"""Writes what a demo made into one page, report.html, that needs nothing beside it.

    python -m maa_jax.report --workdir=demo

Reads the folder that launch/demo.sh fills: `bundled/` and `trained/` (maa_jax.sample's output), a
run's folder a stage, `models/t2a`, and times.tsv. Sounds and images are inside the page.
"""

import base64
import datetime
import functools
import html
import io
import json
import os
import pathlib
import platform
from collections.abc import Iterable, Sequence

import numpy as np
from absl import flags

from maa_jax import command

STAGES = {
    "clap": ("CLAP", "which caption belongs to which sound"),
    "retriever": ("Retriever", "a sound to captions of others"),
    "autoencoder": ("Autoencoder", "spectrogram to latent and back"),
    "vocoder": ("Vocoder", "spectrogram to sound"),
    "t2a": ("Diffusion", "sentence to latent"),
}
STEPS = {
    "bundled": "Sound from the bundled model",
    "data": "Building the dataset",
    **{name: f"Training: {title.lower()}" for name, (title, _) in STAGES.items()},
    "enhanced": "Finding captions",
    "trained": "Sound from the model trained here",
}
RECORDINGS = 4  # shown beside their reconstruction
SPLIT = "validation"
# Scalars that tell how a run was set, not how it went.
_NOT_LOSSES = ("learning_rate", "grad_norm", "halted")
_PANELS = 6  # at most, a stage
_COLOURS = "magma"
_LIGHT = {"ink": "#3d4148", "grid": "#e3e5e8", "train": "#8d2b7e", "validation": "#e0761a"}
_DARK = {"ink": "#c3c7ce", "grid": "#33373e", "train": "#d27ac6", "validation": "#fca35d"}


def define_flags() -> None:
    """Defines this program's flags."""
    flags.DEFINE_string("workdir", None, "The folder that demo.sh filled.", required=True)


# Images and sounds as text inside the page.


def data_uri(content: bytes, kind: str) -> str:
    """Returns `content` as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(draw, size: tuple[float, float], theme: dict[str, str]) -> str:
    """Returns the address of a drawing: `draw(figure, theme)` on a transparent ground."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib.figure import Figure

    ink = {"text.color": "ink", "axes.labelcolor": "ink", "xtick.color": "ink"}
    ink |= {"ytick.color": "ink", "axes.edgecolor": "grid", "grid.color": "grid"}
    settings = {key: theme[name] for key, name in ink.items()} | {"font.size": 8}
    with matplotlib.rc_context(settings):
        figure = Figure(size, dpi=160, layout="constrained")
        draw(figure, theme)
        file = io.BytesIO()
        figure.savefig(file, transparent=True)
    return data_uri(file.getvalue(), "image/png")


def picture(draw, size: tuple[float, float], about: str) -> str:
    """Returns a drawing in both themes; the page shows the reader's."""
    light, dark = png(draw, size, _LIGHT), png(draw, size, _DARK)
    return (
        f'<picture><source srcset="{dark}" media="(prefers-color-scheme: dark)">'
        f'<img src="{light}" alt="{html.escape(about)}"></picture>'
    )


def spectrogram(mel: np.ndarray, config, about: str) -> str:
    """Returns a picture of a log mel [frames, n_mels] with axes in s and kHz."""
    import librosa

    seconds = len(mel) * config.hop_length / config.sample_rate
    centres = librosa.mel_frequencies(config.n_mels + 2, fmin=config.fmin, fmax=config.fmax)[1:-1]
    marks = [f for f in (500, 1000, 2000, 4000, 8000) if f <= centres[-1] * 1.1]

    def draw(figure, theme):
        axes = figure.add_subplot()
        axes.imshow(
            mel.T,
            origin="lower",
            aspect="auto",
            cmap=_COLOURS,
            vmin=-4.5,
            vmax=1.0,
            extent=(0, seconds, -0.5, config.n_mels - 0.5),
        )
        axes.set_yticks(np.interp(marks, centres, np.arange(config.n_mels)))
        axes.set_yticklabels([f"{f / 1000:g}" for f in marks])
        axes.set_xlabel("s")
        axes.set_ylabel("kHz")
        axes.spines[:].set_visible(False)

    return picture(draw, (3.2, 1.7), f"spectrogram: {about}")


def player(wav: np.ndarray, sample_rate: int, about: str) -> str:
    """Returns an audio element that holds a waveform [samples]."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, wav, sample_rate, subtype="PCM_16", format="WAV")
    return (
        f'<audio controls preload="metadata" aria-label="{html.escape(about)}" '
        f'src="{data_uri(file.getvalue(), "audio/wav")}"></audio>'
    )


def sound(title: str, wav: np.ndarray, mel: np.ndarray, config, about: str) -> str:
    """Returns a sound's spectrogram and player under a title."""
    about = f"{title}: {about}"
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f"{spectrogram(mel, config, about)}{player(wav, config.sample_rate, about)}</figure>"
    )


def row(heading: str, note: str, figures: Iterable[str]) -> str:
    """Returns figures side by side under a heading."""
    note = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return (
        f"<article><h3>{html.escape(heading)}</h3>{note}"
        f'<div class="row">{"".join(figures)}</div></article>'
    )


# The page's parts.


def sentences(workdir: pathlib.Path, config) -> str:
    """Returns a row a sentence: the bundled model's sound, and that of the model trained here."""
    from maa_jax.audio import io as audio_io
    from maa_jax.audio.mel import log_mel

    made = {name: read_samples(workdir / name) for name in ("bundled", "trained")}
    rows = []
    for prompt in made["bundled"]:
        figures = []
        for name, title in (("bundled", "Bundled model"), ("trained", "Trained here")):
            if prompt in made[name]:
                wav = audio_io.load(made[name][prompt], config.sample_rate)
                mel = np.asarray(log_mel(wav[None], config))[0]
                figures.append(sound(title, wav, mel, config, prompt))
        rows.append(row(f"“{prompt}”", "", figures))
    return "".join(rows)


def read_samples(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns {prompt: its first wav file} of a folder that maa_jax.sample wrote."""
    files = {}
    for line in read(folder / "samples.jsonl").splitlines():
        entry = json.loads(line)
        files.setdefault(entry["prompt"], folder / entry["file"])
    return files


def reconstructions(workdir: pathlib.Path, config) -> str:
    """Returns a row a recording: itself, through autoencoder and vocoder, and for its caption."""
    import jax

    from maa_jax.audio.mel import log_mel
    from maa_jax.data import datasets, input_pipeline
    from maa_jax.model_folder import networks
    from maa_jax.pipeline.pipeline import Pipeline
    from maa_jax.training.checkpoint import read_config

    folder = workdir / "models" / "t2a"
    data = read_config(str(workdir / "t2a")).data
    examples = datasets.metadata(data, data.eval_split)
    chosen = longest_of_each_class(examples)[:RECORDINGS]
    audio = np.concatenate(
        [batch["audio"] for batch in input_pipeline.eval_batches(data, batch_size=1)]
    )[chosen]
    captions = [examples[i]["captions"][0] for i in chosen]

    graphs, params = {}, {}
    for name in ("vae", "vocoder"):
        graphs[name], params[name] = networks.load_network(folder, name)

    @jax.jit
    def reconstruct(params, audio):
        vae = networks.build(graphs["vae"], params["vae"])
        mean, _ = vae.encode(log_mel(audio, config).swapaxes(1, 2)[..., None])
        mel = vae.decode(mean)[..., 0].swapaxes(1, 2)
        wav = networks.build(graphs["vocoder"], params["vocoder"])(mel)
        return wav.clip(-1, 1)

    again = np.asarray(reconstruct(params, audio))
    samples = Pipeline.from_pretrained(folder)(captions, seed=0)
    titles = ("Recording", "Through autoencoder and vocoder", "Sample for its caption")
    sounds = dict(zip(titles, (audio, again, samples), strict=True))
    mels = {title: np.asarray(log_mel(wavs, config)) for title, wavs in sounds.items()}
    rows = []
    for i, index in enumerate(chosen):
        figures = [
            sound(title, wavs[i], mels[title][i], config, captions[i])
            for title, wavs in sounds.items()
        ]
        rows.append(row(f"“{captions[i]}”", examples[index]["id"], figures))
    return "".join(rows)


def longest_of_each_class(examples: list[dict]) -> list[int]:
    """Returns indices, the longest recording first: the shortest ones show and tell little."""
    order = sorted(range(len(examples)), key=lambda i: -examples[i]["seconds"])
    classes = {}
    for i in order:
        classes.setdefault(tuple(examples[i]["labels"]) or examples[i]["id"], i)
    return list(classes.values())


def read_scalars(run: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns {name: [(step, value)]} of a run's TensorBoard events, its later word for a step."""
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


def curves(stage: str, scalars: dict[str, list[tuple[int, float]]]) -> str:
    """Returns a picture a loss, training and validation in one."""
    losses = dict.fromkeys(key.split("/", 1)[1] for key in scalars)
    losses = [key for key in losses if key not in _NOT_LOSSES]
    # The whole loss before its parts, and first what both splits have.
    losses.sort(key=lambda key: (key != "loss", f"validation/{key}" not in scalars))

    def draw(figure, theme, key):
        axes = figure.add_subplot()
        axes.set_title(key.replace("_", " "), fontsize=9)
        for split in ("train", "validation"):
            points = scalars.get(f"{split}/{key}")
            if points:
                mark = "." if len(points) < 30 else ""
                axes.plot(*zip(*points, strict=True), mark + "-", color=theme[split], label=split,
                          linewidth=1.2, markersize=4)  # fmt: skip
        axes.grid(linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step")
        axes.legend(frameon=False, fontsize=7)

    return "".join(
        picture(functools.partial(draw, key=key), (2.8, 1.9), f"{key} of {stage} by step")
        for key in losses[:_PANELS]
    )


def training(workdir: pathlib.Path) -> str:
    """Returns the loss curves of every stage."""
    parts = []
    for name, (title, what) in STAGES.items():
        config = json.loads(read(workdir / name / "config.json"))
        scalars = read_scalars(workdir / name)
        if not scalars:
            raise ValueError(f"{workdir / name} holds no TensorBoard scalars: train this stage")
        clip = config["data"]["samples"] / config["mel"]["sample_rate"]
        note = f"{config['total_steps']:,} steps of {config['batch_size']} clips of {clip:.3g} s"
        parts.append(
            f"<article><h3>{title}: {what}</h3>"
            f'<p class="note">{note}</p>'
            f'<div class="curves">{curves(title, scalars)}</div></article>'
        )
    return "".join(parts)


def table(rows: Iterable[Sequence[str]], last: str = "") -> str:
    """Returns a table of two columns; `last` is the class of its last row."""
    lines = [
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    ]
    if last:
        lines[-1] = lines[-1].replace("<tr>", f'<tr class="{last}">', 1)
    return f"<table>{''.join(lines)}</table>"


def times(workdir: pathlib.Path) -> str:
    """Returns the table of what each step of the demo took, all its starts together."""
    seconds = dict.fromkeys(STEPS, 0)
    for line in read(workdir / "times.tsv").splitlines():
        name, took = line.split("\t")
        if name in seconds:
            seconds[name] += int(took)
    rows = [(STEPS[name], clock(took)) for name, took in seconds.items()]
    return table([*rows, ("Together", clock(sum(seconds.values())))], "sum")


def clock(seconds: int) -> str:
    """Returns a time as minutes and seconds."""
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


def machine() -> str:
    """Returns the table of what this ran on."""
    import jax

    import maa_jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return table(
        [
            ("Processor", f"{processor()}, {cores} cores"),
            ("Memory", f"{memory:.0f} GB"),
            ("Computed on", f"{len(jax.devices())} × {jax.devices()[0].device_kind}"),
            ("System", f"{platform.system()} {platform.machine()}"),
            ("Versions", f"maa_jax {maa_jax.__version__}, jax {jax.__version__}, "
                         f"Python {platform.python_version()}"),
        ]
    )  # fmt: skip


def processor() -> str:
    """Returns the processor's name where the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def read(path: pathlib.Path) -> str:
    """Returns a file's text.

    Raises:
      ValueError: it is missing: the demo did not get that far.
    """
    if not path.exists():
        raise ValueError(f"{path} is missing: run launch/demo.sh with this workdir first")
    return path.read_text("utf-8")


# Beside `maa_jax.enhance_report.STYLE`.
_STYLE = """
main { max-width: 1060px }
h2 { margin-top: 3rem }
.row, .tables { display: flex; flex-wrap: wrap; gap: 1rem }
figure { margin: .6rem 0 0; flex: 1 1 260px; min-width: 0; max-width: 480px }
figcaption, footer { font-size: .88rem; color: var(--soft) }
img { display: block; width: 100%; height: auto }
.curves { display: grid; gap: .6rem; margin-top: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 280px), 1fr)) }
.curves picture { max-width: 420px }
.tables article { flex: 1 1 300px }
td { text-align: right }
.sum > * { font-weight: 600; color: var(--ink) }
footer { margin-top: 3rem }
"""


def page(workdir: pathlib.Path) -> str:
    """Returns the whole page."""
    from maa_jax.audio.mel import MelConfig
    from maa_jax.data import datasets
    from maa_jax.model_folder.index import load_index
    from maa_jax.pages import STYLE
    from maa_jax.training.checkpoint import read_config

    # First what is quick, and tells whether the demo got to its end.
    time_table, losses = times(workdir), training(workdir)
    recordings = datasets.num_examples(read_config(str(workdir / "t2a")).data)
    index = load_index(workdir / "models" / "t2a", meta=("mel",))
    config = MelConfig(**index["mel"])
    today = datetime.date.today()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>maa_jax: from sentences to sound</title>
<link rel="icon" href="data:,">
<style>{STYLE}{_STYLE}</style>
</head>
<body>
<main>
<h1>From sentences to sound</h1>
<p>Made by <code>launch/demo.sh</code> on this machine, {today.day} {today:%B %Y}. Everything is in
this one file: it can be moved, sent and opened offline.</p>

<h2>Five sentences</h2>
<p>First the model that comes with the package, then the one that was trained here in a few
minutes, from random weights and {recordings} short recordings: it shows that every stage works, not
what they can do.</p>
{sentences(workdir, config)}

<h2>Recording, reconstruction, sample</h2>
<p>The longest recordings that training did not see, one a class; what remains of them after the
autoencoder and the vocoder, which bounds how good a sample can sound; and what diffusion makes of
the caption alone. All by the model trained here.</p>
{reconstructions(workdir, config)}

<h2>Training</h2>
<p>Each stage's losses. More in TensorBoard: <code>tensorboard --logdir={html.escape(str(workdir))}
</code></p>
{losses}

<h2>Time and machine</h2>
<div class="tables"><article>{time_table}</article><article>{machine()}</article></div>

<footer>Recordings: Sonic Pi's samples, CC0 1.0, by their authors on freesound.org; named in
maa_jax/data/builders/sonic_sounds/recordings.csv.</footer>
</main>
</body>
</html>
"""


def write_report(workdir: pathlib.Path) -> pathlib.Path:
    """Writes workdir/report.html, whole or not at all, and returns its path."""
    content = page(workdir)
    path = workdir / "report.html"
    temporary = workdir / ".report.html.part"
    temporary.write_text(content, "utf-8")
    temporary.replace(path)
    return path


def main() -> None:
    """Runs the program that this module's docstring describes."""
    from maa_jax import devices

    devices.initialize()
    path = write_report(pathlib.Path(flags.FLAGS.workdir))
    print(f"Wrote {path} ({path.stat().st_size / 2**20:.1f} MB)")


def run() -> None:
    """Entry point of `python -m maa_jax.report` and of `maa-report`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
