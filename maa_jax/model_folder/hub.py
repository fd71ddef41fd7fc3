"""Model folders by name: a path, "bundled", or an id on the Hugging Face hub."""

import os
import pathlib
import re

from maa_jax.files import INDEX, REMEDY, FolderError, read_json, user_path

BUNDLED = pathlib.Path(__file__).parents[1] / "bundled_model"

# Files to download of a single network, and of a whole model; other formats stay on the hub.
_HUB_FILES = ("*.json", "*.safetensors", "vocab.txt")
_MODEL_FILES = (INDEX, "*/*.json", "*/*.safetensors", "*/vocab.txt")
# Not "models/...", where the documentation writes model folders: if one is missing, a model of that
# name must not be downloaded from the hub.
_SHARD = re.compile(r"\w[\w.-]{0,200}\.safetensors")  # a name, and no path
_HUB_ID = re.compile(r"(?!models/)[\w-][\w.-]*/[\w-][\w.-]*")


def resolve(model: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of a model folder; "bundled" is the one inside this package.

    Raises:
      FolderError: there is no such folder.
    """
    path = BUNDLED if str(model) == "bundled" else pathlib.Path(user_path(model))
    if not path.is_dir():
        raise FolderError(
            f"model={str(model)!r}: no folder {path}; give the path of a model folder "
            f'(with {INDEX}) or "bundled"'
        )
    return path


def fetch(model: str | os.PathLike[str], files: tuple[str, ...] = ()) -> pathlib.Path:
    """Returns a local folder of `model`: a folder, "bundled", or a model of the Hugging Face hub.

    A hub id ("google-t5/t5-large") is downloaded into the hub's local cache, unless it is there.

    Args:
      model: path of the folder, "bundled" or a hub id.
      files: files that a model on the hub must have in addition to config.json and the weights.

    Raises:
      FolderError: there is no such folder or model; or the hub cannot be reached and the cache
        lacks files, which the error names, with how to get them.
    """
    if pathlib.Path(user_path(model)).is_dir() or not _HUB_ID.fullmatch(str(model)):
        return resolve(model)
    folder, cause = _snapshot(str(model), _HUB_FILES, ["*/*"])
    if folder is None:
        missing = ["config.json", weights_file("transformers"), *files]
        where = "the hub cannot be reached and the local cache"
    else:
        missing = [f for f in ("config.json", *files) if not (folder / f).exists()]
        missing += missing_weights(folder, "transformers")
        where = str(folder)
    if folder is None or missing:
        included = " ".join(f"--include {pattern!r}" for pattern in _HUB_FILES)
        raise FolderError(
            f"model={str(model)!r}: {where} lacks {', '.join(missing)}. To get them: where there "
            f"is a network, run `hf download {model} {included} --local-dir DIR`, copy DIR here, "
            f"and give its path in place of {str(model)!r}. A model without safetensors "
            "(with only pytorch_model.bin) is not supported: choose another"
        ) from cause
    return folder


def fetch_model(model: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the local folder of a whole model: a folder, "bundled", or a hub id.

    Raises:
      FolderError: there is no such folder or model, or the hub cannot be reached.
    """
    if pathlib.Path(user_path(model)).is_dir() or not _HUB_ID.fullmatch(str(model)):
        return resolve(model)
    folder, cause = _snapshot(str(model), _MODEL_FILES, None)
    if folder is None:
        raise FolderError(
            f"model={str(model)!r}: no such folder here, and the Hugging Face hub cannot be "
            f"reached. Where there is a network, run `hf download {model} --local-dir DIR`, copy "
            f"DIR here, and give its path in place of {str(model)!r}"
        ) from cause
    return folder


def _snapshot(
    model: str, patterns: tuple[str, ...], ignored: list[str] | None
) -> tuple[pathlib.Path | None, Exception | None]:
    """Returns the local copy of a repository on the hub, or None and the error without access."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=list(patterns), ignore_patterns=ignored
        )
    except errors.RepositoryNotFoundError as e:
        raise FolderError(
            f"model={model!r}: neither a folder here nor a model of the Hugging Face hub; "
            "look for a mistake in the name, or log in (`hf auth login`) if it is private"
        ) from e
    except (errors.HfHubHTTPError, OSError) as e:
        return None, e
    return pathlib.Path(folder), None


def upload(folder: str | os.PathLike[str], repo_id: str, *, private: bool = False) -> str:
    """Uploads a model folder to the Hugging Face hub.

    Args:
      folder: path of the model folder.
      repo_id: id of the repository, such as "someone/sounds"; created if it does not exist.
      private: whether a new repository is hidden from others.

    Returns:
      The address of the upload.

    Raises:
      OSError: the hub refuses or cannot be reached; log in with `hf auth login`.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder)))


def weights_file(library: str) -> str:
    """Returns the name of the weights file that a library uses."""
    return "diffusion_pytorch_model.safetensors" if library == "diffusers" else "model.safetensors"


def weight_map(where: pathlib.Path, library: str) -> dict[str, str]:
    """Returns {tensor: file} of weights in several files; {} for those in one file.

    Raises:
      FolderError: the index is broken, or names something other than files beside it.
    """
    name = weights_file(library)
    path = where / f"{name}.index.json"
    if (where / name).exists() or not path.exists():
        return {}
    files = read_json(path).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise FolderError(f"{path} has no weight_map of tensors and files; {REMEDY}")
    for file in files.values():
        if not isinstance(file, str) or not _SHARD.fullmatch(file):
            raise FolderError(
                f"{path}: weight_map names {file!r}, no safetensors file beside it; {REMEDY}"
            )
    return files


def missing_weights(where: pathlib.Path, library: str) -> list[str]:
    """Returns the weights files that a network's folder lacks.

    Raises:
      FolderError: the index of weights in several files is broken.
    """
    files = sorted(set(weight_map(where, library).values())) or [weights_file(library)]
    return [file for file in files if not (where / file).exists()]
