import itertools
import os
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from maa_jax.audio.io import encode_flac
from maa_jax.data import datasets, mixtures, transforms
from maa_jax.data.config import DataConfig
from maa_jax.data.input_pipeline import eval_batches, train_iterator


def letters(captions):
    """A stand-in for a tokenizer: lengths and first letters."""
    return np.array([[len(caption), ord(caption[0])] for caption in captions], np.int32)


def take(iterator, n):
    return list(itertools.islice(iterator, n))


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_batches(data):
    (batch,) = take(train_iterator(data, batch_size=6, seed=0, prepare_text=letters), 1)
    assert {key: (value.shape, value.dtype.name) for key, value in batch.items()} == {
        "audio": ((6, 8192), "float32"),
        "index": ((6,), "int64"),
        "text": ((6, 2), "int32"),
    }
    assert np.abs(batch["audio"]).max() <= 1
    # A batch's text comes from its records' captions.
    metadata = datasets.metadata(data)
    for index, text in zip(batch["index"], batch["text"], strict=True):
        allowed = letters(metadata[index]["captions"]).tolist()
        assert text.tolist() in allowed


def test_no_sound_begins_with_padding(data):
    for batch in take(train_iterator(data, batch_size=26, seed=0), 4):
        sounding = np.abs(batch["audio"]) > 0
        assert (sounding.argmax(axis=1) < 800).all()
        assert sounding.any(axis=1).all()


def windows(data):
    """How many windows each recording of the training split has, in the order of `metadata`."""
    seconds = np.array([example["seconds"] for example in datasets.metadata(data)])
    return np.maximum(1, np.rint(seconds * 16_000 / data["samples"])).astype(int)


def test_each_epoch_is_a_new_permutation_of_all_windows(data):
    count, size = windows(data), datasets.num_examples(data)
    assert size == count.sum() > 2 * len(count) == 208  # hours, not files
    first, second = [
        batch["index"] for batch in take(train_iterator(data, batch_size=size, seed=3), 2)
    ]
    np.testing.assert_array_equal(np.bincount(first), count)
    np.testing.assert_array_equal(np.bincount(second), count)
    assert (first != second).any() and (np.diff(first) != 0).mean() > 0.9


def test_seed_decides_everything(data):
    def run(seed):
        return take(train_iterator(data, batch_size=8, seed=seed, prepare_text=letters), 3)

    assert_same(run(1), run(1))
    assert (run(1)[0]["index"] != run(2)[0]["index"]).any()


def test_captions_and_crops_vary_from_epoch_to_epoch(data):
    count = windows(data)
    iterator = train_iterator(data, batch_size=count.sum(), seed=0, prepare_text=letters)
    epochs = []
    for batch in take(iterator, 6):
        order = np.argsort(batch["index"])[np.cumsum(count) - 1]  # one window of each
        epochs.append((batch["text"][order], batch["audio"][order]))
    changed = np.stack([(epochs[0][0] != text).any(axis=1) for text, _ in epochs[1:]])
    assert changed.any(axis=0).mean() > 0.9
    seconds = np.array([example["seconds"] for example in datasets.metadata(data)])
    moved = (epochs[0][1] != epochs[1][1]).any(axis=1)
    np.testing.assert_array_equal(moved[seconds < 0.512], False)
    assert moved[seconds > 1].mean() > 0.9


def test_an_epoch_hears_a_long_recording_from_end_to_end():
    ramp = np.linspace(0.1, 0.9, 1000, dtype=np.float32)
    starts = []
    for window in range(10):
        clips = [
            transforms.clip_audio({"audio": encode_flac(ramp)}, rng, 100, window, 10)["audio"]
            for rng in map(np.random.default_rng, range(200))
        ]
        starts.append({int(np.abs(ramp - clip[0]).argmin()) for clip in clips})
    assert [min(s) // 90 for s in starts] == [max(s) // 90 for s in starts[:-1]] + [9]
    assert max(starts[-1]) > 890 and min(starts[0]) < 10 and len(set.union(*starts)) > 700


def test_processes_take_parts_of_the_same_global_batches(data):
    alone = take(train_iterator(data, batch_size=8, seed=5, prepare_text=letters), 15)
    parts = [
        take(
            train_iterator(
                data,
                batch_size=8,
                seed=5,
                prepare_text=letters,
                process_index=i,
                process_count=4,
            ),
            15,
        )
        for i in range(4)
    ]
    together = [
        {key: np.concatenate([part[key] for part in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(together, alone)


def test_workers_change_nothing(data):
    threads = take(train_iterator(data, batch_size=8, seed=5, prepare_text=letters), 5)
    workers = train_iterator({**data, "workers": 2}, batch_size=8, seed=5, prepare_text=letters)
    assert_same(take(workers, 5), threads)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_goes_on_at_any_step_with_any_number_of_workers_and_processes(data, workers):
    mixed = {
        **data,
        "dataset": "sonic_sounds:train[:30%] + sonic_sounds:train[30%:]*2",
        "reprogram": {"events": "sonic_sounds"},
    }
    start, settings = 11, {"batch_size": 8, "seed": 1, "prepare_text": letters}  # in epoch 2
    wanted = take(train_iterator(mixed, **settings), start + 3)[start:]
    mixed["workers"] = workers
    assert_same(take(train_iterator(mixed, start=start, **settings), 3), wanted)
    for index in (0, 1):
        half = train_iterator(mixed, start=start, process_index=index, process_count=2, **settings)
        rows = slice(4 * index, 4 * index + 4)
        assert_same(take(half, 3), [{k: v[rows] for k, v in batch.items()} for batch in wanted])


def test_the_two_millionth_batch_is_found_at_once(data):
    settings = {"batch_size": datasets.num_examples(data), "seed": 3}
    (far,) = take(train_iterator(data, start=2_000_000, **settings), 1)
    np.testing.assert_array_equal(np.bincount(far["index"]), windows(data))  # a whole epoch
    assert (far["index"] != next(train_iterator(data, **settings))["index"]).any()


def test_dataset_smaller_than_a_batch(data):
    data = {**data, "split": "train[:3]", "samples": 160_000}
    assert datasets.num_examples(data) == 3
    (batch,) = take(train_iterator(data, batch_size=7, seed=0), 1)
    assert sorted(batch["index"][:3]) == sorted(batch["index"][3:6]) == [0, 1, 2]


def test_evaluation_sees_each_record_once(data):
    batches = list(eval_batches(data, batch_size=8, prepare_text=letters))
    assert_same(batches, list(eval_batches(data, batch_size=8, prepare_text=letters)))
    assert [len(batch["audio"]) for batch in batches] == [8, 8]
    valid = np.concatenate([batch["valid"] for batch in batches])
    index = np.concatenate([batch["index"] for batch in batches])
    assert index[valid].tolist() == list(range(13)) and valid.sum() == 13
    # Neither the batch size nor the number of processes changes a clip.
    (whole,) = eval_batches(data, batch_size=13)
    audio = np.concatenate([batch["audio"] for batch in batches])
    np.testing.assert_array_equal(whole["audio"], audio[valid])
    parts = [
        list(eval_batches(data, batch_size=8, process_index=i, process_count=2)) for i in (0, 1)
    ]
    assert [len(part) for part in parts] == [2, 2]
    np.testing.assert_array_equal(
        np.concatenate([parts[p][step]["audio"] for step in (0, 1) for p in (0, 1)]), audio
    )


def test_evaluation_on_workers(data):
    assert_same(
        list(eval_batches({**data, "workers": 2}, batch_size=8)),
        list(eval_batches(data, batch_size=8)),
    )


def test_captions_of_a_split(data):
    captions = datasets.captions(data)
    assert len(captions) == 3 * 104 and "a crow caws once" in captions


def test_bad_settings_are_named(data):
    with pytest.raises(ValueError, match=r"data\.sample is not a key.*mean 'samples'"):
        DataConfig.of(ml_collections.ConfigDict({"sample": 3}))
    with pytest.raises(ValueError, match=r"data\.samples=0: give a whole number from 1"):
        DataConfig.of({"samples": 0})
    with pytest.raises(ValueError, match=r"batch_size is 7.*2 processes"):
        train_iterator(data, batch_size=7, seed=0, process_count=2)
    with pytest.raises(ValueError, match=r"no split 'extra'; use one of .*validation"):
        train_iterator({**data, "split": "extra"}, batch_size=7, seed=0)
    with pytest.raises(ValueError, match="is empty"):
        train_iterator({**data, "split": "train[:0]"}, batch_size=7, seed=0)


def test_other_processes_do_not_wait_forever(tmp_path, monkeypatch):
    monkeypatch.setattr(mixtures, "BUILD_TIMEOUT_S", 0)
    with pytest.raises(TimeoutError, match=r"no dataset_info.json in .*sonic_sounds.*data_dir"):
        datasets.prepare({"data_dir": str(tmp_path)}, process_index=1)
    assert not list(tmp_path.iterdir())


def test_data_dir_of_the_environment(data, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", data["data_dir"])
    assert str(datasets.prepare({})).startswith(data["data_dir"])


def test_training_input_loads_no_tensorflow(tmp_path):
    program = (
        "import sys\n"
        "from maa_jax.data import input_pipeline\n"
        f"data = {{'data_dir': {str(tmp_path)!r}, 'samples': 4096}}\n"
        "next(input_pipeline.train_iterator(data, batch_size=4, seed=0))\n"
        "next(iter(input_pipeline.eval_batches(data, batch_size=4)))\n"
        "loaded = {'tensorflow', 'torch', 'numba'} & set(sys.modules)\n"
        "sys.exit(f'loaded {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# --- transforms


def test_clip_pads_at_the_end_and_crops_anywhere():
    ramp = np.linspace(0.1, 0.9, 1000, dtype=np.float32)
    example = {"audio": encode_flac(ramp), "id": b"x"}
    rng = np.random.default_rng(0)
    padded = transforms.clip_audio(example, rng, 1500)
    np.testing.assert_allclose(padded["audio"][:1000], ramp, atol=1e-4)
    assert (padded["audio"][1000:] == 0).all() and padded["id"] == b"x"
    starts = set()
    for _ in range(200):
        clip = transforms.clip_audio(example, rng, 995)["audio"]
        start = int(np.abs(ramp - clip[0]).argmin())
        np.testing.assert_allclose(clip, ramp[start : start + 995], atol=1e-4)
        starts.add(start)
    assert starts == {0, 1, 2, 3, 4, 5}


def test_captions_from_labels():
    labelled = {"captions": [], "labels": [b"dog", b"rain"]}
    assert transforms.all_captions(labelled) == ["the sound of dog and rain"]
    assert transforms.all_captions({"captions": [], "labels": []}) == [""]
    example = {"captions": [b"one", b"two"], "labels": [b"dog"]}
    rng = np.random.default_rng(0)
    picked = {transforms.pick_caption(example, rng)["caption"] for _ in range(50)}
    assert picked == {"one", "two"}
