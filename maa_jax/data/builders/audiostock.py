"""Audiostock: sound effects bought from the shop, with their titles."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, by_stem, table


class Audiostock(PublishedAudio):
    """Sound effects of https://audiostock.net/se. It has no splits.

    The shop delivers only sound files; the user makes the table from the pages of these recordings.
    The caption is the title, the labels are the tags.
    """

    name = "audiostock"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Sound effects with a title each."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the recordings from https://audiostock.net/se in audio/, named by the number in their"
        " page's address (audiostock.net/audio/1150592: 1150592.mp3), and audiostock.csv with the"
        " columns id (that number), title and tags (separated by commas)"
    )
    FILES = ("audiostock.csv", "audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the table of recordings."""
        files = by_stem(folder / "audio")
        for row in table(folder / "audiostock.csv", "id", "title", "tags"):
            name, title = row.text("id"), row.sentence("title")
            yield Recording(
                id=name,
                audio=files.get(name),
                captions=(title,) if title else (),
                labels=tuple(filter(None, map(str.strip, row.sentence("tags").split(",")))),
                source=f"https://audiostock.net/audio/{name}",
                license="Audiostock licence, by purchase",
            )
