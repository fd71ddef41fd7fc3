import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maa_jax.configs import common
from maa_jax.data import datasets
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.models.captioner import beam_search
from maa_jax.models.cnn10 import Cnn10, Cnn10Config
from maa_jax.stages.captioner import CaptionerStage, caption_losses, reference_tables
from maa_jax.text.tokenizer import build_tokenizer
from tests.conftest import random_network

CAPTIONS = ["a low hum", "a high beep", "white noise hisses", "a click", "silence", "a bell rings"]
LENGTH = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(CAPTIONS, folder, 128)
    return folder


def make_config(tokenizer, **changes):
    config = common.base("captioner")
    config.dtype = "float32"
    config.batch_size = len(CAPTIONS)
    config.data.samples = 8000
    config.tokenizer = str(tokenizer)
    with config.ignore_type():  # here a folder for the whole, or for the encoder
        config.init_from = common.block(captioner="", audio_encoder="")
    config.loss = "cross_entropy"
    config.label_smoothing = 0.05
    config.augment = common.block(gain_db=6.0, shift=0.1)
    config.captioner = common.block(
        vocab_size=128,
        embedding_size=16,
        hidden_size=32,
        dropout=0.1,
        max_length=LENGTH,
        encoder=common.block(n_mels=16, channels=(8, 16), block_dropout=0.0, stripes=0),
    )
    config.optimizer.base_lr = 1e-2
    config.update_from_flattened_dict(changes)
    return config


def make_batch(stage):
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
        "text": stage.tokenizer(CAPTIONS),
    }


def tables(stage):
    return reference_tables([[caption] for caption in CAPTIONS], stage.tokenizer, LENGTH)


def run(stage, train, steps):
    step, batch = jax.jit(stage.train_step), make_batch(stage)
    history = []
    for i in range(steps):
        train, scalars = step(train, {}, batch, jax.random.fold_in(jax.random.key(1), i))
        history.append({name: float(x) for name, x in scalars.items()})
    return train, history


@pytest.fixture(scope="module")
def trained(tokenizer):
    """A stage, its state when half-way to memorising one batch, and its losses."""
    stage = CaptionerStage(make_config(tokenizer))
    return stage, *run(stage, jax.jit(stage.init)(jax.random.key(0)), 30)


def test_the_loss_falls_on_a_fixed_batch(trained):
    _, train, history = trained
    losses = [scalars["loss"] for scalars in history]
    assert int(train.step) == 30
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_a_self_critical_step_makes_captions_above_a_recordings_others_likelier(trained, tokenizer):
    _, train, _ = trained
    config = make_config(tokenizer, loss="self_critical", **{"optimizer.base_lr": 1e-5})
    stage = CaptionerStage(config)
    step, batch, frozen = jax.jit(stage.train_step), make_batch(stage), {"train": tables(stage)}
    # The same draw twice: the captions stay, as the step is small, and their likelihoods move.
    train, before = step(train, frozen, batch, jax.random.key(0))
    _, after = step(train, frozen, batch, jax.random.key(0))
    assert 0 < before["reward"] == after["reward"] <= 10
    assert after["loss"] < before["loss"] - 1e-3


def test_scores_are_given_for_each_example(trained):
    stage, train, *_ = trained
    frozen = {"validation": tables(stage)}
    scores = jax.jit(stage.eval_step)(train, frozen, make_batch(stage), jax.random.key(0))
    assert scores["loss"].shape == scores["cider"].shape == (6,)
    assert np.all(np.isfinite(scores["loss"])) and np.all(np.isfinite(scores["cider"]))


def test_the_summary_shows_where_the_words_come_from(trained):
    stage, train, *_ = trained
    summarize = jax.jit(stage.summarize)
    image = summarize(train, {}, make_batch(stage), jax.random.key(0))["image/attention"]
    assert image.ndim == 4 and image.shape[-1] == 1
    assert 0 <= image.min() < image.max() <= 1


def test_a_model_folder_gives_the_trained_captioner(trained, tokenizer, tmp_path):
    stage, train, _ = trained
    stage.export(train.weights(), train.extra, tmp_path)
    load_index(tmp_path, parts=("captioner", "tokenizer"))
    graphdef, params = networks.load_network(tmp_path, "captioner")
    batch = make_batch(stage)

    def caption(network):
        return beam_search(network, network.encode(batch["audio"]), width=2)[0]

    read = jax.jit(lambda p: caption(networks.build(graphdef, p)))(params)
    np.testing.assert_array_equal(
        read, jax.jit(lambda t: caption(stage.merge(t.weights(), t.extra)))(train)
    )
    config = make_config(tokenizer, **{"init_from.captioner": str(tmp_path)})
    weights = CaptionerStage(config).start_weights()
    jax.tree.map(np.testing.assert_array_equal, weights, {"captioner": params})


def test_training_can_begin_with_an_encoder_of_panns(tokenizer, tmp_path):
    key = {"init_from.audio_encoder": str(tmp_path / "cnn10")}
    stage = CaptionerStage(make_config(tokenizer, **key))
    config = stage.captioner_config.encoder
    given = random_network(lambda rngs: Cnn10(config, rngs=rngs), 0)
    networks.save_network(tmp_path, "cnn10", config, given)
    file = tmp_path / "cnn10" / "model.safetensors"
    tensors = load_file(file) | {"fc1.weight": np.ones((16, 16), "f")}  # PANNs' classifier
    save_file(tensors, file, {"format": "pt"})
    train = jax.eval_shape(stage.init, jax.random.key(0))
    weights = stage.start_weights()
    assert weights.keys() == {"captioner"} and weights["captioner"].keys() == {"encoder"}
    jax.tree.map(np.testing.assert_array_equal, weights["captioner"]["encoder"], given)
    assert given["conv_block1"].keys() == train.params["captioner"]["encoder"]["conv_block1"].keys()
    other = Cnn10Config(**vars(config) | {"hop_length": 320})
    networks.save_network(tmp_path, "cnn10", other, given)
    with pytest.raises(ValueError, match=r"init_from\.audio_encoder=.*hop_length=320 there"):
        stage.start_weights()


def test_losses_are_means_over_the_words_and_blind_to_padding():
    rng = np.random.default_rng(0)
    logits, words = rng.normal(size=(2, 4, 5)).astype("f"), np.array([[3, 1, 2, 0], [4, 2, 0, 0]])
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log([probs[1, 0, 4], probs[1, 1, 2]]).mean()
    mask = words != 0
    np.testing.assert_allclose(caption_losses(logits, words, mask)[1], expected, rtol=1e-5)
    smoothed = 0.9 * expected - 0.1 * np.log(probs[1, :2]).mean()
    np.testing.assert_allclose(caption_losses(logits, words, mask, 0.1)[1], smoothed, rtol=1e-5)
    logits[1, 2:] = 100
    np.testing.assert_allclose(caption_losses(logits, words, mask)[1], expected, rtol=1e-5)


def test_microbatches_keep_the_state_as_it_is(tokenizer):
    for loss in ("cross_entropy", "self_critical"):
        config = make_config(tokenizer, accumulate=2, loss=loss)
        stage = CaptionerStage(config)
        train = jax.eval_shape(stage.init, jax.random.key(0))
        arguments = ({"train": tables(stage)}, make_batch(stage), jax.random.key(0))
        new, scalars = jax.eval_shape(stage.train_step, train, *arguments)
        kinds = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
        assert kinds(new) == kinds(train)
        assert scalars["loss"].shape == ()


def test_references_are_those_of_the_split(tokenizer, monkeypatch):

    splits = {"train": [["a low hum", "a click"], ["silence"]], "validation": [["a bell rings"]]}
    metadata = lambda data, split: [{"captions": captions} for captions in splits[split]]
    monkeypatch.setattr(datasets, "metadata", metadata)
    stage = CaptionerStage(make_config(tokenizer, loss="self_critical"))
    frozen = stage.load_frozen()
    references = frozen["train"]["references"]
    assert references.shape == (2, 2, LENGTH)
    assert stage.tokenizer.decode(references[0]) == splits["train"][0]
    assert np.all(references[1, 1] == stage.tokenizer.pad_id)
    assert frozen["validation"]["references"].shape == (1, 1, LENGTH)
    plain = CaptionerStage(make_config(tokenizer))
    assert plain.load_frozen().keys() == {"validation"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("captioner.vocab_size", 20, "vocab_size=20"),
        ("captioner.max_length", 100, "max_length=100"),
        ("captioner.encoder.sample_rate", 24000, "sample_rate=24000"),
        ("data.samples", 100, "data.samples=100"),
        ("loss", "cider", "config.loss='cider'.*self_critical"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tokenizer, key, value, message):
    with pytest.raises(ValueError, match=message):
        CaptionerStage(make_config(tokenizer, **{key: value}))


def test_special_ids_are_those_of_the_tokenizer(tokenizer):
    stage = CaptionerStage(make_config(tokenizer))
    ids = stage.tokenizer(["a click"])[0]
    sizes = stage.captioner_config
    assert (sizes.bos_token_id, sizes.eos_token_id) == (ids[0], ids[3])
    assert set(sizes.suppress_tokens) == set(stage.tokenizer.special_ids) - {ids[3]}
    assert not set(ids[1:4]) & set(sizes.suppress_tokens)
