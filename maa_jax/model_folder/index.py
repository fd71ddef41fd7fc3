"""model_index.json: the parts of a model folder, and the settings that they share."""

import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any

from maa_jax import schema
from maa_jax.audio.mel import MelConfig
from maa_jax.diffusion.schedule import Schedule
from maa_jax.files import (
    REMEDY,
    FolderError,
    check_part_file,
    read_json,
    remove_part_files,
    replace_folder,
    sha256,
    write_json,
)
from maa_jax.model_folder.hub import INDEX, missing_weights
from maa_jax.model_folder.registry import NETWORKS, class_of

# The class that model_index.json states.
CLASS_NAME = "MaaPipeline"
# A folder's name, and no path.
_PART_NAME = re.compile(r"\w[\w.-]{0,200}")

# Parts that are not networks: (class for model_index.json, files that they must have).
_OTHERS = {
    "tokenizer": (("transformers", "BertTokenizer"), ("tokenizer.json",)),
    "scheduler": (("diffusers", "DDIMScheduler"), ("scheduler_config.json",)),
}


def networks_in(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Returns {name: class name} of the networks in a folder, regardless of its index."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("[!.]*/config.json")):
        kind = class_of(read_json(path))
        if kind in NETWORKS:
            found[path.parent.name] = kind
    return found


def save_scheduler(folder: str | os.PathLike[str], schedule: Schedule) -> None:
    """Writes `folder/scheduler/`, the configuration of diffusers' DDIMScheduler."""
    with replace_folder(pathlib.Path(folder, "scheduler")) as new:
        write_json(new / "scheduler_config.json", schedule.to_hf())


def load_scheduler(folder: str | os.PathLike[str]) -> Schedule:
    """Returns the noise schedule in `folder/scheduler/`.

    Raises:
      FolderError: the file is missing or broken, or its schedule is not supported.
    """
    path = pathlib.Path(folder, "scheduler", "scheduler_config.json")
    try:
        return Schedule.from_hf(read_json(path))
    except FolderError:
        raise
    except ValueError as e:
        raise FolderError(f"{path}: {e}") from e


def save_index(folder: str | os.PathLike[str], **meta: Any) -> None:
    """Writes model_index.json: every part found in the folder, and the entries of `meta`.

    Entries of an existing index are kept unless `meta` names them, so that stages can be exported
    into one folder, one after another.

    Raises:
      FolderError: networks in the folder share a front end that is not `meta`'s.
    """
    folder = pathlib.Path(folder)
    index = read_json(folder / INDEX) if (folder / INDEX).exists() else {}
    for key in ("mel", "sample_rate"):
        if key in index and key in meta and index[key] != meta[key]:
            raise FolderError(
                f"{folder / INDEX}: {key}={index[key]!r}, but these networks have {meta[key]!r}: "
                "write them into another folder"
            )
    parts = {name: list(part) for name, (part, _) in _OTHERS.items() if (folder / name).is_dir()}
    if (folder / "tokenizer" / "tokenizer_config.json").exists():
        tokenizer = read_json(folder / "tokenizer" / "tokenizer_config.json")
        parts["tokenizer"][1] = str(tokenizer.get("tokenizer_class", parts["tokenizer"][1]))
    for name, kind in networks_in(folder).items():
        parts[name] = [NETWORKS[kind][0], kind]
    write_json(folder / INDEX, {"_class_name": CLASS_NAME} | parts | _meta(index) | meta)


def copy_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a model folder; parts of a model in the target are replaced, other files are kept.

    Args:
      source: path of the model folder, whose hidden files are not copied.
      target: folder that is missing, empty or a model; if it is a symbolic link, the folder that it
        points to is written.

    Raises:
      ValueError: `target` is `source`, or holds something other than a model.
    """
    if target.resolve() == source.resolve():
        raise ValueError(f"folder={str(target)!r} is the model's own: give another one")
    has_index = (target / INDEX).is_file()
    empty = not target.exists() or (target.is_dir() and not any(target.iterdir()))
    if not empty and not has_index and not networks_in(target):  # an interrupted copy has networks
        raise ValueError(
            f"folder={str(target)!r} holds something other than a model: give a new folder"
        )
    os.makedirs(os.path.realpath(target), exist_ok=True)
    parts = {k for k, v in read_json(target / INDEX).items() if _is_part(v)} if has_index else set()
    # The index is removed first and written last, so that an interrupted copy is not a model.
    (target / INDEX).unlink(missing_ok=True)
    for path in target.iterdir():
        if path.is_dir() and path.name in parts and not (source / path.name).exists():
            remove_part_files(path)
    for path in source.glob("[!.]*"):
        if path.is_dir():
            with replace_folder(target / path.name) as new:
                _copy_files(path, new)
        elif path.name != INDEX:
            _copy_file(path, target / path.name)
    write_json(target / INDEX, read_json(source / INDEX))


def _copy_files(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies the files below a folder; links to folders, which may form loops, are left out."""
    for folder, _, names in os.walk(source):
        there = target / pathlib.Path(folder).relative_to(source)
        there.mkdir(exist_ok=True)
        for name in names:
            _copy_file(pathlib.Path(folder, name), there / name)


def _copy_file(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        check_part_file(source)
    except (ValueError, OSError) as e:
        raise FolderError(f"{source}: {e}; remove it, or write it again") from e
    shutil.copyfile(source, target)


def merge_folder(source: pathlib.Path, target: pathlib.Path) -> None:
    """Moves the parts of a model folder into another, whose other parts and files stay.

    Args:
      source: path of the model folder, which is empty afterwards.
      target: an existing folder.
    """
    entries = _meta(read_json(source / INDEX))
    if (target / INDEX).exists():
        entries = _meta(read_json(target / INDEX)) | entries
        # A kill from here on leaves a folder that is refused, not one that mixes two models.
        (target / INDEX).unlink()
    for part in sorted(path for path in source.iterdir() if path.is_dir()):
        with replace_folder(target / part.name) as new:
            for path in part.iterdir():
                shutil.move(path, new)
    save_index(target, **entries)


def _is_part(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _meta(index: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in index.items() if k != "_class_name" and not _is_part(v)}


def load_index(
    folder: str | os.PathLike[str], *, parts: tuple[str, ...] = (), meta: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Reads model_index.json and checks that every file of every part it lists exists.

    Args:
      folder: path of the model folder.
      parts: parts that the caller needs, such as "unet".
      meta: other keys that the caller needs, such as "sample_rate".

    Raises:
      FolderError: files or keys are missing; all are named.
    """
    folder = pathlib.Path(folder)
    index = read_json(folder / INDEX)
    outside = [k for k, v in index.items() if _is_part(v) and not _PART_NAME.fullmatch(k)]
    if outside:
        raise FolderError(f"{folder / INDEX}: {outside[0]!r} is no name of a part; {REMEDY}")
    missing = []
    for name in dict.fromkeys([k for k, v in index.items() if _is_part(v)] + list(parts)):
        files = _OTHERS[name][1] if name in _OTHERS else ("config.json",)
        missing += [f"{name}/{f}" for f in files if not (folder / name / f).exists()]
        if _is_part(index.get(name)) and name not in _OTHERS:
            weights = missing_weights(folder / name, index[name][0])
            missing += [f"{name}/{f}" for f in weights]
        if not _is_part(index.get(name)) and (folder / name).is_dir():
            missing.append(f"{name!r} in {INDEX}")
    missing += [f"{key!r} in {INDEX}" for key in meta if key not in index]
    if missing:
        raise FolderError(f"{folder} is not a complete model folder: missing {', '.join(missing)}; "
                          f"{REMEDY}")  # fmt: skip
    return index


def front_end(folder: str | os.PathLike[str], network: str) -> MelConfig | None:
    """Returns the mel front end that a network of a model folder was trained with.

    Args:
      folder: path of the model folder.
      network: name of the network, for errors.

    Returns:
      The front end under `mel` in model_index.json; None if the folder has no such file, such as a
      single network from Hugging Face.

    Raises:
      FolderError: model_index.json states no front end, or an invalid one.
    """
    folder = pathlib.Path(folder)
    if not (folder / INDEX).exists():
        return None
    mel = read_json(folder / INDEX).get("mel")
    if mel is None:
        raise FolderError(f"{folder / INDEX} states no 'mel', which {network}/ needs; {REMEDY}")
    try:
        return schema.build(MelConfig, mel, "mel", complete=True)
    except ValueError as e:
        raise FolderError(f"{folder / INDEX}: {e}") from e


def content_hash(folder: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a model folder's files, names and contents, in hex.

    Parts that are links count as what they link to.
    """
    folder, total = pathlib.Path(folder), hashlib.sha256()
    files = [path for path in folder.glob("[!.]*") if path.is_file()]
    for part in folder.glob("[!.]*/"):  # whose own links to folders are no part of the model
        files += [path for path in part.rglob("*") if path.is_file()]
    for path in sorted(files):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        total.update(f"{relative.as_posix()} {sha256(path)}\n".encode())
    return total.hexdigest()
