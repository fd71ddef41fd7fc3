import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import soundfile

from maa_jax.data import datasets
from maa_jax.evaluate.evaluation import Evaluation, evaluate
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.retriever import Retriever
from maa_jax.models.vggish import VGGish, VGGishConfig
from maa_jax.train import loop
from tests.conftest import random_network
from tests.models.test_retriever import TINY
from tests.subprocesses import start_two


def test_a_models_sounds_are_scored_and_its_wavs_can_be_scored_again(
    tiny_model, data_dir, tmp_path, capsys
):
    both = ("label_accuracy", "clap_score")
    common = dict(clap=str(tiny_model), data_dir=data_dir, split="validation", evaluators=both)
    scores = evaluate(
        Evaluation(
            out=tmp_path / "out",
            model=str(tiny_model),
            num_prompts=2,
            steps=1,
            num_candidates=2,
            keep_wavs=True,
            cache=tmp_path / "cache",
            **common,
        )
    )
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"] == scores and written["steps"] == written["num_candidates"] - 1 == 1
    assert written["sounds_scored"] == scores["prompts"] == 2
    assert written["networks"].keys() == {"clap", "log_mel"} and written["model_sha256"]
    assert -1 <= scores["clap_score"] <= 1
    assert all(0 <= value <= 1 for name, value in scores.items() if "top" in name)
    printed = capsys.readouterr().out
    assert all(name in printed for name in scores)

    wavs = sorted((tmp_path / "out" / "wavs").glob("*.wav"))
    assert [wav.name[:4] for wav in wavs] == ["000_", "001_"]
    assert soundfile.info(wavs[0]).frames == 32768
    again = evaluate(
        Evaluation(
            out=tmp_path / "again",
            sounds=tmp_path / "out" / "wavs",
            cache=tmp_path / "cache",
            **common,
        )
    )
    assert again == pytest.approx(scores, abs=1e-3)  # files hold 16 bits a sample
    assert "steps" not in json.loads((tmp_path / "again" / "scores.json").read_text())

    # Neither scores nor sounds are replaced by those of other options.
    other = Evaluation(out=tmp_path / "out", model=str(tiny_model), steps=2, **common)
    with pytest.raises(ValueError, match=r"scores of another evaluation: .*steps=1 there, 2 here"):
        evaluate(other)
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == written


@pytest.fixture(scope="module")
def vggish(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vggish")
    config = VGGishConfig(width=2, hidden_size=8, embedding_size=6, published="vggish")
    weights = random_network(lambda rngs: VGGish(config, rngs=rngs), 0)
    networks.save_network(folder, "audio_classifier", config, weights)
    return str(folder)


def test_two_models_scores_by_a_protocol_are_compared(
    tiny_model, vggish, data_dir, tmp_path, capsys
):
    common = dict(
        protocol=("vggish-fad", "clap-ms"),
        vggish=vggish,
        clap=str(tiny_model),
        data_dir=data_dir,
        split="validation",
        num_prompts=4,
        steps=1,
        resamples=100,
    )
    files = []
    for seed in (0, 1):
        out = tmp_path / str(seed)
        evaluate(Evaluation(out=out, model=str(tiny_model), seed=seed, **common))
        files.append(str(out / "scores.json"))
    written = json.loads(pathlib.Path(files[0]).read_text())
    details = written["details"]["vggish-fad/fad"]
    low, high = details["interval"]
    assert low < written["scores"]["vggish-fad/fad"] < high
    assert details["network"] == "vggish" and details["sounds"] == 4
    capsys.readouterr()
    changes = evaluate(Evaluation(compare=tuple(files)))
    there, here = (json.loads(pathlib.Path(file).read_text())["scores"] for file in files)
    assert changes == {name: here[name] - there[name] for name in there}
    assert re.search(r"vggish-fad/fad .* to [+-]", capsys.readouterr().out)

    # The same protocol on other sounds cannot be compared.
    evaluate(
        Evaluation(out=tmp_path / "more", model=str(tiny_model), **common | {"num_prompts": 5})
    )
    with pytest.raises(ValueError, match="no score of both was made alike"):
        evaluate(Evaluation(compare=(files[0], str(tmp_path / "more" / "scores.json"))))
    assert "Not comparable: vggish-fad/fad: sounds=4 there, 5 here" in capsys.readouterr().out


def test_the_latest_checkpoint_of_a_run_is_scored(make_config, tmp_path):
    config = make_config("retriever")
    config.total_steps = 1
    loop.train(config, str(tmp_path / "run"))
    scores = evaluate(
        Evaluation(
            out=tmp_path / "out",
            workdir=tmp_path / "run",
            evaluators=("recall",),
            data_dir=config.data.data_dir,
            split="validation",
        )
    )
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["workdir"] == str(tmp_path / "run") and scores["recordings"] == 13
    with pytest.raises(FileNotFoundError, match="none"):
        evaluate(Evaluation(out=tmp_path / "other", workdir=tmp_path / "none"))


def test_prompts_that_a_model_was_trained_on_are_refused_by_protocols(
    tiny_model, vggish, data_dir, tmp_path
):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    save_index(folder, data={"dataset": "sonic_sounds*2", "split": "train"})
    request = Evaluation(
        out=tmp_path / "out",
        model=str(folder),
        protocol=("vggish-fad",),
        vggish=vggish,
        data_dir=data_dir,
        split="train[:5]",
    )
    with pytest.raises(ValueError, match="the captions of this split were in the training"):
        evaluate(request)
    with pytest.raises(ValueError, match="reference='none': there is no such folder"):
        evaluate(request.replace(split="validation[:2]", reference="none", steps=1))
    heard = datasets.digests({"data_dir": data_dir, "split": "validation"})
    save_index(folder, data={"dataset": "other", "split": "train"}, digests=heard)
    with pytest.raises(ValueError, match="sonic_sounds:validation holds what sonic_sounds:valid"):
        evaluate(request.replace(split="validation[:2]"))


def test_bad_settings_are_refused_before_any_work(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="steps=0"):
        Evaluation(out=tmp_path, steps=0)
    with pytest.raises(ValueError, match="num_prompts=-1"):
        Evaluation(out=tmp_path, num_prompts=-1)
    with pytest.raises(ValueError, match=r"num_samples=2.*one sound"):
        Evaluation(out=tmp_path, num_samples=2)
    with pytest.raises(ValueError, match=r"evaluators=.*give 'clap_score'"):
        Evaluation(out=tmp_path, evaluators=("clapscore",))
    with pytest.raises(ValueError, match=r"protocol=.*give 'specvqgan'"):
        Evaluation(out=tmp_path, protocol=("specvqvae",))
    with pytest.raises(ValueError, match="out=None: give the folder"):
        Evaluation()
    with pytest.raises(ValueError, match=r"compare=.*give two files"):
        Evaluation(compare=("scores.json",))
    with pytest.raises(ValueError, match=r"recordings=True, workdir='/x': score one of them"):
        Evaluation(out=tmp_path, recordings=True, workdir="/x")
    with pytest.raises(ValueError, match="no folder"):
        evaluate(Evaluation(out=tmp_path, model=str(tmp_path / "none"), clap=str(tiny_model)))


@pytest.mark.parametrize("more", [dict(strength=0.0), dict(fill="frames30", steps=1)])
def test_sounds_made_from_recordings_are_scored(tiny_model, data_dir, tmp_path, more):
    """Those that are given back, or filled, are nearer to their own recording than to another."""
    kept = {}
    for begun in ("own", "next"):
        request = Evaluation(
            out=tmp_path / begun,
            model=str(tiny_model),
            data_dir=data_dir,
            split="validation",
            evaluators=("similarity",),
            num_prompts=2,
            start_from=begun,
            keep_wavs=True,
            **more,
        )
        scores = evaluate(request)
        assert 0 < scores["similarity"] <= 1
        lines = (tmp_path / begun / "wavs" / "samples.jsonl").read_text().splitlines()
        kept[begun] = [json.loads(line)["recording"] for line in lines]
    assert not set(kept["own"]) & set(kept["next"][:1])
    with pytest.raises(ValueError, match=r"(fill|strength): it edits a recording"):
        Evaluation(out=tmp_path, **more)


def test_the_program_names_a_mistake(tmp_path):
    command = [sys.executable, "-m", "maa_jax.evaluate", f"--out={tmp_path}", "--model=/none"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "maa_jax.evaluate: model='/none'" in done.stderr


def test_a_retriever_is_scored_by_its_recall_and_so_by_two_processes(
    tiny_model, data_dir, tmp_path, capsys
):
    folder = tmp_path / "retriever"
    shutil.copytree(tiny_model / "tokenizer", folder / "tokenizer")
    network = random_network(lambda rngs: Retriever(TINY, rngs=rngs), 0)
    networks.save_network(folder, "retriever", TINY, network)
    save_index(folder)
    request = Evaluation(
        out=tmp_path / "out",
        evaluators=("recall",),
        model=str(folder),
        data_dir=data_dir,
        split="validation",
    )
    scores = evaluate(request)
    written = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert written["scores"] == scores and scores["recordings"] == 13
    assert "text_to_audio/recall_at_10" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none of recall scores sounds"):
        evaluate(request.replace(sounds=str(tmp_path)))

    command = ["-m", "maa_jax.evaluate", "--evaluators=recall", f"--model={folder}"]
    command += [f"--data_dir={data_dir}", "--split=validation", f"--out={tmp_path / 'two'}"]
    outputs = [process.communicate(timeout=600)[0] for process in start_two(*command)]
    written = json.loads((tmp_path / "two" / "scores.json").read_text())
    assert written["scores"] == pytest.approx(scores), outputs
