import json
import re
import time

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from maa_jax.data import datasets, input_pipeline
from maa_jax.data.config import DataConfig
from maa_jax.enhancement.request import Enhancement
from maa_jax.enhancement.run import enhance, middle_clip
from tests.conftest import CAPTIONS
from tests.enhancement.test_captioning import folder as captioner  # noqa: F401
from tests.enhancement.test_retrieval import model as retriever  # noqa: F401
from tests.subprocesses import start_python, start_two

SETTINGS = ["--experts=tests.test_enhance:Words,labels", "--clip_seconds=0.5"]
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
    work = out / "enhanced" / "killed" / "1.0.0-work"
    assert sorted(p.name for p in work.glob("*.jsonl")) == ["000000.jsonl", "000001.jsonl"]
    before = {path: path.stat().st_mtime_ns for path in work.glob("*.jsonl")}
    assert not (work.parent / "1.0.0").exists()
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
        "batch_size": 8,
        "shard_size": 16,
    }
    return enhance(Enhancement(**arguments | changes))


def examples(work, split):
    return list(tfds.builder_from_directory(work.parent / "1.0.0").as_data_source(split))


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


def test_the_sound_is_that_of_the_source(built):
    work, _ = built
    import tensorflow_datasets as tfds

    data = DataConfig(data_dir=str(work.parents[2]))
    source = tfds.builder_from_directory(datasets.prepare(data))
    audio = {e["id"]: e["audio"] for e in source.as_data_source("train")}
    assert all(e["audio"] == audio[e["id"]] for e in examples(work, "train"))


def test_the_result_is_read_by_its_name(built):
    work, summary = built
    data = {"dataset": "enhanced/killed", "data_dir": str(work.parents[2]), "samples": 4000}
    data["eval_dataset"] = "sonic_sounds"
    batch = next(input_pipeline.train_iterator(data, batch_size=4, seed=0))
    accepted = {e["captions"][0].decode() for e in examples(work, "train")}
    assert set(datasets.captions(data)) == accepted
    assert batch["audio"].shape == (4, 4000) and batch["audio"].any()
    assert datasets.num_examples(data) == summary["accepted"]
    with pytest.raises(ValueError, match="did you mean 'enhanced/killed'"):
        datasets.prepare(data | {"dataset": "enhanced/none"})


def test_the_report_has_the_scores_and_sounds(built):
    work, summary = built
    page = (work.parent / "1.0.0-report.html").read_text()
    assert len(re.findall('<audio [^>]*src="data:audio/flac;base64,[^"]{99}', page)) == 40
    assert 48 <= page.count("<rect") <= 50 and page.count(":train[:40]") > 40
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert sum(e["chosen"] for e in summary["experts"].values()) == summary["accepted"]
    assert summary["recordings"] == 40 and set(summary["experts"]) == {"words", "labels"}


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


def test_withheld_labels_are_neither_read_nor_written_and_none_may_pass(out, tiny_model, capsys):
    summary = run(
        out, tiny_model, dataset="sonic_sounds:test[:8] + sonic_sounds:validation[:8]",
        name="withheld", experts=("tests.test_enhance:Words",), withhold_labels=True, threshold=1.0,
    )  # fmt: skip
    assert summary["accepted"] == 0 and len(summary["sources"]) == 2
    rejected = examples(out / "enhanced" / "withheld" / "1.0.0-work", "rejected")
    assert len(rejected) == 16 and not any(len(e["labels"]) for e in rejected)
    assert "the highest score is" in capsys.readouterr().out
    metadata = json.loads((out / "enhanced" / "withheld" / "1.0.0" / "metadata.json").read_text())
    assert metadata["withhold_labels"] and metadata["clap_sha256"]


def test_beam_writes_the_same_recordings(built, out, tiny_model):
    pytest.importorskip("apache_beam", reason="needs the extra beam")
    run(out, tiny_model, name="beam", beam_options="--runner=DirectRunner")
    both = [tfds.builder_from_directory(out / "enhanced" / n / "1.0.0") for n in ("killed", "beam")]
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
    files = sorted((folder / "1.0.0-work").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = [[id, [candidate[:2] for candidate in candidates]] for id, candidates in rows]
    return found, [candidate[2] for _, candidates in rows for candidate in candidates]


def assert_same_dataset(folder, alone):
    """Asserts that a build has the records of one device alone, and all of them as a dataset."""
    found, scores = records(folder)
    assert len(found) == 40 and found == alone[0]
    np.testing.assert_allclose(scores, alone[1], atol=1e-4)
    builds = (folder.parent / "alone", folder)
    one, other = (tfds.builder_from_directory(build / "1.0.0") for build in builds)
    for split in ("train", "rejected"):
        wanted, got = (builder.as_data_source(split) for builder in (one, other))
        assert len(wanted) == len(got) > 0
        for key in ("id", "audio", "captions", "candidates"):
            for a, b in zip(wanted, got, strict=True):
                np.testing.assert_array_equal(a[key], b[key])
    page = (folder / "1.0.0-report.html").read_text()
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


def test_recordings_are_cropped_to_their_middle_or_padded_at_the_end(tones):
    from maa_jax.audio.io import encode_flac

    data = encode_flac(tones[0])
    middle = middle_clip(data, 8000)
    assert abs(middle - tones[0][4000:12000]).max() < 1e-4
    padded = middle_clip(data, 20000)
    assert abs(padded[:16000] - tones[0]).max() < 1e-4 and not padded[16000:].any()
