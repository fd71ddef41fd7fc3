"""WavText5K: recordings from two sound effect sites with their descriptions."""

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, table


class WavText5k(PublishedAudio):
    """Deshmukh et al. 2022. It has no splits.

    The caption is the description, or the title where there is none; labels are the tags.
    Recordings that the sites no longer have are left out.
    """

    name = "wavtext5k"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Sound effects from the web with a description each."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "WavText5K.csv from https://github.com/microsoft/WavText5K, and the folder"
        " WavText5K/download/ that `python process.py --csv_path WavText5K.csv --save_folder_path"
        " WavText5K` of that repository makes"
    )
    FILES = ("WavText5K.csv", "WavText5K/download")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the table of recordings."""
        audio = folder / "WavText5K/download"
        there = {path.name for path in audio.iterdir()}
        columns = ("view_link", "title", "description", "fname", "tags")
        for row in table(folder / "WavText5K.csv", *columns):
            caption = row.sentence("description") or row.sentence("title")
            name = row.text("fname")
            yield Recording(
                id=name,
                audio=audio / name if name in there else None,
                captions=(caption,) if caption else (),
                labels=tuple(
                    re.findall(r"""['"]([^'"]+)['"]""", row["tags"])
                ),  # a printed Python list
                source=row.text("view_link"),
                license="table: MIT; audio: terms of the site in source",
            )
