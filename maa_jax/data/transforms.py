"""Transforms of examples, from dict to dict, with random choices from `rng`."""

import io

import numpy as np
import soundfile

# Caption of an example that has only labels.
LABEL_CAPTION = "the sound of {}"


def clip_audio(
    example: dict, rng: np.random.Generator, samples: int, window: int = 0, windows: int = 1
) -> dict:
    """Decodes `audio` (FLAC bytes) into a clip, float32 [samples].

    Longer recordings are cropped at random, and only that part is decoded. Shorter ones are padded
    with zeros at the end, never at the start: a model trained on leading silence generates it.

    Args:
      example: example of a dataset.
      rng: generator of the crop.
      samples: length of the clip.
      window: which of the equal stretches of the recording the clip begins in, 0 or more.
      windows: number of these stretches, which together hold every start once.
    """
    with soundfile.SoundFile(io.BytesIO(example["audio"])) as file:
        starts = max(file.frames - samples, 0) + 1
        first, end = starts * window // windows, starts * (window + 1) // windows
        start = int(rng.integers(first, max(end, first + 1)))
        if start:
            file.seek(start)
        wav = file.read(samples, dtype="float32", fill_value=0.0)
    return {**example, "audio": wav}


def picture(example: dict) -> dict:
    """Decodes `image` (a PNG's bytes) into a picture, uint8 [SIDE, SIDE, 3]; `visual.images`."""
    import PIL.Image

    return {**example, "image": np.array(PIL.Image.open(io.BytesIO(example["image"])))}


def all_captions(example: dict) -> list[str]:
    """Returns the example's captions, or one made from its labels; `[""]` if it has neither."""
    captions = [_text(caption) for caption in example["captions"]]
    labels = [_text(label) for label in example["labels"]]
    return captions or [LABEL_CAPTION.format(" and ".join(labels)) if labels else ""]


def pick_caption(example: dict, rng: np.random.Generator) -> dict:
    """Adds `caption`, one of the example's captions at random."""
    captions = all_captions(example)
    return {**example, "caption": captions[rng.integers(len(captions))]}


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
