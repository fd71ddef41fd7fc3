"""Medley-solos-DB: solo clips of 3 s of eight instruments."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, inside, table

_SPLITS = {"training": "train", "validation": "validation", "test": "test"}


class MedleySolosDb(PublishedAudio):
    """Lostanlen and Cella 2016. Its subsets training, validation and test share no song.

    The paper calls it "language-free": it has no captions, and the instrument is the label.
    """

    name = "medley_solos_db"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Solo clips of 3 s of eight instruments."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Medley-solos-DB_metadata.csv, and Medley-solos-DB.tar.gz unpacked to audio/, from"
        " https://zenodo.org/records/3464194"
    )
    FILES = ("Medley-solos-DB_metadata.csv", "audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the table of clips, which determines the file names."""
        columns = ("subset", "instrument", "instrument_id", "uuid4")
        for row in table(folder / "Medley-solos-DB_metadata.csv", *columns):
            split, sound = row.one_of("subset", _SPLITS), row.text("uuid4")
            name = f"Medley-solos-DB_{row['subset']}-{row['instrument_id']}_{sound}"
            yield Recording(
                id=sound,
                audio=inside(folder / "audio", f"{name}.wav", row),
                labels=(row.required("instrument"),),
                source=name,
                license="CC-BY-4.0",
                split=split,
            )
