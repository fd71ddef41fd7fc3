import json
import os

import numpy as np
import pytest
from etils import epath

from maa_jax.files import replace_file, write_array, write_json


@pytest.mark.parametrize("kind", [lambda path: path, epath.Path], ids=["pathlib", "epath"])
def test_a_file_appears_whole_or_not_at_all(kind, tmp_path):
    path = kind(tmp_path / "a.txt")
    with replace_file(path) as new:
        new.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(OSError, match="disk"), replace_file(path) as new:
        new.write_text("half")
        raise OSError("disk full")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_file_that_cannot_be_json_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_others_may_read_what_is_written(tmp_path):
    write_json(tmp_path / "a.json", {})
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o666 & ~mask


def test_arrays_are_written_in_batches(tmp_path):
    texts, sizes = [str(i) for i in range(7)], set()

    def encode(batch):
        sizes.add(len(batch))
        return np.array([[int(text), 1] for text in batch])

    write_array(tmp_path / "a.npy", texts, encode, batch_size=3)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[i, 1] for i in range(7)])
    assert sizes == {3, 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
