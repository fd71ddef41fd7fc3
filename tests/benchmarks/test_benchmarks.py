"""The benchmarks run, on too little data for meaningful figures."""

import os
import subprocess
import sys

import pytest

from tests.launch.documents import ROOT

COMMANDS = {
    "accelerator": ["--small"],
    "latents": ["--small", "--steps=1"],
    "builds": ["--clips=20", "--seconds=0.1"],
    "enhancement": ["--clips=20", "--seconds=0.5", "--batch_size=8"],
    "features": ["--clips=10", "--seconds=1", "--batch_size=4", "--networks=clap-laion"],
    "bank": ["--captions=500", "--width=8", "--queries=4", "--repeats=1"],
    "reprogramming": ["--samples=8000", "--batch_size=4", "--workers=0", "--seconds=0.1"],
    "two_events": ["--prompts=16", "--steps=1"],
    "reliability": ["--kind=audio", "--count=5"],
}
PRINTED = {
    "accelerator": "| ms | times_real_time |",
    "latents": "| `runlocal` | ",
    "builds": "20 clips of 0.1 s",
    "enhancement": "20 clips of 0.5 s enhanced",
    "features": "| clap-laion | ",
    "bank": "| 500 | 8 | 4 | 5 |",
    "reprogramming": "| drawn | ",
    "two_events": "| chance",
    "reliability": "| hostile input: audio | 5 | 5 |",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_prints_its_figures(name, data_dir, tiny_model):
    flags = list(COMMANDS[name])
    if name == "two_events":
        flags.append(f"--model={tiny_model}")
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"TFDS_DATA_DIR": data_dir, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert PRINTED[name] in run.stdout
