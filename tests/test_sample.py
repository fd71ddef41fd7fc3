import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import maa_jax
from maa_jax import files, sample
from maa_jax.audio import io
from maa_jax.files import file_names
from maa_jax.sample import Sampling
from tests.subprocesses import start_two


def make(prompts, out, model, **how):
    settings = {"steps": 1, "duration": 0.1} | how
    return sample.sample(prompts, Sampling(out=str(out), model=str(model), **settings))


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
         "--guidance_scale=2", "--duration=0.25", "--num_samples=2", "--negative_prompt=rain",
         "--sampler=dpmpp_2m", "--eta=0", "--spacing=trailing", "--batch_size=8"],
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
    assert re.search(r"Read the model.*\d s\nMade 8 sound.*\d s\n", done.stdout)
    for part in ("text encoder", "U-Net", "autoencoder", "vocoder", "files"):
        assert re.search(rf"^  {part}: [\d.]+ s$", done.stdout, re.M)
    assert "4/4" in done.stderr or "2/2" in done.stderr  # the progress bar
    assert "left out empty line(s) 2; " in done.stderr

    rows = read(out)
    assert [row["file"] for row in rows] == names
    row = rows[5]
    assert row["prompt"] == "A dog barks, twice!"
    pipe = maa_jax.Pipeline.from_pretrained(row["model"])
    wav = pipe(
        row["prompt"],
        start_index=row["index"],
        **{
            k: row[k]
            for k in (
                "seed",
                "steps",
                "guidance_scale",
                "duration",
                "negative_prompt",
                "sampler",
                "eta",
                "spacing",
            )
        },
    )[0]
    stored, _ = soundfile.read(out / row["file"], dtype="float32")
    np.testing.assert_allclose(stored, wav, atol=2**-15 + 1e-4 * np.abs(wav).max())
    assert len(row["model_sha256"]) == 64
    assert row["maa_jax"] == maa_jax.__version__


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_no_request_overwrites_or_forgets_the_sounds_of_another(tiny_model, tmp_path, capsys):
    run = lambda prompts, **how: make(prompts, tmp_path, tiny_model, **how)
    first = run(["rain", "crow"])
    before = contents(tmp_path)
    capsys.readouterr()
    assert run(["rain"]) == first[:1]
    assert contents(tmp_path) == before
    said = capsys.readouterr()
    assert "Already there: 1" in said.out and "Sampling" not in said.err  # an empty bar
    run(["dog"], seed=5)
    with pytest.raises(
        ValueError, match=r"000_rain\.wav belongs to another request \(seed=0 there"
    ):
        run(["rain", "cat"], seed=5)
    with pytest.raises(ValueError, match=r"000_rain.*\(prompt='rain' there, 'Rain!' here\): give"):
        run(["Rain!"])
    names = ["000_dog.wav", "000_rain.wav", "001_crow.wav"]
    assert [row["file"] for row in read(tmp_path)] == names
    assert sorted(contents(tmp_path)) == [*names, "samples.jsonl"]
    del before["samples.jsonl"]
    assert before.items() <= contents(tmp_path).items()


def test_recordings_are_edited_from_files_and_recorded(tiny_model, tmp_path):
    pcm = np.random.default_rng(0).integers(-20000, 20000, (2, 8000)).astype(np.int16)
    for name, wav in zip("ab", pcm, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", wav, 16000)
    audio = tuple(str(tmp_path / f"{name}.wav") for name in "ab")
    out = tmp_path / "out"
    how = dict(duration=None, audio=audio, mask=("0.2-0.3", "continue:0.1"), seed=4, num_samples=2)
    files = make(["rain"], out, tiny_model, **how)
    assert len(files) == 4
    rows = read(out)
    for row, file, known in zip(rows, files, np.repeat(pcm, 2, axis=0), strict=True):
        wav, _ = soundfile.read(file, dtype="int16")
        assert len(wav) == 9600 and row["duration"] == 0.6
        np.testing.assert_array_equal(wav[:2700], known[:2700])
        assert (wav[3300:4700] != known[3300:4700]).any()
        assert [mask["mask"] for mask in row["masks"]] == list(how["mask"])
        assert len(row["audio_sha256"]) == 64
    assert [row["audio"] for row in rows] == [audio[0], audio[0], audio[1], audio[1]]
    pipe = maa_jax.Pipeline.from_pretrained(tiny_model)
    alone = pipe(
        "rain",
        audio=rows[3]["audio"],
        mask=how["mask"],
        start_index=3,
        seed=4,
        steps=rows[3]["steps"],
    )
    stored, _ = soundfile.read(files[3], dtype="float32")
    np.testing.assert_allclose(stored, alone[0], atol=2**-15 + 1e-4)

    make(["rain"], out, tiny_model, **how)  # all are there
    with pytest.raises(ValueError, match=r"belongs to another request .*mask"):
        make(["rain"], out, tiny_model, **how | {"mask": ("0.2-0.3", "continue:0.1", "0-0.1")})
    soundfile.write(audio[0], pcm[0] // 2, 16000)
    with pytest.raises(ValueError, match=r"belongs to another request .*audio_sha256"):
        make(["rain"], out, tiny_model, **how)


def test_records_of_another_version_are_refused_and_broken_ones_left_out(tiny_model, tmp_path):
    """A version with fewer options left lines without them."""
    make(["rain"], tmp_path, tiny_model)
    (row,) = read(tmp_path)
    rows = "".join(json.dumps({"file": name}) + "\n" for name in (["a"], "../x.wav", 3, "gone.wav"))
    (tmp_path / "samples.jsonl").write_text(f"{rows}[]\n{{}}\n{'[' * 100_000}\n{json.dumps(row)}\n")
    make(["rain"], tmp_path, tiny_model)
    assert read(tmp_path) == [row]

    del row["spacing"]
    for name in ("samples.jsonl", "samples.part-0.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
        with pytest.raises(ValueError, match=r"another request \(spacing='absent' there, 'ldm'"):
            make(["rain"], tmp_path, tiny_model)


def test_a_sound_that_is_not_whole_is_made_again(tiny_model, tmp_path, capsys):
    paths = make(["rain", "crow", "dog", "door"], tmp_path, tiny_model)
    before = contents(tmp_path)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:1000])
    paths[2].write_bytes(bytes(len(paths[2].read_bytes())))
    paths[3].unlink()
    make(["rain", "crow", "dog", "door"], tmp_path, tiny_model)
    assert contents(tmp_path) == before
    assert "Made again, since not whole: 3 such as 000_rain.wav" in capsys.readouterr().out


def test_a_file_without_a_record_is_not_overwritten(tiny_model, tmp_path):
    (tmp_path / "000_rain.wav").write_text("mine")
    with pytest.raises(ValueError, match=r"000_rain\.wav is there, and no record says how"):
        make(["rain"], tmp_path, tiny_model)
    assert (tmp_path / "000_rain.wav").read_text() == "mine"
    (tmp_path / "000_rain.wav").unlink()
    (tmp_path / "samples.jsonl").write_text(json.dumps({"file": "x" * 300}) + "\n")
    (tmp_path / "000_rain.wav").mkdir()
    with pytest.raises(ValueError, match=r"000_rain\.wav is there"):
        make(["rain"], tmp_path, tiny_model)


def test_a_folder_in_use_is_refused_and_a_failed_start_leaves_none(tiny_model, tmp_path):
    with files.output_folder(str(tmp_path / "held")):
        with pytest.raises(ValueError, match=r"held is in use by process \d+"):
            make(["rain"], tmp_path / "held", tiny_model)
    with pytest.raises(ValueError, match=r"gs://bucket/out: give a folder of this computer"):
        make(["rain"], "gs://bucket/out", tiny_model)
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="broken"):
        make(["rain"], tmp_path / "deep" / "out", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.fixture
def made(monkeypatch):
    """Counts the sounds that the pipeline makes."""
    numbers, make = [], maa_jax.Pipeline.stream

    def count(self, prompts, **settings):
        numbers.extend(range(settings["start_index"], settings["start_index"] + len(prompts)))
        return make(self, prompts, **settings)

    monkeypatch.setattr(maa_jax.Pipeline, "stream", count)
    return numbers


def test_a_killed_run_is_resumed_where_it_stopped(tiny_model, tmp_path, monkeypatch, made):
    prompts = ["rain", "crow", "dog", "rain", "a door"]

    def run(out, **more):
        return make(prompts, tmp_path / out, tiny_model, **{"batch_size": 2} | more)

    whole = run("whole")
    assert made == [0, 1, 2, 3, 4]

    made.clear()
    with monkeypatch.context() as patch:
        write, written = io.write_wav, []

        def killed(path, *args):
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(path)
            write(path, *args)

        patch.setattr(io, "write_wav", killed)
        with pytest.raises(KeyboardInterrupt):
            run("cut")
    out = tmp_path / "cut"
    part = out / "samples.part-0.jsonl"
    assert sorted(p.name for p in out.iterdir()) == [*(p.name for p in whole[:3]), part.name]
    with part.open("a") as file:
        file.write('{"file": "003')  # killed in the middle of a line
    with pytest.raises(
        ValueError, match=r"000_rain\.wav belongs to another request \(steps=1 there, 2 here\)"
    ):
        run("cut", steps=2)
    (out / "001_crow.wav").unlink()  # lost since: made again

    made.clear()
    resumed = run("cut")
    assert made == [0, 1, 2, 3, 4]  # the batches of the whole run, of which each lacks a sound
    assert sorted(p.name for p in out.iterdir()) == [*(p.name for p in resumed), "samples.jsonl"]
    assert [row["index"] for row in read(out)] == [0, 1, 2, 3, 4]
    assert contents(out) == contents(tmp_path / "whole")

    made.clear()
    assert run("cut") == resumed
    assert made == []
    resumed[4].unlink()
    run("cut")
    assert made == [4]
    assert contents(out) == contents(tmp_path / "whole")


def test_a_very_long_sound_is_written_while_it_is_made(tiny_model, tmp_path, monkeypatch):
    """And begun again by the same command after a kill."""
    options = {"duration": 15.0, "num_samples": 2}
    write = io.GrowingWav.write
    seen = []

    def killed(self, wav):
        whole = write(self, wav)
        seen.extend(soundfile.info(p).frames for p in sorted(tmp_path.glob("*.part.wav")))
        if len(seen) > 6:
            raise KeyboardInterrupt
        return whole

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(io.GrowingWav, "write", killed)
        make(["rain"], tmp_path, tiny_model, **options)
    assert seen[:4] == [seen[0]] * 3 + [seen[3]] and 0 < seen[0] < seen[3] < 240000
    made = make(["rain"], tmp_path, tiny_model, **options)
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == ["000_rain.wav", "001_rain.wav"]
    whole = maa_jax.Pipeline.from_pretrained(tiny_model)("rain", steps=1, **options)
    for path, wav in zip(made, whole, strict=True):
        np.testing.assert_array_equal(io.load(path), io.as_read(wav))


def test_the_best_candidates_are_kept(tiny_model, tmp_path):
    ranked = dict(num_samples=2, num_candidates=3, batch_size=3)
    make(["rain", "crow"], tmp_path, tiny_model, **ranked)
    rows = read(tmp_path)
    assert [row["file"] for row in rows] == [
        "000_rain.wav", "001_rain.wav", "002_crow.wav", "003_crow.wav"
    ]  # fmt: skip
    assert rows[0]["score"] >= rows[1]["score"]
    assert rows[2]["score"] >= rows[3]["score"]
    assert {row["index"] // 3 for row in rows[:2]} == {0}
    assert {row["index"] // 3 for row in rows[2:]} == {1}


def test_processes_and_devices_share_the_prompts(tiny_model, tmp_path):
    flags = [f"--model={tiny_model}", "--steps=1", "--duration=0.1", f"--out={tmp_path}"]
    flags += ["--prompt=rain", "--prompt=crow", "--prompt=dog"]
    processes = start_two("-m", "maa_jax.sample", *flags, devices=2)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "Made 2 sound(s)" in outputs[0]
    assert "Made 1 sound(s)" in outputs[1]
    names = ["000_rain.wav", "001_crow.wav", "002_dog.wav"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "samples.jsonl"]
    assert [row["file"] for row in read(tmp_path)] == names
    wav = maa_jax.Pipeline.from_pretrained(tiny_model)("dog", steps=1, duration=0.1, start_index=2)[
        0
    ]
    stored, _ = soundfile.read(tmp_path / names[2], dtype="float32")
    np.testing.assert_allclose(stored, wav, atol=2e-4)


def test_file_names():
    prompts = ["x" * 300, "../../etc", "ö!", "", "a b", "a/b"]
    names = file_names(prompts)
    assert names[1:] == ["001_etc.wav", "002_unconditional.wav", "003_unconditional.wav",
                         "004_a-b.wav", "005_a-b.wav"]  # fmt: skip
    assert len(names[0]) < 64
    many = file_names(["rain"] * 1001)
    assert (many[0], many[-1]) == ("0000_rain.wav", "1000_rain.wav")
    assert sorted(many) == many


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(model="/nowhere"), "model='/nowhere'"),
        (dict(duration=-1.0), "duration=-1.0"),
        (dict(duration=9999.0), "duration=9999.0: give seconds above 0 and up to 3600"),
        (dict(steps=0), "steps=0"),
        (dict(steps=1001), "steps=1001: give a number from 1 to 1000"),
        (dict(output="mel"), "output='mel'"),
        (dict(num_samples=-1), "num_samples=-1"),
        (dict(sampler="dmi"), "sampler='dmi': did you mean 'ddim'?"),
        (dict(num_candidates=0), "num_candidates=0"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(negative_prompt="caf\udce9"), "negative_prompt='caf\\udce9'"),
        (
            dict(loop=True, duration=1.0),
            "loop=True: a sound of 1 s does not end where a",
        ),
        (dict(prompts=["0-1 s rain; 1-4000 s rain"], duration=None), "give up to 3600 s"),
        (dict(prompts=["0-1 s rain; 1-2 s wind"], duration=1.0), "'wind' begins at 1 s, but the"),
        (dict(image=("crow.png",)), "knows only text: give the folder of a model"),
        (dict(video=("crow.mp4",)), "knows only text: give the folder of a model"),
        (dict(out="/dev/null/sounds"), "--out=/dev/null/sounds: cannot be written"),
    ],
)
def test_mistakes_are_named_before_weights_are_read(
    tiny_model, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(
        "maa_jax.model_folder.networks.load_network", lambda *a, **k: pytest.fail("read weights")
    )
    call = {"prompts": ["rain"], "out": tmp_path / "o", "model": tiny_model} | arguments
    with pytest.raises(ValueError) as e:
        make(**call)
    assert message in str(e.value)
    assert not (tmp_path / "o").exists()


def test_prompts_are_read(tmp_path, capsys):
    assert sample.read_prompts([""], None) == [""]
    with pytest.raises(ValueError, match="no prompts: give --prompt"):
        sample.read_prompts([], None)
    with pytest.raises(ValueError, match=r"--prompts_file=.*nothing.*cannot be read"):
        sample.read_prompts([], str(tmp_path / "nothing"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"--prompts_file=.*binary.*cannot be read"):
        sample.read_prompts([], str(tmp_path / "binary"))
    (tmp_path / "latin").write_bytes("rain\ncrow\nein Löwe\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"latin: cannot be read, line 3 is not UTF-8.*save.*UTF-8"
    ):
        sample.read_prompts([], str(tmp_path / "latin"))
    (tmp_path / "gaps").write_text("\ufeffrain\n\n  \r\na crow\u2028caws\n", "utf-8")
    assert sample.read_prompts([], str(tmp_path / "gaps")) == ["rain", "a crow\u2028caws"]
    assert "left out empty line(s) 2, 3; " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=x"], "no prompts: give --prompt"),
        (["--out=x", b"--prompt=caf\xe9"], "prompt='caf\\udce9': '\\udce9' is no character"),
        (["--out=x", "a", "crow"], "'a' is not a flag"),
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
