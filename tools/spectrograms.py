"""A picture of the sounds of a folder: spectrograms and waveforms.

python -m tools.spectrograms --sounds=out --out=docs/sounds.png
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig, log_mel


def draw(sounds: pathlib.Path, out: pathlib.Path, columns: int) -> None:
    """Draws all wav files of a folder, with their prompts where samples.jsonl has them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    files = sorted(sounds.glob("*.wav"))
    if not files:
        raise ValueError(f"sounds={str(sounds)!r} holds no wav file: give a folder with wav files")
    record = sounds / "samples.jsonl"
    lines = map(json.loads, record.read_text().splitlines()) if record.exists() else ()
    prompts = {line["file"]: line["prompt"] for line in lines}
    rows = -(-len(files) // columns)
    figure, axes = pyplot.subplots(
        2 * rows,
        columns,
        figsize=(5 * columns, 2.2 * rows),
        height_ratios=[3, 1] * rows,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    config = MelConfig()
    for number, file in enumerate(files):
        wav = io.load(file)
        seconds = len(wav) / config.sample_rate
        row, column = divmod(number, columns)
        above, below = axes[2 * row, column], axes[2 * row + 1, column]
        for axis in (above, below):
            axis.set_axis_on()
            axis.set_xticks([])
        mel = np.asarray(log_mel(wav[None], config))[0].T
        above.imshow(mel, origin="lower", aspect="auto", vmin=-4, vmax=1, cmap="magma")
        above.set_yticks([])
        above.set_title(prompts.get(file.name, file.stem), fontsize=9)
        below.plot(np.arange(len(wav)) / config.sample_rate, wav, linewidth=0.4)
        below.set(xlim=(0, seconds), ylim=(-1, 1), yticks=[-1, 1])
        below.tick_params(labelsize=6)
    figure.savefig(out, dpi=80)


def define_flags() -> None:
    """Defines the flags, of which another tool has some too: call it only from this program."""
    flags.DEFINE_string("sounds", None, "Folder of wav files.", required=True)
    flags.DEFINE_string("out", None, "The picture, a PNG.", required=True)
    flags.DEFINE_integer("columns", 2, "Sounds in a row.", lower_bound=1)


def main(_: list[str]) -> None:
    """Runs the program that this module's docstring describes."""
    draw(pathlib.Path(flags.FLAGS.sounds), pathlib.Path(flags.FLAGS.out), flags.FLAGS.columns)


if __name__ == "__main__":
    define_flags()
    app.run(main)
