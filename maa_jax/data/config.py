"""The `data` block of a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from maa_jax import schema
from maa_jax.data import mixtures
from maa_jax.data.reprogram import ReprogramConfig
from maa_jax.files import user_path


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Datasets and how clips are taken from them; a run's `config.data`.

    Attributes:
      dataset: "sonic_sounds", "audio_folder", or "audio_folder/NAME" to give the user's folder a
        name under which it is found later without `folder`; the same with "image_folder", of
        pictures, for the clip stage; any other built dataset by its folder
        in `data_dir`, "enhanced/NAME"; or a mixture with splits and weights, "audiocaps:train +
        enhanced/fsd50k*2.0 + sonic_sounds:train[:50%]". A weight multiplies a dataset's size: with
        all weights 1, the default, every window of a clip's length is equally likely, so that long
        recordings count as often as they are long.
      data_dir: folder where TFDS keeps datasets, by default $TFDS_DATA_DIR or
        ~/tensorflow_datasets. All processes must see it.
      folder: folder of the sound files of audio_folder, or of the pictures of image_folder.
      captions_file: CSV, TSV or JSONL table of the folder; without it there are no captions.
      soundfont: General MIDI soundfont, SF2 or SF3, that builds "general_midi/CLIPSxSECONDS".
      split: training split of the parts that name none; TFDS slices are allowed ("train[:50%]").
      eval_split: split of the evaluation data.
      eval_dataset: evaluation data, like `dataset` but without weights; by default the first part's
        dataset.
      samples: length of a clip at 16 kHz, in samples; the default is the paper's 624 mel frames.
      workers: number of processes that decode; 0 for threads in this one.
      prefetch: number of batches prepared ahead, by as many threads.
      reprogram: events that join the training pairs.
    """

    dataset: str = "sonic_sounds"
    data_dir: str | None = None
    folder: str | None = None
    captions_file: str | None = None
    soundfont: str | None = None
    split: str = "train"
    eval_split: str = "validation"
    eval_dataset: str | None = None
    samples: int = schema.field(624 * 256, least=1, most=10**9)
    workers: int = schema.field(0, least=0, most=1024)
    prefetch: int = schema.field(4, least=1, most=1024)
    reprogram: ReprogramConfig = dataclasses.field(default_factory=ReprogramConfig)

    def __post_init__(self):
        schema.check(self)
        for key in ("data_dir", "folder", "captions_file", "soundfont"):
            if getattr(self, key):
                object.__setattr__(self, key, user_path(getattr(self, key)))

    @classmethod
    def of(cls, config: "DataConfig | Mapping[str, Any]") -> "DataConfig":
        """Reads a ConfigDict or a mapping, as `schema.build` does."""
        return (
            config if isinstance(config, DataConfig) else schema.build(cls, config, "config.data")
        )

    def parts(self) -> tuple[mixtures.Part, ...]:
        """Returns the parts of the training data."""
        return mixtures.parse("data.dataset", self.dataset, self.split)

    def eval_parts(self) -> tuple[mixtures.Part, ...]:
        """Returns the parts of the evaluation data."""
        name = self.eval_dataset or self.parts()[0].dataset
        parts = mixtures.parse("data.eval_dataset", name, self.eval_split)
        if any(part.weight != 1 for part in parts):
            raise ValueError(f"data.eval_dataset is {name!r}; leave the weights out")
        return parts

    def event_parts(self) -> tuple[mixtures.Part, ...]:
        """Returns the datasets that events are drawn from; empty without reprogramming."""
        events = self.reprogram.events
        return mixtures.parse("data.reprogram.events", events, self.split) if events else ()
