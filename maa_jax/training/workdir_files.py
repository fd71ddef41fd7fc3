"""What a workdir says of its run: the config, digests of the data, and the tokenizer."""

import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from etils import epath
from jax.experimental import multihost_utils

from maa_jax.checks import differences
from maa_jax.data import mixtures
from maa_jax.files import check_regular, user_path, write_json
from maa_jax.text.tokenizer import Tokenizer

# Keys in which a workdir's config may differ: they change how a run is monitored or where it runs,
# not what it computes.
_IGNORED = (
    "total_steps",
    "total_epochs",
    "log_every",
    "eval_every",
    "summary_every",
    "checkpoint_every",
    "keep",
    "best",
    "profile",
    "mesh",
    "summary",
    "evaluators",
    "data.workers",
    "data.prefetch",
    "data.data_dir",
)

# Keys that may change while a run goes on, so that one that diverged can be saved.
_CHANGEABLE = ("optimizer.base_lr", "optimizer.clip_norm")

# Keys that a run finds in its data where they are empty, and keeps.
_FOUND = ("labels",)


def check_config(workdir: str, config: ml_collections.ConfigDict) -> list[str]:
    """Checks that `workdir` is new, or holds a run with the same config.

    What the run there has found in its data is filled in where `config` leaves it empty.

    Returns:
      The changes of the keys that may change while a run goes on, as lines for the log.

    Raises:
      ValueError: the folder cannot be used, its config.json is broken, or its run has another
        config; each key that differs is named, with both values.
    """
    content = _read_config(workdir)
    if content is None:
        return []
    for key in _FOUND:
        if content.get(key) and not config.get(key, True):
            config[key] = tuple(content[key])
    # Both via JSON, which has no tuples.
    old, new = (_flatten(x) for x in (content, json.loads(config.to_json())))
    compared = [
        key
        for key in sorted(old | new)
        if not any(key == other or key.startswith(other + ".") for other in _IGNORED)
    ]
    found = [
        f"config.{line}"
        for line in differences(old, {key: new.get(key, "absent") for key in compared})
    ]
    changes = [x for x in found if x.startswith(tuple(f"config.{key}=" for key in _CHANGEABLE))]
    if differ := [f"  {line}" for line in found if line not in changes]:
        raise ValueError(
            f"--workdir={workdir} holds a run of another config:\n"
            + "\n".join(differ)
            + "\nGive another --workdir, or the values that the run started with."
        )
    return changes


def write_config(workdir: str, config: ml_collections.ConfigDict) -> None:
    """Writes `workdir/config.json`, after the checks of `check_config`.

    Process 0 writes, and only what differs; all processes return once the file is there.
    """
    check_config(workdir, config)
    content = json.loads(config.to_json())
    if jax.process_index() == 0 and content != _read_config(workdir):
        write_json(_config_file(workdir), content)
    multihost_utils.sync_global_devices("config.json is written")


def holds_run(workdir: str) -> bool:
    """Returns whether a run was started in a workdir."""
    return _config_file(workdir).exists()


def check_data(workdir: str, data: Mapping[str, str]) -> None:
    """Checks that a run that goes on has the data that it began with.

    Args:
      workdir: folder of the run.
      data: digest of each split that it reads, by name.

    Raises:
      ValueError: recordings or captions have changed; the splits are named.
    """
    path = _data_file(workdir)
    if not (_config_file(workdir).exists() and path.exists()):
        return
    old = _read_json(path, f"remove {path} if the data is that which the run began with") or {}
    changed = [name for name in sorted(old | dict(data)) if old.get(name) != data.get(name)]
    if changed:
        raise ValueError(
            f"--workdir={workdir}: the recordings or captions of {', '.join(changed)} are not those"
            " that this run began with. Bring those back, or begin another run in another"
            f" --workdir; to go on with the new ones all the same, remove {path}"
        )


def write_data(workdir: str, data: Mapping[str, str]) -> None:
    """Notes the data of a run for `check_data`; called before `write_config`."""
    if jax.process_index() == 0 and not (holds_run(workdir) and _data_file(workdir).exists()):
        write_json(_data_file(workdir), data)


def read_training_data(workdir: str) -> dict[str, str]:
    """Returns {split: digest} of what the run in `workdir` trains on, {} where none was noted."""
    data = read_config(workdir).data
    heard = {
        f"{part.dataset}:{split}"
        for part in mixtures.parse("data.dataset", data.dataset, data.split)
        for _, split in mixtures.pieces(part)
    }
    noted = _read_json(_data_file(workdir), "remove it") if _data_file(workdir).exists() else None
    return {name: digest for name, digest in (noted or {}).items() if name in heard}


def read_config(workdir: str) -> ml_collections.ConfigDict:
    """Returns the config of the run in `workdir`.

    Raises:
      FileNotFoundError: no run was started there.
      ValueError: its config.json is broken.
    """
    content = _read_config(workdir)
    if content is None:
        raise FileNotFoundError(
            f"--workdir={workdir} holds no config.json: it is not a workdir of maa_jax.train."
        )
    return ml_collections.ConfigDict(content)


def _read_config(workdir: str) -> dict[str, Any] | None:
    """Returns the content of a workdir's config.json, None if there is no such file."""
    path = _config_file(workdir)
    try:
        return _read_json(path, "remove it, and give the run's training command again")
    except OSError as error:
        raise ValueError(
            f"--workdir={workdir}: cannot be used ({error}); give another folder."
        ) from error


def _read_json(path: epath.Path, remedy: str) -> dict[str, Any] | None:
    """Returns the object in a file, local or in a bucket; None if there is no such file."""
    try:
        if not path.exists():
            return None
        check_regular(path)
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is broken ({error}): {remedy}.") from error
    return content


def write_tokenizer(workdir: str, tokenizer: Tokenizer | None) -> None:
    """Saves a run's tokenizer, if any, to `workdir/tokenizer`, unless it is already there.

    Called before `write_config`: a run that has a config also has its tokenizer.
    """
    folder = _tokenizer_folder(workdir)
    if tokenizer is None or jax.process_index() or read_tokenizer(workdir):
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Via a local folder: a workdir may be in a bucket.
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save(pathlib.Path(local, "tokenizer"))
        for path in pathlib.Path(local, "tokenizer").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())


def read_tokenizer(workdir: str) -> Tokenizer | None:
    """Returns the tokenizer that a run has saved, or None."""
    folder = _tokenizer_folder(workdir)
    if not (folder.exists() and _config_file(workdir).exists()):
        return None
    with tempfile.TemporaryDirectory() as local:
        for path in folder.iterdir():
            pathlib.Path(local, path.name).write_bytes(path.read_bytes())
        return Tokenizer.from_folder(local)


def _tokenizer_folder(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "tokenizer"


def _config_file(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "config.json"


def _data_file(workdir: str) -> epath.Path:
    return epath.Path(user_path(workdir)) / "data.json"


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
