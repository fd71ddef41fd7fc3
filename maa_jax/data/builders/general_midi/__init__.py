"""Captioned sounds of a General MIDI soundfont: a dataset of any size whose truth is known."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maa_jax.audio.io import SAMPLE_RATE, encode_flac, pcm16
from maa_jax.data.builders.base import BuildsOnce, Info, audio_features
from maa_jax.data.builders.general_midi import synthesis
from maa_jax.data.builders.general_midi.score import combinations, compose
from maa_jax.data.builders.general_midi.wording import captions

_SPLITS = ("train", "validation", "test")
_HELD_OUT = 0.02  # share of the clips in validation, and in test
_PER_SHARD = 2_000
# Range of the level of a clip's loudest 0.4 s, in dB of full scale, by its loudest event.
_LOUDNESS_DB = {"soft": (-28.0, -22.0), "medium": (-24.0, -18.0), "loud": (-20.0, -14.0)}
_VARIANT = re.compile(
    r"(?P<clips>\d{1,9})x(?P<seconds>\d{1,3}(\.\d{1,3})?)(-(?P<seed>\d{1,9}))?(?P<all>-all)?"
)


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a variant of the dataset holds; its name is CLIPSxSECONDS[-SEED][-all].

    Attributes:
      clips: number of clips, over all splits.
      seconds: length of each clip.
      seed: seed of all random choices.
      all: whether every split hears all combinations, as a judge of others must.
    """

    clips: int = 100_000
    seconds: float = 4.1
    seed: int = 0
    all: bool = False

    @classmethod
    def parse(cls, name: str) -> "Variant":
        """Reads a variant's name.

        Raises:
          ValueError: the name is malformed, or the clips are too few or too short.
        """
        match = _VARIANT.fullmatch(name)
        found = match and cls(
            clips=int(match["clips"]),
            seconds=float(match["seconds"]),
            seed=int(match["seed"] or 0),
            all=bool(match["all"]),
        )
        if not found or found.clips < 10 or not 1 <= found.seconds <= 60:
            raise ValueError(
                f"dataset general_midi/{name}: name it CLIPSxSECONDS, CLIPSxSECONDS-SEED, or either"
                " with -all, such as general_midi/20000x4.1, with at least 10 clips of 1 to 60"
                " seconds"
            )
        return found

    def sizes(self) -> dict[str, int]:
        """Returns the number of clips in each split."""
        held_out = max(1, round(self.clips * _HELD_OUT))
        return {
            "train": self.clips - 2 * held_out,
            "validation": held_out,
            "test": held_out,
        }


class GeneralMidi(BuildsOnce, tfds.core.ShardBasedBuilder, skip_registration=True):
    """Clips of one to three events: instruments, drums and effects, in the order of their captions.

    Each clip has three differently worded captions, the instruments as labels, and `truth`, a JSON
    object with everything that is played. A combination of instrument, pattern and register is
    heard in one split only, so that test measures what a model makes of new combinations; but in
    the variants "-all", every split hears all combinations.

    It is built by processes of this machine, or by Beam through TFDS's `DownloadConfig`.

    Args:
      soundfont: path of a General MIDI soundfont, SF2 or SF3.
      config: name of the variant; see `Variant`.
      processes: number of processes that render, by default that of the cores; 0 for the one that
        writes a shard, which is right for Beam.
    """

    VERSION = tfds.core.Version("1.1.0")
    DEFAULT = "100000x4.1"

    def __init__(
        self,
        *,
        soundfont: str | os.PathLike[str],
        config: str = DEFAULT,
        processes: int | None = None,
        **kwargs: Any,
    ):
        self._variant = Variant.parse(config)
        self._soundfont = os.fspath(soundfont)
        self._processes = (os.cpu_count() or 1) if processes is None else processes
        super().__init__(
            config=tfds.core.BuilderConfig(name=config), file_format="array_record", **kwargs
        )

    def _info(self) -> tfds.core.DatasetInfo:
        return Info(
            builder=self,
            description="Captioned sounds of a General MIDI soundfont.",
            features=tfds.features.FeaturesDict(
                {**audio_features(), "truth": tfds.features.Text()}
            ),
            metadata=tfds.core.MetadataDict(soundfont=epath.Path(self._soundfont).name),
        )

    @staticmethod
    def check(config: str, soundfont: str | None) -> None:
        """Checks what a build needs.

        Raises:
          ValueError: the variant's name is malformed, or the soundfont is missing or unfit.
        """
        Variant.parse(config)
        if soundfont is None:
            raise ValueError(
                f"data.dataset is 'general_midi/{config}', which is not built yet: set"
                f" data.soundfont to a soundfont. {synthesis.HELP}"
            )
        synthesis.soundfont(soundfont)

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, list[Callable[[], Iterator[tuple[str, dict]]]]]:
        return {
            split: [
                functools.partial(
                    _examples,
                    self._soundfont,
                    self._variant,
                    split,
                    range(begin, min(begin + _PER_SHARD, size)),
                    self._processes,
                )
                for begin in range(0, size, _PER_SHARD)
            ]
            for split, size in self._variant.sizes().items()
        }


def _examples(
    soundfont: str, variant: Variant, split: str, numbers: range, processes: int
) -> Iterator[tuple[str, dict]]:
    """Yields the examples of a shard, rendered by `processes` others or by this process."""
    make = functools.partial(example, soundfont, variant, split)
    if not processes:
        yield from ((f"{split}/{i}", make(i)) for i in numbers)
        return
    examples = _workers(processes).map(make, numbers, chunksize=20)
    yield from ((f"{split}/{i}", made) for i, made in zip(numbers, examples, strict=True))


@functools.lru_cache(maxsize=1)
def _workers(count: int) -> concurrent.futures.Executor:
    """Returns processes that stay for all shards, since each reads the soundfont."""
    # Not forked: JAX and TFDS run threads.
    spawn = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=spawn)


def example(soundfont: str, variant: Variant, split: str, number: int) -> dict[str, Any]:
    """Returns a clip; it depends only on the arguments, and on the soundfont's content.

    Args:
      soundfont: path of the soundfont.
      variant: variant of the dataset.
      split: split of the clip.
      number: number of the clip in its split.
    """
    rng = np.random.default_rng((variant.seed, _SPLITS.index(split), number))
    score = compose(rng, _combinations(None if variant.all else split), variant.seconds)
    loudest = max((event.loudness for event in score.events), key=list(_LOUDNESS_DB).index)
    loudness = float(rng.uniform(*_LOUDNESS_DB[loudest]))
    wav = synthesis.soundfont(soundfont).render(score, variant.seconds, loudness)
    names = [event.instrument.name for event in score.events]
    return {
        "audio": encode_flac(wav, SAMPLE_RATE),
        "captions": list(captions(score, rng)),
        "labels": list(dict.fromkeys(names)),
        "source": epath.Path(soundfont).name,
        "id": f"{split}-{number:06d}",
        "seconds": len(wav) / SAMPLE_RATE,
        "license": "that of the soundfont",
        "audio_hash": hashlib.sha256(pcm16(wav).astype("<i2").tobytes()).hexdigest(),
        "truth": json.dumps(score.truth()),
    }


_combinations = functools.lru_cache(combinations)
