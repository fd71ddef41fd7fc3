import collections
import re

import jax
import numpy as np

from maa_jax.text.cider import token_cider_d, token_tables

PAD, BEGIN, END = 0, 2, 3
_ORDERS, _SIGMA = 4, 6.0
_WORD = re.compile(r"\w+(?:'\w+)*")


def cider_d(candidates: list[str], references: list[list[str]]) -> np.ndarray:
    """CIDEr-D of sentences as in its authors' code, float64 [n] in 0..10."""
    references = [[_ngrams(caption) for caption in captions] for captions in references]
    frequency = collections.Counter(
        ngram for captions in references for ngram in {key for c in captions for key in c}
    )

    def vectors(counts):
        weighted = [{} for _ in range(_ORDERS)]
        for ngram, count in counts.items():
            idf = np.log(len(references)) - np.log(max(1, frequency[ngram]))
            weighted[len(ngram) - 1][ngram] = count * idf
        length = sum(count for ngram, count in counts.items() if len(ngram) == 1)
        return weighted, length

    def similarity(candidate, reference):
        (vector_c, length_c), (vector_r, length_r) = candidate, reference
        total = 0.0
        for c, r in zip(vector_c, vector_r, strict=True):
            norm = np.linalg.norm([*c.values()]) * np.linalg.norm([*r.values()])
            if norm:
                total += sum(min(c[k], r[k]) * r[k] for k in c.keys() & r.keys()) / norm
        return total / _ORDERS * np.exp(-((length_c - length_r) ** 2) / (2 * _SIGMA**2))

    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        candidate = vectors(_ngrams(candidate))
        scores.append(10 * np.mean([similarity(candidate, vectors(c)) for c in captions]))
    return np.array(scores)


def _ngrams(caption: str) -> collections.Counter:
    words = _WORD.findall(caption.lower())
    return collections.Counter(
        tuple(words[i : i + n]) for n in range(1, _ORDERS + 1) for i in range(len(words) - n + 1)
    )


def test_a_caption_that_is_its_only_reference_scores_ten():
    references = [["a crow caws twice now"], ["rain falls on the roof"]]
    np.testing.assert_allclose(cider_d([r[0] for r in references], references), 10)
    np.testing.assert_allclose(cider_d(["A crow, caws twice... now!", ""], references), [10, 0])


def test_scores_are_those_computed_by_hand():
    # Three recordings; "a" is in all and weighs nothing, "dog" is in two, other words in one.
    references = [["a dog barks"], ["a dog howls"], ["a bell"]]
    dog, one = np.log(3 / 2), np.log(3)
    # Words: {dog, barks} and {dog}; pairs: {a dog, dog barks} and {a dog}; no triples.
    expected = dog**2 / (np.hypot(dog, one) * dog)
    expected += dog**2 / (np.hypot(dog, one) * dog)
    expected *= 10 / 4 * np.exp(-1 / 72)  # one word shorter
    np.testing.assert_allclose(cider_d(["a dog", "", "a bell"], references)[0], expected)
    # Two references are averaged; repeated words are clipped, but lengthen the vector.
    clipped = cider_d(["bell bell", "", ""], [["bell", "crow"], ["dog"], ["cat"]])
    single = one**2 / (2 * one * one) * np.exp(-1 / 72)
    np.testing.assert_allclose(clipped[0], 10 / 4 * single / 2)


def random_captions(rng, count, words):
    """Captions of few words, so that they share n-grams."""
    lengths = rng.integers(1, 9, count)
    return [[f"w{w}" for w in rng.integers(0, words, n)] + ["end"] for n in lengths]


def test_tokens_score_as_their_sentences():
    rng = np.random.default_rng(0)
    recordings, most, length = 12, 3, 12
    numbers = {"end": END} | {f"w{i}": 10 + i for i in range(5)}

    def rows(captions, count):
        out = np.full((count, length), PAD, np.int32)
        for row, caption in zip(out, captions, strict=False):
            row[: len(caption) + 1] = [BEGIN, *(numbers[w] for w in caption)]
        return out

    references = [random_captions(rng, rng.integers(1, most + 1), 5) for _ in range(recordings)]
    candidates = random_captions(rng, recordings, 5)
    candidates[0] = references[0][0]
    text = lambda caption: " ".join(caption)
    expected = cider_d(
        [text(c) for c in candidates], [[text(c) for c in captions] for captions in references]
    )
    mask = lambda ids: ids != PAD
    tables = token_tables(np.stack([rows(captions, most) for captions in references]), mask)
    order = rng.permutation(recordings)
    score = jax.jit(lambda *args: token_cider_d(*args, mask))
    scores = score(tables, order, rows(candidates, recordings)[order])
    assert 0.5 < expected.max() and np.ptp(expected) > 0.5
    np.testing.assert_allclose(scores, expected[order], rtol=1e-4, atol=1e-5)


def test_an_n_gram_of_more_recordings_weighs_less():
    references = [["dog barks"], ["dog howls"], ["dog whines"], ["bell rings"]]
    common, rare = cider_d(["dog", "howls", "", ""], references)[:2]
    assert 0 < common < rare
