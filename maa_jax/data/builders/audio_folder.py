"""A user's folder of sound files with a table of captions or labels."""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import AudioBuilder, Recording
from maa_jax.data.builders.published import sound_files

_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}
_HINT = (
    "the columns are: file (relative to the folder); caption, caption_1, caption_2, ... or, in"
    " JSONL, a list named captions; label; and, if wanted, license and split"
)


class AudioFolder(AudioBuilder):
    """The recordings in `folder` that `captions_file` names, or all of them without such a file.

    Without it, recordings have neither captions nor labels and are all in the train split;
    maa_jax.enhance finds captions for them.

    Args:
      folder: folder with the sound files, at any depth.
      captions_file: CSV, TSV or JSONL with a line for each recording: `file` (relative to the
        folder), captions (`caption`, `caption_1`, ..., or a list `captions` in JSONL) and/or
        `label`, and optionally `license` and `split` (train, validation or test). Lines of the same
        file are joined.
      config: name of this dataset among the user's folders; by default it depends on the paths and
        the table's content, so that a changed table is a new dataset.
    """

    VERSION = tfds.core.Version("1.1.0")
    DESCRIPTION = "A folder of sound files with captions or labels."

    def __init__(
        self,
        *,
        folder: epath.PathLike,
        captions_file: epath.PathLike | None = None,
        config: str | None = None,
        **kwargs: Any,
    ):
        self._folder = epath.Path(folder)
        self._captions_file = captions_file and epath.Path(captions_file)
        if config is None:
            config = config_name(folder, captions_file)
        super().__init__(config=tfds.core.BuilderConfig(name=config), **kwargs)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Reads and checks the whole table, without reading audio."""
        if self._captions_file:
            return read_table(self._folder, self._captions_file)
        files = _sound_files(self._folder)
        return [Recording(id=n, audio=p, source=n, split="train") for n, p in files.items()]


def _sound_files(folder: epath.Path) -> dict[str, epath.Path]:
    files = sound_files(folder)
    if not files:
        raise ValueError(f"audio_folder: folder {folder} holds no sound file; correct the path")
    return files


def config_name(folder: epath.PathLike, captions_file: epath.PathLike | None = None) -> str:
    """Returns a name made from the folder's name and a hash of its path and the table's content.

    Without a table, the list of sound files is hashed.
    """
    for key, path in (("folder", folder), ("captions_file", captions_file)):
        if path and not epath.Path(path).exists():
            raise ValueError(f"audio_folder: {key} {path} does not exist; correct the path")
    where = os.path.abspath(folder) if "://" not in os.fspath(folder) else os.fspath(folder)
    if captions_file:
        table = epath.Path(captions_file).read_bytes()
    else:
        table = "\n".join(_sound_files(epath.Path(folder))).encode()
    content = hashlib.sha256(where.encode() + b"\0" + table)
    name = re.sub(r"\W+", "_", epath.Path(where).name).strip("_") or "folder"
    return f"{name}-{content.hexdigest()[:8]}"


def read_table(folder: epath.Path, captions_file: epath.Path) -> list[Recording]:
    """Reads a table of recordings; see AudioFolder.

    Raises:
      ValueError: a line has no `file`, neither caption nor label, more than five captions, an
        unknown split, or another split than an earlier line of the same file; the message names the
        line.
    """
    recordings: dict[str, Recording] = {}
    for line, row in _rows(captions_file):
        where = f"audio_folder: {captions_file}, line {line}"
        name = str(row.get("file") or "").strip()
        if not name:
            raise ValueError(f"{where}: no 'file'; {_HINT}")
        captions = row.get("captions") or []
        captions = [captions] if isinstance(captions, str) else list(captions)
        captions += [row[key] for key in row if re.fullmatch(r"caption(_?\d+)?", key or "")]
        captions = tuple(str(c).strip() for c in captions if c and str(c).strip())
        label = str(row.get("label") or "").strip()
        split = str(row.get("split") or "").strip() or None
        if split is not None and split not in _SPLITS:
            raise ValueError(f"{where}: split is {split!r}; use train, validation or test")
        if not captions and not label:
            raise ValueError(f"{where}: {name} has neither caption nor label; {_HINT}")
        earlier = recordings.get(name)
        split = split and _SPLITS[split]
        if earlier and earlier.split != split:
            raise ValueError(f"{where}: {name} is in two splits; give all its lines the same")
        captions = (earlier.captions if earlier else ()) + captions
        if len(captions) > 5:
            raise ValueError(f"{where}: {name} has {len(captions)} captions; keep at most 5")
        labels = (earlier.labels if earlier else ()) + ((label,) if label else ())
        recordings[name] = Recording(
            id=name,
            audio=folder / name,
            captions=captions,
            labels=tuple(dict.fromkeys(labels)),
            source=name,
            license=str(row.get("license") or "").strip() or (earlier.license if earlier else ""),
            split=split,
        )
    if not recordings:
        raise ValueError(f"audio_folder: {captions_file} names no recording; {_HINT}")
    return list(recordings.values())


def _rows(path: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row) of a CSV, TSV or JSONL file."""
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise ValueError(
            f"audio_folder: captions_file {path} is neither .csv, .tsv nor .jsonl; {_HINT}"
        )
    with path.open() as file:
        if suffix == ".jsonl":
            for line, text in enumerate(file, 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ValueError(f"audio_folder: {path}, line {line}: {error}") from error
                if not isinstance(row, dict):
                    raise ValueError(f"audio_folder: {path}, line {line}: not a JSON object")
                yield line, row
        else:
            reader = csv.DictReader(file, delimiter="," if suffix == ".csv" else "\t")
            for row in reader:
                yield reader.line_num, row
