"""AudioCaps: 10 s clips of AudioSet with captions written by people."""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, table, youtube, youtube_files

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


class AudioCaps(PublishedAudio):
    """Kim et al. 2019. Its splits are train, val and test; val and test clips have five captions.

    Clips have AudioSet's ids. Those that YouTube no longer has are left out.
    """

    name = "audiocaps"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "10 s clips of AudioSet with captions written by people."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "train.csv, val.csv and test.csv from"
        " https://github.com/cdjkim/audiocaps/tree/master/dataset, and in audio/, at any depth, the"
        " ten seconds from start_time of each video, in a file named YOUTUBE_ID.wav (.flac,"
        " .ogg, .mp3)"
    )
    FILES = ("train.csv", "val.csv", "test.csv", "audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Merges the rows of each clip, which hold one caption each."""
        files = youtube_files(folder / "audio")
        for part, split in _SPLITS.items():
            clips: dict[str, tuple[str, list[str]]] = {}
            for row in table(folder / f"{part}.csv", "youtube_id", "start_time", "caption"):
                video = row.text("youtube_id")
                address = youtube(video, row.text("start_time"), row)
                _, captions = clips.setdefault(video, (address, []))
                captions.append(row.required("caption"))
            for video, (address, captions) in clips.items():
                yield Recording(
                    id=video,
                    audio=files.get(video),
                    captions=tuple(captions[:5]),
                    source=address,
                    license="captions: academic use only; audio: terms of YouTube and uploader",
                    split=split,
                )
