import shutil

import numpy as np
import pytest

from maa_jax.encoders.retriever import Embedder
from maa_jax.enhancement.retrieval import Retrieval, write_bank
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.retriever import Retriever
from maa_jax.text.tokenizer import build_tokenizer
from tests.conftest import random_network
from tests.data.conftest import data  # noqa: F401
from tests.models.test_retriever import TINY

CAPTIONS = ["a crow caws", "rain falls", "a dog barks twice", "a door slams", "rain falls on tin"]


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A model folder with a random retriever."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(tiny_model / "tokenizer", folder / "tokenizer")
    params = random_network(lambda rngs: Retriever(TINY, rngs=rngs), 0)
    networks.save_network(folder, "retriever", TINY, params)
    save_index(folder)
    return folder


@pytest.fixture(scope="module")
def embedder(model):
    return Embedder(model, batch_size=2)


@pytest.fixture(scope="module")
def bank(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    assert write_bank(model, CAPTIONS, folder, batch_size=2) == len(CAPTIONS)
    return folder


@pytest.fixture(scope="module")
def expert(model, bank):
    return Retrieval(model, bank, k=2, batch_size=2)


def test_proposals_are_the_nearest_captions_of_the_bank(expert, embedder):
    wavs = np.random.default_rng(0).normal(0, 0.1, (3, TINY.max_samples)).astype("f")
    wavs *= np.array([[1], [0.01], [3]], "f")
    stored = embedder.text(CAPTIONS).astype(np.float16).astype("f")
    cosines = embedder.audio(wavs) @ stored.T
    expected = [[CAPTIONS[i] for i in row[:2]] for row in np.argsort(-cosines, axis=1)]
    assert expert.name == "retrieval"
    assert expert.propose(wavs, [["rain"], [], []]) == expected


def test_clips_of_any_length_are_embedded(embedder):
    window = TINY.max_samples
    wav = np.random.default_rng(0).normal(0, 0.1, (1, 2 * window)).astype("f")
    first, second = embedder.audio(wav[:, :window]), embedder.audio(wav[:, window:])
    mean = (first + second) / 2
    expected = mean / np.linalg.norm(mean)
    np.testing.assert_allclose(embedder.audio(wav), expected, atol=1e-5)
    short = np.pad(wav[:, :300], ((0, 0), (0, window - 300)))
    np.testing.assert_allclose(embedder.audio(wav[:, :300]), embedder.audio(short), atol=1e-6)
    filled_up = np.concatenate([wav, np.pad(wav[:, :300], ((0, 0), (0, 2 * window - 300)))])
    np.testing.assert_allclose(
        embedder.audio(filled_up), np.concatenate([expected, embedder.audio(short)]), atol=1e-5
    )
    assert embedder.audio(wav[:0]).shape == (0, TINY.embedding_size)


def test_the_bank_of_another_retriever_is_refused(model, bank, tmp_path):
    shutil.copytree(model, tmp_path / "other")
    params = random_network(lambda rngs: Retriever(TINY, rngs=rngs), 1)
    networks.save_network(tmp_path / "other", "retriever", TINY, params)
    with pytest.raises(ValueError, match=r"not embedded by the retriever in .*other"):
        Retrieval(tmp_path / "other", bank)
    with pytest.raises(ValueError, match=r"k=6, but .*5 captions"):
        Retrieval(model, bank, k=6)


def test_another_models_tokenizer_is_refused(model, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(model, folder)
    build_tokenizer([chr(0x4E00 + i) for i in range(40)], folder / "tokenizer", 200)
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens and the retriever 128"):
        Embedder(folder)


def test_the_training_captions_of_a_config_become_a_bank(model, data, tmp_path):  # noqa: F811
    from configs import retriever
    from maa_jax.data import datasets
    from maa_jax.embed import Embedding, embed
    from maa_jax.enhancement.bank import Bank

    config = retriever.get_config("runlocal")
    config.data.update({**data, "split": "train[:13]"})
    count = embed(config, Embedding(out=tmp_path, retriever=model))
    assert count == len(Bank(tmp_path)) == len(set(datasets.captions(config.data)))
