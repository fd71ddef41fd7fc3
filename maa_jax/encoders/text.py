"""From prompts to the denoiser's context: a tokenizer and a frozen text encoder.

The paper compares four encoders (Table 1). A folder's config.json states which one it holds:

    kind  network                    context                         attends to padding
    clap  BERT of Microsoft's CLAP   projected hidden states         yes, as the release does
    bert  BERT                       hidden states                   no
    t5    the encoder of a T5        hidden states                   no
    clip  the text tower of a CLIP   hidden states                   only from padding itself

The context has one vector per token, padding included, and the denoiser attends to all of them.

Of Hugging Face's libraries only `tokenizers` is needed, so that sampling never imports PyTorch or
TensorFlow.
"""

import hashlib
import os
import pathlib
from typing import Any, Self

import jax
import numpy as np

from maa_jax.checks import nearest
from maa_jax.encoders.base import Tree
from maa_jax.files import FolderError, read_json, user_path
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import content_hash
from maa_jax.model_folder.registry import class_of
from maa_jax.text.tokenizer import Tokenizer

# {short name of a text encoder: folder or hub id}.
ENCODERS = {
    "clap": "models/clap",
    "bert": "google-bert/bert-large-uncased",
    "t5": "google-t5/t5-large",
    "clip": "openai/clip-vit-large-patch14",
}
# Class in config.json -> (kind, class to load); a BERT with a projection is "clap".
_KINDS = {
    "BertModel": ("bert", "BertModel"),
    "T5EncoderModel": ("t5", "T5EncoderModel"),
    "CLIPTextModel": ("clip", "CLIPTextModel"),
    "CLIPModel": ("clip", "CLIPTextModel"),
}
# A CLIP needs no mask: its attention is causal, so padding after a prompt does not affect it.
_MASKED = ("bert", "t5")


def find(text_encoder: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a text encoder and its tokenizer.

    Args:
      text_encoder: path of a model folder (with `text_encoder/` and `tokenizer/`) or of the text
        encoder's own folder, a hub id, "bundled", or a key of `ENCODERS`.

    Raises:
      ValueError: the folder does not exist; the error has the nearest name, or says how to get the
        files.
    """
    name = str(text_encoder)
    if not pathlib.Path(user_path(name)).is_dir():
        name = ENCODERS.get(name, name)
        if "/" not in name and name != "bundled":
            raise FolderError(
                f"text_encoder={name!r} is not a folder (did you mean "
                f"{nearest(name, ENCODERS)!r}?): give a folder's path, the id of a model on the "
                "Hugging Face hub, or one of "
                f"{', '.join(ENCODERS)}"
            )
    return hub.fetch(name, ("tokenizer.json",))


def digest(folder: pathlib.Path, conditioning: str = "tokens") -> str:
    """Returns the SHA-256 of the files of a text encoder and its tokenizer; see `find`.

    Another `conditioning` (`encoders.visual.CONDITIONING`) makes another context, and digest.
    """
    parts = [folder / name for name in ("text_encoder", "text_projection", "tokenizer")]
    found = [content_hash(part) for part in parts if part.is_dir()] or [content_hash(folder)]
    found += [conditioning] if conditioning != "tokens" else []
    return hashlib.sha256("".join(found).encode()).hexdigest()


class TextConditioner:
    """A frozen text encoder as a `Conditioner`: prompts to ids to the denoiser's context.

    Args:
      kind: "clap", "bert", "t5" or "clip".
      tokenizer: tokenizer of the text encoder.
      graphdefs: {network: graph} for `text_encoder` and, in a CLAP, `text_projection`.
      params: {network: weights}.

    Attributes:
      kind: "clap", "bert", "t5" or "clip".
      tokenizer: tokenizer of the text encoder.
      params: {network: weights}.
      width: channels of the context.

    Raises:
      FolderError: the networks and the tokenizer do not belong together.
    """

    def __init__(
        self,
        kind: str,
        tokenizer: Tokenizer,
        graphdefs: dict[str, Any],
        params: dict[str, Any],
    ):
        self.kind = kind
        self.tokenizer = tokenizer
        self.params = params
        self._graphdefs = graphdefs
        config = self._config("text_encoder")
        self.width = config.hidden_size
        if kind == "clap":
            head = self._config("text_projection")
            if head.in_size != self.width:
                raise FolderError(
                    f"text_projection: in_size={head.in_size}, but text_encoder: hidden_size="
                    f"{self.width}; combine networks that were trained for each other"
                )
            self.width = head.out_size
        tokenizer.check_fits(config.vocab_size, getattr(config, "max_tokens", None))

    def _config(self, name: str) -> Any:
        return networks.build(self._graphdefs[name], self.params[name]).config

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, dtype: Any = np.float32) -> Self:
        """Reads the text encoder and its tokenizer.

        Args:
          folder: model folder with `tokenizer/`, `text_encoder/` and, for a CLAP,
            `text_projection/`; or a text encoder's own folder as on the Hugging Face hub, with the
            tokenizer's files among its own.
          dtype: compute dtype of the networks.

        Raises:
          FolderError: files are missing or broken, or do not belong together.
        """
        folder = pathlib.Path(folder)
        own = (folder / "config.json").is_file() and not (folder / "text_encoder").is_dir()
        place = "." if own else "text_encoder"
        content = read_json(folder / place / "config.json")
        name = class_of(content)
        if name not in _KINDS:
            raise FolderError(
                f"{folder / place}: class {name!r} is not a text encoder; known: "
                f"{', '.join(_KINDS)}"
            )
        kind, class_name = _KINDS[name]
        tokenizer = Tokenizer.from_folder(folder if own else folder / "tokenizer")
        loaded = {
            "text_encoder": networks.load_network(folder, place, dtype=dtype, kind=class_name)
        }
        if kind == "bert" and not own and (folder / "text_projection").is_dir():
            kind = "clap"
            loaded["text_projection"] = networks.load_network(
                folder, "text_projection", dtype=dtype
            )
        graphdefs = {name: graphdef for name, (graphdef, _) in loaded.items()}
        params = {name: params for name, (_, params) in loaded.items()}
        try:
            return cls(kind, tokenizer, graphdefs, params)
        except FolderError as e:
            raise FolderError(f"{folder}: {e}") from e

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes `tokenizer/`, `text_encoder/` and, for a CLAP, `text_projection/`."""
        for name, params in self.params.items():
            networks.save_network(folder, name, self._config(name), params)
        self.tokenizer.save(pathlib.Path(folder, "tokenizer"))

    @property
    def prepare(self) -> Tokenizer:
        """The tokenizer, from prompts to int32 ids [n, length]."""
        return self.tokenizer

    def unconditional(self) -> np.ndarray:
        """Returns the ids of the empty prompt, int32 [1, length]."""
        return self.tokenizer([""])

    def encode(self, params: Tree, condition: jax.Array) -> jax.Array:
        """Returns the context [n, length, width] of ids [n, length]; pure.

        Whether the encoder attends to padding depends on its kind: see the head of this module.
        """
        network = networks.build(self._graphdefs["text_encoder"], params["text_encoder"])
        mask = self.tokenizer.mask(condition) if self.kind in _MASKED else None
        hidden = network(condition, mask)
        if self.kind != "clap":
            return hidden
        return networks.build(self._graphdefs["text_projection"], params["text_projection"])(hidden)
