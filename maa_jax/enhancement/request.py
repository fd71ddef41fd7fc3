"""The options of an enhancement."""

import dataclasses
import re
from typing import Any

from maa_jax.options import FINE, REQUIRED, Options, option


def _check_name(value: Any, request: Options) -> str:
    good = value is None or re.fullmatch(r"[A-Za-z0-9_][\w.-]*", value)
    return FINE if good else "only letters, digits, _, . and -"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Enhancement(Options):
    """Options of an enhancement: the recordings, the experts, and the resulting dataset."""

    dataset: str = option(REQUIRED, "NAME, NAME:SPLIT or several, joined by ' + '.")
    folder: str | None = option(
        None, "Folder of sound files to build --dataset=audio_folder/NAME from.", path=True
    )
    out: str = option(
        REQUIRED, "Folder of TFDS datasets, for those read and the one written.", path=True
    )
    name: str | None = option(
        None,
        "Name of the resulting dataset enhanced/NAME; by default that of the first dataset.",
        check=_check_name,
    )
    experts: tuple[str, ...] = option(
        ("captioning", "retrieval"), "Any of captioning, retrieval, labels, package.module:Class."
    )
    clap: str = option(
        "bundled", "CLAP that scores: a model folder, LAION CLAP's folder or hub id."
    )
    captioner: str | None = option(None, "Model folder of the expert captioning.")
    retriever: str | None = option(None, "Model folder of the expert retrieval.")
    bank: str | None = option(None, "Bank of captions that retrieval searches.", path=True)
    bank_captions: str | None = option(
        None, "Captions to make the bank from: a text file, one per line, or datasets."
    )
    threshold: float = option(0.3, "Lowest CLAP score of an accepted caption.", least=-1)
    clip_seconds: float = option(
        10.0,
        "Seconds of a window: the clip's length of the networks, and of training on the result.",
        least=0.1,
    )
    max_windows: int | None = option(
        None, "Most windows of a recording, at equal distances; by default all.", least=1
    )
    batch_size: int = option(32, "Windows at a time, over this process's devices.", least=1)
    shard_size: int = option(
        512, "Windows in a shard; a killed run repeats its current shard.", least=1
    )
    withhold_labels: bool = option(False, "Withhold labels from the experts and from the result.")
    beam_options: str | None = option(
        None, "Apache Beam's options, '--runner=DirectRunner'; without them this process writes."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, value, expert in (
            ("captioner", self.captioner, "captioning"),
            ("retriever", self.retriever, "retrieval"),
            ("bank or bank_captions", self.bank or self.bank_captions, "retrieval"),
        ):
            if expert in self.experts and not value:
                raise ValueError(
                    f"experts: {expert!r} needs {key}; give it or leave the expert out"
                )
            if value and expert not in self.experts:
                raise ValueError(
                    f"{key}={value!r} is for the expert {expert!r}: add that to experts"
                )
        if self.bank and self.bank_captions:
            raise ValueError(
                f"bank={self.bank!r} and bank_captions={self.bank_captions!r}: give one of them"
            )
        if self.withhold_labels and "labels" in self.experts:
            raise ValueError("experts: 'labels' has no captions with withhold_labels: drop either")

    @property
    def result(self) -> str:
        """The name of the dataset that is written, "enhanced/NAME"."""
        first = re.split(r"[:\s]", self.dataset.strip())[0].rpartition("/")[2]
        return f"enhanced/{self.name or first}"
