"""The full-size configurations: their networks have the sizes that the paper and release state."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from maa_jax.audio.mel import MelConfig
from maa_jax.data.builders import BUILDERS
from maa_jax.data.config import DataConfig
from maa_jax.model_folder.registry import NETWORKS
from maa_jax.models.bert import BertConfig
from maa_jax.models.clap import ClapConfig, Projection
from maa_jax.models.clip import ClipTextConfig
from maa_jax.models.rngs import InitRngs
from maa_jax.models.t5 import T5Config
from maa_jax.models.unet import UNet, UNetConfig
from maa_jax.stages import make_stage
from maa_jax.training import optim


def _count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def _networks(name, **changes):
    """Parameter counts of a full-size stage by network, from shapes alone."""
    config = importlib.import_module(f"maa_jax.configs.{name}").get_config()
    for key, value in changes.items():
        config[key] = value
    stage = make_stage(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    return {name: _count(tree) for name, tree in shapes.params.items()}


@pytest.mark.parametrize(("name", "count"), [("t2a", 160_223_684), ("v2a", 104_356_612)])
def test_the_unet_has_the_papers_size(name, count):
    config = importlib.import_module(f"maa_jax.configs.{name}").get_config()
    # Without the stage, which would read a full-size autoencoder and text encoder.
    unet = nnx.eval_shape(lambda: UNet(UNetConfig(**config.unet), rngs=InitRngs(0)))
    assert _count(nnx.state(unet, nnx.Param)) == count


@pytest.mark.parametrize(
    ("arg", "kind", "encoder", "total"),
    [
        ("clap", "BertModel", BertConfig(), 270_952_388),
        ("t5", "T5EncoderModel", T5Config.large(), 495_163_332),
        ("bert", "BertModel", BertConfig.large(), 494_315_972),
        ("clip", "CLIPTextModel", ClipTextConfig.large(), 280_498_884),
    ],
)
def test_the_rows_of_table_1_have_the_sizes_that_the_config_states(arg, kind, encoder, total):
    module = importlib.import_module("maa_jax.configs.t2a")
    config = module.get_config(arg)
    _, file, _, network = NETWORKS[kind]
    network = getattr(importlib.import_module(file), network)
    parts = [(network, encoder), (UNet, UNetConfig(**config.unet))]
    width = encoder.hidden_size
    if arg == "clap":
        head = ClapConfig.microsoft_2022().text_projection
        parts.append((Projection, head))
        width = head.out_size
    assert config.unet.cross_attention_dim == width
    counts = [
        _count(nnx.state(nnx.eval_shape(lambda n=n, c=c: n(c, rngs=InitRngs(0))))) for n, c in parts
    ]
    assert sum(counts) == total
    stated = next(line for line in module.__doc__.splitlines() if line.startswith(f"    {arg} "))
    assert f"{sum(counts) - counts[1]:,}" in stated and f"{total:,}" in stated  # beside the paper's


@pytest.mark.parametrize("discriminator", ["multi_window", "patch"])
def test_the_autoencoder_has_the_papers_size(discriminator):
    config = importlib.import_module("maa_jax.configs.autoencoder").get_config()
    config.discriminator.name = discriminator
    counts = _networks("autoencoder", discriminator=config.discriminator)
    assert counts["vae"] == 68_984_037


@pytest.mark.parametrize(
    ("arg", "count"), [(None, 13_936_130), ("bigvgan", 112_231_250), ("vocos", 13_459_970)]
)
def test_the_vocoders_have_the_published_sizes(arg, count):
    config = importlib.import_module("maa_jax.configs.vocoder").get_config(arg)
    stage = make_stage(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    assert _count(shapes.params["vocoder"]) == count


def test_clap_has_the_size_of_bert_base_and_cnn14(tiny_model):
    counts = _networks("clap", tokenizer=str(tiny_model / "tokenizer"))
    bert, cnn14 = 108_891_648, 80_753_615  # without the pooler; as PANNs counts it
    projections = (768 + 1024) * 1024 + 2 * 1024 + (2048 + 1024) * 1024 + 2 * 1024
    assert counts["clap"] == bert + cnn14 + projections + 1  # and the temperature


def test_no_key_of_the_data_or_the_front_end_is_locked_out():
    config = importlib.import_module("maa_jax.configs.vocoder").get_config()
    for block, settings in (("data", DataConfig), ("mel", MelConfig)):
        assert set(config[block]) == {field.name for field in dataclasses.fields(settings)}
    assert DataConfig.of(config.data) == DataConfig(samples=8192)


def _applied_rate(config, step):
    """Returns how far the optimizer moves a parameter at 0 in a step, after equal gradients."""
    settings = config.optimizer
    tx = optim.make_optimizer(settings, config.batch_size)
    params, grads = ({"w": jnp.full(1, x)} for x in (0.0, 1e-3))

    def before(path, x):  # the state after `step` such gradients: both moments and the counts
        if x.ndim == 0:
            return jnp.full_like(x, step)
        first = "mu" in jax.tree_util.keystr(path)
        gone = 1 - (settings.b1 if first else settings.b2) ** step
        return jnp.full(1, gone * (1e-3 if first else 1e-6))

    state = jax.tree_util.tree_map_with_path(before, tx.init(params))
    new, _ = optim.update(tx, grads, params, state)
    return -float(new["w"][0])


@pytest.mark.parametrize(
    ("name", "arg", "step", "rate", "clip"),
    [
        # The release: scale_lr, so 1 x 4 GPUs x 4 examples x 1e-5, after 10,000 steps of warm-up.
        ("t2a", None, 4_999, 0.5 * 1.6e-4, 1.0),
        ("t2a", None, 10_000, 1.6e-4, 1.0),
        ("t2a", None, 1_000_000, 1.6e-4, 1.0),
        ("t2a", "t5", 1_000_000, 1.6e-4, 1.0),
        # The release: 4.5e-6 x batch.
        ("autoencoder", None, 400_000, 16 * 4.5e-6, 0.0),
        # HiFi-GAN: 2e-4, and after 3,090 epochs of 809 steps.
        ("vocoder", None, 0, 2e-4, 0.0),
        ("vocoder", None, 2_500_000, 2e-4 * 0.999**3090, 0.0),
        ("vocoder", "bigvgan", 1_000_000, 1e-4 * 0.999**90, 1000.0),
        # MMT on MSR-VTT.
        ("retriever", None, 1_000, 5e-5 * 0.99901, 0.0),
    ],
)
def test_full_size_optimizers_apply_the_published_rates(name, arg, step, rate, clip):
    config = importlib.import_module(f"maa_jax.configs.{name}").get_config(arg)
    assert _applied_rate(config, step) == pytest.approx(rate, rel=1e-3)
    assert config.optimizer.clip_norm == clip


def test_the_papers_mixture_is_every_dataset_of_table_4():
    config = importlib.import_module("maa_jax.configs.t2a").get_config("paper")
    data = DataConfig.of(config.data)
    names = [part.dataset.removeprefix("enhanced/") for part in data.parts()]
    others = "audio_folder", "general_midi", "image_folder", "sonic_sounds"
    assert sorted([*names, *others]) == sorted(BUILDERS)
    captioned = [part.dataset for part in data.parts() if not part.dataset.startswith("enhanced/")]
    assert len(captioned) == 6  # the rest have labels, or nothing
