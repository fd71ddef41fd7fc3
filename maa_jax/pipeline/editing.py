"""Recordings that sounds are made from, and what of them is made anew."""

import numbers
import os
from typing import Any, NamedTuple

import numpy as np

from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig
from maa_jax.files import user_path
from maa_jax.pipeline import arguments, regions
from maa_jax.pipeline.request import LONGEST, is_list


class Recordings(NamedTuple):
    """The recordings of a request, one for each prompt.

    Attributes:
      wavs: the recordings, float32 [samples] each, with silence where something is added to them.
      masks: what of each is made anew, bool [n_mels, frames]; None without a mask.
      listed: whether they were given as a list.
    """

    wavs: list[np.ndarray]
    masks: list[np.ndarray] | None
    listed: bool

    def audio(self, rows: np.ndarray, samples: int) -> np.ndarray:
        """Returns some recordings, padded with silence, float32 [b, samples]."""
        return np.stack([np.pad(wav, (0, samples - len(wav))) for wav in _pick(self.wavs, rows)])

    def mask(self, rows: np.ndarray, frames: int) -> np.ndarray | None:
        """Returns their masks, bool [b, n_mels, frames]; silence after a recording is kept."""
        if self.masks is None:
            return None
        return np.stack(
            [np.pad(m, ((0, 0), (0, frames - m.shape[1]))) for m in _pick(self.masks, rows)]
        )


def _pick(items: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    return [items[row] for row in rows]


def read(audio: Any, mask: Any, prompts: int, mel: MelConfig) -> Recordings:
    """Reads the recordings and draws their masks.

    Args:
      audio: path of a sound file, of any rate and number of channels, or waveform [samples] at the
        front end's rate; or several, one for each prompt. Those beyond full scale are brought to
        it.
      mask: see `regions.parse`, or bool [n_mels, frames], or one of these for each recording, bool
        [n, n_mels, frames]; None for none.
      prompts: number of prompts, which may share a recording.
      mel: front end of the model.

    Raises:
      ValueError: a recording cannot be read, is too long, or the mask does not fit it.
    """
    one = isinstance(audio, str | os.PathLike) or _is_waveform(audio)
    if not (one or is_list(audio) or np.ndim(audio)):
        raise ValueError(
            f"audio of type {type(audio).__name__}: give the path of a recording, its samples, "
            "or a list"
        )
    given = [audio] if one else list(audio)
    if len(given) not in (1, prompts):
        raise ValueError(
            f"audio has {len(given)} recordings: give one, or one for each of the {prompts} prompts"
        )
    mask = np.asarray(mask) if _is_array(mask) else mask
    spec = None if mask is None or _is_array(mask) else regions.parse(mask)
    wavs = []
    for number, item in enumerate(given):
        wav = _waveform(item, number, mel.sample_rate)
        seconds = len(wav) / mel.sample_rate + (spec.before + spec.after if spec else 0)
        if seconds > LONGEST:
            raise ValueError(
                f"audio[{number}] is {seconds:.3f} s long with what is added to it: give up to "
                f"{LONGEST:g} s"
            )
        wavs.append(spec.extend(wav, mel.sample_rate) if spec else wav)
    masks = None
    if spec is not None:
        masks = [spec.draw(len(wav), mel) for wav in wavs]
    elif mask is not None:
        each = mask if mask.ndim == 3 else [mask] * len(wavs)
        if len(each) != len(wavs):
            raise ValueError(f"mask has {len(each)} masks for {len(wavs)} recordings: give as many")
        masks = [_checked(one_, len(wav), mel) for one_, wav in zip(each, wavs, strict=True)]
    repeats = prompts // len(wavs)
    return Recordings(wavs * repeats, None if masks is None else masks * repeats, not one)


def _is_waveform(audio: Any) -> bool:
    """Whether `audio` is one waveform and not a list of recordings."""
    if hasattr(audio, "ndim"):
        return audio.ndim == 1 and audio.dtype != object
    return is_list(audio) and len(audio) > 0 and isinstance(audio[0], numbers.Real)


def _is_array(mask: Any) -> bool:
    return hasattr(mask, "dtype") and mask.dtype.kind == "b"


def _waveform(item: Any, number: int, sample_rate: int) -> np.ndarray:
    if isinstance(item, str | os.PathLike):
        if not os.fspath(item):
            raise ValueError(f"audio[{number}]={item!r}: give the path of a recording")
        wav = io.load(user_path(item), sample_rate)
    else:
        wav = arguments.numbers(f"audio[{number}]", item)
        if wav.ndim != 1 or not len(wav):
            raise ValueError(
                f"audio[{number}] has shape {wav.shape}: give a path, or one channel [samples] at "
                f"{sample_rate} Hz"
            )
    return wav / max(1.0, np.abs(wav).max())


def _checked(mask: np.ndarray, samples: int, mel: MelConfig) -> np.ndarray:
    shape = (mel.n_mels, -(-samples // mel.hop_length))
    if mask.shape != shape or not mask.any() or mask.all():
        raise ValueError(
            f"mask of shape {mask.shape} marks {mask.mean():.0%}: give bool [n_mels, frames], here "
            f"{shape}, that marks a part of the sound"
        )
    return mask
