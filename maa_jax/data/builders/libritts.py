"""LibriTTS: read English speech, used without its transcripts."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, sound_files

_SPLITS = {
    "train-clean-100": "train",
    "train-clean-360": "train",
    "train-other-500": "train",
    "dev-clean": "validation",
    "dev-other": "validation",
    "test-clean": "test",
    "test-other": "test",
}


class LibriTts(PublishedAudio):
    """Zen et al. 2019. Its subsets train-*, dev-* and test-* share no speaker; any may be absent.

    The paper calls it "language-free": it has neither captions nor labels here.
    """

    name = "libritts"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Read English speech without transcripts."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "any of the archives at https://www.openslr.org/60/ (the paper used 300 hours),"
        " unpacked to LibriTTS/SUBSET/SPEAKER/CHAPTER/"
    )
    FILES = ("LibriTTS",)

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Lists the sound files of each subset that exists."""
        for part, split in _SPLITS.items():
            if not (folder / "LibriTTS" / part).exists():
                continue
            for name, path in sound_files(folder / "LibriTTS" / part).items():
                yield Recording(
                    id=path.stem,
                    audio=path,
                    source=f"LibriTTS/{part}/{name}",
                    license="CC-BY-4.0",
                    split=split,
                )
