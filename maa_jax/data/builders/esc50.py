"""ESC-50: environmental sounds of 5 s in 50 classes."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, freesound, table

_SPLITS = {"4": "validation", "5": "test"}
_LICENSES = {"True": "CC-BY-3.0", "False": "CC-BY-NC-3.0"}  # by whether it is in ESC-10


class Esc50(PublishedAudio):
    """Piczak 2015. Of its five folds, 1 to 3 are train here, 4 is validation and 5 is test.

    All clips of one recording are in one fold.
    """

    name = "esc50"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Environmental sounds of 5 s in 50 classes."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "https://github.com/karolpiczak/ESC-50/archive/master.zip unpacked to ESC-50-master/"
    )
    FILES = ("ESC-50-master/meta/esc50.csv", "ESC-50-master/audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the table of clips."""
        root = folder / "ESC-50-master"
        columns = ("filename", "fold", "category", "esc10", "src_file")
        for row in table(root / "meta/esc50.csv", *columns):
            yield Recording(
                id=row["filename"].removesuffix(".wav"),
                audio=root / "audio" / row["filename"],
                labels=(row["category"].replace("_", " "),),
                source=freesound(row["src_file"]),
                license=_LICENSES[row["esc10"]],
                split=_SPLITS.get(row["fold"], "train"),
            )
