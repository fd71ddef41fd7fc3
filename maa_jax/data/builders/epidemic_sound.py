"""Epidemic Sound: sound effects of the subscription service, whose titles describe the sound."""

import re
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, name_labels, sound_files


class EpidemicSound(PublishedAudio):
    """Sound effects of Epidemic Sound. It has no table and no splits.

    Files are named "ES_Title 3 - SFX Producer.mp3". The first label is the words of the title; the
    second is those of the folder, if the user has sorted the files into folders by category.
    """

    name = "epidemic_sound"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Sound effects, labelled by their titles."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "the sound effects downloaded from https://www.epidemicsound.com/sound-effects/, under"
        " their original names, optionally in folders by category"
    )
    FILES = (".",)

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Lists every sound file."""
        for name, path in sound_files(folder).items():
            yield Recording(
                id=name,
                audio=path,
                labels=name_labels(re.sub(r"(^|/)ES_([^/]*?)( - [^/]*)?(\.\w+)$", r"\1\2\4", name)),
                source=name,
                license="Epidemic Sound licence, by subscription",
            )
