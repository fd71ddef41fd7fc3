"""AudioSet: labelled 10 s clips of YouTube videos, except those of only speech or music."""

import json
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders import tables
from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, as_published, youtube, youtube_files

SPEECH, MUSIC = "/m/09x0r", "/m/04rlf"
_SPLITS = {"balanced_train": "train", "unbalanced_train": "train", "eval": "test"}


class AudioSet(PublishedAudio):
    """Gemmeke et al. 2017, with less speech and music, as in the paper's Appendix A.

    A clip is left out if each of its labels is Speech, Music or a class below these two in the
    ontology (its child_ids at any depth: conversation, instruments, genres, moods). A clip with any
    other label is kept with all its labels. The paper does not state its rule; whether this one
    yields its 2,084 hours has not been verified.

    The splits are balanced and unbalanced train (both train here) and eval (test here). Clips that
    YouTube no longer has are left out.
    """

    name = "audioset"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Labelled 10 s clips, except those of only speech or music."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "balanced_train_segments.csv, unbalanced_train_segments.csv and eval_segments.csv from"
        " https://research.google.com/audioset/download.html, ontology.json from"
        " https://github.com/audioset/ontology, and in audio/, at any depth, each segment in a file"
        " named YTID.wav (.flac, .ogg, .mp3), or YYTID.wav as PANNs does"
    )
    FILES = (*(f"{part}_segments.csv" for part in _SPLITS), "ontology.json", "audio")

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Reads the tables of segments."""
        names, dropped = read_ontology(folder / "ontology.json")
        files = youtube_files(folder / "audio")
        for part, split in _SPLITS.items():
            path = folder / f"{part}_segments.csv"
            for row in tables.read(path, ("video", "start", "end", "classes"), header=False):
                video, classes = row.text("video"), row.text("classes").split(",")
                if dropped.issuperset(classes):
                    continue
                unknown = [mid for mid in classes if mid not in names]
                if unknown:
                    row.fail(
                        f"class {unknown[0]!r} is not in ontology.json; use its newest version"
                    )
                yield Recording(
                    id=video,
                    audio=files.get(video),
                    labels=tuple(names[mid] for mid in classes),
                    source=youtube(video, row.text("start"), row),
                    license="labels: CC-BY-4.0; audio: terms of YouTube and uploader",
                    split=split,
                )


def read_ontology(path: epath.Path) -> tuple[dict[str, str], set[str]]:
    """Returns AudioSet's class names by id, and the ids of Speech, Music and their descendants."""
    below, left = set[str](), [SPEECH, MUSIC]
    with as_published(path):
        classes = {entry["id"]: entry for entry in json.loads(path.read_bytes())}
        while left:
            mid = left.pop()
            if mid not in below:
                below.add(mid)
                left += classes[mid]["child_ids"]
        return {mid: str(entry["name"]) for mid, entry in classes.items()}, below
