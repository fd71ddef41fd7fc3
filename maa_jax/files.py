"""Files and folders that are written atomically, whole or not at all, and locks on folders."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

# A local path, or a path in a bucket.
Path = TypeVar("Path", bound=pathlib.Path)


def user_path(path: str | os.PathLike[str]) -> str:
    """Returns a user's path as an absolute one, with `~` expanded.

    Orbax requires absolute paths, and a shell does not expand `~` after `--workdir=`. Addresses
    ("gs://bucket/folder") and the name of the model inside this package ("bundled") stay as they
    are.
    """
    text = os.fspath(path)
    if "://" in text or text == "bundled":
        return text
    expanded = os.path.expanduser(text)
    if not text or expanded.startswith("~"):
        raise ValueError(f"path {text!r}: give the path of a file or folder")
    return os.path.abspath(expanded)


def sha256(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a file, local or in a bucket, in hex."""
    from etils import epath

    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


INDEX = "model_index.json"  # which only a model folder has
REMEDY = "write the folder again (python -m maa_jax.convert), or give a complete one"


class FolderError(ValueError):
    """A model folder that cannot be read; the message names the file, the fault and the remedy."""


# Largest JSON file that is read; tokenizers are the largest, of a few MB.
_MOST_JSON = 64 * 2**20


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a JSON file of a model folder, which holds one object.

    Raises:
      FolderError: the file is missing or broken.
    """
    try:
        check_part_file(path)
        if path.stat().st_size > _MOST_JSON:
            raise ValueError(f"more than {_MOST_JSON >> 20} MiB")
        content = json.loads(
            path.read_bytes(), object_pairs_hook=_once, parse_constant=_no_constant
        )
    except FileNotFoundError:
        raise FolderError(f"{path} is missing; {REMEDY}") from None
    except OSError as e:
        raise FolderError(f"{path} cannot be read ({e.strerror or e}); {REMEDY}") from e
    except (ValueError, RecursionError) as e:
        raise FolderError(f"{path} is not JSON ({e}); {REMEDY}") from e
    if not isinstance(content, dict):
        raise FolderError(f"{path} holds a JSON {type(content).__name__}, not an object; {REMEDY}")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
    return content


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises a ValueError unless a local path is a regular file or a link to one.

    Reading a pipe waits for ever, and a device may have no end.

    Raises:
      ValueError: it is something else.
      OSError: there is nothing at that path, or a loop of links.
    """
    if "://" in os.fspath(path):
        return
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'no file')}, not a regular file")


def check_part_file(path: pathlib.Path) -> None:
    """Raises a ValueError unless a file of a model folder is a regular one, in that folder.

    A link may lead to another file of the folder, or to the blobs of Hugging Face's cache, whose
    folders consist of links. A whole part may be a link; who puts links into a folder and who
    opens it need not be the same person, and files that are read here are copied and uploaded.

    Args:
      path: path of the file, in the model folder or in the folder of a part.

    Raises:
      ValueError: it is something else, or elsewhere.
      OSError: there is nothing at that path, or a loop of links.
    """
    check_regular(path)
    real = pathlib.Path(os.path.realpath(path))
    model = path.parent.parent if (path.parent.parent / INDEX).exists() else path.parent
    folders = (os.path.realpath(path.parent), os.path.realpath(model))
    cached = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    if not cached and not any(real.is_relative_to(folder) for folder in folders):
        raise ValueError(f"it is a link to {real}, outside of its folder: copy the file")


# How the names of temporary files and folders begin; `lock` removes those of killed processes.
_TEMPORARY = ".tmp-"


@contextlib.contextmanager
def lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a folder for this process alone, and removes what killed writers left in it.

    Only processes that call this too are kept out. A folder in a bucket, or on a file system
    without locks, is not locked.

    Args:
      folder: an existing folder.

    Raises:
      ValueError: another process holds the folder.
    """
    if "://" in os.fspath(folder):
        yield
        return
    path = pathlib.Path(folder, ".lock")
    file = _locked(path)
    try:
        if file is not None:
            remove_leftovers(folder)
        yield
    finally:
        if file is not None:
            path.unlink(missing_ok=True)  # still held: nobody locks a file that is gone
            file.close()


def _locked(path: pathlib.Path) -> Any:
    """Returns the open, locked file at `path`; None where files cannot be locked."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise ValueError(
                f"{path.parent} is in use by {holder}: wait for it, or give another folder"
            ) from None
        except OSError as error:
            file.close()
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            path.unlink(missing_ok=True)
            return None
        # Its holder may have removed the file between our opening and locking it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        file.close()


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files and folders in `folder`, whose writers must be gone."""
    for path in pathlib.Path(folder).glob(f"{_TEMPORARY}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Waits until a local file is on the disk, so that a rename cannot outlive its content."""
    if "://" not in os.fspath(path):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; it is moved to `path` on success, removed on failure.

    Args:
      path: path of the file, local or in a bucket (`etils.epath`), in an existing folder.
    """
    new = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield new
        _to_disk(new)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


# The files of a part of a model folder (a network, the tokenizer, the scheduler), as this package
# and Hugging Face's libraries name them. Anything else in its folder is the user's.
PART_FILE = re.compile(
    r"(config|scheduler_config|preprocessor_config|special_tokens_map|tokenizer|tokenizer_config)"
    r"\.json|vocab\.txt|(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


@contextlib.contextmanager
def replace_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary folder whose content replaces that of a part of a model folder.

    On failure nothing is changed. On success the part's own files, `PART_FILE`, are replaced, and
    other files in the folder stay. If `target` is a symbolic link, the folder that it points to is
    written.

    Raises:
      FolderError: `target` is a file.
    """
    target = pathlib.Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise FolderError(f"{target} is a file: move it away, or choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(
        tempfile.mkdtemp(prefix=_TEMPORARY, suffix=f"-{target.name}", dir=target.parent)
    )
    try:
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if target.exists():
            # The old files are removed first: a kill from here on leaves a folder that is refused,
            # not one that mixes two networks.
            remove_part_files(target)
            _move_content(new, target)
        else:
            new.chmod(0o755)  # mkdtemp makes it private
            new.rename(target)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def temporary_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new folder inside `folder`, which is removed at the end."""
    new = pathlib.Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder))
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def remove_part_files(folder: pathlib.Path) -> None:
    """Removes the files of a part of a model folder, and no others."""
    for path in folder.iterdir():
        if PART_FILE.fullmatch(path.name):
            path.unlink()


def _move_content(source: pathlib.Path, target: pathlib.Path) -> None:
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and there.is_dir():
            _move_content(path, there)
        else:
            path.replace(there)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    with replace_file(path) as new:
        new.write_text(json.dumps(content, indent=2) + "\n")


_SLUG_LENGTH = 48  # characters of the prompt in a file's name, which may have up to 255 bytes


def file_names(prompts: Sequence[str]) -> list[str]:
    """Returns a readable, unique, numbered file name for each prompt."""
    digits = max(3, len(str(len(prompts) - 1)))
    return [
        f"{i:0{digits}d}_{_slug(prompt) or 'unconditional'}.wav" for i, prompt in enumerate(prompts)
    ]


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:_SLUG_LENGTH].strip("-")


@contextlib.contextmanager
def output_folder(path: str) -> Iterator[pathlib.Path]:
    """Makes a folder, and holds it for this process alone; see `make_folder` and `lock`.

    Folders that it made are removed again if nothing was written into them.
    """
    place = pathlib.Path(path)
    new = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        with lock(make_folder(path)):
            yield place
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


def make_folder(path: str) -> pathlib.Path:
    """Makes a folder and its parents, and checks that files can be written into it.

    Raises:
      ValueError: the folder cannot be made or written to.
    """
    if "://" in path:
        raise ValueError(f"--out={path}: give a folder of this computer")
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as e:
        raise ValueError(f"--out={path}: cannot be written ({e}); give another folder") from e
    return folder
