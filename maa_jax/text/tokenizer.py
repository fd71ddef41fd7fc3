"""From sentences to token ids, with only Hugging Face's `tokenizers` library.

The folders that `Tokenizer.save` writes can also be opened with `transformers.AutoTokenizer`.
"""

import collections
import contextlib
import json
import os
import pathlib
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from maa_jax.checks import Repeated
from maa_jax.files import FolderError, check_part_file, read_json, replace_folder
from maa_jax.text.normalize import normalize

if TYPE_CHECKING:
    import tokenizers  # loaded where it is used: a training step on token ids does not need it

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
_MOST_BYTES = 64 * 2**20  # of a tokenizer's file; the largest in use have a quarter of that
SPECIAL = (PAD, UNKNOWN, CLS, SEP, MASK)

# Content of tokenizer_config.json for tokenizers built here.
_BERT_TOKENIZER = {
    "tokenizer_class": "BertTokenizer",
    "do_lower_case": True,
    "pad_token": PAD,
    "unk_token": UNKNOWN,
    "cls_token": CLS,
    "sep_token": SEP,
    "mask_token": MASK,
}


class Tokenizer:
    """Converts sentences to ids, always `length` of them.

    Args:
      tokenizer: tokenizer of any model, which adds the special tokens itself.
      config: content of tokenizer_config.json, by default a BERT's; short sentences are padded with
        its `pad_token`.

    Attributes:
      length: number of ids per sentence, padding included; the denoiser attends to all of them.
      pad_id: id of the padding token.
      special_ids: ids of all tokens that are not part of the text, ascending.
      vocab_size: number of ids, the largest plus 1.
    """

    length = 77

    def __init__(self, tokenizer: "tokenizers.Tokenizer", config: Mapping[str, Any] | None = None):
        tokenizer.no_truncation()  # a downloaded tokenizer.json may enable either
        tokenizer.no_padding()
        self._config: Mapping[str, Any] = _BERT_TOKENIZER if config is None else config
        pad: Any = self._config.get("pad_token")
        pad = pad.get("content") if isinstance(pad, Mapping) else pad
        if pad is None:  # the oldest files leave it to transformers' classes
            known = (PAD, "<pad>", "<|endoftext|>")
            pad = next((token for token in known if tokenizer.token_to_id(token) is not None), PAD)
        if not isinstance(pad, str) or tokenizer.token_to_id(pad) is None:
            raise ValueError(
                f"the tokenizer's vocabulary lacks its pad_token={pad!r}: use tokenizer.json and "
                "tokenizer_config.json of the same model."
            )
        self._tokenizer = tokenizer
        self.pad_id = tokenizer.token_to_id(pad)
        self.vocab_size = 1 + max(tokenizer.get_vocab().values())
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = tuple(sorted(i for i, token in added.items() if token.special))
        self._special = frozenset(self.special_ids)
        self._warn_cut, self._warn_unknown = Repeated(), Repeated()

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> Self:
        """Opens a folder with `tokenizer.json`, or with only a BERT's `vocab.txt`.

        The padding token is the one in `tokenizer_config.json` or `special_tokens_map.json`.

        Raises:
          FileNotFoundError: both files are missing.
          FolderError: the files are broken or do not belong together.
        """
        folder = pathlib.Path(folder)
        path, vocab = folder / "tokenizer.json", folder / "vocab.txt"
        if path.exists():
            return cls._read(path, _tokenizer_config(folder))
        if vocab.exists():
            try:
                check_part_file(vocab)
                return cls(_wordpiece(vocab.read_text("utf-8").splitlines()))
            except (ValueError, OSError) as e:
                raise FolderError(f"{vocab}: {e}; use the vocab.txt of a BERT") from e
        raise FileNotFoundError(
            f"no tokenizer in {folder}: tokenizer.json and vocab.txt are both missing. Give the "
            "tokenizer folder of a model made here, or put tokenizer.json of a downloaded "
            "bert-base-uncased into it, or build one from captions "
            "(maa_jax.text.tokenizer.build_tokenizer)."
        )

    @classmethod
    def _read(cls, path: pathlib.Path, config: Mapping[str, Any]) -> Self:
        """Opens tokenizer.json, and tries it: its tables may contradict each other."""
        import tokenizers

        try:
            check_part_file(path)
            if path.stat().st_size > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES >> 20} MiB")
            with _rust_errors():
                read = cls(tokenizers.Tokenizer.from_file(str(path)), config)
            for text in ("", "a", "\u2603"):  # nothing, a letter, a character that few know
                ids = read._encode(text).ids
                if max(ids, default=0) >= read.vocab_size or len(ids) > cls.length // 2:
                    raise ValueError(f"{text!r} becomes {ids}, of {read.vocab_size} tokens")
        except (ValueError, OSError) as e:
            raise FolderError(f"{path} is broken ({e}): write or copy it again") from e
        return read

    def _encode(self, text: str) -> "tokenizers.Encoding":
        with _rust_errors():
            return self._tokenizer.encode(text)

    def __call__(self, prompts: Sequence[str]) -> np.ndarray:
        """Returns int32 ids [n, length]: those of the sentence with special tokens, then padding.

        Prompts and training captions are normalised first (paper section 5.1): numbers, units,
        dates and abbreviations become words. An empty prompt consists of the special tokens ([CLS]
        and [SEP] for a BERT). A sentence that is too long is truncated, with a warning that shows
        some of the words lost; one without any known word is warned of.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts={prompts!r} is a string: give a list of strings.")
        ids = np.full((len(prompts), self.length), self.pad_id, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            prompt = normalize(prompt)
            encoding = self._encode(prompt)
            tokens = encoding.ids
            if len(tokens) > self.length:
                # First character of the first token lost.
                lost = prompt[encoding.offsets[self.length - 1][0] :]
                lost = lost if len(lost) <= 80 else f"{lost[:40]} ... {lost[-30:]}"
                self._warn_cut(
                    f"a sentence of {len(tokens)} tokens is cut to {self.length}; lost: {lost!r}"
                )
                tokens = tokens[: self.length - 1] + tokens[-1:]
            if prompt.strip() and self._special.issuperset(tokens):
                self._warn_unknown(
                    f"no word of {prompt[:80]!r} is known to this model: it stands for any sound; "
                    "write English words"
                )
            row[: len(tokens)] = tokens
        return ids

    def check_fits(self, vocab_size: int, max_tokens: int | None = None) -> None:
        """Raises a FolderError unless a text encoder takes all ids.

        Args:
          vocab_size: number of ids that it knows; others would get NaN or the last one's vector.
          max_tokens: number of ids in a sentence that it has positions for, None for any.
        """
        if self.vocab_size > vocab_size:
            raise FolderError(
                f"the tokenizer has {self.vocab_size} tokens and the text encoder {vocab_size}: "
                "bring the tokenizer that the text encoder was trained with."
            )
        if max_tokens is not None and max_tokens < self.length:
            raise FolderError(
                f"the text encoder has positions for {max_tokens} tokens and sentences have "
                f"{self.length}: give a text encoder with more max_position_embeddings"
            )

    def mask(self, ids: Any) -> Any:
        """Returns the mask of ids, a bool array of their shape, False for padding.

        Args:
          ids: ids [..., n], a numpy or JAX array.
        """
        return ids != self.pad_id

    def decode(self, ids: np.ndarray) -> list[str]:
        """Returns the texts of ids [n, length], without special tokens."""
        texts = self._tokenizer.decode_batch(ids.tolist(), skip_special_tokens=True)
        return [text.replace(" - ", "-") for text in texts]  # WordPiece splits at hyphens

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes a tokenizer folder that transformers opens, whole or not at all."""
        import tokenizers

        config = {**self._config, "model_max_length": self.length}
        with replace_folder(pathlib.Path(folder)) as new:
            self._tokenizer.save(str(new / "tokenizer.json"))
            (new / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
            if isinstance(self._tokenizer.model, tokenizers.models.WordPiece):
                vocab = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
                (new / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in vocab), "utf-8")


def tokenizer_from_captions(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Returns a small WordPiece tokenizer of the most frequent words and all characters.

    It can encode any prompt written in the captions' characters, Latin letters or digits; words
    outside the vocabulary are spelt letter by letter. The same captions always give the same ids,
    which the trainers of the `tokenizers` library do not guarantee.

    Args:
      captions: captions with at least one word.
      vocab_size: largest size of the vocabulary; all characters are kept even beyond it.
    """
    model = _wordpiece(SPECIAL)
    counts = collections.Counter(
        word
        for caption in map(normalize, captions)
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


@contextlib.contextmanager
def _rust_errors() -> Iterator[None]:
    """Makes ValueErrors of the errors of `tokenizers`, whose panics are not even Exceptions."""
    try:
        yield
    except (ValueError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:
        raise ValueError(f"the tokenizer fails: {e}") from e


def _tokenizer_config(folder: pathlib.Path) -> dict[str, Any]:
    """Returns a folder's tokenizer settings, which older models keep in two files."""
    paths = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    return {k: v for path in paths if path.exists() for k, v in read_json(path).items()}


def _wordpiece(vocab: Sequence[str]) -> "tokenizers.Tokenizer":
    """Returns the pipeline of bert-base-uncased with another vocabulary."""
    import tokenizers

    ids = {word: i for i, word in enumerate(vocab)}
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if len(ids) < len(vocab):
        raise ValueError(f"{len(vocab) - len(ids)} words stand in it twice")
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
