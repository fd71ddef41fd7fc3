import collections
import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import re

import numpy as np
import pytest
import soundfile

from maa_jax import command
from maa_jax.audio.io import SILENCE, AudioError, decode, load
from maa_jax.data import datasets, input_pipeline
from maa_jax.data.builders import audio_folder, origins, sonic_sounds
from maa_jax.data.builders.base import Recording, split_by_recording
from tests.subprocesses import start_python

SUFFIXES = ("wav", "flac", "ogg", "mp3")


def make_folder(root, count=12, rows=None):
    """`count` tones in four formats, rates and depths of folder, and a CSV table of captions."""
    root.mkdir(exist_ok=True)
    (root / "deep").mkdir(exist_ok=True)
    table = [("file", "caption_1", "caption_2", "label")]
    for i in range(count):
        rate = (8000, 22050, 44100, 48000)[i % 4]
        name = f"{'deep/' if i % 2 else ''}tone {i}.{SUFFIXES[i % 4]}"
        wav = 0.5 * np.sin(2 * np.pi * 50 * (i % 40 + 4) * np.arange(rate // 4) / rate)
        soundfile.write(root / name, np.stack([wav] * (1 + i % 2), axis=1), rate)
        table.append((name, f"a tone, number {i}", f"tone {i} sounds", "low" if i < 6 else "high"))
    with (root / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table + (rows or []))
    return {
        "dataset": "audio_folder",
        "folder": str(root),
        "captions_file": str(root / "captions.csv"),
        "data_dir": str(root.parent / "tfds"),
        "samples": 4000,
    }


def report(config):
    path = datasets.prepare(config)
    with (path.parent / f"{path.name}-skipped.tsv").open() as file:
        return list(csv.reader(file, delimiter="\t"))


# --- the bundled recordings


def bundled():
    return sonic_sounds.SonicSounds.recordings(None, None)


def test_bundled_table_and_files():
    recordings = bundled()
    assert len(recordings) == 130
    files = set(sonic_sounds.FOLDER.glob("*.flac"))
    assert files == {recording.audio for recording in recordings}
    assert sum(file.stat().length for file in files) < 8e6
    captions = [caption for recording in recordings for caption in recording.captions]
    assert len(set(captions)) == 390
    assert all(3 < len(caption.split()) < 15 for caption in captions)
    assert 12 <= len({recording.labels for recording in recordings}) <= 20
    with (sonic_sounds.FOLDER / "recordings.csv").open() as file:
        for row in csv.DictReader(file):
            assert row["license"] == "CC0-1.0" and row["author"]
            assert row["source"].startswith("http")
            info = soundfile.info(str(sonic_sounds.FOLDER / row["file"]))
            assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
            assert info.frames / 16000 == pytest.approx(float(row["seconds"]), abs=1e-3)


def test_bundled_dataset(data):
    splits = {name: datasets.metadata(data, name) for name in ("train", "validation", "test")}
    assert [len(examples) for examples in splits.values()] == [104, 13, 13]
    ids = [example["id"] for examples in splits.values() for example in examples]
    assert len(set(ids)) == 130
    labels = {name: {e["labels"][0] for e in examples} for name, examples in splits.items()}
    assert labels["validation"] <= labels["train"] and labels["test"] <= labels["train"]
    assert len(labels["train"]) == 18
    crow = next(e for e in splits["train"] if e["id"] == "misc_crow")
    assert crow["labels"] == ["crow"] and "a crow caws once" in crow["captions"]
    assert crow["source"].endswith("/54973/")


def test_stored_audio_is_the_recording(data):
    source = datasets.Datasets(data).open_split("test")
    for index in range(3):
        example = source[index]
        expected = load(sonic_sounds.FOLDER / f"{example['id'].decode()}.flac")
        stored = decode(example["audio"])
        np.testing.assert_allclose(stored, expected, atol=1e-4)
        assert example["seconds"] == pytest.approx(len(stored) / 16000)
        assert example["license"] == b"CC0-1.0"
        pcm, rate = soundfile.read(io.BytesIO(example["audio"]), dtype="int16")
        assert rate == 16000
        assert example["audio_hash"].decode() == hashlib.sha256(pcm.tobytes()).hexdigest()


BUILD = """
import os, pathlib, signal, sys, time
from maa_jax.data import datasets
from maa_jax.data.builders.sonic_sounds import SonicSounds

root, me = pathlib.Path(sys.argv[1]), os.getpid()
list_recordings = SonicSounds.recordings

def recordings(self, dl_manager):
    (root / f"building-{me}").touch()
    if len(list(root.glob("building-*"))) == 1:
        time.sleep(1)  # the others come to where they would build, too
        os.kill(me, signal.SIGKILL)
    return list_recordings(self, dl_manager)

SonicSounds.recordings = recordings
(root / f"ready-{me}").touch()
while len(list(root.glob("ready-*"))) < 3:
    time.sleep(0.01)
builder = SonicSounds(data_dir=root)
builder.download_and_prepare()
folder = datasets.prepare({"data_dir": str(root)})
print("RESULT", len(builder.as_data_source("test")), folder)
"""


def test_three_processes_build_once_and_one_takes_over_from_a_killed_one(tmp_path):
    processes = [start_python("-c", BUILD, str(tmp_path)) for _ in range(3)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert sorted(process.returncode for process in processes) == [-9, 0, 0], outputs
    assert len(list(tmp_path.glob("building-*"))) == 2
    folder = tmp_path / "sonic_sounds" / str(sonic_sounds.SonicSounds.VERSION)
    assert sum(f"RESULT 13 {folder}\n" in output for output in outputs) == 2


# --- splits


def recordings_of(labels):
    return [Recording(id=f"{i}", audio=b"", labels=label) for i, label in enumerate(labels)]


def test_splits_balance_labels_and_ignore_order():
    labels = [("a",)] * 100 + [("b",)] * 20 + [("c",)] * 5 + [("d",)]
    recordings = recordings_of(labels)
    splits = split_by_recording(recordings)
    for name, counts in (
        ("train", {"a": 80, "b": 16, "c": 3, "d": 1}),
        ("validation", {"a": 10, "b": 2, "c": 1}),
        ("test", {"a": 10, "b": 2, "c": 1}),
    ):
        assert collections.Counter(r.labels[0] for r in splits[name]) == counts
    assert split_by_recording(recordings[::-1]) == splits


@pytest.mark.parametrize(("count", "held_out"), [(1, 0), (2, 0), (3, 1), (30, 3)])
def test_splits_without_common_labels(count, held_out):
    for labels in ([()] * count, [(str(i),) for i in range(count)]):
        splits = split_by_recording(recordings_of(labels))
        assert len(splits["train"]) == count - 2 * held_out
        assert len(splits.get("validation", [])) == len(splits.get("test", [])) == held_out


def test_given_splits_are_kept():
    recordings = [Recording(id=str(i), audio=b"", split="test") for i in range(9)]
    assert split_by_recording(recordings) == {"test": split_by_recording(recordings)["test"]}


# --- the user's folder


def test_audio_folder(tmp_path):
    config = make_folder(tmp_path / "my sounds")
    examples = datasets.metadata(config, "train+validation+test")
    assert len(examples) == 12
    assert datasets.num_examples(config) == 8
    by_id = {example["id"]: example for example in examples}
    assert by_id["deep/tone 7.mp3"]["captions"] == ["a tone, number 7", "tone 7 sounds"]
    assert by_id["deep/tone 7.mp3"]["labels"] == ["high"]
    for example in examples:
        assert example["seconds"] == pytest.approx(0.25, abs=1e-3)
    assert report(config) == [["file", "reason"]]
    batch = next(input_pipeline.train_iterator(config, batch_size=4, seed=0))
    assert batch["audio"].shape == (4, 4000)
    # Found again by its name, and a changed table is another dataset.
    path = datasets.prepare(config)
    named = {"dataset": f"audio_folder/{path.parent.name}", "data_dir": config["data_dir"]}
    assert datasets.metadata(named, "train+validation+test") == examples
    with open(config["captions_file"], "a") as file:
        file.write("tone 0.wav,one more caption,,\n")
    assert datasets.prepare(config) != path


def test_broken_files_are_listed_and_skipped(tmp_path):
    root = tmp_path / "sounds"
    config = make_folder(root, 299, rows=[("silent.wav", "nothing at all", "", "low")])
    soundfile.write(root / "silent.wav", np.full(4000, SILENCE / 2), 16000, subtype="FLOAT")
    cut = root / "tone 8.wav"
    cut.write_bytes(cut.read_bytes()[:1000])
    text = root / "deep" / "tone 9.flac"
    text.write_text("no sound")
    assert len(datasets.metadata(config, "train+validation+test")) == 297
    header, *rows = report(config)
    reasons = dict(rows)
    assert header == ["file", "reason"] and len(rows) == 3
    assert "silent" in reasons["silent.wav"]
    assert "truncated" in reasons["tone 8.wav"]
    assert "decoded" in reasons["deep/tone 9.flac"]


def test_more_than_one_percent_broken_stops(tmp_path):
    config = make_folder(tmp_path / "sounds", 99, rows=[("a.wav", "gone", "", "")])
    (tmp_path / "sounds" / "tone 8.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="2 recordings cannot be used") as error:
        datasets.prepare(config)
    for said in ("1%", "-skipped.tsv", "tone 8.wav: ", "a.wav: ", "No such file"):
        assert said in str(error.value)
    (listed,) = (tmp_path / "tfds").glob("audio_folder/*/*-skipped.tsv")
    assert len(listed.read_text().splitlines()) == 3
    assert not list((tmp_path / "tfds").glob("audio_folder/*/*/dataset_info.json"))


def test_one_of_ten_may_be_broken_and_of_fewer_none(tmp_path, caplog):
    config = make_folder(tmp_path / "sounds", 10)
    (tmp_path / "sounds/tone 8.wav").write_bytes(b"")
    assert len(datasets.metadata(config, "train+validation+test")) == 9
    assert [name for name, _ in report(config)[1:]] == ["tone 8.wav"]
    assert "1 of 10 recordings are left out" in caplog.text and "-skipped.tsv" in caplog.text
    few = make_folder(tmp_path / "few", 9)
    (tmp_path / "few/tone 8.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="1 recordings cannot be used"):
        datasets.prepare(few)


def test_all_that_is_broken_is_counted_whatever_its_split(tmp_path):
    config = make_folder(tmp_path / "sounds", 0)
    rows = [("file", "caption", "split")]
    for i, split in enumerate(("train", "validation", "test")):
        (tmp_path / f"sounds/{i}.wav").write_bytes(b"no sound")
        rows += [(f"{i}.wav", "x", split), (f"gone {i}.wav", "y", split)]
    for table in (rows[:1] + rows[1::2], rows[:1] + rows[2::2]):
        with open(config["captions_file"], "w", newline="") as file:
            csv.writer(file).writerows(table)
        with pytest.raises(AudioError, match="3 recordings cannot be used") as error:
            datasets.prepare(config)
        assert all(f"  {name}: " in str(error.value) for name, *_ in table[1:])


def test_recordings_above_full_scale_are_scaled_down_and_listed(tmp_path, caplog):
    config = make_folder(tmp_path / "sounds", 3)
    loud = 3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    soundfile.write(tmp_path / "sounds/tone 0.wav", loud, 16000, subtype="FLOAT")
    source = datasets.Datasets(config).open_split("train+validation+test")
    stored = {e["id"].decode(): decode(e["audio"]) for e in map(source.__getitem__, range(3))}
    np.testing.assert_allclose(stored["tone 0.wav"], loud / np.abs(loud).max(), atol=1e-4)
    assert np.abs(stored["tone 2.ogg"]).max() == pytest.approx(0.5, abs=0.02)  # as it was
    assert report(config)[1:] == [
        ["tone 0.wav", "kept, but scaled down: its peak is 3 of full scale"]
    ]
    assert "1 of 3 recordings are scaled down" in caplog.text


def test_all_broken_stops(tmp_path):
    config = make_folder(tmp_path / "sounds", 4)
    for file in (tmp_path / "sounds").rglob("*tone*"):
        file.write_bytes(b"")
    with pytest.raises(AudioError, match="the file is empty"):
        datasets.prepare(config)


def test_tables_of_each_kind(tmp_path):
    rows = [
        {"file": "a.wav", "captions": ["one", "two"], "split": "test"},
        {"file": "b.wav", "caption": "three", "label": "l", "license": "CC0-1.0"},
    ]
    jsonl = tmp_path / "t.jsonl"
    jsonl.write_text("\n\n".join(json.dumps(row) for row in rows))
    a, b = audio_folder.read_table(tmp_path, jsonl)
    assert (a.id, a.captions, a.labels, a.split) == ("a.wav", ("one", "two"), (), "test")
    assert (b.captions, b.labels, b.split, b.audio) == (
        ("three",),
        ("l",),
        None,
        tmp_path / "b.wav",
    )
    assert (a.license, b.license) == ("", "CC0-1.0")

    tsv = tmp_path / "t.tsv"
    tsv.write_text("file\tlabel\tcaption\na.wav\tx\tone, two\na.wav\ty\tthree\n")
    (a,) = audio_folder.read_table(tmp_path, tsv)
    assert (a.captions, a.labels) == (("one, two", "three"), ("x", "y"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "path,caption\na.wav,b\n", "line 2: no 'file'"),
        ("t.csv", "file,text\na.wav,b\n", "a.wav has neither caption nor label"),
        ("t.csv", "file,caption,split\na.wav,b,dev\n", "split is 'dev'; use train"),
        ("t.csv", "file,caption,split\na.wav,b,train\na.wav,c,test\n", "in two splits"),
        ("t.csv", "file,caption\n" + "a.wav,b\n" * 6, "line 7: a.wav has 6 captions"),
        ("t.csv", "file,caption\n", "names no recording"),
        ("t.jsonl", '{"file": "a.wav", "label": "b"}\n{broken\n', "line 2"),
        ("t.jsonl", "[1]\n", "not a JSON object"),
        ("t.txt", "a.wav", "neither .csv, .tsv nor .jsonl"),
    ],
)
def test_faults_of_a_table_are_named(tmp_path, name, content, message):
    table = tmp_path / name
    table.write_text(content)
    with pytest.raises(ValueError, match=message):
        audio_folder.read_table(tmp_path, table)


def test_missing_folder_or_table_is_named(tmp_path):
    config = {"dataset": "audio_folder", "data_dir": str(tmp_path)}
    with pytest.raises(ValueError, match=r"set data\.folder"):
        datasets.prepare(config)
    with pytest.raises(ValueError, match=r"audio_folder/mine.*is not there"):
        datasets.prepare({**config, "dataset": "audio_folder/mine"})
    config |= {"folder": str(tmp_path), "captions_file": str(tmp_path / "gone.csv")}
    with pytest.raises(ValueError, match=r"captions_file .*gone\.csv does not exist"):
        datasets.prepare(config)
    with pytest.raises(ValueError, match="give it a name"):
        datasets.prepare({**config, "dataset": "audio_folder/.."})
    half = tmp_path / "enhanced/mine/incomplete.ABCDEF_1.0.0"
    half.mkdir(parents=True)
    (half / "dataset_info.json").touch()
    with pytest.raises(ValueError, match="'enhanced/mine'; the known ones are"):
        datasets.prepare({**config, "dataset": "enhanced/mine"})
    with pytest.raises(ValueError, match="'chirps'; the known ones are sonic_sounds"):
        datasets.prepare({"dataset": "chirps"})


def test_a_folder_without_a_table_becomes_recordings_without_captions(tmp_path):
    config = make_folder(tmp_path / "sounds", 4)
    del config["captions_file"]
    config["dataset"] = "audio_folder/bare"
    found = datasets.metadata(config)
    assert {example["id"].rpartition(".")[2] for example in found} == set(SUFFIXES)
    assert all(example["captions"] == [""] and not example["labels"] for example in found)
    (tmp_path / "empty").mkdir()
    config |= {"dataset": "audio_folder/none", "folder": str(tmp_path / "empty")}
    with pytest.raises(ValueError, match=r"folder .*empty holds no sound file"):
        datasets.prepare(config)


def test_sound_files_of_all_formats_are_taken_and_the_others_counted(tmp_path, caplog):
    root = tmp_path / "sounds"
    root.mkdir()
    wav = 0.5 * np.sin(2 * np.pi * 50 * np.arange(4800) / 48000)
    names = ["a.WAV", "b.opus", "c.w64", "d.caf", "e.aiff", "f.au", "g.flac", "h.rf64"]
    for name in names:
        form = {"opus": "OGG"}.get(name[2:].lower(), name[2:].upper())
        subtype = "OPUS" if form == "OGG" else "PCM_16"
        soundfile.write(root / name, wav, 48000, format=form, subtype=subtype)
    (root / "i.m4a").touch()
    (root / "j.M4A").touch()
    (root / "k.wma").touch()
    (root / "notes.txt").touch()
    (root / "folder.wav").mkdir()
    (root / "loop").symlink_to(".")
    config = {"dataset": "audio_folder", "folder": str(root), "data_dir": str(tmp_path / "tfds")}
    assert sorted(e["id"] for e in datasets.metadata(config, "train")) == names
    assert "3 files are left out, since they cannot be decoded (2 .m4a, 1 .wma)" in caplog.text
    for name in names:
        (root / name).unlink()
    with pytest.raises(ValueError, match=r"holds no sound file that can be decoded .*convert"):
        datasets.prepare(config)


def test_a_folder_without_a_table_names_what_cannot_be_taken(tmp_path):
    config = make_folder(tmp_path / "sounds", 3)
    del config["captions_file"]
    odd = os.fsencode(tmp_path / "sounds") + b"/caf\xe9.wav"
    with open(odd, "wb"):
        pass
    with pytest.raises(ValueError, match=r"caf.*\.wav' is not UTF-8; rename"):
        datasets.prepare(config)
    os.remove(odd)
    (tmp_path / "outside.wav").touch()
    (tmp_path / "sounds/link.wav").symlink_to(tmp_path / "outside.wav")
    with pytest.raises(ValueError, match=r"link\.wav is a link that leads out of"):
        datasets.prepare(config)
    (tmp_path / "sounds/link.wav").unlink()
    (tmp_path / "sounds/link").symlink_to("/")  # which is not searched
    with pytest.raises(ValueError, match=r"link is a link that leads out of"):
        datasets.prepare(config)
    with pytest.raises(ValueError, match="is no folder"):
        datasets.prepare({**config, "folder": str(tmp_path / "outside.wav")})


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_recordings_have_no_validation_and_the_error_says_how_to_take_some(
    tmp_path, count
):
    config = make_folder(tmp_path / "sounds", count)
    with pytest.raises(ValueError, match="no split 'validation'") as error:
        datasets.metadata(config, "validation")
    taken = re.findall(r"data\.(\w+)='([^']+)'", str(error.value))
    assert [key for key, _ in taken] == ["split", "eval_split"]
    if count == 2:
        assert datasets.num_examples(config | dict(taken)) == 1
        assert len(datasets.metadata(config | dict(taken), "train[:50%]")) == 1


# --- leftovers, full disks

KILLED = """
import os, signal, sys
from maa_jax.data.builders.audio_folder import AudioFolder

def stop(self, recording):
    os.kill(os.getpid(), signal.SIGKILL)

AudioFolder._example = stop
AudioFolder(folder=sys.argv[1], data_dir=sys.argv[2], config=sys.argv[3]).download_and_prepare()
"""


def test_leftovers_of_killed_builds_are_removed_but_not_what_is_being_built(tmp_path, monkeypatch):
    make_folder(tmp_path / "sounds", 3)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    root = tmp_path / "tfds/audio_folder"
    for name in ("mine", "other", "other"):
        arguments = [str(tmp_path / "sounds"), str(tmp_path / "tfds"), name]
        assert start_python("-c", KILLED, *arguments).wait(timeout=120) == -9
        assert [path.parent.name for path in root.glob("*/incomplete.*")] == [name]
    version = str(audio_folder.AudioFolder.VERSION)
    (root / "mine" / f".tmp-1-{version}-skipped.tsv").touch()
    (root / "third").mkdir()
    with (root / f"third/.{version}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (root / f"third/incomplete.ABCDEF_{version}").mkdir()
        audio_folder.AudioFolder(
            folder=tmp_path / "sounds", data_dir=tmp_path / "tfds", config="mine"
        ).download_and_prepare()
    assert [path.parent.name for path in root.glob("*/incomplete.*")] == ["third"]
    assert not list(root.glob("*/.tmp-*"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_leaves_no_dataset_and_is_known_as_one(tmp_path, monkeypatch):
    config = make_folder(tmp_path / "sounds", 3)

    def full(*_):  # as ArrayRecord's writer says it
        raise RuntimeError(f"write() failed: {os.strerror(errno.ENOSPC)}; writing a shard")

    monkeypatch.setattr(origins, "write", full)
    with pytest.raises(Exception) as error:
        datasets.prepare(config)
    (place,) = (tmp_path / "tfds").glob("audio_folder/*")
    assert command.no_room(error.value) == str(place)
    assert not [path for path in place.iterdir() if path.is_dir()]
    monkeypatch.undo()
    datasets.prepare(config)
