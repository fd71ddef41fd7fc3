"""Masks of edited sounds: what is made anew, from seconds and Hz, a picture, or another sound."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig, mel_frequencies
from maa_jax.files import user_path
from maa_jax.pipeline.request import is_list

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_REGION = re.compile(rf"{_NUMBER}?-{_NUMBER}?(?::{_NUMBER}?-{_NUMBER}?)?")
_NAMED = re.compile(rf"(continue|before|bandwidth):{_NUMBER}")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
_WHITE = 128  # of a picture of 8 bits; from here on, a pixel is made anew
_REMEDY = (
    'give seconds "1.5-2" or "3-" (also with Hz, "1.5-2:500-3000"), "continue:2" or "before:2" '
    '(seconds), "bandwidth:4000" (Hz), a picture, or a recording whose silence is filled'
)


@dataclasses.dataclass(frozen=True)
class Region:
    """A part of a sound.

    Attributes:
      start: beginning in seconds.
      end: end in seconds; None is that of the sound.
      low: lowest frequency in Hz.
      high: highest frequency in Hz; None is the highest there is.
    """

    start: float = 0.0
    end: float | None = None
    low: float = 0.0
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """What of a sound is made anew.

    Attributes:
      regions: parts of the sound.
      before: seconds that are made before the sound.
      after: seconds that are made after it.
      files: pictures, and recordings whose silence is filled.
      text: how the mask was given, for errors.
    """

    regions: tuple[Region, ...]
    before: float
    after: float
    files: tuple[pathlib.Path, ...]
    text: str

    def extend(self, wav: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns a sound [samples] with silence where something is made before or after it."""
        ends = round(self.before * sample_rate), round(self.after * sample_rate)
        return np.pad(wav, ends)

    def draw(self, samples: int, mel: MelConfig) -> np.ndarray:
        """Returns the mask of an extended sound, bool [n_mels, frames], true where it is made anew.

        Times are rounded outwards to frames, frequencies to mel bands whose centre lies within.

        Raises:
          ValueError: a region lies outside the sound, or the mask covers nothing or everything.
        """
        rate, hop = mel.sample_rate, mel.hop_length
        frames, seconds = -(-samples // hop), samples / rate
        mask = np.zeros((mel.n_mels, frames), bool)
        centres = mel_frequencies(mel.n_mels + 2, mel.fmin, mel.fmax)[1:-1]
        # Regions count from the recording's own beginning, what is added to it from the sound's.
        added = [Region(end=self.before)] * (self.before > 0)
        added += [Region(start=seconds - self.after)] * (self.after > 0)
        placed = [(r, 0.0) for r in added] + [(r, self.before) for r in self.regions]
        for region, shift in placed:
            end = seconds if region.end is None else region.end + shift
            if not region.start + shift < end <= seconds + 1 / rate:
                until = "its end" if region.end is None else f"{region.end:g} s"
                raise ValueError(
                    f"mask={self.text!r}: {region.start:g} s to {until} is no part of a sound of "
                    f"{seconds - self.before - self.after:g} s: give seconds within it"
                )
            high = np.inf if region.high is None else region.high
            bands = (region.low <= centres) & (centres <= high)
            if not bands.any():
                until = "more" if region.high is None else f"{high:g} Hz"
                raise ValueError(
                    f"mask={self.text!r}: no mel band has its centre within {region.low:g} Hz to "
                    f"{until}: give a wider range, from {centres[0]:.0f} to {centres[-1]:.0f} Hz"
                )
            # A thousandth of a frame more is rounding.
            first = int((region.start + shift) * rate / hop + 1e-3)
            last = int(np.ceil(end * rate / hop - 1e-3))
            mask[bands, first:last] = True
        for file in self.files:
            mask |= _picture(file, mask.shape) if _is_picture(file) else _silence(file, mask, mel)
        if not mask.any():
            raise ValueError(f"mask={self.text!r} marks nothing to be made anew: {_REMEDY}")
        if mask.all():
            raise ValueError(
                f"mask={self.text!r} marks the whole sound: give a part of it, or leave out audio "
                "and mask to make a new sound"
            )
        return mask


def parse(mask: Any) -> MaskSpec:
    """Reads a mask, one item or several that are joined; see `_REMEDY`.

    Raises:
      ValueError: an item is none of those, ends before it begins, or is no such file.
    """
    items = list(mask) if is_list(mask) else [mask]
    if not items:
        raise ValueError(f"mask={mask!r}: {_REMEDY}")
    regions, files = [], []
    seconds = {"before": 0.0, "continue": 0.0}
    for item in items:
        if not isinstance(item, str | os.PathLike):
            raise ValueError(
                f"mask of type {type(item).__name__}: {_REMEDY}, or one array, bool [n_mels, "
                "frames]"
            )
        text = os.fspath(item)
        if named := _NAMED.fullmatch(text):
            if named[1] == "bandwidth":
                regions.append(Region(low=float(named[2])))
            else:
                seconds[named[1]] += float(named[2])
        elif (found := _REGION.fullmatch(text)) and re.search(r"\d", text):
            start, end, low, high = (None if x is None else float(x) for x in found.groups())
            region = Region(start or 0.0, end, low or 0.0, high)
            if _is_empty(region.start, end) or _is_empty(region.low, high):
                raise ValueError(
                    f"mask={text!r} ends before it begins: give the lower number first, as in "
                    '"1.5-2:500-3000"'
                )
            regions.append(region)
        elif text and os.path.isfile(user_path(text)):
            files.append(pathlib.Path(user_path(text)))
        else:
            raise ValueError(f"mask={text!r} is no region and no file: {_REMEDY}")
    spec = MaskSpec(
        tuple(regions),
        seconds["before"],
        seconds["continue"],
        tuple(files),
        ", ".join(map(str, items)),
    )
    return spec


def spans(rows: np.ndarray) -> Sequence[tuple[int, int]]:
    """Returns (first, one after the last) of each run of true values, of bool [n]."""
    edges = np.flatnonzero(np.diff(np.pad(rows.astype(np.int8), 1)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _is_empty(first: float, last: float | None) -> bool:
    return last is not None and last <= first


def _is_picture(file: pathlib.Path) -> bool:
    return file.suffix.lower() in _PICTURES


def _picture(file: pathlib.Path, shape: tuple[int, int]) -> np.ndarray:
    """Returns the mask that a picture paints over a spectrogram, low frequencies at its bottom.

    What is transparent is not painted.
    """
    from PIL import Image

    from maa_jax.visual import images

    try:
        picture = Image.fromarray(images.load(file, behind="black"))
    except ValueError as error:
        raise ValueError(f"mask={str(file)!r}: {error}") from error
    grey = picture.convert("L").resize(shape[::-1], Image.Resampling.NEAREST)
    return np.asarray(grey)[::-1] >= _WHITE


def _silence(file: pathlib.Path, mask: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Returns the frames in which a recording is silent, and those after its end."""
    try:
        wav = io.load(file, mel.sample_rate)
    except io.AudioError as error:
        raise ValueError(f"mask={str(file)!r} is no picture and no recording: {error}") from error
    wav = wav[: mask.shape[1] * mel.hop_length]
    wav = np.pad(wav, (0, mask.shape[1] * mel.hop_length - len(wav)))
    loudest = np.abs(wav).reshape(-1, mel.hop_length).max(axis=1)
    return np.broadcast_to(loudest < io.SILENCE, mask.shape)
