import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import maa_jax
from maa_jax import sample


def read(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_command(tiny_model, tmp_path):
    """The command of the README, with every flag."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A dog barks, twice!\n\nrain\n")
    out = tmp_path / "deep" / "sounds"
    done = subprocess.run(
        [sys.executable, "-m", "maa_jax.sample", f"--model={tiny_model}", "--prompt=a crow caws",
         "--prompt=", f"--prompts_file={prompts}", f"--out={out}", "--seed=5", "--steps=2",
         "--guidance_scale=2", "--duration=0.25", "--num_samples=2", "--negative_prompt=rain"],
        capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [
        "000_a-crow-caws.wav", "001_a-crow-caws.wav", "002_unconditional.wav",
        "003_unconditional.wav", "004_a-dog-barks-twice.wav", "005_a-dog-barks-twice.wav",
        "006_rain.wav", "007_rain.wav",
    ]  # fmt: skip
    assert sorted(p.name for p in out.iterdir()) == [*names, "samples.jsonl"]
    for name in names:
        assert str(out / name) in done.stdout
        info = soundfile.info(out / name)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        assert info.frames == 4000
    assert re.search(r"Read the model.*\d s\nMade 8 sound.*\d s\nWrote", done.stdout, re.DOTALL)
    assert "4/4" in done.stderr or "2/2" in done.stderr  # the progress bar

    rows = read(out)
    assert [row["file"] for row in rows] == names
    row = rows[5]
    assert row["prompt"] == "A dog barks, twice!"
    pipe = maa_jax.Pipeline.from_pretrained(row["model"])
    wav = pipe(
        row["prompt"],
        start_index=row["index"],
        **{k: row[k] for k in ("seed", "steps", "guidance_scale", "duration", "negative_prompt")},
    )[0]
    stored, _ = soundfile.read(out / row["file"], dtype="float32")
    np.testing.assert_allclose(stored, wav, atol=2**-15 + 1e-4 * np.abs(wav).max())
    assert len(row["model_sha256"]) == 64
    assert row["maa_jax"] == maa_jax.__version__


def test_a_second_run_replaces_its_own_files_alone(tiny_model, tmp_path):
    run = lambda prompts: sample.sample(prompts, str(tmp_path), model=str(tiny_model), steps=1,
                                        duration=0.1)  # fmt: skip
    first = run(["rain", "crow"])
    second = run(["rain"])
    assert second == first[:1]
    assert all(path.exists() for path in first)
    assert [row["file"] for row in read(tmp_path)] == ["000_rain.wav"]


def test_file_names():
    prompts = ["x" * 300, "../../etc", "ö!", "", "a b", "a/b"]
    names = sample.file_names(prompts)
    assert names[1:] == ["001_etc.wav", "002_unconditional.wav", "003_unconditional.wav",
                         "004_a-b.wav", "005_a-b.wav"]  # fmt: skip
    assert len(names[0]) < 64
    many = sample.file_names(["rain"] * 1001)
    assert (many[0], many[-1]) == ("0000_rain.wav", "1000_rain.wav")
    assert sorted(many) == many


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model="/nowhere"), "model='/nowhere'"),
        (dict(duration=-1.0), "duration=-1.0"),
        (dict(duration=99.0), "duration=99.0: give seconds above 0 and up to 2.048"),
        (dict(steps=0), "steps=0"),
        (dict(num_samples=-1), "num_samples=-1"),
        (dict(out="/dev/null/sounds"), "--out=/dev/null/sounds: cannot be written"),
    ],
)
def test_mistakes_are_named_before_weights_are_read(
    tiny_model, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr("maa_jax.bundle.load_network", lambda *a, **k: pytest.fail("read weights"))
    call = {"prompts": ["rain"], "out": str(tmp_path / "o"), "model": str(tiny_model)} | arguments
    with pytest.raises(ValueError) as e:
        sample.sample(**call)
    assert message in str(e.value)
    assert not (tmp_path / "o").exists()


def test_prompts_are_read(tmp_path):
    assert sample.read_prompts([""], None) == [""]
    with pytest.raises(ValueError, match="no prompts: give --prompt"):
        sample.read_prompts([], None)
    with pytest.raises(ValueError, match=r"--prompts_file=.*nothing.*cannot be read"):
        sample.read_prompts([], str(tmp_path / "nothing"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"--prompts_file=.*binary.*cannot be read"):
        sample.read_prompts([], str(tmp_path / "binary"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=x"], "no prompts: give --prompt"),
        (["--out=x", "a", "crow"], "'a' is not a flag; quote sentences"),
        (["--prompt=rain"], "--out"),
        (["--out=x", "--prompt=rain", "--steps=many"], "steps"),
    ],
)
def test_command_line_mistakes(flags, message):
    done = subprocess.run(
        [sys.executable, "-m", "maa_jax.sample", *flags], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
