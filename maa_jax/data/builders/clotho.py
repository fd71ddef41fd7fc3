"""Clotho 2.1: recordings of 15 to 30 s from Freesound with five captions each."""

from collections.abc import Iterator, Mapping

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, freesound, inside, table

_SPLITS = {"development": "train", "validation": "validation", "evaluation": "test"}


class Clotho(PublishedAudio):
    """Drossos et al. 2020. Its splits are development, validation and evaluation (here: test)."""

    name = "clotho"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Recordings of 15 to 30 s from Freesound with five captions each."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "clotho_captions_*.csv and clotho_metadata_*.csv of development, validation and evaluation,"
        " and clotho_audio_*.7z unpacked to development/, validation/ and evaluation/, from"
        " https://zenodo.org/records/4783391"
    )
    FILES = tuple(
        name
        for part in _SPLITS
        for name in (f"clotho_captions_{part}.csv", f"clotho_metadata_{part}.csv", part)
    )

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Joins captions and metadata, which has the licence of each recording on Freesound."""
        for part, split in _SPLITS.items():
            columns = ("file_name", "sound_id", "sound_link", "license")
            path = folder / f"clotho_metadata_{part}.csv"
            about = {
                row.text("file_name"): row for row in table(path, *columns, encoding="latin-1")
            }
            captions = tuple(f"caption_{i}" for i in range(1, 6))
            for row in table(folder / f"clotho_captions_{part}.csv", "file_name", *captions):
                name = row.text("file_name")
                known: Mapping[str, str] = about.get(name, {})
                sound = known.get("sound_id", "").strip()
                yield Recording(
                    id=f"{part}/{name}",
                    audio=inside(folder / part, name, row),
                    captions=tuple(map(row.required, captions)),
                    # A few recordings are gone from Freesound: the table has only their names.
                    source=freesound(sound) if sound.isdigit() else known.get("sound_link") or name,
                    license=known.get("license", ""),
                    split=split,
                )
