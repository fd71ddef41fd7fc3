r"""Hostile input, and kills of every program that writes: how many were tried, how many survived.

    python -m benchmarks.reliability [--kind=audio,sample] [--count=0] [--seed=0]

Kinds of input are those of `tests/fuzz/frame.py`. A case survives if it ends, within 10 s and 4 GB,
in a result that can be trusted or in one of this package's errors that names the file.

The other kinds are commands. Each is run once undisturbed, and then with SIGKILL at moments spread
evenly over the changes of the files that it writes, and once more. It survives if the second start
ends in the same result, bit for bit, and nothing is left behind.

What did not survive goes to stderr, and the table to stdout.
"""

import dataclasses
import hashlib
import importlib
import os
import pathlib
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import app, flags, logging

from tests.fuzz import frame

ROOT = pathlib.Path(__file__).parents[1]
STAGES = ("autoencoder", "captioner", "clap", "retriever", "t2a", "vocoder")
Result = dict[str, str]  # digest of each thing that a command makes


@dataclasses.dataclass(frozen=True)
class Job:
    """A command that is killed.

    Attributes:
      command: its arguments, given the folder that it writes to.
      result: what it has made in that folder.
      prepare: a command that is run before, once, given a folder that `command` finds as `../made`.
    """

    command: Callable[[pathlib.Path], list[str]]
    result: Callable[[pathlib.Path], Result]
    prepare: Callable[[pathlib.Path], list[str]] | None = None


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def files(folder: pathlib.Path) -> Result:
    """Digests of the files in a folder, apart from temporary ones."""
    paths = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
    return {str(path.relative_to(folder)): digest(path.read_bytes()) for path in paths}


def checkpoint(folder: pathlib.Path) -> Result:
    """Digests of all arrays of a run's last checkpoint."""
    import orbax.checkpoint as ocp

    last = max((folder / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name))
    found = {}
    for item in ("state", "ema"):
        tree = ocp.PyTreeCheckpointer().restore(last / item)
        for path, leaf in jax.tree.leaves_with_path(tree):
            found[f"{last.name}/{item}{jax.tree_util.keystr(path)}"] = digest(np.asarray(leaf))
    return found


def dataset(folder: pathlib.Path) -> Result:
    """Digests of the records of an enhanced dataset."""
    import tensorflow_datasets as tfds

    (version,) = (folder / "enhanced" / "killed").glob("[0-9]*.[0-9]*.[0-9]")
    builder = tfds.builder_from_directory(version)
    return {
        f"{split}/{i}": digest(repr(sorted(example.items())).encode())
        for split in builder.info.splits
        for i, example in enumerate(builder.as_data_source(split))
    }


def train(stage: str, folder: pathlib.Path, data: pathlib.Path, steps: int) -> list[str]:
    settings = {"total_steps": steps, "checkpoint_every": 2, "data.data_dir": data}
    return [
        "maa_jax.train",
        f"--config={stage}:runlocal",
        f"--workdir={folder / 'run'}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def sample(folder: pathlib.Path) -> list[str]:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("".join(f"rain and {i} birds\n" for i in range(10)))
    options = {"steps": 4, "batch_size": 4, "prompts_file": prompts, "out": folder / "out"}
    return ["maa_jax.sample", *(f"--{key}={value}" for key, value in options.items())]


def enhance(folder: pathlib.Path) -> list[str]:
    options = {
        "dataset": "sonic_sounds:train[:40]",
        "name": "killed",
        "out": folder,
        "experts": "labels",
        "clap": "bundled",
        "threshold": 0,
        "clip_seconds": 0.5,
        "batch_size": 8,
        "shard_size": 8,
    }
    return ["maa_jax.enhance", *(f"--{key}={value}" for key, value in options.items())]


JOBS = {
    f"train {stage}": Job(
        lambda folder, stage=stage: train(stage, folder, folder / "data", steps=5), checkpoint
    )
    for stage in STAGES
} | {
    "sample": Job(sample, files),
    "convert": Job(
        lambda folder: [
            "maa_jax.convert",
            "--from=workdir",
            f"--workdir={folder.parent / 'made' / 'run'}",
            f"--out={folder / 'model'}",
        ],
        files,
        prepare=lambda folder: train("t2a", folder, folder / "data", steps=1),
    ),
    "embed": Job(
        lambda folder: [
            "maa_jax.embed",
            "--config=t2a:runlocal",
            f"--out={folder / 'out'}",
            f"--config.data.data_dir={folder / 'data'}",
        ],
        lambda folder: files(folder / "out"),
    ),
    "enhance": Job(enhance, dataset),
}

_KIND = flags.DEFINE_list("kind", [*frame.KINDS, *JOBS], "Kinds of input, and commands to kill.")
_COUNT = flags.DEFINE_integer(
    "count", 0, "Cases of a kind, or kills of a command; 0 for a large run: all cases, 5 kills."
)
_SEED = flags.DEFINE_integer("seed", frame.SEED, "Seed of the cases.")


def names(folder: pathlib.Path) -> set[str]:
    """Paths in a folder that a process may be changing."""
    found = set()
    for place, folders, here in os.walk(folder):
        inside = os.path.relpath(place, folder)
        found |= {os.path.join(inside, name) for name in (*folders, *here)}
    return found


def temporary(folder: pathlib.Path) -> list[str]:
    """Files and folders of writers that have not finished; a lock holds nothing."""
    name = re.compile(r"(^|/)(?!\.lock$|\.[\d.]+\.lock$)(\.[^/.]|[^/]*(incomplete|-tmp))")
    return sorted(filter(name.search, (path.removeprefix("./") for path in names(folder))))


def run(arguments: list[str], folder: pathlib.Path, kill_at: int = 0) -> tuple[int, str]:
    """Runs a command, and kills it at the change `kill_at` of the names in `folder`, if any.

    Returns:
      The changes seen, and what is wrong: "" or the end of the output of a command that failed.
    """
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # the kill reaches its workers too
        )
        seen, changes = names(folder), 0
        while process.poll() is None:
            if (now := names(folder)) != seen:
                seen, changes = now, changes + 1
                if changes == kill_at:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return changes, ""
            time.sleep(0.002)
        log.seek(0)
        status = process.returncode
        return changes, f"status {status}: {log.read()[-500:]}" if status else ""


def kills(job: Job, count: int) -> Iterator[str]:
    """Yields for each kill what was wrong after the second start, "" if nothing."""
    with tempfile.TemporaryDirectory() as root:
        whole, again = pathlib.Path(root, "whole"), pathlib.Path(root, "again")
        if job.prepare:
            made = pathlib.Path(root, "made")
            _, wrong = run(job.prepare(made), made)
            assert not wrong, wrong
        changes, wrong = run(job.command(whole), whole)
        assert not wrong, wrong
        expected = job.result(whole)
        for kill_at in np.linspace(1, changes, count).round().astype(int):
            shutil.rmtree(again, ignore_errors=True)
            seen, _ = run(job.command(again), again, kill_at)
            _, wrong = run(job.command(again), again)
            if not wrong:
                found = job.result(again)
                differ = [k for k in expected | found if expected.get(k) != found.get(k)]
                left = temporary(again)
                wrong = f"differ: {differ[:3]}" * bool(differ) + f"left: {left[:3]}" * bool(left)
            yield wrong and f"killed at change {seen} of {changes}: {wrong}"


def fuzzed(kind: str, count: int) -> Iterator[str]:
    """Yields for each case what was wrong with its end, "" if nothing."""
    count = count or importlib.import_module(frame.KINDS[kind]).LARGE
    for outcome in frame.run_apart(kind, range(count), _SEED.value):
        yield "" if outcome.survived else str(outcome)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    if unknown := set(_KIND.value) - {*frame.KINDS, *JOBS}:
        raise app.UsageError(f"--kind={','.join(unknown)}: give {', '.join([*frame.KINDS, *JOBS])}")
    rows = []
    for kind in _KIND.value:
        begin = time.perf_counter()
        if kind in frame.KINDS:
            what, ends = f"hostile input: {kind}", list(fuzzed(kind, _COUNT.value))
        else:
            what, ends = f"SIGKILL: {kind}", list(kills(JOBS[kind], _COUNT.value or 5))
        for wrong in filter(None, ends):
            print(f"{what}: {wrong}", file=sys.stderr)
        seconds = time.perf_counter() - begin
        rows.append(f"| {what} | {len(ends)} | {ends.count('')} | {seconds:.0f} |")
    print(f"{os.cpu_count()} x {platform.machine()}, jax {jax.__version__}, seed {_SEED.value}")
    print("| what | tried | survived | seconds |")
    print("|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    app.run(main)
