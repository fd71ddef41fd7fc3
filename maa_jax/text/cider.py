"""CIDEr-D: how much of what people say of a sound a caption says (Vedantam et al. 2015).

Captions are vectors of n-grams, one for each n from 1 to 4, weighted by term frequency and inverse
document frequency; a score is ten times their mean cosine with those of the references, n-grams
repeated beyond a reference's count clipped, and differences in length penalised. Term frequencies
are counts, as in the authors' code. A recording's references are one document.

Over token ids and on the device: training takes it as a reward.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any

_ORDERS = 4
_SIGMA = 6.0  # of the penalty of a difference in length, in words
# 2**32 over the golden ratio, odd: multiples of it lie far apart, so that pairs of ids below 2**15
# never collide.
_FACTOR, _SALT = np.uint32(0x9E3779B1), 0x85EBCA6B


def token_tables(references: np.ndarray, pad_id: int) -> Tree:
    """Returns what `token_cider_d` reads: arrays to be put on the devices once.

    N-grams are known by 32-bit hashes: of a million, one in 4,000 unknown ones is taken for known.

    Args:
        references: int32 [recordings, captions, length], ids as a captioner writes them; rows of
            `pad_id` alone fill up recordings with fewer captions.
        pad_id: fills up captions.
    """
    found = []
    for hashes, valid in _windows(references[..., 1:], pad_id):
        for recording, rows in enumerate(hashes):  # an n-gram counts once a recording
            found.append(np.unique(rows[valid[recording]]))
    hashes, frequency = np.unique(np.concatenate(found), return_counts=True)
    return {
        "references": references,
        "hashes": hashes,
        "idf": np.log(len(references) / frequency).astype(np.float32),
        "unknown_idf": np.log(np.float32(len(references))),
    }


def token_cider_d(tables: Tree, index: jax.Array, tokens: jax.Array, pad_id: int) -> jax.Array:
    """Returns the score of each caption, float32 [b]. Pure.

    The end of a caption is a word here: without it, a captioner that is rewarded by the score
    learns to stop in the midst of a phrase.

    Args:
        tables: of `token_tables`.
        index: [b], which recording each caption is of.
        tokens: int32 [b, length], their ids; the first of each, the beginning, is passed over.
        pad_id: fills up captions.
    """
    references = tables["references"][index][..., 1:]
    captions = tokens[:, None, 1:]  # as the only one of its recording
    total = 0.0
    ways = (_windows(captions, pad_id), _windows(references, pad_id))
    for (hash_c, valid_c), (hash_r, valid_r) in zip(*ways, strict=True):
        count_c, idf_c = _counts(hash_c, hash_c, valid_c), _idf(tables, hash_c)
        count_r, idf_r = _counts(hash_r, hash_r, valid_r), _idf(tables, hash_r)
        shared = _counts(hash_c, hash_r, valid_r)
        # A sum over n-grams is one over positions, each divided by its n-gram's count.
        dot = jnp.minimum(count_c, shared) * shared * idf_c**2 / jnp.maximum(count_c, 1)
        norm = jnp.sum(valid_c * count_c * idf_c**2, -1) * jnp.sum(valid_r * count_r * idf_r**2, -1)
        cosine = jnp.sum(valid_c * dot, -1) * jax.lax.rsqrt(jnp.maximum(norm, 1e-12))
        total = total + jnp.where(norm > 0, cosine, 0)
    length_c, length_r = (jnp.sum(x != pad_id, -1) for x in (captions, references))
    total = total / _ORDERS * jnp.exp(-((length_c - length_r) ** 2) / (2 * _SIGMA**2))
    given = length_r > 0
    return 10 * jnp.sum(jnp.where(given, total, 0), -1) / jnp.maximum(given.sum(-1), 1)


def _windows(tokens: Any, pad_id: int) -> list[tuple[Any, Any]]:
    """Returns, for n from 1, hashes of the n-grams at every place of ids [..., length], and a mask.

    Of numpy's arrays and of JAX's alike.
    """
    valid, ids = tokens != pad_id, tokens.astype(np.uint32) + np.uint32(1)
    length, out = tokens.shape[-1], []
    hashes = ids * np.uint32(0)
    for n in range(1, min(_ORDERS, length) + 1):
        hashes = hashes[..., : length - n + 1] * _FACTOR + ids[..., n - 1 :]
        out.append((hashes + np.uint32(_SALT * n % 2**32), valid[..., n - 1 :]))
    return out


def _counts(queries: jax.Array, keys: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns how often each of [..., q] is among the valid ones of [..., k]."""
    same = (queries[..., :, None] == keys[..., None, :]) & valid[..., None, :]
    return same.sum(-1).astype(jnp.float32)


def _idf(tables: Tree, hashes: jax.Array) -> jax.Array:
    place = jnp.searchsorted(tables["hashes"], hashes)
    place = jnp.minimum(place, len(tables["hashes"]) - 1)
    known = tables["hashes"][place] == hashes
    return jnp.where(known, tables["idf"][place], tables["unknown_idf"])
