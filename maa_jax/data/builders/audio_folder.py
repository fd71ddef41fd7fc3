"""A user's folder of sound files with a table of captions or labels."""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders import listing, origins, tables
from maa_jax.data.builders.base import AudioBuilder, Recording
from maa_jax.files import user_path

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
        self._captions_file = epath.Path(captions_file) if captions_file else None
        if config is None:
            config = config_name(folder, captions_file)
        super().__init__(config=tfds.core.BuilderConfig(name=config), **kwargs)

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Reads and checks the whole table, without reading audio."""
        if self._captions_file:
            self._table_seen = origins.look(self._captions_file)
            found = read_table(self._folder, self._captions_file)
        else:
            files = _sound_files(self._folder)
            found = [Recording(id=n, audio=p, source=n, split="train") for n, p in files.items()]
        self._seen: dict[str, origins.Seen | None] = dict.fromkeys(r.id for r in found)
        return found

    def _example(self, recording: Recording) -> tuple[dict, float]:
        # Before it is read: a change in between is noticed at the next use.
        self._seen[recording.id] = origins.look(self._folder / recording.id)
        return super()._example(recording)

    def origin(self) -> origins.Origin | None:
        """Returns the table, and all recordings that it names or that lie in the folder."""
        if "://" in os.fspath(self._folder):
            return None
        folder = user_path(self._folder)
        if self._captions_file is None:
            return origins.Origin(folder, self._seen, listed=True)
        return origins.Origin(folder, self._seen, user_path(self._captions_file), self._table_seen)


def _sound_files(folder: epath.Path) -> dict[str, epath.Path]:
    files = listing.sound_files(folder, leave=False)
    if not files:
        raise ValueError(
            f"audio_folder: folder {folder} holds no sound file that can be decoded (wav, flac,"
            " ogg, opus, mp3, aiff, caf, w64, au); correct the path, or convert the files, as by"
            " ffmpeg -i NAME.m4a NAME.wav"
        )
    return files


def config_name(folder: epath.PathLike, captions_file: epath.PathLike | None = None) -> str:
    """Returns a name made from the folder's name and a hash of its path and the table's content.

    Without a table, the list of sound files is hashed.

    Raises:
      ValueError: the folder or the table is not there, or is something else.
    """
    listing.check_folder("folder", epath.Path(folder))
    where = os.path.abspath(folder) if "://" not in os.fspath(folder) else os.fspath(folder)
    content = hashlib.sha256(os.fsencode(where) + b"\0")
    if captions_file:
        if not epath.Path(captions_file).exists():
            raise ValueError(
                f"audio_folder: captions_file {captions_file} does not exist; correct the path"
            )
        with tables.open_bytes(epath.Path(captions_file)) as file:
            for block in iter(functools.partial(file.read, 2**20), b""):
                content.update(block)
    else:
        content.update("\n".join(_sound_files(epath.Path(folder))).encode())
    name = re.sub(r"\W+", "_", epath.Path(where).name).strip("_") or "folder"
    return f"{name}-{content.hexdigest()[:8]}"


# Columns that are read; others are allowed.
_KNOWN = re.compile(r"file|caption|captions|caption_?\d+|label|license|split")
# Values that are no text but end up in tables of text.
_NO_SENTENCE = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?|[-+]?inf(inity)?|true|false")


def read_table(folder: epath.Path, captions_file: epath.Path) -> list[Recording]:
    """Reads a table of recordings; see AudioFolder.

    A recording whose file is not there has a `fault`.

    Raises:
      ValueError: the table cannot be read, or one of its lines cannot be trusted: it has no `file`,
        a file outside the folder, neither caption nor label, more than five captions, something
        that no one writes as a caption, an unknown split, or another split or license than an
        earlier line of the same file. The message names the line and the remedy.
    """
    recordings: dict[str, Recording] = {}
    files = listing.Folder(folder)
    for row in tables.read(captions_file, known=_KNOWN):
        given = row.sentence("file")
        if not given:
            row.fail(f"no 'file'; {_HINT}")
        try:
            name, fault = files.find(given)
        except ValueError as error:
            row.fail(str(error))
        keys = [key for key in row if re.fullmatch(r"caption(_?\d+)?", key)]
        captions = [*row.texts("captions"), *filter(None, map(row.sentence, keys))]
        label = row.sentence("label")
        for text in captions:
            _check_caption(text, row)
        split = row.one_of("split", _SPLITS) if row.text("split") else None
        if not captions and not label:
            row.fail(f"{name} has neither caption nor label; {_HINT}")
        license = row.sentence("license")
        earlier = recordings.get(name)
        if earlier:
            if earlier.split != split:
                row.fail(f"{name} is in two splits; give all its lines the same")
            if license and earlier.license and license != earlier.license:
                row.fail(f"{name} has two licenses; give all its lines the same")
            captions = [*earlier.captions, *captions]
        labels = (earlier.labels if earlier else ()) + ((label,) if label else ())
        if len(captions) > 5:
            row.fail(f"{name} has {len(captions)} captions; keep at most 5")
        recordings[name] = Recording(
            id=name,
            audio=folder / name,
            captions=tuple(captions),
            labels=tuple(dict.fromkeys(labels)),
            source=name,
            license=license or (earlier.license if earlier else ""),
            split=split,
            fault=fault,
        )
    if not recordings:
        raise ValueError(f"audio_folder: {captions_file} names no recording; {_HINT}")
    return list(recordings.values())


def _check_caption(text: str, row: tables.Row) -> None:
    """Raises for a caption that no one wrote: a number, or letters that were lost or mistaken."""
    if _NO_SENTENCE.fullmatch(text.lower()):
        row.fail(f"the caption is {text!r}, and not a sentence; write what is heard")
    if "\ufffd" in text:
        row.fail(
            f"the caption {text[:40]!r} holds U+FFFD, which stands for a lost letter; write it"
        )
    # One such pair may be meant, as in "JOSÉ’S GUITAR"; what was mistaken has several, or begins
    # with these letters.
    if not text.isascii():
        for encoding in ("cp1252", "latin-1"):
            try:
                meant = text.encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
            strange = sum(not character.isascii() for character in meant)
            if strange < 2 and not re.search("[ÂÃâ]", text):
                continue
            row.fail(
                f"the caption {text[:40]!r} looks like UTF-8 that was read as {encoding}, of"
                f" {meant[:40]!r}; save the table as UTF-8 again"
            )
