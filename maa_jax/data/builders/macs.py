"""MACS: soundscapes of TAU Urban Acoustic Scenes 2019 with two to five captions each."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
import yaml
from etils import epath

from maa_jax.data.builders import tables
from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, as_published, group_split, inside

_AUDIO = "TAU-urban-acoustic-scenes-2019-development/audio"


class Macs(PublishedAudio):
    """Martin-Morato and Mesaros 2021. It has no splits.

    Files are named scene-city-location-segment-device. A hash of the location determines the split,
    so that all its segments share one. Labels are the annotators' tags, most frequent first.
    """

    name = "macs"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Airports, public squares and parks in ten cities with two to five captions each."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "MACS.yaml from https://zenodo.org/records/5114771, and the archives of audio from"
        " https://zenodo.org/records/2589280 unpacked to"
        f" {_AUDIO}/"
    )
    FILES = ("MACS.yaml", _AUDIO)

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Merges the captions and tags of all annotators of a file."""
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        with as_published(folder / "MACS.yaml"):
            entries = yaml.load((folder / "MACS.yaml").read_bytes(), loader)["files"]
            files = [
                (
                    entry["filename"].strip(),
                    [given["sentence"].strip() for given in entry["annotations"]],
                    [t.replace("_", " ") for given in entry["annotations"] for t in given["tags"]],
                )
                for entry in entries
            ]
        for name, captions, tags in files:
            row = tables.Row(f"{folder / 'MACS.yaml'}, {name}", {})
            yield Recording(
                id=name.removesuffix(".wav"),
                audio=inside(folder / _AUDIO, name, row),
                captions=tuple(captions[:5]),
                labels=tuple(sorted(dict.fromkeys(tags), key=tags.count, reverse=True)),
                source=name,
                license="Tampere University: non-commercial use with attribution",
                split=group_split("-".join(name.split("-")[:3])),
            )
