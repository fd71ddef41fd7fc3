import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2a
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.stages import make_stage


@pytest.fixture(scope="module")
def config(tiny_model):
    config = t2a.get_config("runlocal")
    config.autoencoder = config.text_encoder = config.vocoder = str(tiny_model)
    config.unet.cross_attention_dim = 24
    config.unet.block_out_channels = (16,)
    config.data.samples = 8192
    return config


@pytest.fixture(scope="module")
def stage(config):
    return make_stage(config, 1)


@pytest.fixture(scope="module")
def frozen(stage):
    return stage.load_frozen()


@pytest.fixture(scope="module")
def batch(stage):
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.normal(size=(8, 8192)).astype("f")
    return {"audio": audio, "text": stage.prepare_text(["a crow caws"] * 8)}


@pytest.fixture(scope="module")
def state(stage):
    """The state of step 0, whatever the settings of the tests below."""
    return jax.jit(stage.init)(jax.random.key(0))


def test_the_latent_scale_brings_latents_to_unit_variance(stage, state, frozen, batch):
    key, prepare = jax.random.key(1), jax.jit(stage.prepare)
    prepared = prepare(state, frozen, batch, key)
    z = jax.jit(stage._encode)(frozen, batch["audio"], key)
    scale = prepared.extra["latents"]["scale"]
    np.testing.assert_allclose(np.std(z) * scale, 1.0, rtol=1e-4)
    again = prepare(prepared, frozen, batch, key)
    np.testing.assert_allclose(again.extra["latents"]["scale"], scale, rtol=1e-5)
    assert again.extra["latents"]["count"] == 2 * z.size


def test_the_loss_falls_on_one_batch_and_the_average_follows(config, state, frozen, batch):
    config = config.copy_and_resolve_references()
    config.optimizer.base_lr, config.optimizer.warmup_steps = 3e-3, 0
    config.ema_decay = 0.9
    stage = make_stage(config, 1)
    stage.load_frozen()
    step = jax.jit(stage.train_step)
    losses = []
    for i in range(40):
        state, metrics = step(state, frozen, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(1.0, abs=0.2)  # the last layer starts at zero
    assert np.mean(losses[-10:]) < 0.8 * losses[0]
    weights = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), state.params, state.ema)
    assert 0 < max(jax.tree.leaves(weights)) < 0.1


def test_a_dropped_condition_is_the_empty_prompt(config, state, frozen, batch):
    config = config.copy_and_resolve_references()
    # No layer that is zero, so that the condition reaches the output.
    state = state.replace(params=jax.tree.map(lambda x: x + 0.1, state.params))
    empty = batch | {"text": np.repeat(frozen["empty"], 8, 0)}
    losses = {}
    for probability in (0.0, 1.0):
        config.uncond_probability = probability
        stage = make_stage(config, 1)
        stage.load_frozen()
        # The loss alone, so that no gradient is compiled.
        loss = jax.jit(lambda *args, stage=stage: stage.train_step(*args)[1]["loss"])
        losses[probability] = [
            float(loss(state, frozen, b, jax.random.key(0))) for b in (batch, empty)
        ]
    assert losses[0.0][0] != losses[0.0][1]
    assert losses[1.0][0] == losses[1.0][1] == pytest.approx(losses[0.0][1], rel=1e-6)


def test_microbatches_make_one_step(config, state, frozen, batch):
    config = config.copy_and_resolve_references()
    config.accumulate = 4
    stage = make_stage(config, 1)
    stage.load_frozen()
    after, metrics = jax.jit(stage.train_step)(state, frozen, batch, jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
    assert int(after.step) == 1
    assert not np.array_equal(*(x.params["unet"]["conv_out"]["bias"] for x in (state, after)))


def test_scores_are_one_an_example_and_summaries_are_images_and_sound(stage, state, frozen, batch):
    assert jax.jit(stage.eval_step)(state, frozen, batch, jax.random.key(0))["loss"].shape == (8,)
    summary = jax.jit(stage.summarize)(state, frozen, batch, jax.random.key(0))
    assert summary["image/sample"].shape == (1, 80, 32, 1)
    assert summary["audio/sample"].shape == (1, 8192, 1)
    assert 0 <= summary["image/sample"].min() and summary["image/sample"].max() <= 1


def test_the_exported_folder_is_whole_and_holds_the_scale(stage, state, frozen, batch, tmp_path):
    state = jax.jit(stage.prepare)(state, frozen, batch, jax.random.key(1))
    stage.export(jax.device_get(state.weights()), jax.device_get(state.extra), tmp_path)
    index = load_index(tmp_path)
    assert {"unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler"} <= set(index)
    assert index["max_duration"] == pytest.approx(8192 / 16000)
    scale = networks.load_config(tmp_path, "vae").scaling_factor
    assert scale == pytest.approx(float(state.extra["latents"]["scale"]))
    _, params = networks.load_network(tmp_path, "unet")
    expected = state.ema["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(params["conv_in"]["kernel"], expected)
