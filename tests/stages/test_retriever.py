import functools

import jax
import numpy as np
import pytest

from maa_jax.configs import retriever as configs
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.stages.retriever import RetrieverStage, ranking_losses
from maa_jax.training import state
from tests.conftest import random_network
from tests.stages.test_clap import CAPTIONS, make_batch, tokenizer  # noqa: F401

# Each program runs only a few times: compilation dominates.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def make_config(tokenizer, **changes):  # noqa: F811
    config = configs.get_config("runlocal")
    config.batch_size = len(CAPTIONS)
    config.data.samples = 8000
    config.tokenizer = str(tokenizer)
    settings = config.retriever
    settings.text_encoder.vocab_size = 128
    settings.text_encoder.update(hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    settings.audio_encoder.update(n_fft=512, hop_length=160, n_mels=16, channels=(8, 16))
    settings.audio_transformer.update(hidden_size=32, num_hidden_layers=1, intermediate_size=64)
    config.optimizer.update(base_lr=3e-3, warmup_steps=0, cosine_steps=0)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def trained(tokenizer):  # noqa: F811
    """A stage, its state after some steps on one batch, and the steps' losses."""
    stage = RetrieverStage(make_config(tokenizer))
    batch, key = make_batch(tokenizer), jax.random.key(1)
    train = quick(stage.init)(jax.random.key(0))
    step = quick(stage.train_step)
    losses = []
    for i in range(40):
        train, scalars = step(train, {}, batch, jax.random.fold_in(key, i))
        losses.append(float(scalars["loss"]))
    return stage, train, losses


def test_the_loss_falls_on_a_fixed_batch(trained):
    _, train, losses = trained
    assert int(train.step) == 40
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_model_folder_gives_the_network_that_was_scored(trained, tokenizer, tmp_path):  # noqa: F811
    stage, train, _ = trained
    batch = make_batch(tokenizer)
    scores = quick(stage.eval_step)(train, {}, batch, jax.random.key(0))
    assert scores["text_to_audio/recall_at_1"].shape == (6,)
    stage.export(train.weights(), train.extra, tmp_path)
    load_index(tmp_path, parts=("retriever", "tokenizer"))
    graph, params = networks.load_network(tmp_path, "retriever")

    @quick
    def compare(params, batch):
        retriever = networks.build(graph, params)
        text = retriever.text_embedding(batch["text"], batch["text"] != 0)
        return text @ retriever.audio_embedding(batch["audio"]).T

    cosines = np.asarray(compare(params, batch))
    losses = ranking_losses(cosines, np.eye(6, dtype=bool), stage.config.margin)
    np.testing.assert_allclose(losses, scores["loss"], atol=1e-4)
    for name, side in (("text_to_audio", cosines), ("audio_to_text", cosines.T)):
        found = side.argmax(axis=1) == np.arange(6)
        np.testing.assert_array_equal(found, scores[f"{name}/recall_at_1"])


@pytest.mark.parametrize("negatives", ["all", "hardest"])
def test_the_loss_is_that_of_a_plain_loop(negatives):
    rng = np.random.default_rng(0)
    cosines = rng.uniform(-1, 1, (5, 5)).astype("f")
    same = np.eye(5, dtype=bool)
    same[1, 3] = same[3, 1] = True
    expected = []
    for i in range(5):
        others = [j for j in range(5) if not same[i, j]]
        captions = [max(0.0, 0.3 + cosines[j, i] - cosines[i, i]) for j in others]
        recordings = [max(0.0, 0.3 + cosines[i, j] - cosines[i, i]) for j in others]
        if negatives == "all":
            expected.append(np.mean(captions + recordings))
        else:
            expected.append(max(captions) + max(recordings))
    np.testing.assert_allclose(ranking_losses(cosines, same, 0.3, negatives), expected, rtol=1e-5)


def test_duplicates_do_not_repel_each_other():
    same = np.eye(4, dtype=bool)
    same[0, 2] = same[2, 0] = True
    cosines = np.full((4, 4), 0.5, "f")
    gradient = jax.jit(jax.grad(lambda x: ranking_losses(x, same, 0.1).sum()))(cosines)
    assert np.all(gradient[same & ~np.eye(4, dtype=bool)] == 0)
    assert np.all(gradient[~same] > 0)
    everything = np.ones((4, 4), bool)
    np.testing.assert_array_equal(ranking_losses(cosines, everything, 0.1, "hardest"), 0)


def test_training_can_begin_with_a_classifier(trained, tokenizer, tmp_path):  # noqa: F811
    key = "init_from.audio_encoder"
    config = make_config(tokenizer, **{key: str(tmp_path / "panns")})
    # The number of classes and the dropout may differ: no shape here depends on them.
    audio = Cnn14Config(**config.retriever.audio_encoder, num_classes=3, head_dropout=0.1)
    given = random_network(lambda rngs: Cnn14(audio, rngs=rngs), 0)
    networks.save_network(tmp_path, "panns", audio, given)
    _, fresh, _ = trained
    weights = RetrieverStage(config).start_weights()
    ready = state.load_pretrained(fresh, weights)
    assert jax.tree.structure(ready) == jax.tree.structure(fresh)
    for found in (ready.params["retriever"], ready.extra["retriever"]):
        for name, tree in found["audio_encoder"].items():
            jax.tree.map(np.testing.assert_array_equal, tree, _part(given[name], tree))
    text = ready.params["retriever"]["text_encoder"]
    jax.tree.map(np.testing.assert_array_equal, text, fresh.params["retriever"]["text_encoder"])


def _part(tree, like):
    """Returns the leaves of a nested dict that another one has."""
    return {k: _part(tree[k], v) if isinstance(v, dict) else tree[k] for k, v in like.items()}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("negatives", "most", "negatives='most'"),
        ("retriever.text_encoder.vocab_size", 20, "config.retriever.*vocab_size=20"),
        ("data.samples", 100, "data.samples=100"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tokenizer, key, value, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        RetrieverStage(make_config(tokenizer, **{key: value}))
