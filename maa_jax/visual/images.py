"""Picture files as arrays of colours, as a person sees them."""

import io
import os
import pathlib
import warnings

import numpy as np

from maa_jax.files import check_regular

MAX_PIXELS = 80_000_000  # 240 MB of colours
MAX_RATIO = 100  # of the sides; the view of a network is resized from the whole picture
SIDE = 256  # height and width of the pictures in a dataset, in pixels
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # "JPEG" includes the pairs of some cameras
_REMEDY = f"give a whole picture, one of {', '.join(_FORMATS)}"


def load(path: str | os.PathLike[str], behind: str = "white") -> np.ndarray:
    """Reads a picture file; see `decode`.

    Raises:
      ValueError: the file cannot be used; the message begins with its path.
    """
    try:
        check_regular(path)
        data = pathlib.Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot be read ({reason}); {_REMEDY}") from error
    try:
        return decode(data, behind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def decode(data: bytes, behind: str = "white") -> np.ndarray:
    """Decodes the content of a picture file, uint8 [h, w, 3], red, green and blue.

    A GIF or another moving picture gives its first frame. The rotation that a camera notes (EXIF)
    is applied, transparency shows the colour `behind`, and 16 bits become 8.

    Raises:
      ValueError: the content is no picture or is broken, or it is larger than `check_size` allows.
    """
    import PIL.Image
    import PIL.ImageOps

    with warnings.catch_warnings():
        # `check_size` has the limit; Pillow's own is only warned of.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        try:
            picture = PIL.Image.open(io.BytesIO(data), formats=_FORMATS)
        except PIL.Image.DecompressionBombError as error:
            raise ValueError(f"has more than {MAX_PIXELS:,} pixels; make it smaller") from error
        except Exception as error:  # Pillow's readers raise many kinds on broken headers
            raise ValueError(f"is no picture that can be read; {_REMEDY}") from error
    check_size(*picture.size)
    try:
        picture.load()
        picture = PIL.ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip
            grey = np.asarray(picture).astype(np.int64)
            picture = PIL.Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            ground = PIL.Image.new("RGBA", picture.size, behind)
            picture = PIL.Image.alpha_composite(ground, picture)
        return np.array(picture.convert("RGB"))
    except Exception as error:
        raise ValueError(f"is a broken or truncated picture ({error}); {_REMEDY}") from error


def check_size(width: int, height: int) -> None:
    """Raises a ValueError for a picture that is too large, or too long for its width."""
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"has {width} x {height} pixels, more than {MAX_PIXELS:,} in all; make it smaller"
        )
    if max(width, height) > MAX_RATIO * max(1, min(width, height)):
        raise ValueError(
            f"has {width} x {height} pixels, one side over {MAX_RATIO} times the other; crop it"
        )
