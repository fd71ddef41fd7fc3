"""Files from others are read without running what they hold, and within bounds."""

import builtins
import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from maa_jax.convert.torch_files import read_tensors

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")


class Payload:
    """Calls a function when it is unpickled."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def refusal(path, key="state_dict"):
    with pytest.raises(ValueError) as error:
        read_tensors(path, key)
    message = str(error.value)
    assert path.name in message and "weights_only" not in message and "\n" not in message
    return message


def test_tensors_are_read_whatever_they_are_wrapped_in(tmp_path):
    value, path = torch.arange(6.0).reshape(2, 3), tmp_path / "a.ckpt"
    contents = [{"w": value}, {"state_dict": {"w": value}}, {"model": {"w": value}, "epoch": 3}]
    contents += [{"w": torch.nn.Parameter(value)}, {"w": value.half()}, {"w": value.bfloat16()}]
    for content in contents:
        for new in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new)
            found = read_tensors(path, "model")
            assert found["w"].dtype == np.float32
            np.testing.assert_array_equal(found["w"], value)


def test_numbers_and_arrays_of_numpy_beside_the_tensors_are_never_made(tmp_path):
    path = tmp_path / "a.ckpt"
    beside = {"mAP": np.float64(0.4), "order": [np.arange(5)]}
    beside["huge"] = Payload(np._core.multiarray._reconstruct, np.ndarray, (1 << 60,), b"d")
    for new in (True, False):
        content = {"model": {"w": torch.ones(2)}, **beside}
        torch.save(content, path, _use_new_zipfile_serialization=new)
        np.testing.assert_array_equal(read_tensors(path, "model")["w"], np.ones(2, "f"))
    torch.save({"w": np.float64(0.4), "v": Payload(np.zeros, 1)}, path)
    assert "numpy.zeros" in refusal(path)
    torch.save({"w": np.float64(0.4)}, path)
    assert "w: a NumpyValue" in refusal(path)


def test_content_and_not_the_name_tells_the_format(tmp_path):
    path = tmp_path / "a.ckpt"
    safetensors_torch.save_file({"w": torch.ones(2, dtype=torch.bfloat16)}, path)
    np.testing.assert_array_equal(read_tensors(path)["w"], np.ones(2, "f"))
    path.write_bytes(path.read_bytes()[:-1])
    assert "broken or truncated" in refusal(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "a Git LFS pointer" in refusal(path)
    path.write_text("<!DOCTYPE html>")
    assert "neither a PyTorch nor a safetensors file" in refusal(path)
    path.write_bytes(b"")
    assert "empty" in refusal(path)
    path.unlink()
    os.mkfifo(path)
    assert "a pipe, not a regular file" in refusal(path)


def test_a_refused_pickle_is_not_run_and_its_class_is_named(tmp_path):
    path, ran = tmp_path / "a.ckpt", tmp_path / "ran"
    payload = Payload(os.system, f"touch {ran}")
    for new in (True, False):
        torch.save({"state_dict": {}, "x": payload}, path, _use_new_zipfile_serialization=new)
        assert "posix.system" in refusal(path)
    for protocol in range(6):
        path.write_bytes(pickle.dumps(payload, protocol))
        assert "posix.system" in refusal(path)
    assert not ran.exists()


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"x": Payload(builtins.bytearray, 1 << 40)}, path)
    assert "builtins.bytearray" in refusal(path).replace("__builtin__", "builtins")
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, path)
    assert "its tensors would fill" in refusal(path)
    torch.save({"w": torch.zeros(1 << 20)}, path)
    small = io.BytesIO()
    with zipfile.ZipFile(path) as old:
        with zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    path.write_bytes(small.getvalue())
    assert "a compressed archive" in refusal(path)


def test_one_changed_byte_is_seen(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"w": torch.full((1000,), 0.5)}, path)
    content = bytearray(path.read_bytes())
    content[content.index(np.full(1000, 0.5, "f").tobytes()) + 1002] ^= 1
    path.write_bytes(content)
    assert "does not match its checksum" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "holds a int, not named tensors"),
        ([1], "holds a list"),
        ({}, "holds nothing"),
        ({"state_dict": None}, "holds nothing"),
        ({"state_dict": [1]}, "holds a list"),
        ({"w": 3, "v": "x"}, "w: a int, v: a str"),
        ({1: 2}, "its name is not a string"),
        ({"w": np.dtype("complex64").type(1).item()}, "w: a complex"),
    ],
)
def test_what_is_no_mapping_of_tensors_is_described(tmp_path, content, message):
    torch.save(content, tmp_path / "a.ckpt")
    assert message in refusal(tmp_path / "a.ckpt")
