import dataclasses
import errno
import io
import json
import os
import re
import shutil
import time

import jax
import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from maa_jax.data import datasets, input_pipeline, stored
from maa_jax.enhancement.request import Enhancement
from maa_jax.enhancement.run import enhance, read_captions
from maa_jax.enhancement.shards import Source, Windows
from maa_jax.files import lock
from tests.conftest import CAPTIONS
from tests.enhancement.test_captioning import folder as captioner  # noqa: F401
from tests.enhancement.test_retrieval import model as retriever  # noqa: F401
from tests.subprocesses import start_python, start_two

SETTINGS = ["--experts=tests.test_enhance:Words,labels", "--clip_seconds=0.5", "--max_windows=1"]
SETTINGS += ["--batch_size=8", "--shard_size=16"]
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compilation is most of what processes do


class Words:
    """Proposes a caption that depends only on the recording; kills the process when told to."""

    name = "words"

    def propose(self, audio, labels):
        import os
        import signal

        Words.calls = getattr(Words, "calls", 0) + 1
        if str(Words.calls) == os.environ.get("KILLED_AT_CALL"):
            os.kill(os.getpid(), signal.SIGKILL)
        loud = audio.std(axis=1) > 0.05
        return [["a loud sound", "a crow caws"] if x else ["a quiet sound"] for x in loud]


class WordsOnAllDevices(Words):
    """Stops a process whose network or bank is on only some of its devices."""

    def propose(self, audio, labels):
        devices = set(jax.local_devices())
        assert all(x.devices() == devices for x in jax.live_arrays() if x.ndim)
        return super().propose(audio, labels)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("enhanced")
    datasets.prepare({"data_dir": str(folder)})
    return folder


@pytest.fixture(scope="module")
def built(out, tiny_model):
    """A build of three shards that is killed in the third one, and then run again."""
    command = ["-m", "maa_jax.enhance", "--dataset=sonic_sounds:train[:40]", "--name=killed"]
    command += [f"--out={out}", f"--clap={tiny_model}", "--threshold=0", *SETTINGS]
    process = start_python(*command, KILLED_AT_CALL="5")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == -9, output
    work = out / "enhanced" / "killed" / "2.0.0-work"
    assert sorted(p.name for p in work.glob("*.jsonl")) == ["000000.jsonl", "000001.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in work.glob("*.jsonl")}
    assert not (work.parent / "2.0.0").exists()
    Words.calls = 0
    summary = run(out, tiny_model)
    assert Words.calls == 1  # the third shard is 8 recordings: one batch
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    return work, summary


def run(out, clap, **changes):
    arguments = {
        "dataset": "sonic_sounds:train[:40]",
        "out": str(out),
        "name": "killed",
        "experts": ("tests.test_enhance:Words", "labels"),
        "clap": str(clap),
        "threshold": 0.0,
        "clip_seconds": 0.5,
        "max_windows": 1,
        "batch_size": 8,
        "shard_size": 16,
    }
    return enhance(Enhancement(**arguments | changes))


def examples(work, split):
    return list(tfds.builder_from_directory(work.parent / "2.0.0").as_data_source(split))


def test_a_killed_build_is_resumed_and_every_recording_is_in_one_split(built):
    work, summary = built
    accepted, rejected = examples(work, "train"), examples(work, "rejected")
    assert len(accepted) == summary["accepted"] and len(accepted) + len(rejected) == 40
    source = datasets.metadata({"data_dir": str(work.parents[2])}, "train[:40]")
    ids = {example["id"].decode() for example in accepted + rejected}
    assert ids == {example["id"] for example in source}
    for example in accepted + rejected:
        scores = example["candidate_scores"]
        assert example["score"] == max(scores)
        assert set(example["candidate_experts"]) == {b"words", b"labels"}
        assert len(example["candidates"]) == len(scores) == len(example["candidate_experts"])
        assert re.fullmatch(rb"sonic_sounds/[\d.]+:train\[:40\]", example["dataset"])
        assert example["license"] and len(example["audio_hash"]) == 64
    for example in accepted:
        best = np.argmax(example["candidate_scores"])
        assert list(example["captions"]) == [example["candidates"][best]]
        assert example["score"] >= 0
    assert all(e["score"] < 0 and len(e["captions"]) == 0 for e in rejected)


def pcm(audio):
    return soundfile.read(io.BytesIO(audio), dtype="int16")[0]


def test_the_sound_is_the_middle_of_a_recording_of_one_window(built):
    work, _ = built
    source = tfds.builder_from_directory(work.parents[2] / "sonic_sounds" / "1.1.0")
    sounds = {e["id"]: pcm(e["audio"]) for e in source.as_data_source("train")}
    for example in examples(work, "train"):
        whole, start = sounds[example["id"]], example["start"]
        np.testing.assert_array_equal(pcm(example["audio"]), whole[start : start + 8000])
        if len(whole) <= 8000:
            assert start == 0
        elif len(whole) < 12_000:
            assert start == (len(whole) - 8000) // 2
        assert example["seconds"] == np.float32(min(len(whole), 8000) / 16_000)


def test_a_caption_is_of_the_window_that_training_hears(out, tiny_model):
    """A recording whose halves differ gives captions that differ, with the sounds they are of."""
    rng, folder = np.random.default_rng(0), out / "halves"
    folder.mkdir()
    for i in range(3):
        halves = (0.4 + 0.1 * i) * rng.uniform(-1, 1, 24_000)
        halves[:8000] *= 0.05
        halves[16_000:] = 0
        soundfile.write(folder / f"{i}.wav", halves, 16_000)
    source = {"dataset": "audio_folder/halves:train", "folder": str(folder), "name": "halves"}
    summary = run(out, tiny_model, max_windows=None, threshold=-1.0, **source)
    assert summary["windows"] % 3 == 0 and summary["accepted"] >= 2
    work = out / "enhanced" / "halves" / "2.0.0-work"
    found = {(e["id"], int(e["start"])): e for e in examples(work, "train")}
    ids = {id for id, _ in found}
    assert set(found) == {(id, start) for id in ids for start in (0, 8000)}
    for (_, start), example in found.items():
        assert (b"a quiet sound" in example["candidates"]) == (start == 0)
    silent = examples(work, "rejected")  # nothing is said of silence
    assert [int(e["start"]) for e in silent] == [16_000] * len(ids)
    assert all(len(e["candidates"]) == 0 for e in silent)
    data = {"dataset": "enhanced/halves", "data_dir": str(out), "samples": 8000}
    data["eval_dataset"] = "sonic_sounds"
    size = 2 * len(ids)
    batch = next(
        input_pipeline.train_iterator(
            data, batch_size=size, seed=0, prepare_text=lambda x: np.array(x)
        )
    )
    assert sorted(batch["index"]) == list(range(size)) and datasets.num_examples(data) == size
    by_text = {t: a.std() for t, a in zip(batch["text"], batch["audio"], strict=True)}
    assert by_text.keys() <= {"a quiet sound", "a loud sound", "a crow caws"}
    assert by_text["a quiet sound"] < 0.05 < min(v for k, v in by_text.items() if "q" not in k)


def test_the_windows_of_a_long_recording_are_taken_at_equal_distances(out):
    source = Source("sonic_sounds", str(out / "sonic_sounds" / "1.1.0"), "train", 800)
    all_of, few = Windows(source), Windows(dataclasses.replace(source, most=3))
    lengths = [len(pcm(e["audio"])) for e in stored.Recordings(source.folder, "train")]
    windows = np.maximum(1, np.rint(np.array(lengths) / 800)).astype(int)
    assert len(all_of) == windows.sum() and len(few) == np.minimum(windows, 3).sum()
    longest = int(np.argmax(lengths))
    for taken, counts in ((all_of, windows), (few, np.minimum(windows, 3))):
        first = counts[:longest].sum()
        starts = [taken[int(i)]["start"] for i in range(first, first + counts[longest])]
        assert len({taken[int(first)]["id"], taken[int(first + counts[longest]) - 1]["id"]}) == 1
        steps = np.diff(starts)
        assert steps.min() > 0 and steps.max() - steps.min() <= 800
    assert all_of[int(windows[:longest].sum())]["start"] == 0
    assert starts[0] > 0 and starts[-1] < lengths[longest] - 800
    assert sum(all_of[i]["seconds"] for i in range(len(all_of))) == pytest.approx(
        np.minimum(lengths, windows * 800).sum() / 16_000, rel=0.01
    )


def test_the_result_is_read_by_its_name(built):
    work, summary = built
    data = {"dataset": "enhanced/killed", "data_dir": str(work.parents[2]), "samples": 8000}
    data["eval_dataset"] = "sonic_sounds"
    batch = next(input_pipeline.train_iterator(data, batch_size=4, seed=0))
    accepted = {e["captions"][0].decode() for e in examples(work, "train")}
    assert set(datasets.captions(data)) == accepted
    assert batch["audio"].shape == (4, 8000) and batch["audio"].any()
    assert datasets.num_examples(data) == summary["accepted"]
    with pytest.raises(ValueError, match="did you mean 'enhanced/killed'"):
        datasets.prepare(data | {"dataset": "enhanced/none"})


def test_the_report_has_the_scores_and_sounds(built):
    work, summary = built
    page = (work.parent / "2.0.0-report.html").read_text()
    assert len(re.findall('<audio [^>]*src="data:audio/flac;base64,[^"]{99}', page)) == 40
    assert 48 <= page.count("<rect") <= 50 and page.count(":train[:40]") > 40
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert sum(e["chosen"] for e in summary["experts"].values()) == summary["accepted"]
    assert summary["windows"] == 40 and set(summary["experts"]) == {"words", "labels"}


def test_another_threshold_needs_another_name_and_the_same_one_is_not_built_again(
    built, out, tiny_model
):
    Words.calls = 0
    assert run(out, tiny_model)["accepted"] == built[1]["accepted"]
    assert Words.calls == 0
    with pytest.raises(ValueError, match=r"threshold=0.0 there, 0.5 here.*another name"):
        run(out, tiny_model, threshold=0.5)
    with pytest.raises(ValueError, match=r"clip_seconds=0.5 there, 1.0 here"):
        run(out, tiny_model, clip_seconds=1.0)


def test_withheld_labels_are_neither_read_nor_written(out, tiny_model):
    summary = run(
        out, tiny_model, dataset="sonic_sounds:test[:8] + sonic_sounds:validation[:8]",
        name="withheld", experts=("tests.test_enhance:Words",), withhold_labels=True, threshold=-1,
    )  # fmt: skip
    assert summary["accepted"] == 16 and len(summary["sources"]) == 2
    accepted = examples(out / "enhanced" / "withheld" / "2.0.0-work", "train")
    assert len(accepted) == 16 and not any(len(e["labels"]) for e in accepted)
    metadata = json.loads((out / "enhanced" / "withheld" / "2.0.0" / "metadata.json").read_text())
    assert metadata["withhold_labels"] and metadata["clap_sha256"]


def test_a_run_without_an_accepted_caption_writes_no_dataset_and_says_what_to_do(out, tiny_model):
    few = {"dataset": "sonic_sounds:test[:3]", "name": "none"}
    with pytest.raises(ValueError, match=r"0 of 3 windows.*the highest score is .*lower --thresh"):
        run(out, tiny_model, threshold=1.0, **few)
    assert {path.name for path in (out / "enhanced" / "none").iterdir()} == {"2.0.0-work"}
    Words.calls = 0
    assert run(out, tiny_model, threshold=-1.0, **few)["accepted"] == 3
    assert Words.calls == 0  # the candidates were kept


def test_two_runs_of_one_name_are_refused(built, out, tiny_model):
    work, _ = built
    with lock(work), pytest.raises(ValueError, match=f"{work} is in use by process"):
        run(out, tiny_model)


def test_a_run_that_fails_before_its_first_record_leaves_nothing(out, tiny_model, monkeypatch):
    def fails(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Words, "propose", fails)
    with pytest.raises(OSError, match="No space left"):
        run(out, tiny_model, name="failing")
    assert not (out / "enhanced" / "failing").exists()
    monkeypatch.undo()
    killed = out / "enhanced" / "failing" / "2.0.0-work"  # as a kill leaves it: settings alone
    killed.mkdir(parents=True)
    (killed / "settings.json").write_text('{"shard_size": 1}')
    (killed / ".tmp-1-000000.jsonl").touch()
    run(out, tiny_model, name="failing", dataset="sonic_sounds:test[:3]", threshold=-1.0)
    assert not list(killed.glob(".*"))


def test_a_run_goes_on_only_with_the_recordings_that_it_began_with(
    built, out, tiny_model, tmp_path
):
    shutil.copytree(out / "enhanced" / "killed", tmp_path / "enhanced" / "killed")
    config = {"data_dir": str(tmp_path)}
    datasets.prepare(config)
    run(tmp_path, tiny_model)
    folder = tmp_path / "sonic_sounds" / "1.1.0"
    for path in folder.iterdir():  # other recordings in the place of those heard
        if "train" in path.name:
            path.unlink()
    for path in folder.glob("*-test.*"):
        shutil.copy(path, path.with_name(path.name.replace("-test.", "-train.")))
    info = json.loads((folder / "dataset_info.json").read_text())
    splits = {split["name"]: split for split in info["splits"]}
    splits["train"] |= {k: splits["test"][k] for k in ("shardLengths", "numBytes")}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"2.0.0-work was made .*of other recordings.*content="):
        run(tmp_path, tiny_model, dataset="sonic_sounds:train[:13]")


def test_a_text_of_captions_that_is_not_utf_8_is_named_with_its_line(tmp_path):
    (tmp_path / "bank.txt").write_bytes("rain\ncaf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"bank.txt', line 2: not UTF-8"):
        read_captions(str(tmp_path / "bank.txt"), str(tmp_path))
    (tmp_path / "bank.txt").write_bytes("\ufeffrain\r\ncaf\xe9\n".encode())
    assert read_captions(str(tmp_path / "bank.txt"), "") == ["rain", "caf\xe9"]


def test_beam_writes_the_same_recordings(built, out, tiny_model):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    run(out, tiny_model, name="beam", beam_options="--runner=DirectRunner")
    both = [tfds.builder_from_directory(out / "enhanced" / n / "2.0.0") for n in ("killed", "beam")]
    assert both[0].info.splits.keys() == both[1].info.splits.keys()
    for split in both[0].info.splits:
        wanted, found = (list(builder.as_data_source(split)) for builder in both)
        assert len(wanted) == len(found)
        for one, other in zip(wanted, found, strict=True):
            # Scores of the killed build come from another process, compiled differently.
            for key in ("score", "candidate_scores"):
                np.testing.assert_allclose(one.pop(key), other.pop(key), atol=1e-4)
            jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def flags_of_all_experts(out, tiny_model, captioner, retriever):  # noqa: F811
    """A build of five shards by two networks and CLAP, all but its name."""
    bank = out / "bank.txt"
    bank.write_text("\n".join([*CAPTIONS, "a door slams", "a bell rings", "wind in the trees"]))
    flags = ["-m", "maa_jax.enhance", "--dataset=sonic_sounds:train[:40]", f"--out={out}"]
    flags += ["--experts=captioning,retrieval,tests.test_enhance:WordsOnAllDevices"]
    flags += [f"--captioner={captioner}", f"--retriever={retriever}", f"--bank_captions={bank}"]
    flags += [f"--clap={tiny_model}", "--threshold=0.0323", "--clip_seconds=0.5"]
    flags += ["--max_windows=1"]
    return [*flags, "--batch_size=6", "--shard_size=8"]  # 6: no multiple of 8 devices


@pytest.fixture(scope="module")
def alone(out, flags_of_all_experts):
    """The records of one process with one device."""
    process = start_python(*flags_of_all_experts, "--name=alone", **QUICK)
    assert_ends_well(process)
    return records(out / "enhanced" / "alone")


def assert_ends_well(*processes):
    try:
        for process in processes:
            output, _ = process.communicate(timeout=120)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()


def records(folder):
    """Returns ids, captions with their experts, and scores of a build, in its order."""
    files = sorted((folder / "2.0.0-work").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = [[id, [candidate[:2] for candidate in candidates]] for id, candidates in rows]
    return found, [candidate[2] for _, candidates in rows for candidate in candidates]


def assert_same_dataset(folder, alone):
    """Asserts that a build has the records of one device alone, and all of them as a dataset."""
    found, scores = records(folder)
    assert len(found) == 40 and found == alone[0]
    np.testing.assert_allclose(scores, alone[1], atol=1e-4)
    builds = (folder.parent / "alone", folder)
    one, other = (tfds.builder_from_directory(build / "2.0.0") for build in builds)
    for split in ("train", "rejected"):
        wanted, got = (builder.as_data_source(split) for builder in (one, other))
        assert len(wanted) == len(got) > 0
        for key in ("id", "audio", "captions", "candidates"):
            for a, b in zip(wanted, got, strict=True):
                np.testing.assert_array_equal(a[key], b[key])
    page = (folder / "2.0.0-report.html").read_text()
    assert len(re.findall('<audio [^>]*src="data:audio/flac;base64,[^"]{99}', page)) == 40


def test_eight_devices_find_what_one_finds(out, flags_of_all_experts, alone):
    assert_ends_well(start_python(*flags_of_all_experts, "--name=eight", devices=8, **QUICK))
    assert_same_dataset(out / "enhanced" / "eight", alone)


def test_two_processes_write_what_one_writes_and_each_resumes_where_it_was_killed(
    out, flags_of_all_experts, alone
):
    command, folder = [*flags_of_all_experts, "--name=two"], out / "enhanced" / "two"
    first, second = start_two(*command, second={"KILLED_AT_CALL": "4"}, **QUICK)
    output, _ = second.communicate(timeout=120)
    assert second.returncode == -9, output
    expected = {f"{shard:06}.jsonl" for shard in (0, 1, 2, 3)}  # the second has 3 and 4
    while {path.name for path in folder.glob("*/0*.jsonl")} != expected:
        assert first.poll() is None, first.communicate()[0]  # by itself it ends after 100 s
        time.sleep(0.1)
    first.kill()
    first.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/0*.jsonl")}
    assert_ends_well(*start_two(*command, **QUICK))
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    assert_same_dataset(folder, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": ("retrieval",)}, "'retrieval' needs retriever"),
        ({"experts": ("labls",)}, "nearest: 'labels'"),
        ({"captioner": "models/captioner"}, "add that to experts"),
        ({"withhold_labels": True}, "'labels' has no captions"),
        ({"dataset": "sonic_sounds:none"}, "no split 'none'"),
        ({"dataset": "sonic_sound"}, "did you mean 'sonic_sounds'"),
        ({"dataset": "sonic_sounds*2"}, "weights are for training"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_mistakes_are_named_before_any_work(out, tiny_model, changes, message):
    with pytest.raises(ValueError, match=message):
        run(out, tiny_model, **{"name": "wrong"} | changes)
    assert not (out / "enhanced" / "wrong").exists()
