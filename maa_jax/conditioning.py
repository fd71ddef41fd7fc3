"""Captions to the denoiser's context: a tokenizer and CLAP's frozen text tower.

Only the `tokenizers` library is needed here, so neither PyTorch nor TensorFlow is ever imported to
sample. The folder written by `build_tokenizer` opens with `transformers.AutoTokenizer` as well.
"""

import collections
import json
import os
import pathlib
import string
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Self

import jax
import numpy as np
import tokenizers

from maa_jax import bundle

MAX_TOKENS = 77
PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)


class Tokenizer:
    """A lower-casing WordPiece tokenizer that gives every prompt 77 tokens."""

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        tokenizer.no_truncation()  # a downloaded tokenizer.json may ask for either
        tokenizer.no_padding()
        missing = [token for token in SPECIAL[:4] if tokenizer.token_to_id(token) is None]
        if missing:
            raise ValueError(
                f"the tokenizer's vocabulary lacks {', '.join(missing)}: "
                "CLAP's text tower needs the tokenizer of a BERT."
            )
        self._tokenizer = tokenizer
        self.pad_id = tokenizer.token_to_id(PAD)
        self.vocab_size = tokenizer.get_vocab_size()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Opens a folder with `tokenizer.json`, or with a BERT's `vocab.txt` alone.

        Raises:
            FileNotFoundError: naming the files, and how to bring them.
        """
        folder = pathlib.Path(folder)
        if (folder / "tokenizer.json").is_file():
            try:
                return cls(tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")))
            except ValueError:
                raise
            except Exception as e:  # the library raises nothing narrower
                raise ValueError(
                    f"{folder / 'tokenizer.json'} is broken ({e}): write or copy it again."
                ) from e
        if (folder / "vocab.txt").is_file():
            return cls(_wordpiece((folder / "vocab.txt").read_text("utf-8").splitlines()))
        raise FileNotFoundError(
            f"no tokenizer in {folder}: tokenizer.json and vocab.txt are both missing. Give the "
            "tokenizer folder of a model made here, or put tokenizer.json of a downloaded "
            "bert-base-uncased into it, or build one from captions "
            "(maa_jax.conditioning.build_tokenizer)."
        )

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns int32 ids [n, 77]: [CLS], words, [SEP], then [PAD].

        An empty prompt is [CLS] [SEP]. A prompt that is too long is cut, with a warning that shows
        the words cut.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts={prompts!r} is a string: give a list of strings.")
        ids = np.full((len(prompts), MAX_TOKENS), self.pad_id, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            encoding = self._tokenizer.encode(prompt)
            tokens = encoding.ids
            if len(tokens) > MAX_TOKENS:
                cut = encoding.offsets[MAX_TOKENS - 1][0]  # first character of the first lost token
                warnings.warn(
                    f"the prompt has {len(tokens)} tokens and is cut to {MAX_TOKENS}; "
                    f"lost: {prompt[cut:]!r}",
                    stacklevel=2,
                )
                tokens = tokens[: MAX_TOKENS - 1] + tokens[-1:]
            row[: len(tokens)] = tokens
        return ids

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a tokenizer folder that transformers opens, whole or not at all."""
        vocab = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "model_max_length": MAX_TOKENS,
            "pad_token": PAD,
            "unk_token": UNKNOWN,
            "cls_token": CLS,
            "sep_token": SEP,
            "mask_token": MASK,
        }
        with bundle.replace_folder(pathlib.Path(folder)) as new:
            self._tokenizer.save(str(new / "tokenizer.json"))
            (new / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
            (new / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in vocab), "utf-8")


def tokenizer_from_captions(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a small WordPiece tokenizer: the most frequent words, and all characters.

    Any prompt in the captions' characters, Latin letters or digits can be written with it; words
    beyond the vocabulary are spelt. The same captions give the same ids: the trainers of the
    `tokenizers` library do not promise that.

    Args:
        captions: the captions.
        vocab_size: the largest vocabulary wanted; characters are kept even beyond it.
    """
    model = _wordpiece(SPECIAL)
    counts = collections.Counter(
        word
        for caption in captions
        for word, _ in model.pre_tokenizer.pre_tokenize_str(model.normalizer.normalize_str(caption))
    )
    if not counts:
        raise ValueError("no words in the captions: a tokenizer cannot be built from them.")
    letters = sorted({*string.ascii_lowercase, *string.digits, *"".join(counts)})
    vocab = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    words = [word for word in frequent if len(word) > 1]
    return Tokenizer(_wordpiece(vocab + words[: max(0, vocab_size - len(vocab))]))


def build_tokenizer(
    captions: Iterable[str], folder: str | os.PathLike[str], vocab_size: int
) -> Tokenizer:
    """Writes the tokenizer of `tokenizer_from_captions` to `folder` and returns it."""
    tokenizer = tokenizer_from_captions(captions, vocab_size)
    tokenizer.save(folder)
    return tokenizer


class TextConditioner:
    """What turns prompts into the denoiser's context, as the released sampler does.

    Attributes:
        tokenizer: prompts to ids.
        params: weights of both networks, to be passed to `encode` as an argument of a jitted
            function.
        width: channels of the context.
    """

    def __init__(self, tokenizer: Tokenizer, graphdefs: dict[str, Any], params: dict[str, Any]):
        self.tokenizer = tokenizer
        self.params = params
        self._graphdefs = graphdefs
        self.width = params["text_projection"]["linear1"]["kernel"].shape[1]
        words = params["text_encoder"]["embeddings"]["word_embeddings"]["embedding"].shape[0]
        if tokenizer.vocab_size > words:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the text encoder {words}: "
                "bring the tokenizer that the text encoder was trained with."
            )

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str], *, dtype: Any = np.float32) -> Self:
        """Reads `tokenizer/`, `text_encoder/` and `text_projection/` of a model folder.

        Args:
            folder: the model folder.
            dtype: the networks' compute dtype.
        """
        folder = pathlib.Path(folder)
        tokenizer = Tokenizer.from_folder(folder / "tokenizer")
        graphdefs, params = {}, {}
        for name in ("text_encoder", "text_projection"):
            graphdefs[name], params[name] = bundle.load_network(folder, name, dtype=dtype)
        return cls(tokenizer, graphdefs, params)

    def tokenize(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns int32 ids [n, 77]; see `Tokenizer`."""
        return self.tokenizer(prompts)

    def encode(self, params: dict[str, Any], tokens: jax.Array) -> jax.Array:
        """Returns the context [n, 77, width] of ids [n, 77]; pure.

        Padding is attended to, as in the released sampler.
        """
        hidden = bundle.build(self._graphdefs["text_encoder"], params["text_encoder"])(tokens)
        return bundle.build(self._graphdefs["text_projection"], params["text_projection"])(hidden)


def _wordpiece(vocab: Sequence[str]) -> tokenizers.Tokenizer:
    """Returns bert-base-uncased's pipeline over a vocabulary."""
    ids = {word: i for i, word in enumerate(vocab)}
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        raise ValueError(f"vocab.txt lacks {', '.join(missing)}: bring the vocabulary of a BERT.")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece(ids, unk_token=UNKNOWN, max_input_chars_per_word=100)
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(CLS, ids[CLS]), (SEP, ids[SEP])],
    )
    tokenizer.decoder = tokenizers.decoders.WordPiece(prefix="##")
    return tokenizer
