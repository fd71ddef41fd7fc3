r"""Rate and memory of prompt enhancement on synthetic clips.

    python -m benchmarks.enhancement [--clips=20000] [--seconds=1] [--clap=bundled]

Writes wav files of noise and builds the dataset audio_folder from them in another process. Then
enhances it with an expert whose cost is negligible, so that reading, CLAP and writing are measured.
Prints the rate and the peak memory of both processes.
"""

import csv
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time

import numpy as np
import soundfile
from absl import app, flags

CAPTIONS = ("a low hum", "hiss", "rain falls on a roof", "wind in the trees", "a motor runs")


class Few:
    """An expert that proposes the same captions for every recording."""

    name = "few"

    def propose(self, audio, labels):
        return [list(CAPTIONS) for _ in audio]


def define_flags() -> None:
    """Defines the flags, only where this is the program: the expert is imported from here."""
    flags.DEFINE_integer("clips", 20000, "Number of recordings.", lower_bound=1)
    flags.DEFINE_float("seconds", 1.0, "Length of each recording in seconds.")
    flags.DEFINE_string("clap", "bundled", 'CLAP that scores: a model folder or "bundled".')
    flags.DEFINE_integer("batch_size", 32, "Recordings processed at a time.")
    flags.DEFINE_string("beam_options", None, "As for maa_jax.enhance.")


def build(folder: pathlib.Path, clips: int, seconds: float) -> None:
    """Writes the clips and builds audio_folder/noise from them."""
    from maa_jax.data.builders.audio_folder import AudioFolder

    rng = np.random.default_rng(0)
    (folder / "clips").mkdir()
    with (folder / "clips.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "label", "split"))
        for i in range(clips):
            wav = np.convolve(rng.normal(size=round(seconds * 16000)), rng.normal(size=9), "same")
            soundfile.write(folder / "clips" / f"{i}.wav", 0.5 * wav / np.abs(wav).max(), 16000)
            table.writerow((f"{i}.wav", f"noise {i % 10}", "train"))
    AudioFolder(
        folder=folder / "clips",
        captions_file=folder / "clips.csv",
        config="noise",
        data_dir=folder / "tfds",
    ).download_and_prepare()


def peak_mib(who: int) -> float:
    """Returns the peak resident memory so far in MiB."""
    return resource.getrusage(who).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(argv: list[str]) -> None:
    """Prints the figures."""
    del argv
    f = flags.FLAGS
    from maa_jax.enhancement.request import Enhancement
    from maa_jax.enhancement.run import enhance

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        child = multiprocessing.get_context("spawn").Process(
            target=build, args=(folder, f.clips, f.seconds)
        )
        child.start()
        child.join()
        if child.exitcode:
            sys.exit(f"the dataset could not be built: exit code {child.exitcode}")
        building = peak_mib(resource.RUSAGE_CHILDREN)
        begin = time.perf_counter()
        request = Enhancement(
            dataset="audio_folder/noise",
            out=str(folder / "tfds"),
            experts=("benchmarks.enhancement:Few",),
            clap=f.clap,
            threshold=0.0,
            clip_seconds=f.seconds,
            batch_size=f.batch_size,
            beam_options=f.beam_options,
        )
        enhance(request)
        seconds = time.perf_counter() - begin
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"{f.clips} clips of {f.seconds:g} s enhanced in {seconds:.0f} s, compilation included:"
        f" {f.clips / seconds:.0f} clips/s on {cores} core(s); memory at most"
        f" {peak_mib(resource.RUSAGE_SELF):.0f} MiB; building the source took {building:.0f} MiB"
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
