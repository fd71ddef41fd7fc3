"""WeSoundEffects: sound effect libraries whose file names describe the sound."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, name_labels, sound_files


class WeSoundEffects(PublishedAudio):
    """The bundle of We Sound Effects. It has no table and no splits.

    The first label is the words of the file's name without numbers; the second is its folder's.
    """

    name = "wesoundeffects"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Sound effects, labelled by the names of files and folders."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the bundle of https://wesoundeffects.com/we-sound-effects-bundle-2020/, unpacked"
    )
    FILES = (".",)

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Lists every sound file."""
        for name, path in sound_files(folder).items():
            yield Recording(
                id=name,
                audio=path,
                labels=name_labels(name),
                source=name,
                license="We Sound Effects licence: royalty-free, no resale",
            )
