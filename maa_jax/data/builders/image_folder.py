"""A user's folder of pictures with a table of captions or labels, to train a CLIP on."""

import hashlib
import io
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maa_jax.audio.io import AudioError
from maa_jax.data.builders.audio_folder import AudioFolder
from maa_jax.data.builders.base import audio_features
from maa_jax.visual import images


class ImageFolder(AudioFolder):
    """The pictures in `folder` that `captions_file` names, as squares of 256 x 256 pixels.

    They are PNG, JPEG, WebP, GIF or BMP files, of which the square in the middle is kept, as CLIP
    sees it. Table, splits, and what happens to files that cannot be read, are `AudioFolder`'s.
    """

    VERSION = tfds.core.Version("1.0.0")
    DESCRIPTION = "A folder of pictures with captions or labels."

    def features(self) -> dict[str, Any]:
        """Returns the features of an example: a picture in the place of a sound of no length."""
        found = audio_features()
        return {"image": found.pop("audio")} | found  # a PNG's bytes

    def content(self, file: epath.Path | bytes) -> tuple[dict, float]:
        """Returns the features that a file gives, and 0, as nothing is scaled.

        Raises:
          AudioError: the picture cannot be used.
        """
        import PIL.Image
        import PIL.ImageOps

        try:
            picture = images.decode(file if isinstance(file, bytes) else file.read_bytes())
        except (OSError, ValueError) as error:
            raise AudioError(str(error)) from error
        size = (images.SIDE, images.SIDE)
        square = PIL.ImageOps.fit(PIL.Image.fromarray(picture), size, PIL.Image.Resampling.BICUBIC)
        written = io.BytesIO()
        square.save(written, "PNG")
        digest = hashlib.sha256(np.asarray(square).tobytes()).hexdigest()
        return {"image": written.getvalue(), "seconds": 0.0, "audio_hash": digest}, 0.0
