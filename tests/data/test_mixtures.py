"""Mixtures of datasets, on the bundled recordings and a folder that holds some of them again."""

import csv
import itertools
import logging as std_logging
import shutil

import numpy as np
import pytest
import soundfile

from maa_jax.data import datasets, deduplication, mixtures, stored
from maa_jax.data.builders import sonic_sounds
from maa_jax.data.input_pipeline import eval_batches, train_iterator

TONES = 8
MIX = "sonic_sounds + audio_folder/tones"


def prepare_text(captions):
    return np.array([[len(caption), ord(caption[0])] for caption in captions], np.int32)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory):
    """The bundled recordings and `TONES` tones, two of the former among the latter."""
    root = tmp_path_factory.mktemp("tones")
    paths = {path.stem: path for path in sonic_sounds.FOLDER.glob("*.flac")}
    rows = [("file", "caption", "label", "split")]
    for i in range(TONES):
        soundfile.write(root / f"{i}.wav", 0.5 * np.sin(0.02 * (i + 2) * np.arange(9000)), 16000)
        rows.append((f"{i}.wav", f"tone {i}", "tone", "validation" if i == 0 else "train"))
    for split in ("train", "validation"):
        example = datasets.metadata(data, split)[3]
        shutil.copy(paths[example["id"]], root / f"copy of {split}.flac")
        rows.append((f"copy of {split}.flac", "a copy", "copy", "train"))
    with (root / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    files = {"folder": str(root), "captions_file": str(root / "table.csv")}
    datasets.prepare({**data, **files, "dataset": "audio_folder/tones"})
    return {**data, "dataset": MIX, "samples": 1000}


def test_a_line_names_parts_splits_and_weights():
    line = "audiocaps:train+enhanced/fsd50k * 2.0 + sonic_sounds:train[:50%]*1e-1"
    assert mixtures.parse("data.dataset", line, "other") == (
        mixtures.Part("audiocaps", "train", 1.0),
        mixtures.Part("enhanced/fsd50k", "other", 2.0),
        mixtures.Part("sonic_sounds", "train[:50%]", 0.1),
    )
    assert mixtures.parse("data.dataset", "esc50", "train+more") == (
        mixtures.Part("esc50", "train+more"),
    )


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("a + ", "part '': not understood"),
        ("a:train[:50% + b", r"part 'a:train\[:50%': not understood"),
        ("a b", "part 'a b': not understood"),
        ("a + b*x", r"part 'b\*x': weight x is not a positive number"),
        ("a*0", "weight 0 is not a positive number"),
        ("a*nan", "weight nan is not a positive number"),
    ],
)
def test_a_mistake_in_the_line_is_shown_with_the_right_form(line, fault):
    with pytest.raises(ValueError, match=rf"data\.dataset is .*{fault}; write NAME.*WEIGHT"):
        mixtures.parse("data.dataset", line, "train")


def test_unknown_datasets_are_named_with_the_nearest(mixed):
    for name, near in (("sonic_sound", "sonic_sounds"), ("audio_fold/tones", "audio_folder/tones")):
        with pytest.raises(ValueError, match=f"'{name}'.*did you mean '{near}'"):
            datasets.prepare({**mixed, "dataset": f"sonic_sounds + {name}"})


def test_a_built_dataset_without_a_builder_is_read(mixed, tmp_path):
    built = datasets.prepare({**mixed, "dataset": "sonic_sounds"})
    shutil.copytree(built, tmp_path / "enhanced2" / "sonic" / built.name)
    config = {**mixed, "data_dir": str(tmp_path), "dataset": "enhanced2/sonic"}
    assert len(datasets.captions(config)) == 3 * 104


def test_all_weights_1_draw_every_window_equally_often(mixed):
    # 104 recordings and 8 of the folder's 9: the copies are not trained on.
    windows = np.array([windows_of(mixed, x) for x in datasets.metadata(mixed)])
    size = datasets.num_examples(mixed)
    batches = take(train_iterator(mixed, batch_size=size, seed=0), 6)
    counts = np.bincount(np.concatenate([batch["index"] for batch in batches]), minlength=113)
    drawn = counts > 0
    assert drawn.sum() == 104 + TONES - 1 and size == windows[drawn].sum()
    assert (abs(counts[drawn] - 6 * windows[drawn]) <= 2).all()
    assert len(set(np.diff(batches[0]["index"]))) > 50  # In no order.


def windows_of(config, example):
    return max(1, round(example["seconds"] * 16_000 / config["samples"]))


def test_weights_multiply_a_parts_share(mixed):
    config = {**mixed, "dataset": f"{MIX}*5"}
    tones = TONES - 1  # of 9 windows each
    both, alone = (datasets.num_examples({**config, "dataset": x}) for x in (MIX, "sonic_sounds"))
    assert both - alone == 9 * tones
    (batch,) = take(train_iterator(config, batch_size=2_000, seed=0), 1)
    share = 5 * 9 * tones / (5 * 9 * tones + alone)
    assert abs((batch["index"] >= 104).mean() - share) < 0.01


def test_index_is_the_place_in_the_metadata(mixed):
    found = datasets.metadata(mixed)
    assert len(found) == 104 + TONES + 1
    (batch,) = take(train_iterator(mixed, batch_size=80, seed=4, prepare_text=prepare_text), 1)
    assert (batch["index"] >= 104).any() and (batch["index"] < 104).any()
    for index, text in zip(batch["index"], batch["text"], strict=True):
        assert text.tolist() in prepare_text(found[index]["captions"]).tolist()


def test_one_part_is_the_dataset_alone(mixed):
    alone, named = (
        take(train_iterator({**mixed, "dataset": name}, batch_size=8, seed=1), 2)
        for name in ("sonic_sounds", "sonic_sounds:train*3")
    )
    for batch, other in zip(alone, named, strict=True):
        np.testing.assert_array_equal(batch["audio"], other["audio"])
        np.testing.assert_array_equal(batch["index"], other["index"])


def test_evaluation_is_on_the_first_part_or_on_what_is_named(mixed):
    def examples(**more):
        batches = eval_batches({**mixed, **more}, batch_size=8)
        return sum(int(batch["valid"].sum()) for batch in batches)

    assert examples() == 13 == datasets.num_examples(mixed, "validation")
    assert examples(eval_dataset="audio_folder/tones") == 1
    assert examples(eval_dataset=MIX) == 14
    assert len(datasets.metadata({**mixed, "eval_dataset": MIX}, "validation")) == 14
    with pytest.raises(ValueError, match=r"data\.eval_dataset is .*leave the weights out"):
        examples(eval_dataset=f"{MIX}*2")
    with pytest.raises(ValueError, match=r"no split 'test'.*data\.eval_dataset"):
        next(
            train_iterator(
                {**mixed, "eval_dataset": MIX, "eval_split": "test"}, batch_size=1, seed=0
            )
        )


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"dataset": f"{MIX}:test*0.1"}, "audio_folder/tones:test"),
        ({"dataset": f"sonic_sounds:validation[:10%] + {MIX}"}, r"sonic_sounds:validation\[:10%\]"),
        ({"split": "train+test"}, r"sonic_sounds:train\+test"),
        ({"eval_split": "train[:10%]"}, "sonic_sounds:train"),
        ({"split": "train[:10%]", "eval_split": "train"}, r"sonic_sounds:train\[:10%\]"),
        ({"reprogram": {"events": "sonic_sounds:test"}}, "sonic_sounds:test"),
    ],
)
def test_training_refuses_evaluation_data(mixed, change, part):
    for start in (
        lambda config: datasets.prepare(config),
        lambda config: train_iterator(config, batch_size=1, seed=0),
    ):
        with pytest.raises(ValueError, match=rf"part '{part}' is evaluation data"):
            start({**mixed, **change, "data_dir": "/no/such/folder"})  # Before anything is built.


@pytest.mark.parametrize(
    ("change", "key", "part"),
    [
        ({"dataset": f"{MIX} + enhanced/mine:rejected*2"}, "dataset", "rejected"),
        ({"dataset": "enhanced/mine:rejected[:50%]"}, "dataset", r"rejected\[:50%\]"),
        ({"dataset": "enhanced/mine", "split": "train+rejected"}, "dataset", r"train\+rejected"),
        ({"reprogram": {"events": "enhanced/mine:rejected"}}, r"reprogram\.events", "rejected"),
    ],
)
def test_training_refuses_recordings_whose_captions_were_rejected(mixed, change, key, part):
    message = rf"data\.{key}: part 'enhanced/mine:{part}' .*accepted.*take enhanced/mine:train"
    for start in (
        lambda config: datasets.prepare(config),
        lambda config: train_iterator(config, batch_size=1, seed=0),
    ):
        with pytest.raises(ValueError, match=message):
            start({**mixed, **change, "data_dir": "/no/such/folder"})  # Before anything is built.


def test_slices_of_one_split_may_be_trained_and_evaluated_on(mixed):
    config = {**mixed, "dataset": "sonic_sounds", "split": "train[13:]", "eval_split": "train[:13]"}
    assert len(datasets.captions(config)) == 3 * 91
    # Recordings in both are evaluated on.
    assert len(datasets.captions({**config, "split": "train[10:]"})) == 3 * 91


def test_recordings_that_are_also_elsewhere_are_dropped_and_reported(mixed, caplog):
    deduplication._report.cache_clear()
    with caplog.at_level(std_logging.WARNING, logger="absl"):
        for _ in range(2):
            captions = datasets.captions(mixed)
    assert [record.getMessage() for record in caplog.records] == [
        "audio_folder/tones:train: 1 of 9 recordings are evaluated on and not trained on:"
        " copy of validation.flac",
        "audio_folder/tones:train: 1 of 9 recordings are in an earlier part and not trained on:"
        " copy of train.flac",
    ]
    assert "a copy" not in captions and "tone 3" in captions and "tone 0" not in captions
    # The order of the parts decides which of two stays.
    other = {**mixed, "dataset": "audio_folder/tones + sonic_sounds", "eval_dataset": MIX}
    assert datasets.captions(other).count("a copy") == 1
    assert len(datasets.captions(other)) == 3 * 103 + TONES
    with pytest.raises(ValueError, match=r"sonic_sounds:train\[:1\].*all of its 1 recordings"):
        config = {**mixed, "dataset": "sonic_sounds + sonic_sounds:train[:1]"}
        train_iterator(config, batch_size=1, seed=0)


def test_one_address_in_two_datasets_is_one_recording():
    def index(audio, id, source):
        arrays = (np.array(x, np.uint64) for x in (audio, id, source))
        return stored.Index(*arrays, np.ones(3, np.uint8), np.zeros(3, bool), np.ones(3))

    mine, theirs = index([1, 2, 3], [1, 2, 3], [7, 0, 8]), index([3, 5, 6], [9, 8, 7], [7, 0, 6])
    matches = deduplication.matches
    assert matches(mine, theirs, same_dataset=False).tolist() == [True, False, True]
    assert matches(mine, theirs, same_dataset=True).tolist() == [False, False, True]


def test_the_index_is_kept_with_the_dataset(mixed, monkeypatch):
    datasets.prepare(mixed)
    monkeypatch.setattr(stored, "_write_index", None)  # Nothing is left to make.
    folder = datasets.prepare(mixed)
    assert {path.name for path in folder.glob("*.npz")} == {
        "recordings-train.npz",
        "recordings-validation.npz",
        "recordings-test.npz",
    }
    index = stored.index_of(mixtures.Part("sonic_sounds", "train[5:7]"), folder)
    assert len(index) == 2 and index.labels.tolist() == [1, 1] and index.source.all()
