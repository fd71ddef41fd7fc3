"""Behaviour that all conditioners share."""

import pickle

import jax
import numpy as np
import pytest

from maa_jax.data.text_embeddings import Contexts, write
from maa_jax.encoders.stored import StoredContexts
from maa_jax.encoders.text import TextConditioner

CAPTIONS = ["", "a crow caws", "rain falls"]


@pytest.fixture(scope="module")
def text(tiny_model):
    return TextConditioner.from_folder(tiny_model)


@pytest.fixture(scope="module")
def stored(tiny_model, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contexts")
    encode = lambda captions: text.encode(text.params, text.prepare(captions))
    write(folder, CAPTIONS, encode, text_encoder=str(tiny_model), text_encoder_sha256="0")
    return StoredContexts(Contexts(folder), tiny_model)


@pytest.fixture(params=["text", "stored"])
def conditioner(request):
    return request.getfixturevalue(request.param)


def test_conditions_are_encoded_to_contexts_of_the_stated_width(conditioner):
    encode = jax.jit(conditioner.encode)
    context = encode(conditioner.params, conditioner.prepare(CAPTIONS))
    none = encode(conditioner.params, conditioner.unconditional())
    assert context.shape == (3, 77, conditioner.width) and none.shape == context[:1].shape
    np.testing.assert_allclose(none, context[:1], atol=1e-5)  # "" is no condition
    assert np.abs(context[1] - context[2]).max() > 1e-2


def test_preparing_in_a_worker_takes_no_weights_along(conditioner):
    pickled = pickle.dumps(conditioner.prepare)
    assert len(pickled) < 50_000
    copy = pickle.loads(pickled)
    jax.tree.map(
        np.testing.assert_array_equal, copy(CAPTIONS[:2]), conditioner.prepare(CAPTIONS[:2])
    )


def test_saving_writes_the_encoder_that_makes_the_same_contexts(conditioner, text, tmp_path):
    conditioner.save(tmp_path)
    copy = TextConditioner.from_folder(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, copy.params, text.params)
    np.testing.assert_array_equal(copy.prepare(CAPTIONS), text.prepare(CAPTIONS))


def test_stored_contexts_are_those_that_would_be_computed(text, stored):
    given = stored.encode(stored.params, stored.prepare(CAPTIONS))
    computed = text.encode(text.params, text.prepare(CAPTIONS))
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, computed, atol=2e-3)
