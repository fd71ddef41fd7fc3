"""The README's commands, run by a shell as they are, from an empty folder with relative paths.

Only two things are changed: `:demo`, minutes of training, becomes `:runlocal`, two steps of tiny
networks; and datasets are built in a folder of the tests.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from maa_jax.audio import io
from tests.launch.documents import ROOT, TEXTS, blocks


def block_with(text: str) -> str:
    (block,) = [block for block in blocks(TEXTS["README.md"], "bash") if text in block]
    return block


@pytest.fixture
def shell(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(commands: str) -> None:
        environment = os.environ | {
            "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "TFDS_DATA_DIR": data_dir,
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compilation takes most of the time
        }
        done = subprocess.run(
            ["bash", "-euc", commands], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.mark.skipif(shutil.which("bash") is None, reason="the README's commands are for bash")
def test_training_every_stage_then_sampling(shell):
    shell(block_with("--workdir=runs/t2a").replace(":demo", ":runlocal"))
    parts = "unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler"
    assert all(pathlib.Path("models/t2a", part).is_dir() for part in parts)
    wav = io.load("out/t2a/000_a-crow-caws.wav")
    assert np.isfinite(wav).all() and len(wav) == 8_192


@pytest.mark.skipif(shutil.which("bash") is None, reason="the README's commands are for bash")
def test_the_first_sound(shell):
    shell(block_with("--out=out\n"))
    assert not io.is_silent(io.load("out/000_a-crow-caws.wav"))
