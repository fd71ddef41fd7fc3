"""The bundled dataset: 130 short CC0 recordings from Sonic Pi; see README.md beside this file."""

from collections.abc import Sequence

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders import tables
from maa_jax.data.builders.base import AudioBuilder, Recording

FOLDER = epath.Path(__file__).parent


class SonicSounds(AudioBuilder):
    """Drums, tabla, bass, guitar, bells, blips, drones, loops: 248 seconds in 18 classes."""

    VERSION = tfds.core.Version("1.1.0")
    DESCRIPTION = "130 short CC0 recordings of Sonic Pi with a label and three captions each."

    def recordings(self, dl_manager: tfds.download.DownloadManager) -> Sequence[Recording]:
        """Reads the table of recordings inside the package."""
        return [
            Recording(
                id=row["id"],
                audio=FOLDER / row["file"],
                captions=(row["caption_1"], row["caption_2"], row["caption_3"]),
                labels=(row["label"],),
                source=row["source"],
                license=row["license"],
            )
            for row in tables.read(FOLDER / "recordings.csv")
        ]
