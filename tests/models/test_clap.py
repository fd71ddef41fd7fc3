import json

import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import clap as names
from maa_jax.model_folder.torch_layout import from_torch
from maa_jax.models.bert import BertConfig
from maa_jax.models.clap import Clap, ClapConfig, ProjectionConfig
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.models.rngs import InitRngs
from tests.models.test_bert import SMALL
from tests.parity.named_weights import reference, state_dict

TINY = ClapConfig(
    text_encoder=SMALL,
    audio_encoder=Cnn14Config(n_mels=16, channels=(4, 8), num_classes=5),
    embedding_size=64,
)


def fill(clap, case, tower):
    """Puts a parity case's weights into one tower of a module."""
    tensors = state_dict(case)
    for part, folder in (("base", f"{tower}_encoder"), ("projection", f"{tower}_projection")):
        start = f"{part}."
        given = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        network = getattr(clap, folder)
        given = names.without_unused(folder, given)
        setattr(clap, folder, nnx.merge(nnx.graphdef(network), from_torch(network, given)))


@pytest.mark.parametrize(
    ("case", "config"),
    [
        ("clap_text_small", TINY),
        pytest.param(
            "clap_text_2022",
            ClapConfig(audio_encoder=TINY.audio_encoder),
            marks=pytest.mark.full,
        ),
    ],
)
def test_text_tower_agrees_with_the_reference(case, config):
    clap = nnx.eval_shape(lambda: Clap(config, rngs=InitRngs(0)))
    fill(clap, case, "text")
    r = reference(case)
    context = clap.token_condition(r["input_ids"])
    sentence = clap.text_embedding(r["input_ids"], r["attention_mask"])
    for ours, theirs in ((context, "token_condition"), (sentence, "sentence_embedding")):
        np.testing.assert_allclose(ours, r[theirs], atol=1e-4 * np.abs(r[theirs]).max())


@pytest.mark.full
def test_audio_tower_agrees_with_the_reference():
    config = ClapConfig(text_encoder=SMALL, audio_encoder=Cnn14Config.clap_2022())
    clap = nnx.eval_shape(lambda: Clap(config, rngs=InitRngs(0)))
    fill(clap, "clap_audio_2022", "audio")
    r = reference("clap_audio_2022")
    embedding = clap.audio_embedding(r["wav"])
    np.testing.assert_allclose(embedding, r["embedding"], atol=1e-4 * np.abs(r["embedding"]).max())
    clipwise = clap.audio_encoder(r["wav"])["clipwise"]
    np.testing.assert_allclose(clipwise, r["clipwise"], atol=1e-4 * r["clipwise"].max())


def test_embeddings_share_one_space_and_have_unit_length():
    clap = Clap(TINY, rngs=InitRngs(0))
    ids = np.arange(2 * 77).reshape(2, 77) % 120
    text = clap.text_embedding(ids, np.ones_like(ids))
    audio = clap.audio_embedding(np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype("f"))
    assert text.shape == audio.shape == (2, 64)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(audio, axis=1), 1, rtol=1e-5)
    assert clap.token_condition(ids).shape == (2, 77, 64)


def test_full_size_is_bert_base_and_cnn14():
    config = ClapConfig.microsoft_2022()
    assert config.text_encoder == BertConfig()
    assert config.text_projection == ProjectionConfig(768, 1024)
    assert config.audio_projection == ProjectionConfig(2048, 1024)
    clap = nnx.eval_shape(lambda: Clap(config, rngs=InitRngs(0)))
    assert clap.text_projection.linear1.kernel.shape == (768, 1024)
    assert clap.text_encoder.embeddings.word_embeddings.embedding.shape == (30522, 768)


def test_projection_config_is_read_back_from_json():
    config = TINY.text_projection
    assert ProjectionConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    with pytest.raises(ValueError, match="in_size is missing"):
        ProjectionConfig.from_hf({})
