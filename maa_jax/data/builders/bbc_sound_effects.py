"""BBC Sound Effects: recordings of the archive, minutes long, with a description each."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, by_stem, table


class BbcSoundEffects(PublishedAudio):
    """The BBC's sound effect archive. It has no splits.

    Recordings that were not downloaded are left out.
    """

    name = "bbc_sound_effects"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Recordings of the BBC's archive with a description each."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "BBCSoundEffects.csv from https://sound-effects.bbcrewind.co.uk, and in audio/, at any"
        " depth, the recordings under the names of its column location (07076051.wav)"
    )
    FILES = ("BBCSoundEffects.csv", "audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the table of recordings; the first row of a recording counts."""
        files, seen = by_stem(folder / "audio"), set()
        for row in table(folder / "BBCSoundEffects.csv", "location", "description", "category"):
            name = row.text("location").rpartition(".")[0]
            caption, label = row.sentence("description"), row.sentence("category")
            if name in seen:
                continue
            seen.add(name)
            yield Recording(
                id=name,
                audio=files.get(name),
                captions=(caption,) if caption else (),
                labels=(label,) if label else (),
                source=f"https://sound-effects-media.bbcrewind.co.uk/zip/{name}.wav.zip",
                license="BBC RemArc: personal, educational and research use",
            )
