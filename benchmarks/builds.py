r"""Rate and memory of building a dataset.

    python -m benchmarks.builds [--clips=20000] [--seconds=1] [--rate=44100]

Writes stereo wav files of noise into a temporary folder and builds the dataset audio_folder from
them: it reads, resamples, hashes, encodes as FLAC, shuffles and writes ArrayRecord files. Prints
clips per second and the peak memory of the process. TFDS keeps up to 1 GB of FLAC in memory before
it shuffles on disk.
"""

import csv
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import soundfile
from absl import app, flags

from maa_jax.data.builders.audio_folder import AudioFolder

_CLIPS = flags.DEFINE_integer("clips", 20000, "Number of clips.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of each clip in seconds.")
_RATE = flags.DEFINE_integer("rate", 44100, "Sample rate of the wav files in Hz.")


def peak_mib() -> float:
    """Returns the peak resident memory of the process so far in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main(argv: list[str]) -> None:
    """Prints the figures in one line."""
    del argv
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        with (folder / "captions.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("file", "caption", "label"))
            for i in range(_CLIPS.value):
                wav = rng.normal(0, 0.1, (round(_SECONDS.value * _RATE.value), 2))
                soundfile.write(folder / f"{i}.wav", wav, _RATE.value)
                table.writerow((f"{i}.wav", f"noise, number {i}", f"noise {i % 50}"))
        builder = AudioFolder(
            folder=folder, captions_file=folder / "captions.csv", data_dir=folder / "tfds"
        )
        before, begin = peak_mib(), time.perf_counter()
        builder.download_and_prepare()
        seconds = time.perf_counter() - begin
    print(
        f"{_CLIPS.value} clips of {_SECONDS.value:g} s in {seconds:.1f} s:"
        f" {_CLIPS.value / seconds:.0f} clips/s on {cores()} core(s);"
        f" memory {before:.0f} MiB before, {peak_mib():.0f} MiB at most"
    )


if __name__ == "__main__":
    app.run(main)
