"""The paper's tables and figures: their columns, published values, and what the paper leaves open.

A row of a file names what is scored: a model, a run, a folder of sounds, or a dataset whose
captions are scored. Published rows are found by the row's name.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
      title: its heading.
      score: end of the score's name in scores.json; "" for a value that the file of rows gives, as
        opinion scores are.
      zero_shot: whether it is scored on the second dataset.
    """

    title: str
    score: str = ""
    zero_shot: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
      title: what it shows.
      protocol: protocol of all scores.
      columns: columns after the name.
      published: {name of a row: its values}, as texts in the order of the columns.
      note: what the paper does not say, or says only here.
      recordings: whether recordings are scored with their captions, and not sounds.
    """

    title: str
    protocol: str
    columns: tuple[Column, ...]
    published: Mapping[str, tuple[str, ...]]
    note: str
    recordings: bool = False


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of the paper, a curve for each name in the file of rows.

    Attributes:
      title: what it shows.
      x: column of the horizontal axis: a score, or a column of the file of rows.
      y: columns of the vertical axes.
      protocols: protocols of the scores.
      evaluators: evaluators of the scores.
      note: what the paper does not say.
    """

    title: str
    x: Column
    y: tuple[Column, ...]
    protocols: tuple[str, ...]
    evaluators: tuple[str, ...]
    note: str


_FID, _KL, _CLAP = Column("FID", "fid"), Column("KL", "kl"), Column("CLAP", "clap")
_MOS_Q, _MOS_F = Column("MOS-Q"), Column("MOS-F")
_NETWORK = (
    "The paper names neither the network of FID and KL nor the length of its sounds; the values "
    "are almost surely those of a Melception trained on VGGSound, as Diffsound's are."
)

TABLES = {
    "1": Table(
        "Text to audio on AudioCaps, and zero-shot (Z) on Clotho",
        "make-an-audio",
        (
            _FID,
            _KL,
            _CLAP,
            _MOS_Q,
            _MOS_F,
            Column("FID-Z", "fid", zero_shot=True),
            Column("KL-Z", "kl", zero_shot=True),
        ),
        {
            "Reference": ("/", "/", "0.526", "74.7±0.94", "80.5±1.84", "/", "/"),
            "Diffsound": ("7.17", "3.57", "0.420", "67.1±1.03", "70.9±1.05", "24.97", "6.53"),
            "CLAP": ("4.61", "2.79", "0.482", "72.5±0.90", "78.6±1.01", "17.38", "6.98"),
            "BERT": ("5.15", "2.89", "0.480", "70.5±0.87", "77.2±0.98", "18.75", "7.01"),
            "T5-Large": ("4.83", "2.81", "0.486", "71.8±0.91", "77.2±0.93", "17.23", "7.02"),
            "CLIP": ("6.45", "2.91", "0.444", "72.1±0.92", "75.4±0.96", "17.55", "7.09"),
        },
        _NETWORK + " The release's own code gives the recordings of AudioCaps' validation split a "
        "CLAP score of 0.479, not 0.526.",
    ),
    "2": Table(
        "Inpainting by masks of training, of narrow and of wide regions",
        "specvqgan",
        (_FID, _KL, _MOS_Q),
        {
            "Irregular (Thin), narrow": ("1.83", "0.46", "68.3±1.38"),
            "Irregular (Medium), narrow": ("1.76", "0.31", "67.8±1.41"),
            "Irregular (Thick), narrow": ("1.73", "0.32", "69.6±1.36"),
            "Frame (p=30%), narrow": ("1.64", "0.29", "66.9±1.60"),
            "Frame (p=50%), narrow": ("1.77", "0.32", "68.6±1.42"),
            "Frame (p=70%), narrow": ("1.59", "0.32", "71.0±1.12"),
            "Irregular (Thin), wide": ("4.01", "0.86", "66.2±1.20"),
            "Irregular (Medium), wide": ("3.93", "0.65", "66.9±1.22"),
            "Irregular (Thick), wide": ("3.83", "0.67", "69.3±1.05"),
            "Frame (p=30%), wide": ("3.68", "0.62", "66.1±1.29"),
            "Frame (p=50%), wide": ("3.66", "0.63", "67.4±1.27"),
            "Frame (p=70%), wide": ("3.49", "0.65", "70.8±1.50"),
        },
        _NETWORK + " How large narrow and wide regions are is not said.",
    ),
    "5": Table(
        "CLAP score of recordings and their captions",
        "clap-release",
        (Column("CLAP", "score"),),
        {
            "Original, FSD50K": ("0.40",),
            "Original, ESC-50": ("0.43",),
            "Original, UrbanSound8K": ("0.33",),
            "Captioning, FSD50K": ("0.35",),
            "Captioning, ESC-50": ("0.46",),
            "Captioning, UrbanSound8K": ("0.37",),
            "Retrieval, FSD50K": ("0.31",),
            "Retrieval, ESC-50": ("0.44",),
            "Retrieval, UrbanSound8K": ("0.38",),
            "Both + CLAP Select, FSD50K": ("0.54",),
            "Both + CLAP Select, ESC-50": ("0.62",),
            "Both + CLAP Select, UrbanSound8K": ("0.55",),
        },
        "The last rows are chosen by the score that they are then given.",
        recordings=True,
    ),
    "7": Table(
        "Latent channels of the model with BERT, and prompt enhancement (PPE)",
        "specvqgan",
        (
            _FID,
            _KL,
            Column("FID-Z", "fid", zero_shot=True),
            Column("KL-Z", "kl", zero_shot=True),
        ),
        {
            "Base, 4 channels": ("5.15", "2.89", "18.75", "7.01"),
            "Base, 32 channels": ("9.22", "3.54", "/", "/"),
            "Base, 128 channels": ("10.92", "3.68", "/", "/"),
            "w/o PPE, 4 channels": ("5.37", "3.05", "22.31", "7.19"),
        },
        _NETWORK + " The text says that dynamic reprogramming was removed, the table that all of "
        "prompt enhancement was.",
    ),
    "8": Table(
        "Global conditions",
        "make-an-audio",
        (_FID, _KL, _CLAP),
        {
            "AudioCaption, Global": ("/", "/", "0.12"),
            "FSD50k, Global": ("40.7", "8.2", "0.40"),
            "FSD50k, NormGlobal": ("31.1", "8.0", "0.42"),
        },
        _NETWORK + " The size of the test set is not said.",
    ),
}
FIGURES = {
    "5": Figure(
        "Sound to sound: faithfulness to the prompt against the distance from the initial sound",
        Column("t0"),
        (Column("1 - MSE", "similarity"), Column("CLAP", "score")),
        ("clap-release",),
        ("similarity",),
        "The paper does not say of what the squared error is; here it is that of log mels between "
        "0 and 1. It shows one prompt.",
    ),
    "7": Figure(
        "Guidance: CLAP score against FID",
        _CLAP,
        (_FID,),
        ("make-an-audio",),
        (),
        "The paper draws curves without their values, and does not say the scales.",
    ),
}
