import json
import shutil
import subprocess
import sys

import pytest
import soundfile

from maa_jax import evaluate
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.retriever import Retriever
from tests.conftest import random_network
from tests.models.test_retriever import TINY


def test_scores_a_model_folder(tiny_model, tmp_path, capsys):
    scores = evaluate.evaluate(
        str(tmp_path / "out"),
        model=str(tiny_model),
        clap=str(tiny_model),
        data_dir=str(tmp_path / "data"),
        split="validation",
        num_prompts=2,
        steps=1,
        keep_wavs=True,
    )
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"] == scores and written["settings"]["steps"] == 1
    assert scores["prompts"] == 2
    assert all(0 <= value <= 1 for name, value in scores.items() if name != "prompts")
    wavs = sorted((tmp_path / "out" / "wavs").iterdir())
    assert [wav.name[:5] for wav in wavs] == ["0000_", "0001_"]
    assert soundfile.info(wavs[0]).frames == 32768
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if "%" in line] == [
        "clap, top 1",
        "clap, top 5",
        "log_mel, top 1",
        "log_mel, top 5",
    ]


def test_bad_settings_are_refused_before_any_work(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="steps=0"):
        evaluate.evaluate(str(tmp_path), model=str(tiny_model), steps=0)
    with pytest.raises(ValueError, match="no folder"):
        evaluate.evaluate(str(tmp_path), model=str(tmp_path / "none"))


def test_the_program_names_a_mistake(tmp_path):
    command = [sys.executable, "-m", "maa_jax.evaluate", f"--out={tmp_path}", "--model=/none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "maa_jax.evaluate: model='/none'" in done.stderr


def test_a_folder_with_a_retriever_is_scored_by_its_recall(tiny_model, tmp_path, capsys):
    folder = tmp_path / "retriever"
    shutil.copytree(tiny_model / "tokenizer", folder / "tokenizer")
    network = random_network(lambda rngs: Retriever(TINY, rngs=rngs), 0)
    networks.save_network(folder, "retriever", TINY, network)
    save_index(folder)
    scores = evaluate.evaluate(
        str(tmp_path / "out"),
        model=str(folder),
        data_dir=str(tmp_path / "data"),
        split="validation",
        num_prompts=2,
    )
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"] == scores and scores["recordings"] == 13
    assert "text_to_audio/recall_at_10" in capsys.readouterr().out
