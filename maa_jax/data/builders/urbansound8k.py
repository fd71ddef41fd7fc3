"""UrbanSound8K: city sounds of up to 4 s in ten classes."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, freesound, inside, table

_SPLITS = {**{str(i): "train" for i in range(1, 9)}, "9": "validation", "10": "test"}


class UrbanSound8k(PublishedAudio):
    """Salamon et al. 2014. Of its ten folds, 1 to 8 are train here, 9 is validation and 10 test.

    All slices of one recording are in one fold.
    """

    name = "urbansound8k"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "City sounds of up to 4 s in ten classes."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "UrbanSound8K.tar.gz from https://zenodo.org/records/1203745, unpacked to UrbanSound8K/"
    )
    FILES = ("UrbanSound8K/metadata/UrbanSound8K.csv", "UrbanSound8K/audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the table of slices."""
        root = folder / "UrbanSound8K"
        columns = ("slice_file_name", "fsID", "fold", "class")
        for row in table(root / "metadata/UrbanSound8K.csv", *columns):
            name, fold = row.text("slice_file_name"), row.text("fold")
            yield Recording(
                id=name.removesuffix(".wav"),
                audio=inside(root / f"audio/fold{fold}", name, row),
                labels=(row.required("class").replace("_", " "),),
                source=freesound(row.text("fsID")),
                license="CC-BY-NC-3.0",
                split=row.one_of("fold", _SPLITS),
            )
