"""A dataset that is older than what it was built from is refused; one that is not is used."""

import os
import shutil

import numpy as np
import pytest
import soundfile

from maa_jax.data import datasets
from maa_jax.data.builders import origins


def tone(path, hertz):
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * np.arange(4000) / 16000), 16000)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder of three tones, and the datasets `named`, with a table, and `bare`, without."""
    root = tmp_path_factory.mktemp("built")
    (root / "sounds").mkdir()
    for i, name in enumerate("abc"):
        tone(root / f"sounds/{name}.wav", 100 + 50 * i)
    (root / "sounds/t.csv").write_text("file,caption\na.wav,one\nb.wav,two\nc.wav,three\n")
    for dataset, table in (("named", "t.csv"), ("bare", None), ("", "t.csv")):
        datasets.prepare(config(root, dataset, table))
    return root


@pytest.fixture
def root(built, tmp_path, request):
    """A copy of it, under its old path."""
    kept = tmp_path / "kept"
    shutil.copytree(built, kept)
    yield built
    shutil.rmtree(built)
    shutil.copytree(kept, built)


def config(root, dataset, table="t.csv", given=True):
    found = {
        "dataset": f"audio_folder/{dataset}" if dataset else "audio_folder",
        "data_dir": str(root / "tfds"),
        "samples": 4000,
    }
    if given:
        found["folder"] = str(root / "sounds")
        found["captions_file"] = table and str(root / "sounds" / table)
    return found


def rows(root, text):
    with (root / "sounds/t.csv").open("a") as file:
        file.write(text)


CHANGES = {
    "a row more": (lambda root: rows(root, "a.wav,four\n"), "the table .* has changed"),
    "another recording": (
        lambda root: tone(root / "sounds/b.wav", 333),
        r"1 of 3 files changed \(b",
    ),
    "a recording gone": (lambda root: os.remove(root / "sounds/c.wav"), r"1 of 3 files gone \(c"),
}


@pytest.mark.parametrize("given", [True, False], ids=["with its folder", "by its name"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_dataset_whose_table_or_recordings_changed_is_refused(root, change, given):
    act, message = CHANGES[change]
    act(root)
    with pytest.raises(ValueError, match=f"named in .* is old: .*{message}") as error:
        datasets.prepare(config(root, "named", given=given))
    # The remedies that it names help.
    folder = root / f"tfds/audio_folder/named/{datasets_version()}"
    assert f"remove {folder} and" in str(error.value)
    assert f"remove {folder / origins.FILE}" in str(error.value)
    (folder / origins.FILE).unlink()
    assert len(datasets.metadata(config(root, "named", given=given), "train")) == 1
    if act is not CHANGES["a recording gone"][0]:
        shutil.rmtree(folder)
        datasets.prepare(config(root, "named"))
        datasets.prepare(config(root, "named", given=False))


def datasets_version():
    from maa_jax.data.builders.audio_folder import AudioFolder

    return str(AudioFolder.VERSION)


def test_without_a_name_a_changed_recording_is_refused_and_a_changed_table_builds_anew(root):
    path = datasets.prepare(config(root, ""))
    rows(root, "a.wav,four\n")
    assert datasets.prepare(config(root, "")) != path
    tone(root / "sounds/a.wav", 444)
    with pytest.raises(ValueError, match=r"1 of 3 files changed \(a\.wav\)"):
        datasets.prepare(config(root, ""))


def test_without_a_table_a_new_recording_makes_a_dataset_old(root):
    tone(root / "sounds/d.wav", 444)
    for given in (True, False):
        with pytest.raises(ValueError, match=r"1 of 3 files new \(d\.wav\)"):
            datasets.prepare(config(root, "bare", None, given))


def test_a_dataset_is_not_that_of_another_folder_or_table(root):
    with pytest.raises(ValueError, match=r"built with .*t\.csv, and not with none"):
        datasets.prepare(config(root, "named", None))
    (root / "other").mkdir()
    with pytest.raises(ValueError, match="3 of 3 files gone"):
        datasets.prepare({**config(root, "bare", None), "folder": str(root / "other")})


def test_copied_and_touched_files_are_the_same(root):
    for name in "abc":
        os.utime(root / f"sounds/{name}.wav", (1, 1))
    os.utime(root / "sounds/t.csv", (1, 1))
    path = datasets.prepare(config(root, "named", given=False))
    # And are looked at only once.
    assert {seen[1] for seen in origins.read(path).files.values()} == {10**9}
    (root / "sounds").rename(root / "moved")
    moved = {"folder": str(root / "moved"), "captions_file": str(root / "moved/t.csv")}
    datasets.prepare(config(root, "named") | moved)
    tone(root / "moved/a.wav", 444)
    with pytest.raises(ValueError, match=r"1 of 3 files changed"):
        datasets.prepare(config(root, "named") | moved)


@pytest.mark.parametrize("dataset", ["named", "bare", ""])
def test_a_dataset_can_be_used_where_its_files_are_not(root, dataset):
    table = None if dataset == "bare" else "t.csv"
    before = datasets.metadata(config(root, dataset, table), "train")
    for name in "abc":
        os.remove(root / f"sounds/{name}.wav")
    if dataset:
        assert datasets.metadata(config(root, dataset, given=False), "train") == before
    shutil.rmtree(root / "sounds")
    assert datasets.metadata(config(root, dataset, table), "train") == before


def test_a_broken_memory_is_named(root):
    path = datasets.prepare(config(root, "bare", None))
    (path / origins.FILE).write_text("{")
    with pytest.raises(ValueError, match=r"origin\.json is broken .*remove it"):
        datasets.prepare(config(root, "bare", None))


def test_a_run_knows_other_captions_of_the_same_recordings(root):
    before = datasets.contents(config(root, ""))
    table = root / "sounds/t.csv"
    table.write_text(table.read_text().replace("wav,", "wav,about "))
    after = datasets.contents(config(root, ""))
    assert before.keys() == after.keys() and before != after
