import json

import numpy as np
import pytest

from maa_jax.enhancement.bank import Bank, build
from tests.subprocesses import run_python

CAPTIONS = [f"caption {i}" for i in range(203)]


def vectors(count, seed):
    x = np.random.default_rng(seed).normal(size=(count, 16)).astype("f")
    return x / np.linalg.norm(x, axis=1, keepdims=True)


ROWS = dict(zip(CAPTIONS, vectors(len(CAPTIONS), 0), strict=True))
QUERIES = vectors(7, 1)


def encode(captions):
    return np.stack([ROWS[caption] for caption in captions])


def brute_force(k):
    """The k nearest captions of each query, and their cosines, by sorting all of them."""
    cosines = QUERIES @ np.stack(list(ROWS.values())).T
    order = np.argsort(-cosines, axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), [[CAPTIONS[i] for i in row] for row in order]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bank that two processes wrote."""
    folder = tmp_path_factory.mktemp("bank")
    counts = [
        build(folder, CAPTIONS, encode, retriever="tiny", batch_size=32, dtype="float32",
              process_index=i, process_count=2)
        for i in range(2)
    ]  # fmt: skip
    assert counts == [102, 101]
    return folder


def test_a_search_finds_what_sorting_everything_finds(folder):
    bank = Bank(folder, batch_size=4)  # the queries are two batches, the second one not full
    assert (len(bank), bank.width, bank.retriever) == (203, 16, "tiny")
    scores, captions = bank.search(QUERIES, 5)
    expected, names = brute_force(5)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert captions == names


def test_eight_devices_find_what_one_finds(folder):
    # 203 captions are 26 per device, 21 on the last one; k may exceed the captions of a device.
    output = run_python(
        f"""
        import jax, json
        from maa_jax.enhancement.bank import Bank
        from tests.enhancement.test_bank import QUERIES
        assert len(jax.devices()) == 8
        bank = Bank({str(folder)!r}, batch_size=4)
        print(json.dumps([[s.tolist(), c] for s, c in (bank.search(QUERIES, k) for k in (5, 40))]))
        """,
        devices=8,
    )
    for k, (scores, captions) in zip((5, 40), json.loads(output.splitlines()[-1]), strict=True):
        expected, names = brute_force(k)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert captions == names


def test_duplicates_are_one_caption(tmp_path):
    given = ["caption 1", "caption  1\n", "", "caption 2", "caption 1"]
    assert build(tmp_path, given, encode, retriever="tiny", batch_size=2) == 2
    bank = Bank(tmp_path)
    scores, captions = bank.search(ROWS["caption 2"][None], 2)
    assert captions == [["caption 2", "caption 1"]]
    assert np.load(*tmp_path.glob("*.npy")).dtype == np.float16
    np.testing.assert_allclose(scores[0, 0], 1, atol=1e-3)


def test_questions_without_an_answer_are_refused(folder, tmp_path):
    bank = Bank(folder)
    with pytest.raises(ValueError, match=r"k=204, but the bank has 203"):
        bank.search(QUERIES, 204)
    with pytest.raises(ValueError, match="width 3 in a bank of width 16"):
        bank.search(np.ones((1, 3), "f"), 1)
    assert bank.search(QUERIES[:0], 2)[1] == []
    with pytest.raises(ValueError, match=r"index\.json is missing"):
        Bank(tmp_path)
    build(tmp_path, CAPTIONS, encode, retriever="tiny", process_index=0, process_count=2)
    with pytest.raises(ValueError, match=r"lacks \w+-00001-of-00002\.npy, \w+\S+\.txt: w"):
        Bank(tmp_path)
    with pytest.raises(ValueError, match="1 captions for 2 processes"):
        build(tmp_path, ["a"], encode, retriever="tiny", process_index=1, process_count=2)
