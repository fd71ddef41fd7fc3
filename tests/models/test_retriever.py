import json

import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.bundle import InitRngs
from maa_jax.models.bert import BertConfig
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.retriever import AudioTransformerConfig, Retriever, RetrieverConfig
from tests.conftest import random_network

TINY = RetrieverConfig(
    text_encoder=BertConfig(64, 16, 1, 2, 32, max_position_embeddings=77),
    audio_encoder=Cnn14Config(n_mels=16, channels=(4, 8)),
    audio_transformer=AudioTransformerConfig(24, 1, 2, 32, max_frames=25),
)


@pytest.fixture(scope="module")
def retriever():
    graph = nnx.graphdef(nnx.eval_shape(lambda: Retriever(TINY, rngs=InitRngs(0))))
    return nnx.merge(graph, random_network(lambda rngs: Retriever(TINY, rngs=rngs), 0))


def test_the_full_size_is_bert_base_and_mmt_over_cnn14():
    shapes = nnx.eval_shape(lambda: Retriever(RetrieverConfig(), rngs=InitRngs(0)))
    count = lambda part: sum(x.size for x in jax.tree.leaves(nnx.state(part, nnx.Param)))
    assert count(shapes.text_encoder) == 108_891_648  # BERT-base without its pooler
    cnn14 = nnx.eval_shape(lambda: Cnn14(Cnn14Config(), rngs=InitRngs(0)))
    head = 2048 * 2048 + 2048 + 2048 * 527 + 527
    assert count(shapes.audio_encoder) == count(cnn14) - head == 75_477_312
    layer = 4 * (512 * 512 + 512) + 2 * 512 * 3072 + 3072 + 512 + 2 * 2 * 512
    frames = 2048 * 512 + 512 + (1 + 31) * 512 + 2 * 512  # projection, places, norm
    assert count(shapes.audio_transformer) == 4 * layer + frames
    assert count(shapes.text_projection) == 768 * 512 + 512 + 512 * 512 + 512
    assert count(shapes) == 202_898_368


def test_both_sides_share_a_space_of_unit_lengths(retriever):
    ids = np.arange(3 * 77).reshape(3, 77) % 64
    wav = np.random.default_rng(0).normal(0, 0.1, (3, 8000)).astype("f")
    text, audio = retriever.text_embedding(ids, ids > 0), retriever.audio_embedding(wav)
    assert text.shape == audio.shape == (3, TINY.embedding_size) == (3, 24)
    for x in (text, audio):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert np.abs(audio[0] - audio[1]).max() > 1e-3


def test_padding_is_not_read(retriever):
    ids = np.full((1, 77), 5)
    mask = np.arange(77)[None] < 4
    given = retriever.text_embedding(ids, mask)
    np.testing.assert_allclose(
        given, retriever.text_embedding(np.where(mask, ids, 9), mask), atol=1e-6
    )
    assert np.abs(given - retriever.text_embedding(ids, mask | True)).max() > 1e-4


def test_the_order_of_frames_is_read(retriever):
    transformer = retriever.audio_transformer
    frames = np.random.default_rng(0).normal(size=(1, 6, 8)).astype("f")
    assert np.abs(transformer(frames) - transformer(frames[:, ::-1])).max() > 1e-4


@pytest.mark.parametrize(
    "config", [TINY, RetrieverConfig(audio_encoder=Cnn14Config(channels=(4, 8, 8, 8)))]
)
def test_the_longest_clip_has_a_place_for_every_frame(config):
    audio, places = config.audio_encoder, config.audio_transformer.max_frames
    assert audio.frames(config.max_samples) == places
    assert audio.frames(config.max_samples + 1) == places + 1


def test_longer_clips_are_refused(retriever):
    with pytest.raises(ValueError, match=f"too long.* {TINY.max_samples} samples"):
        retriever.audio_embedding(np.zeros((1, TINY.max_samples + 1), "f"))


def test_the_config_is_read_back_from_json():
    assert RetrieverConfig.from_hf(json.loads(json.dumps(TINY.to_hf()))) == TINY
    with pytest.raises(ValueError, match="model_type='clap'"):
        RetrieverConfig.from_hf({"model_type": "clap"})
