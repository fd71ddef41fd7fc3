"""Folders of tiny text encoders with random weights and tokenizers, in Hugging Face's layout."""

import json
import string

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from maa_jax.model_folder import networks
from maa_jax.models.bert import Bert, BertConfig
from maa_jax.models.clip import (
    ClipConfig,
    ClipModel,
    ClipTextConfig,
    ClipTextModel,
    ClipVisionConfig,
)
from maa_jax.models.t5 import T5Config, T5Encoder
from maa_jax.text.tokenizer import build_tokenizer
from tests.conftest import CAPTIONS, random_network

START, END = "<|startoftext|>", "<|endoftext|>"


def t5_tokenizer():
    """Returns a Unigram tokenizer with transformers' pipeline for T5, and its settings."""
    words = {word for caption in CAPTIONS for word in caption.replace(",", "").split()}
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    vocab += [(letter, -6.0) for letter in string.ascii_letters + ",.'"]
    vocab += [("▁" + word, -4.0) for word in sorted(words)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), space])
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer, {
        "tokenizer_class": "T5Tokenizer",
        "extra_ids": 0,
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }


def clip_tokenizer():
    """Returns a byte-level BPE tokenizer with transformers' pipeline for CLIP, and its settings."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "r"), ("o", "w</w>"), ("cr", "ow</w>"), ("d", "o"), ("do", "g</w>")]
    vocab = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {word: i for i, word in enumerate([*vocab, START, END])}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab, merges, continuing_subword_prefix="", end_of_word_suffix="</w>",
                   fuse_unk=False, unk_token=END)
    )  # fmt: skip
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(tokenizers.Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    words = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
        r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (END, vocab[END]), (START, vocab[START]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens([START, END])
    return tokenizer, {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": {"content": END, "__type": "AddedToken"},
    }


def write_encoder(kind, folder):
    """Writes a text encoder and its tokenizer's files into one folder."""
    if kind == "bert":
        size = build_tokenizer(CAPTIONS, folder, 128).vocab_size
        config = BertConfig(size, 16, 1, 2, 32, max_position_embeddings=77)
        network = Bert
    else:
        tokenizer, settings = {"t5": t5_tokenizer, "clip": clip_tokenizer}[kind]()
        folder.mkdir(parents=True)
        tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        size = tokenizer.get_vocab_size()
        if kind == "t5":
            network = T5Encoder
            config = T5Config(size + 3, 16, 8, 32, 1, 2, feed_forward_proj="gated-gelu")
        else:
            network = ClipTextModel
            config = ClipTextConfig(16, 32, 1, 2, vocab_size=size, eos_token_id=size - 1)
    params = random_network(lambda rngs: network(config, rngs=rngs), 0)
    networks.save_network(folder.parent, "written", config, params)
    for path in (folder.parent / "written").iterdir():
        path.rename(folder / path.name)
    (folder.parent / "written").rmdir()
    return folder


def write_clip(folder):
    """Writes a whole CLIP and its tokenizer's files into one folder, as on the hub."""
    write_encoder("clip", folder)
    text = networks.load_config(folder, ".")
    config = ClipConfig(text, ClipVisionConfig(24, 32, 1, 2, image_size=16, patch_size=8), 24)
    params = random_network(lambda rngs: ClipModel(config, rngs=rngs), 0)
    networks.save_network(folder, "written", config, params)
    for path in (folder / "written").iterdir():
        path.replace(folder / path.name)
    (folder / "written").rmdir()
    return folder
