import json
import os
import subprocess
import sys

import pytest
from etils import epath

from maa_jax import files
from maa_jax.files import replace_file, write_json


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


def test_a_locked_folder_is_refused_by_name_of_its_holder_until_it_is_free(tmp_path):
    holding = f"""
import sys, time
from maa_jax import files
with files.lock({str(tmp_path)!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(ValueError, match=f"{tmp_path} is in use by process {other.pid} on"),
            files.lock(tmp_path),
        ):
            pass
        other.communicate()
    with files.lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_removes_what_killed_writers_left_and_nothing_else(tmp_path):
    for writer in (
        "with files.replace_file(folder / 'a.txt') as new: new.write_text('half'); kill()",
        "with files.replace_folder(folder / 'unet') as new: (new / 'a').mkdir(); kill()",
    ):
        code = f"""
import os, pathlib
from maa_jax import files
folder = pathlib.Path({str(tmp_path)!r})
kill = lambda: os.kill(os.getpid(), 9)
{writer}
"""
        subprocess.run([sys.executable, "-c", code])
    (tmp_path / ".hidden").touch()
    (tmp_path / "a.wav").touch()
    assert len(list(tmp_path.iterdir())) == 4
    with files.lock(tmp_path):
        assert {p.name for p in tmp_path.iterdir()} == {".hidden", ".lock", "a.wav"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[1]", "a JSON list, not an object"),
        (b"null", "a JSON NoneType"),
        (b'{"a": ', "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"", "is not JSON"),
    ],
)
def test_a_broken_json_file_is_named(content, reason, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(files.FolderError, match=reason) as error:
        files.read_json(tmp_path / "config.json")
    assert str(tmp_path / "config.json") in str(error.value)


def test_what_is_no_regular_file_is_refused_before_it_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("pipe", "a pipe"), ("folder", "a folder"), ("loop", "cannot be read")):
        with pytest.raises(files.FolderError, match=reason):
            files.read_json(tmp_path / name)
    with pytest.raises(ValueError, match="a device"):
        files.check_regular("/dev/zero")


@pytest.mark.parametrize("path", ["", "~nobody-here/runs"])
def test_paths_that_name_nothing_are_refused(path):
    with pytest.raises(ValueError, match="give the path of a file or folder"):
        files.user_path(path)
