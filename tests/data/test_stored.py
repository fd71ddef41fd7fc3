"""Built datasets whose files are torn, swapped or named wrongly."""

import itertools
import shutil

import pytest
from etils import epath

from maa_jax.data import datasets, stored
from maa_jax.data.input_pipeline import train_iterator
from maa_jax.data.mixtures import Part

SHARD = "sonic_sounds-train.array_record-00000-of-00001"
INDEX = "recordings-train.npz"


@pytest.fixture
def copy(data, tmp_path):
    """A copy of the bundled dataset with its indices: settings and folder."""
    built = datasets.prepare(data)
    folder = tmp_path / "sonic_sounds" / built.name
    shutil.copytree(built, folder)
    return {**data, "data_dir": str(tmp_path)}, folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def read_all(config):
    iterator = train_iterator(config, batch_size=64, seed=0)
    for _ in itertools.islice(iterator, 1 + datasets.num_examples(config) // 64):
        pass


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("dataset_info.json", cut),
        ("dataset_info.json", lambda path: path.write_text("null")),
        ("features.json", cut),
        ("features.json", lambda path: path.unlink()),
        (SHARD, cut),
        (SHARD, flip),
        (SHARD, lambda path: path.write_bytes(b"")),
        (SHARD, lambda path: path.unlink()),
    ],
)
def test_a_torn_dataset_is_named_with_what_to_do(copy, name, damage, indexed):
    config, folder = copy
    if not indexed:
        (folder / INDEX).unlink()
    damage(folder / name)
    with pytest.raises(stored.DatasetError, match=f"delete {folder} and build it again"):
        read_all(config)


def test_a_torn_shard_is_named_when_a_worker_process_reads_it(copy):
    config, folder = copy
    flip(folder / SHARD)
    with pytest.raises(stored.DatasetError, match=rf"recording \d+ of train.*delete {folder}"):
        read_all({**config, "workers": 1})


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.write_text("{}")])
def test_a_torn_index_is_deleted_and_written_again(copy, damage):
    config, folder = copy
    captions = datasets.captions(config)
    damage(folder / INDEX)
    with pytest.raises(stored.DatasetError, match=f"{folder / INDEX}, .*delete it"):
        datasets.captions(config)
    (folder / INDEX).unlink()
    assert datasets.captions(config) == captions


def test_an_index_does_not_outlive_the_files_it_was_made_from(copy):
    config, folder = copy
    shutil.copy(folder / SHARD.replace("train", "test"), folder / SHARD)
    with pytest.raises(stored.DatasetError, match="has other files than when recordings-train"):
        datasets.prepare(config)


@pytest.mark.parametrize(
    ("split", "fault"),
    [
        ("train[:x]", "Unrecognized split format"),
        ("train[:150%]", "percent"),
        ("train[:1000]", "incompatible with 104 examples"),
        ("train[50:10]", "is empty"),
        ("train+extra", "no split 'extra'; use one of"),
    ],
)
def test_a_split_that_cannot_be_cut_is_named(data, split, fault):
    folder = datasets.prepare(data)
    with pytest.raises(ValueError, match=rf"{fault}") as error:
        datasets.num_examples({**data, "split": split})
    assert repr(split) in str(error.value) and str(folder) in str(error.value)


def test_slices_of_an_index_are_those_of_the_recordings(data):
    folder = epath.Path(datasets.prepare(data))
    for split in ("train[3:9]", "train[-5:]+test", "train[50%:]"):
        found = stored.descriptions(Part("sonic_sounds", split), folder)
        source = stored.Recordings(folder, split)
        assert [stored.describe(example) for example in source] == found
