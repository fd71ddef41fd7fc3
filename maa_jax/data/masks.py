"""Masks of inpainting: LaMa's irregular ones, and wav2vec 2.0's spans (paper section 4.2).

A mask is bool [n_mels, frames] and marks what is to be made anew. Irregular masks are chains of
thick lines, or boxes, with the parameters of LaMa's sets for images of 256 pixels (Suvorov et al.
2022, saic-mdal/lama: configs/data_gen/random_*_256.yaml), which fit 80 mels; those for 512 do not.
"""

import dataclasses
import math

import numpy as np

_MOST_AREA = 0.5  # a mask that covers more is drawn again, as in LaMa's sets
_MAX_ANGLE = 4
_SEGMENTS = 5  # of a chain, at most
_SPAN = 10  # frames


@dataclasses.dataclass(frozen=True)
class Irregular:
    """Parameters of LaMa's irregular masks.

    Attributes:
      chains: smallest and largest number of chains.
      length: lines are 10 to 9 + `length` long.
      width: and 5 to 4 + `width` thick.
      box_weight: how often the mask is boxes, where chains have the weight 1.
      box_size: smallest and largest side of a box.
      boxes: smallest and largest number of boxes.
      margin: distance of boxes from the edges.
    """

    chains: tuple[int, int]
    length: int
    width: int
    box_weight: float = 0.0
    box_size: tuple[int, int] = (1, 1)
    boxes: tuple[int, int] = (1, 1)
    margin: int = 0


IRREGULAR = {
    "thin": Irregular((4, 51), 40, 10),
    "medium": Irregular((4, 6), 100, 50, 0.3, (10, 50), (1, 5)),
    "thick": Irregular((1, 6), 200, 100, 0.3, (30, 150), (1, 3), 10),
}
# Names of the masks of the paper's Table 2: spans are named by wav2vec 2.0's p in per cent. They
# overlap, so that p = 0.3, 0.5 and 0.7 mask 26, 40 and 52 % of the frames.
FRAMES = {"frames30": 0.3, "frames50": 0.5, "frames70": 0.7}
MASKS = (*IRREGULAR, *FRAMES)


@dataclasses.dataclass(frozen=True)
class MaskSource:
    """Draws the masks of training, one kind or another.

    Attributes:
      names: kinds, of `MASKS`, in equal shares.
      everything: share of masks that cover all, so that the model also makes whole sounds.
      n_mels: number of mel bins.
      frames: number of frames.
    """

    names: tuple[str, ...]
    everything: float
    n_mels: int
    frames: int

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Returns a mask, bool [n_mels, frames]."""
        if rng.random() < self.everything:
            return np.ones((self.n_mels, self.frames), bool)
        return draw(str(rng.choice(self.names)), self.n_mels, self.frames, rng)


def draw(name: str, n_mels: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a random mask, bool [n_mels, frames], with something to make anew and to keep.

    Args:
      name: one of `MASKS`.
      n_mels: number of mel bins, 16 or more.
      frames: number of frames, 16 or more.
      rng: source of all draws.
    """
    if name in FRAMES:
        return np.broadcast_to(spans(FRAMES[name], frames, rng), (n_mels, frames)).copy()
    while True:
        mask = irregular(IRREGULAR[name], n_mels, frames, rng)
        if 0 < mask.mean() <= _MOST_AREA:
            return mask


def irregular(
    settings: Irregular, n_mels: int, frames: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns an irregular mask of any area, bool [n_mels, frames]."""
    mask = np.zeros((n_mels, frames), bool)
    if rng.random() * (1 + settings.box_weight) >= 1:
        _draw_boxes(mask, settings, rng)
        return mask
    for chain in range(rng.integers(settings.chains[0], settings.chains[1] + 1)):
        x, y = float(rng.integers(frames)), float(rng.integers(n_mels))
        for _ in range(1 + rng.integers(_SEGMENTS)):
            angle = 0.01 + rng.integers(_MAX_ANGLE)  # radians, as LaMa's
            angle = -angle if chain % 2 == 0 else angle
            length, width = 10 + rng.integers(settings.length), 5 + rng.integers(settings.width)
            to_x = min(max(x + length * math.sin(angle), 0), frames)
            to_y = min(max(y + length * math.cos(angle), 0), n_mels)
            _draw_line(mask, (x, y), (to_x, to_y), width / 2)
            x, y = to_x, to_y
    return mask


def spans(p: float, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Returns a mask of whole frames, bool [frames]: spans of 10 that may overlap.

    Baevski et al. 2020 (facebookresearch/fairseq: fairseq/data/data_utils.py): p frames / 10 of
    them, rounded at random, and 2 at least.
    """
    count = max(2, math.floor(p * frames / _SPAN + rng.random()))
    starts = rng.choice(frames - _SPAN, min(count, frames - _SPAN), replace=False)
    mask = np.zeros(frames, bool)
    mask[(starts[:, None] + np.arange(_SPAN)).ravel()] = True
    return mask


def _draw_boxes(mask: np.ndarray, settings: Irregular, rng: np.random.Generator) -> None:
    height, width = mask.shape
    margin = settings.margin
    largest = min(settings.box_size[1], height - 2 * margin, width - 2 * margin)
    smallest = min(settings.box_size[0], largest)
    for _ in range(rng.integers(settings.boxes[0], settings.boxes[1] + 1)):
        h, w = rng.integers(smallest, largest + 1, 2)
        y = rng.integers(margin, height - margin - h + 1)
        x = rng.integers(margin, width - margin - w + 1)
        mask[y : y + h, x : x + w] = True


def _draw_line(
    mask: np.ndarray, start: tuple[float, float], end: tuple[float, float], radius: float
) -> None:
    """Marks all cells within `radius` of the line from `start` to `end`, each (x, y)."""
    (x0, y0), (x1, y1) = start, end
    left, right = math.floor(min(x0, x1) - radius), math.ceil(max(x0, x1) + radius) + 1
    low, high = math.floor(min(y0, y1) - radius), math.ceil(max(y0, y1) + radius) + 1
    left, low = max(left, 0), max(low, 0)
    x = np.arange(left, min(right, mask.shape[1]))
    y = np.arange(low, min(high, mask.shape[0]))[:, None]
    dx, dy = x1 - x0, y1 - y0
    along = ((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9)
    along = np.clip(along, 0, 1)
    near = (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2 <= radius**2
    mask[low : low + len(y), left : left + len(x)] |= near
