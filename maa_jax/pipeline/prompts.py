"""What sounds are made from: sentences, captions with times, pictures, videos."""

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from maa_jax.pipeline import arguments, timeline
from maa_jax.pipeline.request import LONGEST
from maa_jax.pipeline.timeline import Segment

_FRAMES = 4  # of a video, or of each part of one that is longer than a window (paper, section 4.3)


class Prompt(NamedTuple):
    """What one sound is made from.

    Attributes:
      text: the sentence; of a picture or a video, its file's name.
      segments: captions with times, [] without.
      pictures: uint8 [h, w, 3] each, evenly over a video; [] for a sentence.
      seconds: the length that a video or the times state; None for none.
    """

    text: str
    segments: Sequence[Segment] = ()
    pictures: Sequence[np.ndarray] = ()
    seconds: float | None = None

    @property
    def changes(self) -> bool:
        """Whether windows of a long sound have prompts of their own."""
        return bool(self.segments) or (self.seconds is not None and len(self.pictures) > _FRAMES)

    @property
    def shortest(self) -> float | None:
        """Seconds of the shortest part with a caption of its own; None without such parts."""
        return min((s.end - s.start for s in self.segments), default=None)

    def at(self, start: float, end: float) -> Any:
        """Returns the sentence, or the pictures, of a part of the sound in seconds."""
        if self.segments:
            return timeline.caption_at(list(self.segments), (start + end) / 2)
        if not self.pictures:
            return self.text
        if not self.changes:
            return self.pictures
        assert self.seconds is not None  # it changes
        times = (np.arange(len(self.pictures)) + 0.5) / len(self.pictures) * self.seconds
        inside = np.flatnonzero((times >= start) & (times < end))
        nearest = [int(np.abs(times - (start + end) / 2).argmin())]
        return [self.pictures[i] for i in inside.tolist() or nearest]


def read(prompts: Any, image: Any, video: Any, window: float) -> list[Prompt]:
    """Returns what each sound is made from.

    Args:
      prompts: sentence, or several; None with pictures.
      image: path of a picture, or uint8 [h, w, 3]; or a list of them.
      video: path of a video, or a list of them.
      window: length in seconds of what the denoiser sees at a time.

    Raises:
      ValueError: nothing or several kinds are given, or one cannot be read.
    """
    given = {"prompts": prompts, "image": image, "video": video}
    there = [name for name, value in given.items() if value is not None]
    if len(there) > 1:
        raise ValueError(f"{' and '.join(there)}: give one of prompts, image and video")
    if not there or prompts is not None:
        return [_sentence(sentence) for sentence in arguments.sentences(prompts)]
    from maa_jax.visual import images, videos

    found = []
    for item in _listed(given[there[0]]):
        name = os.path.basename(item) if isinstance(item, str | os.PathLike) else there[0]
        if video is not None:
            seconds = videos.load(item, 1).seconds
            if seconds > LONGEST:
                raise ValueError(f"video={item!r} lasts {seconds:g} s: give up to {LONGEST:g} s")
            parts = max(1, math.ceil(seconds / window))
            loaded = videos.load(item, _FRAMES * parts)
            found.append(Prompt(name, (), loaded.pictures, loaded.seconds))
        elif isinstance(item, str | os.PathLike):
            found.append(Prompt(name, (), [images.load(item)]))
        else:
            found.append(Prompt(name, (), [_picture(item)]))
    return found


def check_heard(asked: Sequence[Prompt], seconds: Sequence[float]) -> None:
    """Raises a ValueError for a caption that begins after its sound's end, [n] in seconds."""
    for prompt, end in zip(asked, seconds, strict=True):
        if prompt.segments and prompt.segments[-1].start >= end:
            raise ValueError(
                f"prompts={prompt.text!r}: {prompt.segments[-1].caption!r} begins at "
                f"{prompt.segments[-1].start:g} s, but the sound ends at {end:g} s: leave it out, "
                "or ask for a longer sound"
            )


def _sentence(sentence: str) -> Prompt:
    segments = timeline.parse(sentence)
    if segments and segments[-1].end > LONGEST:
        raise ValueError(
            f"prompts={sentence!r}: ends at {segments[-1].end:g} s: give up to {LONGEST:g} s"
        )
    return Prompt(sentence, segments, (), segments[-1].end if segments else None)


def _listed(items: Any) -> list[Any]:
    one = isinstance(items, str | os.PathLike) or (isinstance(items, np.ndarray) and items.ndim < 4)
    listed = [items] if one else list(items)
    if not listed:
        raise ValueError("image and video: give at least one file")
    return listed


def _picture(item: Any) -> np.ndarray:
    from maa_jax.visual import images

    array = np.asarray(item)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"image of shape {array.shape} and type {array.dtype}: give a path, or uint8 [h, w, 3]"
        )
    images.check_size(array.shape[1], array.shape[0])
    return array
