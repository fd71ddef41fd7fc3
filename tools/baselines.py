"""Folders of sounds that scores should rank: recordings, Griffin-Lim on their mels, and noise.

    python -m tools.baselines --dataset=general_midi/40000x4.1 --split="test[:100]" --out=baselines

Each of OUT/recordings, OUT/griffin_lim (60 iterations) and OUT/noise (white, as loud as each
recording) has a samples.jsonl with captions and recordings, which maa_jax.evaluate reads.
"""

import json
import pathlib

import numpy as np
from absl import app, flags

from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig, log_mel
from maa_jax.evaluators import sources
from maa_jax.evaluators.reconstruction import griffin_lim


def write(data: dict, samples: int, out: pathlib.Path) -> None:
    """Writes the three folders.

    Args:
      data: dataset; see `DataConfig`.
      samples: length of the sounds at 16 kHz, a multiple of the hop.
      out: folder of the folders.
    """
    config, rng = MelConfig(), np.random.default_rng(0)
    lines: dict[str, list[str]] = {name: [] for name in ("recordings", "griffin_lim", "noise")}
    clip = sources.clips(data, samples)
    for number, recording in enumerate(sources.metadata(data)):
        wav = clip(number)
        mel = np.asarray(log_mel(wav[None], config))[0]
        noise = rng.normal(0, np.sqrt(np.mean(np.square(wav))), samples)
        sounds = wav, griffin_lim(mel, config), np.clip(noise, -1, 1)
        for name, sound in zip(lines, sounds, strict=True):
            file = out / name / f"{number:04}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            io.write_wav(file, sound)
            row = {
                "file": file.name,
                "prompt": recording["captions"][0],
                "labels": list(recording["labels"]),
                "recording": recording["id"],
            }
            lines[name].append(json.dumps(row) + "\n")
    for name, rows in lines.items():
        (out / name / sources.TABLE).write_text("".join(rows), "utf-8")


def define_flags() -> None:
    """Defines the flags, of which another tool has some too: call it only from this program."""
    flags.DEFINE_string("dataset", "sonic_sounds", "Dataset of the recordings.")
    flags.DEFINE_string("split", "test", "Split of the dataset.")
    flags.DEFINE_string("data_dir", None, "Where TFDS keeps datasets.")
    flags.DEFINE_float("seconds", 4.096, "Length of the sounds.", lower_bound=0.1)
    flags.DEFINE_string("out", None, "Folder of the folders.", required=True)


def main(_: list[str]) -> None:
    """Runs the program that this module's docstring describes."""
    hop = MelConfig().hop_length
    samples = round(flags.FLAGS.seconds * io.SAMPLE_RATE / hop) * hop
    data = {
        "dataset": flags.FLAGS.dataset,
        "split": flags.FLAGS.split,
        "data_dir": flags.FLAGS.data_dir,
    }
    write(data, samples, pathlib.Path(flags.FLAGS.out))


if __name__ == "__main__":
    define_flags()
    app.run(main)
