import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.configs import common
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.models.layers import conv2d
from maa_jax.stages import gan, make_stage
from maa_jax.training.state import merge

START = 20  # the step at which the discriminators begin


def make_config(name="multi_window"):
    config = common.small_run(common.base("autoencoder"), steps=4)
    config.batch_size = 4
    config.data.samples = 16 * 256
    config.mel.n_mels = 16
    config.kl_weight = 1e-6
    config.autoencoder = common.block(
        block_out_channels=(8,), layers_per_block=1, norm_num_groups=4
    )
    config.discriminator = common.block(
        name=name,
        start=0,
        weight=0.5,
        r1_weight=5.0,
        multi_window=common.block(windows=(8, 16), channels=4, layers=1, dropout=0.25),
        patch=common.block(channels=4, layers=1),
    )
    config.optimizer.base_lr = 3e-3
    return config


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    t = np.arange(16 * 256) / 16000
    pitches = rng.uniform(200, 4000, size=(4, 1))
    return {"audio": (0.3 * np.sin(2 * np.pi * pitches * t)).astype("f")}


def run(config, batch, steps):
    """Returns the states and the scalars of some steps from a fresh start."""
    stage = make_stage(config)
    state = jax.jit(stage.init)(jax.random.key(0))
    step, states, scalars = jax.jit(stage.train_step), [state], []
    for i in range(steps):
        state, metrics = step(state, {}, batch, jax.random.key(i))
        states.append(state)
        scalars.append({k: float(v) for k, v in metrics.items()})
    return stage, states, scalars


def moved(before, after, name):
    change = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), before.params[name], after.params[name]
    )
    return max(jax.tree.leaves(change))


@pytest.fixture(scope="module")
def trained(batch):
    config = make_config("multi_window")
    config.discriminator.start, config.ema_decay = START, 0.9
    return run(config, batch, START + 2)


def test_the_reconstruction_improves_on_one_batch(trained):
    scalars = trained[2]
    assert scalars[START - 1]["l1"] < 0.7 * scalars[0]["l1"]


def test_the_discriminator_is_inactive_until_its_start(trained):
    _, states, scalars = trained
    assert all(np.isfinite(list(s.values())).all() for s in scalars)
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        assert moved(before, after, "vae") > 0
        assert (moved(before, after, "discriminator") > 0) == (i >= START)
        assert (scalars[i]["adversary_weight"] > 0) == (i >= START)
        assert (scalars[i]["r1"] > 0) == (i >= START)
    (adam, *_) = states[-1].opt["discriminator"][1]
    assert adam.count == 2  # its optimizer did not run before


def test_the_patch_discriminator_and_microbatches(batch):
    config = make_config("patch")
    config.discriminator.start, config.accumulate = 0, 2
    _, states, scalars = run(config, batch, 2)
    assert all(np.isfinite(list(s.values())).all() for s in scalars)
    assert all(s["r1"] > 0 for s in scalars)
    for name in ("vae", "discriminator"):
        assert moved(states[0], states[-1], name) > 0
    means = [s.extra["discriminator"]["norms"][0]["mean"] for s in states]
    assert not np.array_equal(means[0], means[1])  # batch statistics are kept


def test_the_step_follows_the_gradients_of_the_written_out_losses(batch):
    """The linear terms in the loss agree with direct differentiation of the losses."""
    config = make_config("patch")
    stage = make_stage(config)
    state = jax.jit(stage.init)(jax.random.key(0))
    image = stage.codec.image(batch["audio"])
    key = jax.random.key(3)
    graphs, extra = stage._graphs, state.extra["discriminator"]
    features = 0.5 * jax.random.normal(jax.random.key(4), (*image.shape[:3], 8))
    kernel = state.params["vae"]["decoder"]["conv_out"]["kernel"]
    decode = lambda kernel: conv2d(features, kernel, padding=1)
    discriminate = lambda params, x: gan.discriminate(
        graphs["discriminator"], params, extra, x, rngs=nnx.Rngs(key)
    )[0][0][0]
    params = state.params["discriminator"]
    fake = decode(kernel)
    scores, grads, _ = jax.jit(stage.gan_losses)(
        True, state.params, extra, image, fake, features, key
    )

    # The adaptive weight, from gradients of both losses to the last layer (latent diffusion).
    l1 = lambda kernel: jnp.abs(decode(kernel) - image).sum() / len(image)
    adversarial = lambda kernel: -discriminate(params, decode(kernel)).mean()
    norm = lambda loss: jnp.linalg.norm(jax.jit(jax.grad(loss))(kernel))
    weight = 0.5 * jnp.clip(norm(l1) / (norm(adversarial) + 1e-4), 0, 1e4)
    np.testing.assert_allclose(scores["adversary_weight"], weight, rtol=1e-4)
    grad = jax.jit(jax.grad(lambda x: -discriminate(params, x).mean()))(fake)
    np.testing.assert_allclose(
        grads["fake"], weight / image[0].size * grad, atol=1e-5 * np.abs(grads["fake"]).max()
    )

    # The discriminator's loss with R1: the penalty differentiated straight through its gradient.
    def r1(params):
        return jnp.square(jax.grad(lambda x: discriminate(params, x).sum())(image)).mean()

    def loss(params):
        hinge = jax.nn.relu(1 - discriminate(params, image)).mean()
        hinge += jax.nn.relu(1 + discriminate(params, fake)).mean()
        return 0.5 * hinge + 5.0 * r1(params)

    np.testing.assert_allclose(scores["r1"], jax.jit(r1)(params), rtol=1e-4)
    wanted = jax.jit(jax.grad(loss))(params)
    scale = max(np.abs(g).max() for g in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * scale),
        grads["disc_params"],
        wanted,
    )


def test_the_gradient_penalty_of_a_window_is_the_mean_over_its_own_pixels(batch):
    """As for a whole image: the frames that a window leaves out do not dilute it."""
    config = make_config("multi_window")
    config.discriminator.multi_window.update(windows=(8, 64), dropout=0.0)
    stage = make_stage(config)
    state = jax.jit(stage.init)(jax.random.key(0))
    image = stage.codec.image(batch["audio"])
    extra, features = state.extra["discriminator"], jnp.ones((*image.shape[:3], 8))
    scores, _, _ = jax.jit(stage.gan_losses)(
        True, state.params, extra, image, image, features, jax.random.key(1)
    )
    short, long = merge(
        stage._graphs["discriminator"], state.params["discriminator"]
    ).discriminators

    def penalty(net, crop):
        return jnp.square(jax.grad(lambda crop: net(crop, None)[0].sum())(crop)).mean()

    crops = [image[:, :, start : start + 8] for start in range(9)]
    expected = [(penalty(short, crop) + penalty(long, image)) / 2 for crop in crops]
    assert min(abs(scores["r1"] / value - 1) for value in expected) < 1e-3  # one of the crops


def test_evaluation_summary_and_export(tmp_path, trained, batch):
    stage, states, _ = trained
    state = states[-1]
    scores = jax.jit(stage.eval_step)(state, {}, batch, jax.random.key(0))
    assert scores.keys() == {"loss", "l1", "kl"}
    assert all(x.shape == (4,) and np.isfinite(x).all() for x in scores.values())
    images = jax.jit(stage.summarize)(state, {}, batch, jax.random.key(0))
    assert images.keys() == {"image/recording", "image/reconstruction"}
    assert all(x.shape == (4, 16, 16, 1) for x in images.values())
    assert all(x.min() >= 0 and x.max() <= 1 for x in images.values())

    stage.export(state.weights(), state.extra, tmp_path)
    graphdef, params = networks.load_network(tmp_path, "vae")
    image = stage.codec.image(batch["audio"])
    mean, _ = networks.build(graphdef, params).encode(image)
    wanted = stage.reconstruct(state, image)[0]
    np.testing.assert_allclose(mean, wanted, atol=1e-5)
    assert load_index(tmp_path)["mel"]["n_mels"] == 16


def test_bad_configs_are_named():
    config = make_config("windows")
    with pytest.raises(ValueError, match=r"config\.discriminator\.name='windows'"):
        make_stage(config)
    config = make_config()
    config.autoencoder.block_out_channels = (8, 8)
    config.data.samples = 33 * 256
    with pytest.raises(ValueError, match=r"config\.data\.samples=8448 are 33 frames"):
        make_stage(config)
