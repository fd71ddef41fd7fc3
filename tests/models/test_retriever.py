import json

import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.models.bert import BertConfig
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.retriever import AudioTransformerConfig, Retriever, RetrieverConfig
from maa_jax.models.rngs import InitRngs
from tests.conftest import random_network

TINY = RetrieverConfig(
    text_encoder=BertConfig(128, 16, 1, 2, 32, max_position_embeddings=77),
    audio_encoder=Cnn14Config(n_mels=16, channels=(4, 8)),
    audio_transformer=AudioTransformerConfig(24, 1, 2, 32, max_frames=25),
)


IDS = np.arange(77)
WORDS = np.arange(77) < 4  # all others are padding
FRAMES = np.random.default_rng(0).normal(size=(6, 8)).astype("f")


@pytest.fixture(scope="module")
def out():
    """Outputs of a random network for a few inputs, by one program."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: Retriever(TINY, rngs=InitRngs(0))))
    params = random_network(lambda rngs: Retriever(TINY, rngs=rngs), 0)

    @jax.jit
    def run(params, ids, mask, wav, frames):
        retriever = nnx.merge(graph, params)
        return {
            "text": retriever.text_embedding(ids, mask),
            "audio": retriever.audio_embedding(wav),
            "aggregate": retriever.audio_transformer(frames),
        }

    ids = np.stack([IDS, np.where(WORDS, IDS, 9), IDS])
    mask = np.stack([WORDS, WORDS, np.ones(77, bool)])
    wav = np.random.default_rng(0).normal(0, 0.1, (3, 8000)).astype("f")
    return run(params, ids, mask, wav, np.stack([FRAMES, FRAMES[::-1]]))


def test_the_full_size_is_bert_base_and_mmt_over_cnn14():
    shapes = nnx.eval_shape(lambda: Retriever(RetrieverConfig(), rngs=InitRngs(0)))
    count = lambda part: sum(x.size for x in jax.tree.leaves(nnx.state(part, nnx.Param)))
    assert count(shapes.text_encoder) == 108_891_648  # BERT-base without its pooler
    cnn14 = nnx.eval_shape(lambda: Cnn14(Cnn14Config(), rngs=InitRngs(0)))
    head = 2048 * 2048 + 2048 + 2048 * 527 + 527
    assert count(shapes.audio_encoder) == count(cnn14) - head == 75_477_440
    layer = 4 * (512 * 512 + 512) + 2 * 512 * 3072 + 3072 + 512 + 2 * 2 * 512
    frames = 2048 * 512 + 512 + (1 + 31) * 512 + 2 * 512  # projection, places, norm
    assert count(shapes.audio_transformer) == 4 * layer + frames
    assert count(shapes.text_projection) == 768 * 512 + 512 + 512 * 512 + 512
    assert count(shapes) == 202_899_904


def test_both_sides_share_a_space_of_unit_lengths(out):
    assert out["text"].shape == out["audio"].shape == (3, TINY.embedding_size) == (3, 24)
    for x in (out["text"], out["audio"]):
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert np.abs(out["audio"][0] - out["audio"][1]).max() > 1e-3


def test_padding_is_not_read(out):
    given, other_padding, without_mask = out["text"]
    np.testing.assert_allclose(given, other_padding, atol=1e-6)
    assert np.abs(given - without_mask).max() > 1e-4


def test_the_order_of_frames_is_read(out):
    given, reversed_in_time = out["aggregate"]
    assert np.abs(given - reversed_in_time).max() > 1e-4


@pytest.mark.parametrize(
    "config", [TINY, RetrieverConfig(audio_encoder=Cnn14Config(channels=(4, 8, 8, 8)))]
)
def test_the_longest_clip_has_a_position_for_every_frame(config):
    audio, places = config.audio_encoder, config.audio_transformer.max_frames
    assert audio.frames(config.max_samples) == places
    assert audio.frames(config.max_samples + 1) == places + 1


def test_longer_clips_are_refused():
    wav = jax.ShapeDtypeStruct((1, TINY.max_samples + 1), np.float32)
    embed = lambda wav: Retriever(TINY, rngs=InitRngs(0)).audio_embedding(wav)
    with pytest.raises(ValueError, match=f"too long.* {TINY.max_samples} samples"):
        jax.eval_shape(embed, wav)


def test_the_config_is_read_back_from_json():
    assert RetrieverConfig.from_hf(json.loads(json.dumps(TINY.to_hf()))) == TINY
    with pytest.raises(ValueError, match="model_type='clap'"):
        RetrieverConfig.from_hf({"model_type": "clap"})
