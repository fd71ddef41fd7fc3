"""CIDEr-D: consensus of a caption with reference captions (Vedantam et al. 2015).

A caption is a vector of n-grams for each n from 1 to 4, weighted by term frequency and inverse
document frequency. The score is ten times the mean cosine between a caption's vectors and those of
its references, with n-gram counts clipped at the reference's and a penalty on differences in
length. Term frequencies are counts, as in the authors' code, and a document is all references of a
recording.

It works on token ids and on the device, since self-critical training uses it as the reward.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Mask = Callable[[Any], Any]  # ids [..., n] to bool [..., n], False for padding

_ORDERS = 4
_SIGMA = 6.0  # width of the penalty on differences in length, in words
# 2**32 divided by the golden ratio, made odd: its multiples are spread so evenly that pairs of ids
# below 2**15 never collide.
_FACTOR, _SALT = np.uint32(0x9E3779B1), 0x85EBCA6B


def token_tables(references: np.ndarray, mask: Mask) -> Tree:
    """Returns the arrays that `token_cider_d` reads, to be put on the devices once.

    N-grams are identified by 32-bit hashes: with a million known ones, one unknown n-gram in 4,000
    is mistaken for a known one.

    Args:
      references: ids as a captioner writes them, int32 [recordings, captions, length]; recordings
        with fewer captions have rows of padding.
      mask: `mask` of the tokenizer, which distinguishes words from padding.
    """
    found = []
    for hashes, valid in _windows(references[..., 1:], mask):
        for recording, rows in enumerate(hashes):  # an n-gram counts once per recording
            found.append(np.unique(rows[valid[recording]]))
    hashes, frequency = np.unique(np.concatenate(found), return_counts=True)
    return {
        "references": references,
        "hashes": hashes,
        "idf": np.log(len(references) / frequency).astype(np.float32),
        "unknown_idf": np.log(np.float32(len(references))),
    }


def token_cider_d(tables: Tree, index: jax.Array, tokens: jax.Array, mask: Mask) -> jax.Array:
    """Returns the score of each caption, float32 [b]. Pure.

    The end of a caption counts as a word: otherwise a captioner rewarded by this score learns to
    stop in mid-phrase.

    Args:
      tables: tables from `token_tables`.
      index: index of the recording that each caption describes, [b].
      tokens: ids of the captions, int32 [b, length]; the first id, which begins a caption, is
        skipped.
      mask: `mask` of the tokenizer.
    """
    references = tables["references"][index][..., 1:]
    captions = tokens[:, None, 1:]  # the only caption of its recording
    total = jnp.zeros(())
    ways = (_windows(captions, mask), _windows(references, mask))
    for (hash_c, valid_c), (hash_r, valid_r) in zip(*ways, strict=True):
        count_c, idf_c = _counts(hash_c, hash_c, valid_c), _idf(tables, hash_c)
        count_r, idf_r = _counts(hash_r, hash_r, valid_r), _idf(tables, hash_r)
        shared = _counts(hash_c, hash_r, valid_r)
        # A sum over n-grams, computed over positions, each divided by its n-gram's count.
        dot = jnp.minimum(count_c, shared) * shared * idf_c**2 / jnp.maximum(count_c, 1)
        norm = jnp.sum(valid_c * count_c * idf_c**2, -1) * jnp.sum(valid_r * count_r * idf_r**2, -1)
        cosine = jnp.sum(valid_c * dot, -1) * jax.lax.rsqrt(jnp.maximum(norm, 1e-12))
        total = total + jnp.where(norm > 0, cosine, 0)
    length_c, length_r = (jnp.sum(mask(x), -1) for x in (captions, references))
    total = total / _ORDERS * jnp.exp(-((length_c - length_r) ** 2) / (2 * _SIGMA**2))
    given = length_r > 0
    return 10 * jnp.sum(jnp.where(given, total, 0), -1) / jnp.maximum(given.sum(-1), 1)


def _windows(tokens: Any, mask: Mask) -> list[tuple[Any, Any]]:
    """Returns, for n = 1, 2, ..., the hash of the n-gram at every position, and its mask.

    Args:
      tokens: ids [..., length], a numpy or JAX array.
      mask: `mask` of the tokenizer.
    """
    valid, ids = mask(tokens), tokens.astype(np.uint32) + np.uint32(1)
    length, out = tokens.shape[-1], []
    hashes = ids * np.uint32(0)
    for n in range(1, min(_ORDERS, length) + 1):
        hashes = hashes[..., : length - n + 1] * _FACTOR + ids[..., n - 1 :]
        out.append((hashes + np.uint32(_SALT * n % 2**32), valid[..., n - 1 :]))
    return out


def _counts(queries: jax.Array, keys: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns how often each query [..., q] occurs among the valid keys [..., k]."""
    same = (queries[..., :, None] == keys[..., None, :]) & valid[..., None, :]
    return same.sum(-1).astype(jnp.float32)


def _idf(tables: Tree, hashes: jax.Array) -> jax.Array:
    place = jnp.searchsorted(tables["hashes"], hashes)
    place = jnp.minimum(place, len(tables["hashes"]) - 1)
    known = tables["hashes"][place] == hashes
    return jnp.where(known, tables["idf"][place], tables["unknown_idf"])
