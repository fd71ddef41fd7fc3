"""FSD50K: Freesound recordings of up to 30 s with labels of AudioSet's ontology."""

import json
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, freesound, table

_SPLITS = {"train": "train", "val": "validation"}


class Fsd50k(PublishedAudio):
    """Fonseca et al. 2022. Its splits are dev (divided into train and val) and eval (test here).

    Labels include the parents of each class. Ids are those of Freesound.
    """

    name = "fsd50k"
    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "Freesound recordings with labels of 200 classes of AudioSet's ontology."
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "FSD50K.dev_audio/, FSD50K.eval_audio/, FSD50K.ground_truth/ and FSD50K.metadata/, unpacked"
        " from the archives in https://zenodo.org/records/4060432"
    )
    FILES = tuple(
        name
        for part in ("dev", "eval")
        for name in (
            f"FSD50K.ground_truth/{part}.csv",
            f"FSD50K.metadata/{part}_clips_info_FSD50K.json",
            f"FSD50K.{part}_audio",
        )
    )

    def read(self, folder: epath.Path) -> Iterator[Recording]:
        """Joins labels and metadata, which state the licence of each recording."""
        for part in ("dev", "eval"):
            path = folder / f"FSD50K.metadata/{part}_clips_info_FSD50K.json"
            about = json.loads(path.read_text(encoding="utf-8"))
            for row in table(folder / f"FSD50K.ground_truth/{part}.csv", "fname", "labels"):
                name = row["fname"]
                yield Recording(
                    id=name,
                    audio=folder / f"FSD50K.{part}_audio" / f"{name}.wav",
                    labels=tuple(row["labels"].replace("_", " ").split(",")),
                    source=freesound(name),
                    license=about[name]["license"],
                    split=_SPLITS[row["split"]] if part == "dev" else "test",
                )
