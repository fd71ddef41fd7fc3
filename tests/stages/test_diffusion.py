import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from maa_jax.configs import t2a
from maa_jax.data.input_pipeline import eval_batches
from maa_jax.diffusion.schedule import Schedule
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.stages import diffusion, make_stage
from maa_jax.train import loop
from maa_jax.training import sharding
from tests.conftest import random_network


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
    return make_stage(config)


@pytest.fixture(scope="module")
def frozen(stage):
    return stage.load_frozen()


@pytest.fixture(scope="module")
def batch(stage):
    rng = np.random.default_rng(0)
    audio = 0.1 * rng.normal(size=(8, 8192)).astype("f")
    text = stage.prepare_text(["a crow caws"] * 8)
    return {"audio": audio, "text": text, "index": np.arange(8)}


@pytest.fixture(scope="module")
def state(stage):
    """The state of step 0, whatever the settings of the tests below."""
    return jax.jit(stage.init)(jax.random.key(0))


def test_the_latent_scale_brings_latents_to_unit_variance(stage, state, frozen, batch):
    key, prepare = jax.random.key(1), jax.jit(stage.prepare)
    prepared = prepare(state, frozen, batch, key)
    encode = jax.jit(lambda vae, *args: stage.codec.encode(vae, *args, scale=1.0))
    z = encode(frozen["vae"], batch["audio"], key)
    scale = prepared.extra["latents"]["scale"]
    np.testing.assert_allclose(np.std(z) * scale, 1.0, rtol=1e-4)
    again = prepare(prepared, frozen, batch, key)
    np.testing.assert_allclose(again.extra["latents"]["scale"], scale, rtol=1e-5)
    assert again.extra["latents"]["count"] == 2 * z.size


def test_a_model_that_goes_on_from_another_keeps_its_latent_scale(
    config, tiny_model, state, frozen, batch, tmp_path
):
    before = shutil.copytree(tiny_model, tmp_path / "before")
    path = before / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0.125}))
    config = config.copy_and_resolve_references()
    config.init_from = str(before)
    prepared = jax.jit(make_stage(config).prepare)(state, frozen, batch, jax.random.key(1))
    assert float(prepared.extra["latents"]["scale"]) == 0.125
    # Another autoencoder has other latents, whose scale is measured.
    weights = before / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.numpy.load_file(weights)
    safetensors.numpy.save_file({name: 1.1 * x for name, x in tensors.items()}, weights)
    assert make_stage(config).known_scale() is None


def test_the_loss_falls_on_one_batch_and_the_average_follows(config, state, frozen, batch):
    config = config.copy_and_resolve_references()
    config.optimizer.base_lr, config.optimizer.warmup_steps = 3e-3, 0
    config.ema_decay = 0.9
    stage = make_stage(config)
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
    empty = batch | {"text": np.repeat(frozen["unconditional"], 8, 0)}
    losses = {}
    for probability in (0.0, 1.0):
        config.uncond_probability = probability
        loss = jax.jit(make_stage(config).loss)
        losses[probability] = [
            float(loss(state.params, state.extra, frozen, b, jax.random.key(0))[0])
            for b in (batch, empty)
        ]
    assert losses[0.0][0] != losses[0.0][1]
    assert losses[1.0][0] == losses[1.0][1] == pytest.approx(losses[0.0][1], rel=1e-6)


class Pictures:
    """A conditioner whose conditions are trees: patches of pictures, and how bright each is."""

    width, params = 24, {}

    def prepare(self, pictures):
        patches = np.stack(pictures)
        return {"patches": patches, "brightness": patches.mean(axis=(1, 2))}

    def unconditional(self):
        return self.prepare([np.zeros((5, 24), np.float32)])

    def encode(self, params, condition):
        return condition["patches"] + condition["brightness"][:, None, None]


def test_a_condition_may_be_a_tree_of_arrays(config, state, frozen, batch):
    config = config.copy_and_resolve_references()
    config.accumulate, config.uncond_probability = 2, 0.5
    stage = make_stage(config)
    stage.conditioner = pictures = Pictures()
    shown = pictures.prepare([np.ones((5, 24), np.float32)] * 8)
    frozen = frozen | {"text": {}, "unconditional": pictures.unconditional(), "prompts": shown}
    batch = batch | {"text": shown}
    _, scalars = jax.eval_shape(stage.train_step, state, frozen, batch, jax.random.key(0))
    assert scalars["loss"].shape == ()
    summary = jax.eval_shape(stage.summarize, state, frozen, batch, jax.random.key(0))
    assert summary["image/sample"].shape[0] == 8


def test_microbatches_make_one_step(config, state, frozen, batch):
    config = config.copy_and_resolve_references()
    config.accumulate = 4
    stage = make_stage(config)
    after, metrics = jax.jit(stage.train_step)(state, frozen, batch, jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and metrics["grad_norm/unet"] > 0
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
    # A published folder says nothing of the machine that it was made on.
    assert index["training"]["autoencoder"] == pathlib.Path(stage.config.autoencoder).name
    assert '"/' not in json.dumps(index["training"])
    assert {"unet", "vae", "vocoder", "text_encoder", "tokenizer", "scheduler"} <= set(index)
    assert index["max_duration"] == pytest.approx(8192 / 16000)
    scale = networks.load_config(tmp_path, "vae").scaling_factor
    assert scale == pytest.approx(float(state.extra["latents"]["scale"]))
    _, params = networks.load_network(tmp_path, "unet")
    expected = state.ema["unet"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(params["conv_in"]["kernel"], expected)


def test_a_validation_loss_does_not_depend_on_the_batch(stage, state, frozen, data_dir):
    """Neither on its size, nor on the rows that fill up the last one."""
    config = stage.config.data.copy_and_resolve_references()
    config.data_dir = data_dir
    state = state.replace(params=jax.tree.map(lambda x: x + 0.05, state.params))
    mesh = sharding.create_mesh(stage.config.mesh)
    score = loop._jit_score(stage, mesh)
    losses = []
    for size in (6, 8, 13, 32):
        batches = eval_batches(config, batch_size=size, prepare_text=stage.prepare_text)
        result = loop._evaluate(score, state, frozen, batches, mesh, jax.random.key(0))
        losses.append(result["validation/loss"])
    assert losses[0] > 0
    np.testing.assert_allclose(losses, losses[0], rtol=1e-5)


@pytest.mark.parametrize("start", [0, 13 * 4, 10**6, 2**31 - 200])
def test_consecutive_indices_have_timesteps_spread_over_all(start):
    index = jnp.arange(100) + start
    for count in (13, 52, 100):
        timesteps = np.sort(diffusion.spread_timesteps(index[:count], 1000))
        assert timesteps[0] >= 0 and timesteps[-1] < 1000
        gaps = np.diff(np.concatenate([[timesteps[-1] - 1000], timesteps]))
        assert gaps.max() < 2.7 * 1000 / count  # of random ones, about 5
        assert timesteps.mean() == pytest.approx(500, abs=1000 / count)


def lora(params, key):
    """Returns rank-2 adapters of the attention's projections, (down, up) by path; up is zero."""
    adapters = {}
    for path, kernel in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        if "attn" in name and kernel.ndim == 2:
            down = jax.random.normal(jax.random.fold_in(key, len(adapters)), (len(kernel), 2))
            adapters[name] = (down, jnp.zeros((2, kernel.shape[1])))
    return adapters


def adapted(params, adapters):
    def leaf(path, kernel):
        down_up = adapters.get(jax.tree_util.keystr(path))
        return kernel if down_up is None else kernel + down_up[0] @ down_up[1]

    return jax.tree_util.tree_map_with_path(leaf, params)


def test_the_loss_trains_adapters_as_well(stage, state, frozen, batch):
    """A tree of low-rank adapters takes the parameters' place; these stay as they are."""
    params = jax.tree.map(lambda x: x + 0.05, state.params)  # the last layer starts at zero
    adapters = lora(params, jax.random.key(1))
    assert adapters

    def loss(adapters):
        merged = adapted(params, adapters)
        return stage.loss(merged, state.extra, frozen, batch, jax.random.key(0))[0]

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    before, grads = value_and_grad(adapters)
    plain, _ = jax.jit(stage.loss)(params, state.extra, frozen, batch, jax.random.key(0))
    np.testing.assert_allclose(before, plain, rtol=1e-5)  # an adapter of zeros changes nothing
    assert all(np.abs(up).max() > 0 for _, up in grads.values())
    norm = jnp.sqrt(sum(jnp.sum(up**2) for _, up in grads.values()))
    adapters = jax.tree.map(lambda x, g: x - 0.02 / norm * g, adapters, grads)
    assert value_and_grad(adapters)[0] < before


def test_a_clip_does_not_depend_on_the_others(stage, state, frozen):
    generate = jax.jit(stage.generate, static_argnames="guidance_scale")
    conditions, key = stage.prepare_text(["rain", "a crow caws"]), jax.random.key(0)
    mels, wavs = generate(state, frozen, conditions, key, guidance_scale=3.0)
    assert mels.shape == (2, 32, 80) and wavs.shape == (2, 8192)
    alone = generate(state, frozen, conditions[1:], key, guidance_scale=3.0, start_index=1)
    np.testing.assert_allclose(alone[0][0], mels[1], atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_other_predictions_train_sample_and_are_exported(
    prediction_type, config, state, frozen, batch, tmp_path
):
    config = config.copy_and_resolve_references()
    config.schedule.prediction_type = prediction_type
    config.schedule.rescale_betas_zero_snr = prediction_type == "v_prediction"
    config.optimizer.base_lr, config.optimizer.warmup_steps = 3e-3, 0
    stage = make_stage(config)
    state = jax.jit(stage.prepare)(state, frozen, batch, jax.random.key(0))
    step, losses = jax.jit(stage.train_step), []
    for i in range(30):
        state, metrics = step(state, frozen, batch, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    image = jax.jit(stage.summarize)(state, frozen, batch, jax.random.key(0))["image/sample"]
    assert np.isfinite(image).all()
    stage.export(state.weights(), state.extra, tmp_path)
    kept = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert kept["prediction_type"] == prediction_type
    assert Schedule.from_hf(kept) == stage.schedule


def test_latents_of_an_autoencoder_of_three_levels_are_sampled_whole(
    config, tiny_model, batch, tmp_path
):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    sizes = AutoencoderConfig(
        latent_channels=8, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4
    )
    weights = random_network(lambda rngs: Autoencoder(sizes, rngs=rngs), 0)
    networks.save_network(tmp_path, "vae", sizes, weights)
    config = config.copy_and_resolve_references()
    config.autoencoder = str(tmp_path)
    stage = make_stage(config)
    state = jax.eval_shape(stage.init, jax.random.key(0))
    frozen = stage.load_frozen()
    summary = jax.eval_shape(stage.summarize, state, frozen, batch, jax.random.key(0))
    assert summary["image/sample"].shape == (1, 80, 32, 1)
    assert summary["audio/sample"].shape == (1, 8192, 1)


@pytest.mark.parametrize("part", ["autoencoder", "vocoder"])
@pytest.mark.parametrize(
    ("key", "value"), [("log", "log"), ("fmax", 6000.0), ("n_mels", 64), ("hop_length", 128)]
)
def test_a_part_with_another_front_end_is_refused(part, key, value, config, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["mel"][key] = value
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    config = config.copy_and_resolve_references()
    config[part] = str(tmp_path)
    with pytest.raises(ValueError, match=rf"the {part} in .*config\.mel\.{key}=.*{value}.* there"):
        make_stage(config)


def test_a_front_end_of_another_sample_rate_is_refused(config):
    config = config.copy_and_resolve_references()
    config.mel.sample_rate = 22050
    with pytest.raises(ValueError, match=r"config\.mel\.sample_rate=22050.*16000"):
        make_stage(config)
