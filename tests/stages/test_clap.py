import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.configs import common
from maa_jax.data import datasets
from maa_jax.encoders.text import TextConditioner
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.models.bert import Bert, BertConfig
from maa_jax.stages.clap import ClapStage, contrastive_losses
from maa_jax.stages.contrastive import recall_at_1, same_pairs
from maa_jax.text.tokenizer import Tokenizer, build_tokenizer
from maa_jax.training import state

CAPTIONS = ["a low hum", "a high beep", "white noise hisses", "a click", "silence", "a bell rings"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(CAPTIONS, folder, 128)
    return folder


def make_config(tokenizer, **changes):
    config = common.base("clap")
    config.dtype = "float32"
    config.batch_size = len(CAPTIONS)
    config.data.samples = 8000
    config.tokenizer = str(tokenizer)
    with config.ignore_type():  # here a folder for either tower
        config.init_from = common.block(text_encoder="", audio_encoder="")
    config.augment = common.block(gain_db=6.0, shift=0.1)
    config.clap = common.block(
        text_encoder=common.block(
            vocab_size=128,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=77,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        ),
        audio_encoder=common.block(
            n_mels=16,
            channels=(8, 16),
            num_classes=1,
            block_dropout=0.0,
            head_dropout=0.1,
            stripes=0,
        ),
        embedding_size=24,
        dropout=0.1,
    )
    config.optimizer.base_lr = 5e-3
    config.update_from_flattened_dict(changes)
    return config


def make_batch(tokenizer):
    t = np.arange(8000) / 16000
    rng = np.random.default_rng(0)
    audio = [
        np.sin(2 * np.pi * 100 * t),
        np.sin(2 * np.pi * 3000 * t),
        rng.normal(0, 0.5, t.size),
        (t < 0.01) * 1.0,
        0 * t,
        np.sin(2 * np.pi * 1000 * t) * np.exp(-9 * t),
    ]
    return {
        "audio": np.stack(audio).astype(np.float32),
        "index": np.arange(len(audio)),
        "text": Tokenizer.from_folder(tokenizer)(CAPTIONS),
    }


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A stage, its state after a few steps on one batch, their losses and the compiled step."""
    stage = ClapStage(make_config(tokenizer))
    batch, key = make_batch(tokenizer), jax.random.key(1)
    train = jax.jit(stage.init)(jax.random.key(0))
    step = jax.jit(stage.train_step)
    losses = []
    for i in range(40):
        train, scalars = step(train, {}, batch, jax.random.fold_in(key, i))
        losses.append(float(scalars["loss"]))
    return stage, train, losses, step


def test_the_loss_falls_on_a_fixed_batch(trained):
    _, train, losses, _ = trained
    assert int(train.step) == 40
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_scores_are_given_for_each_example(trained, tokenizer):
    stage, train, *_ = trained
    scores = jax.jit(stage.eval_step)(train, {}, make_batch(tokenizer), jax.random.key(0))
    assert scores["loss"].shape == scores["recall_at_1"].shape == (6,)
    assert np.all(np.isfinite(scores["loss"]))


def test_the_summary_is_an_image_of_similarities(trained, tokenizer):
    stage, train, *_ = trained
    summarize = jax.jit(stage.summarize)
    image = summarize(train, {}, make_batch(tokenizer), jax.random.key(0))["image/similarity"]
    assert image.shape[0] == image.shape[3] == 1 and image.shape[1] == image.shape[2] >= 6
    assert 0 <= image.min() < image.max() <= 1


def test_a_model_folder_gives_the_trained_networks(trained, tokenizer, tmp_path):
    stage, train, *_ = trained
    stage.export(train.weights(), train.extra, tmp_path)
    load_index(
        tmp_path,
        parts=("text_encoder", "text_projection", "audio_encoder", "audio_projection", "tokenizer"),
    )
    conditioner = TextConditioner.from_folder(tmp_path)
    np.testing.assert_array_equal(conditioner.prepare(CAPTIONS), make_batch(tokenizer)["text"])
    _, params = networks.load_network(tmp_path, "audio_encoder")
    mean = train.extra["clap"]["audio_encoder"]["bn0"]["mean"]
    np.testing.assert_array_equal(params["bn0"]["mean"], mean)
    assert np.abs(mean).max() > 1


def test_the_temperature_stays_at_or_below_100(trained, tokenizer):
    _, train, _, step = trained
    params = {"clap": {**train.params["clap"], "logit_scale": jnp.float32(9.0)}}
    train = train.replace(params=params)
    train, _ = step(train, {}, make_batch(tokenizer), jax.random.key(0))
    np.testing.assert_allclose(np.exp(train.params["clap"]["logit_scale"]), 100, rtol=1e-5)


def test_loss_is_symmetric_in_text_and_audio_and_blind_to_order():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 5)).astype(np.float32)
    same = np.eye(5, dtype=bool)
    same[1, 3] = same[3, 1] = True
    losses = contrastive_losses(logits, same)
    np.testing.assert_allclose(contrastive_losses(logits.T, same), losses, rtol=1e-5)
    order = rng.permutation(5)
    moved = contrastive_losses(logits[order][:, order], same[order][:, order])
    np.testing.assert_allclose(moved, losses[order], rtol=1e-5)


def test_loss_of_equal_similarities_is_that_of_guessing():
    losses = contrastive_losses(jnp.zeros((8, 8)), jnp.eye(8, dtype=bool))
    np.testing.assert_allclose(losses, np.log(8), rtol=1e-6)


def test_duplicates_are_not_negatives():
    tokens = np.array([[2, 5], [2, 6], [2, 5], [2, 7]])
    same = same_pairs(np.array([0, 1, 2, 1]), tokens)
    expected = np.eye(4, dtype=bool)
    expected[0, 2] = expected[2, 0] = True  # one caption
    expected[1, 3] = expected[3, 1] = True  # one recording
    np.testing.assert_array_equal(same, expected)
    logits = jnp.zeros((4, 4)).at[0, 2].set(50.0)  # its duplicate answers better than itself
    np.testing.assert_allclose(contrastive_losses(logits, same), np.log(3), rtol=1e-6)
    np.testing.assert_array_equal(recall_at_1(logits, same), [1, 0, 1, 0])
    gradient = jax.grad(lambda x: contrastive_losses(x, same).mean())(logits)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[same & ~np.eye(4, dtype=bool)] == 0)


def test_microbatches_keep_the_state_as_it_is(tokenizer):
    stage = ClapStage(make_config(tokenizer, accumulate=2))
    train = jax.eval_shape(stage.init, jax.random.key(0))
    batch = make_batch(tokenizer)
    new, scalars = jax.eval_shape(stage.train_step, train, {}, batch, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == jax.tree.map(
        lambda x: (x.shape, x.dtype), train
    )
    assert scalars["loss"].shape == ()


def write_text_encoder(folder, config):
    bert = Bert(config, rngs=nnx.Rngs(7))
    params = nnx.to_pure_dict(nnx.state(bert))
    networks.save_network(folder, "text_encoder", config, params)
    return params


def test_training_can_begin_with_given_weights(tokenizer, tmp_path):
    config = make_config(tokenizer, **{"init_from.text_encoder": str(tmp_path / "text_encoder")})
    given = write_text_encoder(tmp_path, BertConfig(**config.clap.text_encoder))
    stage = ClapStage(config)
    train = jax.jit(stage.init)(jax.random.key(0))
    ready = state.load_pretrained(train, stage.start_weights())
    assert jax.tree.structure(ready) == jax.tree.structure(train)
    check = functools.partial(jax.tree.map, np.testing.assert_array_equal)
    check(ready.params["clap"]["text_encoder"], given)
    check(ready.params["clap"]["audio_encoder"], train.params["clap"]["audio_encoder"])


def test_weights_of_another_size_are_refused(tokenizer, tmp_path):
    config = make_config(tokenizer, **{"init_from.text_encoder": str(tmp_path / "text_encoder")})
    other = dict(config.clap.text_encoder) | {"num_hidden_layers": 2}
    write_text_encoder(tmp_path, BertConfig(**other))
    with pytest.raises(ValueError, match="num_hidden_layers=2 there, 1 here"):
        ClapStage(config).start_weights()


def test_a_missing_start_is_named(tokenizer, tmp_path):
    config = make_config(tokenizer, **{"init_from.audio_encoder": str(tmp_path / "no")})
    with pytest.raises(ValueError, match=r"init_from\.audio_encoder: .*no folder"):
        ClapStage(config).start_weights()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("clap.text_encoder.vocab_size", 20, "vocab_size=20"),
        ("clap.text_encoder.max_position_embeddings", 50, "max_position_embeddings=50"),
        ("mel.sample_rate", 8000, "audio_encoder.sample_rate=16000"),
        ("data.samples", 100, "data.samples=100"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tokenizer, key, value, message):
    with pytest.raises(ValueError, match=message):
        ClapStage(make_config(tokenizer, **{key: value}))


def test_a_vocabulary_can_come_from_the_training_captions(tokenizer, tmp_path, monkeypatch):

    monkeypatch.setattr(datasets, "captions", lambda data, split: CAPTIONS)
    stage = ClapStage(make_config("captions"))
    np.testing.assert_array_equal(stage.tokenizer(CAPTIONS), make_batch(tokenizer)["text"])
    assert stage.clap_config.text_encoder.vocab_size == stage.tokenizer.vocab_size <= 128
    assert json.dumps(stage.clap_config.text_encoder.to_hf())
