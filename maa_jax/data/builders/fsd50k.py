"""FSD50K: Freesound recordings of up to 30 s with labels of AudioSet's ontology."""

import json
from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from maa_jax.data.builders.base import Recording
from maa_jax.data.builders.published import PublishedAudio, as_published, freesound, inside, table

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
            with as_published(path):
                about = {
                    str(k): str(v["license"]) for k, v in json.loads(path.read_bytes()).items()
                }
            for row in table(folder / f"FSD50K.ground_truth/{part}.csv", "fname", "labels"):
                name = row.text("fname")
                if name not in about:
                    row.fail(f"{name!r} is not in {path}; use the publisher's files")
                yield Recording(
                    id=name,
                    audio=inside(folder / f"FSD50K.{part}_audio", f"{name}.wav", row),
                    labels=tuple(row.required("labels").replace("_", " ").split(",")),
                    source=freesound(name),
                    license=about[name],
                    split=row.one_of("split", _SPLITS) if part == "dev" else "test",
                )
