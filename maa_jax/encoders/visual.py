"""One CLIP embedding as the denoiser's context: of sentences in training, of pictures in use.

Make-An-Audio, section 4.3 and Table 8: `norm_global`, the embedding of unit length, and `global`,
as it is. The authors' image model does the same with OpenCLIP's ViT-H/14 (AIGC-Audio/AudioGPT,
text_to_audio/Make_An_Audio/ldm/modules/encoders/modules.py).
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.checks import check_name
from maa_jax.encoders.base import Conditioner, Tree
from maa_jax.encoders.text import TextConditioner
from maa_jax.files import FolderError, read_json
from maa_jax.model_folder import networks
from maa_jax.model_folder.hub import INDEX
from maa_jax.model_folder.registry import class_of
from maa_jax.models.clap import unit_length
from maa_jax.models.clip import preprocess
from maa_jax.text.tokenizer import Tokenizer

# What the context is: the states of a sentence's tokens, or one embedding, {name: its norm}.
CONDITIONING = {"tokens": "", "norm_global": "normalized", "global": "none"}


def open_conditioner(
    folder: str | os.PathLike[str],
    conditioning: str | None = None,
    *,
    dtype: Any = np.float32,
) -> Conditioner:
    """Reads the text encoder of a model folder, as what its denoiser was trained with.

    Args:
      folder: model folder, or a text encoder's own folder.
      conditioning: a key of `CONDITIONING`; by default the one that model_index.json states, tokens
        if it states none.
      dtype: compute dtype of the networks.

    Raises:
      FolderError: files are missing or broken, or do not belong together.
    """
    norm = CONDITIONING[conditioning or _conditioning(folder)]
    if not norm:
        return TextConditioner.from_folder(folder, dtype=dtype)
    return GlobalConditioner.from_folder(folder, norm=norm, dtype=dtype)


def check_sees(folder: str | os.PathLike[str]) -> None:
    """Raises a ValueError unless the denoiser of a model folder takes pictures."""
    if not CONDITIONING[_conditioning(folder)]:
        raise ValueError(
            f"image, video: {folder} knows only text: give the folder of a model that was trained "
            "with configs/v2a.py"
        )


def _conditioning(folder: str | os.PathLike[str]) -> str:
    """Returns the key of `CONDITIONING` that a model folder states, tokens if it states none."""
    path = pathlib.Path(folder, INDEX)
    index = read_json(path) if path.exists() else {}
    conditioning = index.get("conditioning", "tokens")
    if conditioning not in CONDITIONING:
        raise FolderError(
            f"{path}: conditioning={str(conditioning)[:80]!r}: expected one of "
            f"{', '.join(CONDITIONING)}; write the folder again"
        )
    return conditioning


class GlobalConditioner:
    """A frozen CLIP as a `Conditioner`: sentences or pictures to one token, [n, 1, width].

    Args:
      norm: "normalized" for embeddings of unit length, "none" for embeddings as they are.
      tokenizer: tokenizer of the text tower.
      graphdef: graph of a `ClipModel`.
      params: weights of both towers.

    Attributes:
      norm: "normalized" or "none".
      tokenizer: tokenizer of the text tower.
      params: weights of both towers.
      width: channels of the context, those of the joint space.
      image_size: side in pixels of what the vision tower sees.

    Raises:
      FolderError: the tokenizer is not the text tower's.
    """

    def __init__(self, norm: str, tokenizer: Tokenizer, graphdef: Any, params: Tree):
        check_name("norm", norm, ("normalized", "none"))
        self.norm, self.tokenizer, self.params = norm, tokenizer, params
        self._graphdef = graphdef
        self._config = networks.build(graphdef, params).config
        self.width = self._config.projection_dim
        self.image_size = self._config.vision_config.image_size
        text = self._config.text_config
        tokenizer.check_fits(text.vocab_size, text.max_tokens)
        # The embedding is read at the token that ends the text; id 2 stands for the largest.
        if text.eos_token_id != 2 and text.eos_token_id not in self.unconditional():
            raise FolderError(
                f"the tokenizer never ends a text with the CLIP's eos_token_id={text.eos_token_id}:"
                " bring the tokenizer that it was trained with"
            )

    @classmethod
    def from_folder(
        cls, folder: str | os.PathLike[str], *, norm: str = "normalized", dtype: Any = np.float32
    ) -> Self:
        """Reads a whole CLIP and its tokenizer.

        Args:
          folder: model folder with `text_encoder/` and `tokenizer/`, or a CLIP's own folder as on
            the Hugging Face hub.
          norm: "normalized" or "none".
          dtype: compute dtype of the networks.

        Raises:
          FolderError: files are missing or broken, or do not belong together.
        """
        folder = pathlib.Path(folder)
        own = (folder / "config.json").is_file() and not (folder / "text_encoder").is_dir()
        place = "." if own else "text_encoder"
        kind = class_of(read_json(folder / place / "config.json"))
        if kind != "CLIPModel":
            raise FolderError(
                f"{folder / place}: class {kind!r} does not see pictures; give a whole CLIP, of "
                "class 'CLIPModel'"
            )
        tokenizer = Tokenizer.from_folder(folder if own else folder / "tokenizer")
        graphdef, params = networks.load_network(folder, place, dtype=dtype)
        try:
            return cls(norm, tokenizer, graphdef, params)
        except FolderError as e:
            raise FolderError(f"{folder}: {e}") from e

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer/`, and both towers as `text_encoder/`."""
        networks.save_network(folder, "text_encoder", self._config, self.params)
        self.tokenizer.save(pathlib.Path(folder, "tokenizer"))

    @property
    def prepare(self) -> Tokenizer:
        """The tokenizer, from sentences to int32 ids [n, length]."""
        return self.tokenizer

    def prepare_images(self, inputs: Sequence[Sequence[np.ndarray]]) -> Tree:
        """Returns the condition of n pictures or videos.

        Args:
          inputs: the pictures of each input, uint8 [h, w, 3] of any size: one for a picture,
            several for a video, whose embedding is the mean of theirs.

        Returns:
          {"pixels": float32 [n, most, image_size, image_size, 3], "mask": float32 [n, most]}, where
          the mask is 0 for an input with fewer pictures than another.

        Raises:
          ValueError: an input has no picture, or one that is too large or too long.
        """
        most = max(map(len, inputs))
        side = self.image_size
        pixels = np.zeros((len(inputs), most, side, side, 3), np.float32)
        mask = np.zeros((len(inputs), most), np.float32)
        for i, pictures in enumerate(inputs):
            if not len(pictures):
                raise ValueError(f"input {i} has no picture; give at least one")
            pixels[i, : len(pictures)] = preprocess(pictures, side)
            mask[i, : len(pictures)] = 1
        return {"pixels": pixels, "mask": mask}

    def unconditional(self) -> np.ndarray:
        """Returns the ids of the empty sentence, int32 [1, length], for pictures too."""
        return self.tokenizer([""])

    def encode(self, params: Tree, condition: Tree) -> jax.Array:
        """Returns the context [n, 1, width] of a condition of sentences or pictures; pure."""
        clip = networks.build(self._graphdef, params)
        if isinstance(condition, Mapping):
            pixels, mask = condition["pixels"], condition["mask"]
            found = self._scaled(clip.image_features(pixels.reshape(-1, *pixels.shape[2:])))
            found = jnp.where(mask[..., None] > 0, found.reshape(*mask.shape, self.width), 0)
            embedding = found.sum(axis=1) / mask.sum(axis=1, keepdims=True)
        else:
            embedding = clip.text_features(condition)
        return self._scaled(embedding)[:, None]

    def _scaled(self, embedding: jax.Array) -> jax.Array:
        """Returns embeddings [..., width] in float32, of unit length if the norm says so."""
        embedding = embedding.astype(jnp.float32)
        return unit_length(embedding) if self.norm == "normalized" else embedding
