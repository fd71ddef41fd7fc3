"""Sonniss game effects: collections of sound effects whose file names describe the sound."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, name_labels, sound_files


class Sonniss(PublishedAudio):
    """The GDC bundles of Sonniss. They have no table and no splits.

    Folders are named "Vendor - Library", and files describe their sound. The first label is the
    words of the file's name without numbers; the second is those of the library.
    """

    name = "sonniss"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Sound effects of many libraries, labelled by their file names."
    MANUAL_DOWNLOAD_INSTRUCTIONS = "the bundles of https://sonniss.com/gameaudiogdc, unpacked"
    FILES = (".",)

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Lists every sound file."""
        for name, path in sound_files(folder).items():
            yield Recording(
                id=name,
                audio=path,
                labels=name_labels(name),
                source=name,
                license="Sonniss GDC bundle licence: royalty-free, no resale",
            )
