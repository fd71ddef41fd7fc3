"""ESC-50: environmental sounds of 5 s in 50 classes."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, freesound, inside, table

_SPLITS = {"1": "train", "2": "train", "3": "train", "4": "validation", "5": "test"}
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
            name = row.text("filename")
            yield Recording(
                id=name.removesuffix(".wav"),
                audio=inside(root / "audio", name, row),
                labels=(row.required("category").replace("_", " "),),
                source=freesound(row.text("src_file")),
                license=row.one_of("esc10", _LICENSES),
                split=row.one_of("fold", _SPLITS),
            )
