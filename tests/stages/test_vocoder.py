import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from maa_jax.audio.mel import MelConfig, log_mel
from maa_jax.configs import common
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import load_index
from maa_jax.stages import make_stage, vocoder
from maa_jax.training import state

SAMPLES = 4096
START = 20  # the step at which the discriminators begin


def tiny_config(name="hifigan"):
    config = common.small_run(common.base("vocoder"), steps=4)
    config.batch_size = 2
    config.data.samples = SAMPLES
    tiny = dict(
        upsample_initial_channel=32,
        upsample_rates=(16, 16),
        upsample_kernel_sizes=(32, 32),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )
    config.generator = common.block(
        name=name,
        hifigan=common.block(**tiny),
        bigvgan=common.block(**tiny),
        vocos=common.block(n_fft=512, dim=16, intermediate_dim=32, num_layers=2),
    )
    config.discriminator = common.block(
        start=0,
        period=common.block(periods=(2, 3), channels=(4, 8)),
        scale=common.block(
            scales=2, channels=(4, 8), kernel_sizes=(15, 5), strides=(1, 4), groups=(1, 2)
        ),
        resolution=common.block(resolutions=((128, 32, 64),), channels=4),
    )
    config.mel_weight, config.spectral_weight, config.feature_weight = 45.0, 0.0, 2.0
    config.optimizer.base_lr = 2e-4
    config.optimizer.b1, config.optimizer.b2 = 0.8, 0.99
    config.optimizer.weight_decay = 0.01
    return config


@pytest.fixture(scope="module")
def batch():
    time = np.arange(SAMPLES) / 16000
    tones = np.stack([np.sin(2 * np.pi * f * time) for f in (220, 1760)])
    noise = np.random.default_rng(0).normal(size=tones.shape)
    return {"audio": (0.3 * tones + 0.02 * noise).astype(np.float32)}


def largest_change(before, after):
    changes = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), before, after)
    return max(jax.tree.leaves(changes))


@pytest.fixture(scope="module")
def train():
    """The state of step 0."""
    return jax.jit(make_stage(tiny_config()).init)(jax.random.key(0))


@pytest.fixture(scope="module")
def trained(batch):
    """States and scores of a run, the last step of which is the first of the discriminators."""
    config = tiny_config()
    config.discriminator.start = START
    config.optimizer.base_lr = 2e-3
    config.ema_decay = 0.9
    stage = make_stage(config)
    states, scores = [jax.jit(stage.init)(jax.random.key(0))], []
    step = jax.jit(stage.train_step)
    for i in range(START + 1):
        train, score = step(states[-1], {}, batch, jax.random.key(i))
        states.append(train)
        scores.append(score)
    return states, scores


def test_discriminators_are_inactive_until_their_start(trained):
    states, scores = trained
    first, last = scores[0], scores[-1]
    assert first["discriminator_loss"] == first["feature_loss"] == 0
    assert first["loss"] == pytest.approx(45 * first["mel_l1"])
    assert all(np.isfinite(x) for x in last.values())
    assert last["discriminator_loss"] > 0 and last["feature_loss"] > 0
    for network in states[0].params:
        change = [
            largest_change(a.params[network], b.params[network])
            for a, b in itertools.pairwise(states)
        ]
        assert all((x == 0) == (network != "vocoder") for x in change[:-1])
        assert change[-1] > 0


def test_the_mel_distance_falls_and_the_average_follows(trained):
    states, scores = trained
    assert scores[-1]["mel_l1"] < 0.7 * scores[0]["mel_l1"]
    assert 0 < largest_change(states[-1].params["vocoder"], states[-1].ema["vocoder"]) < 1


def test_the_mel_distance_is_in_natural_logarithm_whatever_the_front_end_has(batch, train):
    config = tiny_config()
    config.mel.log = "log"
    distances = [
        make_stage(c).mel_distances(
            0.1 * batch["audio"], log_mel(batch["audio"], MelConfig(**c.mel))
        )
        for c in (config, tiny_config())
    ]
    np.testing.assert_allclose(*distances, rtol=1e-5)
    assert np.all(distances[0] > 0.5)  # louder by ln 10 where nothing is at the floor


@pytest.mark.parametrize("name", ["bigvgan", "vocos"])
def test_other_generators_train_against_their_discriminators(name, batch):
    config = tiny_config(name)
    config.spectral_weight = 45.0
    stage = make_stage(config)
    before = jax.jit(stage.init)(jax.random.key(0))
    after, scores = jax.jit(stage.train_step)(before, {}, batch, jax.random.key(1))
    assert all(np.isfinite(x) for x in scores.values())
    assert before.params.keys() == {"vocoder", "period", "resolution"}
    for network in before.params:
        assert largest_change(before.params[network], after.params[network]) > 0


def test_gradients_are_those_of_the_written_out_losses(batch, train):
    """The step composes them from parts; here each loss is differentiated as a whole."""
    stage = make_stage(tiny_config())
    stage._tx = optax.sgd(1.0)  # moves weights by their gradients
    train = train.replace(
        opt={name: stage._tx.init(params) for name, params in train.params.items()}
    )
    after, _ = jax.jit(stage.train_step)(train, {}, batch, jax.random.key(0))
    seen = jax.tree.map(jnp.subtract, train.params, after.params)

    mel = log_mel(batch["audio"], stage.mel)
    disc_params = {name: train.params[name] for name in ("period", "scale")}

    def outputs(params, disc_params):
        fake = nnx.merge(stage._graphs["vocoder"], params)(mel)
        real, extra = stage.discriminate(disc_params, train.extra, jnp.asarray(batch["audio"]))
        return fake, real, stage.discriminate(disc_params, extra, fake)[0]

    def generator(params):
        fake, real, false = outputs(params, disc_params)
        distance = np.log(10) * jnp.abs(log_mel(fake, stage.mel) - mel).mean()
        features = vocoder.feature_distance(real, false)
        return 45 * distance + vocoder.generator_loss(false) + 2 * features

    def discriminator(disc_params):
        return vocoder.discriminator_loss(*outputs(train.params["vocoder"], disc_params)[1:])

    expected = {"vocoder": jax.jit(jax.grad(generator))(train.params["vocoder"])}
    expected |= jax.jit(jax.grad(discriminator))(disc_params)
    for name, grads in expected.items():
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(seen[name]), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * np.abs(a).max())


def test_microbatches_make_one_step(batch, train):
    config = tiny_config()
    config.accumulate = 2
    stage = make_stage(config)
    after, scores = jax.jit(stage.train_step)(train, {}, batch, jax.random.key(0))
    assert all(np.isfinite(x) for x in scores.values()) and int(after.step) == 1
    for network in train.params:
        assert 0 < largest_change(train.params[network], after.params[network]) < 1


def test_scores_summaries_and_the_exported_folder(batch, train, tmp_path):
    stage = make_stage(tiny_config())
    score = jax.jit(stage.eval_step)(train, {}, batch, jax.random.key(0))["loss"]
    assert score.shape == (2,)
    summary = jax.jit(stage.summarize)(train, {}, batch, jax.random.key(0))
    assert summary["image/reconstruction"].shape == (2, 80, 16, 1)
    assert summary["audio/reconstruction"].shape == (2, SAMPLES, 1)

    stage.export(jax.device_get(train.weights()), train.extra, tmp_path)
    assert load_index(tmp_path)["mel"]["log"] == "log10"
    graphdef, params = networks.load_network(tmp_path, "vocoder")
    mel = log_mel(batch["audio"], stage.mel)
    wav = jax.jit(lambda p, mel: networks.build(graphdef, p)(mel))(params, mel)
    np.testing.assert_allclose(wav, summary["audio/reconstruction"][..., 0], atol=1e-5)


def test_refuses_what_does_not_fit():
    config = tiny_config()
    config.generator.name = "wavenet"
    with pytest.raises(ValueError, match="hifigan, bigvgan"):
        make_stage(config)
    config = tiny_config()
    config.generator.hifigan.upsample_rates = (16, 8)
    config.generator.hifigan.upsample_kernel_sizes = (32, 16)
    with pytest.raises(ValueError, match=r"hop_length is 256"):
        make_stage(config)
    config = tiny_config()
    config.data.samples = 1000
    with pytest.raises(ValueError, match=r"config\.data\.samples=1000"):
        make_stage(config)


def test_training_can_start_from_a_model_folder(tmp_path):
    config = tiny_config()
    config.ema_decay = 0.9
    stage = make_stage(config)
    train = jax.jit(stage.init)(jax.random.key(0))
    stage.export(train.weights(), train.extra, tmp_path)
    config.init_from = str(tmp_path)
    stage = make_stage(config)
    ready = state.load_pretrained(jax.jit(stage.init)(jax.random.key(1)), stage.start_weights())
    for weights in (ready.params, ready.ema):
        # The length and direction of a kernel are split anew, within rounding.
        assert largest_change(train.params["vocoder"], weights["vocoder"]) < 1e-6
    assert largest_change(train.params["period"], ready.params["period"]) > 0

    config.generator.hifigan.upsample_initial_channel = 64
    with pytest.raises(ValueError, match=r"config\.init_from.*upsample_initial_channel=32 there"):
        make_stage(config).start_weights()
    config.init_from = "nowhere"
    with pytest.raises(ValueError, match=r"config\.init_from: .*nowhere"):
        make_stage(config).start_weights()
