import shutil

import numpy as np
import pytest

from maa_jax.encoders.retriever import Embedder
from maa_jax.evaluators import base, make, sources
from maa_jax.evaluators.base import Inputs
from maa_jax.evaluators.features import Networks
from maa_jax.evaluators.recall import recall
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.retriever import Retriever
from tests.conftest import random_network
from tests.models.test_retriever import TINY


def test_recall_counts_what_was_found():
    found = np.array([[0, 1, 2], [0, 1, 2]])
    right = [{0}, {2}]
    assert [recall(found[:, :k], right) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A model folder with a random retriever."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(tiny_model / "tokenizer", folder / "tokenizer")
    params = random_network(lambda rngs: Retriever(TINY, rngs=rngs), 0)
    networks.save_network(folder, "retriever", TINY, params)
    save_index(folder)
    return folder


def test_the_recall_of_a_split_is_that_of_its_cosines(model, data_dir):
    (evaluator,) = make(["recall"], Networks(retriever=model))
    data = {"data_dir": data_dir, "split": "validation"}
    recordings = sources.recordings(data, evaluator.samples)
    scores = base.values(base.run([evaluator], Inputs(references=recordings)))
    captions = sorted({text for texts in recordings.captions for text in texts})
    right = np.array([[text in texts for texts in recordings.captions] for text in captions])
    assert scores["recordings"] == 13 and scores["captions"] == len(captions)

    (audio,) = recordings.features(evaluator.networks)
    cosines = Embedder(model).text(captions) @ audio.T
    for k in (1, 5, 10):
        best = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        expected = np.take_along_axis(right, best, axis=1).any(axis=1).mean()
        assert scores[f"text_to_audio/recall_at_{k}"] == pytest.approx(expected)
        best = np.argsort(-cosines.T, axis=1, kind="stable")[:, :k]
        expected = np.take_along_axis(right.T, best, axis=1).any(axis=1).mean()
        assert scores[f"audio_to_text/recall_at_{k}"] == pytest.approx(expected)


def test_recall_needs_a_retriever():
    with pytest.raises(ValueError, match="give its model folder"):
        make(["recall"], Networks())
