"""Puts what was made anew into a recording, of which all the rest stays as it is."""

import numpy as np

from maa_jax.audio.mel import MelConfig, mel_frequencies
from maa_jax.pipeline.regions import spans

_FADE_SECONDS = 0.01  # of the crossfade, which lies outside the mask
_CONTEXT_SECONDS = 0.1  # beside a seam, where the levels are compared
_QUIET = 1e-4  # RMS below which there is no level to compare
_MOST_GAIN = 2.0


def compose(known: np.ndarray, made: np.ndarray, mask: np.ndarray, mel: MelConfig) -> np.ndarray:
    """Returns a recording with another sound within a mask.

    Samples that are farther than 10 ms from the mask's frames are the recording's, bit for bit.
    The other sound gets the recording's level at the seams: what is compared is the 100 ms beside
    each. In frames of which only some bands are made anew, the two are joined in their transforms.

    Args:
      known: the recording, float32 [samples].
      made: sound whose mel is the recording's outside the mask, float32 [samples].
      mask: what is made anew, bool [n_mels, frames].
      mel: front end of the mask.

    Returns:
      float32 [samples] in [-1, 1].
    """
    frames = np.any(mask, axis=0)
    seams = [
        (first * mel.hop_length, min(last * mel.hop_length, len(known)))
        for first, last in spans(frames)
    ]
    made = made * _gain(known, made, seams, mel.sample_rate)
    if (frames & ~mask.all(axis=0)).any():
        made = _join_bands(known, made, mask, mel)
    weight = _weight(len(known), seams, round(_FADE_SECONDS * mel.sample_rate))
    mixed = np.clip(known + weight * (made - known), -1, 1)
    return np.where(weight > 0, mixed, known).astype(np.float32)


def _weight(samples: int, seams: list[tuple[int, int]], fade: int) -> np.ndarray:
    """Returns the weight of what was made anew, 0 to 1, [samples]."""
    weight = np.zeros(samples)
    ramp = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade) + 0.5) / fade)
    for first, last in seams:
        around = np.concatenate([ramp, np.ones(last - first), ramp[::-1]])
        left = max(0, fade - first)
        right = min(len(around), samples - first + fade)
        place = slice(first - fade + left, first - fade + right)
        weight[place] = np.maximum(weight[place], around[left:right])
    return weight


def _gain(
    known: np.ndarray, made: np.ndarray, seams: list[tuple[int, int]], sample_rate: int
) -> np.ndarray:
    """Returns the gain [samples] that brings `made` to the level of `known` at each seam.

    Within the mask it goes from that of one seam to that of the other.
    """
    context = round(_CONTEXT_SECONDS * sample_rate)
    kept = np.ones(len(known), bool)
    for first, last in seams:
        kept[first:last] = False

    def ratio(place: slice) -> float | None:
        a, b = (np.sqrt(np.mean(np.square(x[place][kept[place]]))) for x in (known, made))
        return float(np.clip(a / b, 1 / _MOST_GAIN, _MOST_GAIN)) if min(a, b) > _QUIET else None

    at, gains = [0], [0.0]
    for first, last in seams:
        sides = [
            ratio(slice(max(0, first - context), first)) if first else None,
            ratio(slice(last, last + context)) if last < len(known) else None,
        ]
        level = [side for side in sides if side is not None] or [1.0]
        at += [first, last]
        gains += [
            np.log(level[0] if sides[0] is None else sides[0]),
            np.log(level[-1] if sides[1] is None else sides[1]),
        ]
    return np.exp(np.interp(np.arange(len(known)), at[1:], gains[1:]))


def _join_bands(
    known: np.ndarray, made: np.ndarray, mask: np.ndarray, mel: MelConfig
) -> np.ndarray:
    """Returns `made` with the bands of `known` that the mask keeps in frames it touches."""
    from scipy import signal

    window = signal.windows.hann(mel.n_fft, sym=False)
    transform = signal.ShortTimeFFT(window, mel.hop_length, mel.sample_rate)
    frequencies = transform.f
    centres = mel_frequencies(mel.n_mels + 2, mel.fmin, mel.fmax)[1:-1]
    nearest = np.abs(frequencies[:, None] - centres).argmin(axis=1)
    # Frames that the mask does not touch are left to the crossfade: they are joined as the nearest
    # one that it does, so that bands which are kept go on through the seam.
    touched, every = np.flatnonzero(mask.any(axis=0)), np.arange(mask.shape[1])
    after = np.searchsorted(touched, every).clip(max=len(touched) - 1)
    before = (after - 1).clip(min=0)
    later = np.abs(touched[after] - every) < np.abs(touched[before] - every)
    made_anew = mask[nearest][:, touched[np.where(later, after, before)]]  # [frequencies, frames]
    # Slice p of the transform is centred at p hops, a frame of mels half a hop later.
    shift = mel.hop_length // 2
    padded = [np.pad(x.astype(np.float64), (shift, 0)) for x in (known, made)]
    ours, other = (transform.stft(x) for x in padded)
    slices = np.arange(ours.shape[1]) + transform.p_min
    frames = np.clip(slices - 1, 0, mask.shape[1] - 1)
    joined = np.where(made_anew[:, frames], other, ours)
    return transform.istft(joined, k1=len(padded[0]))[shift:]
