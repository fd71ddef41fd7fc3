"""The full-size configurations: their networks have the sizes that the paper and release state."""

import dataclasses
import importlib

import jax
import pytest
from flax import nnx

from maa_jax.audio.mel import MelConfig
from maa_jax.data.config import DataConfig
from maa_jax.model_folder.registry import NETWORKS
from maa_jax.models.bert import BertConfig
from maa_jax.models.clap import ClapConfig, Projection
from maa_jax.models.clip import ClipTextConfig
from maa_jax.models.rngs import InitRngs
from maa_jax.models.t5 import T5Config
from maa_jax.models.unet import UNet, UNetConfig
from maa_jax.stages import make_stage


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


def test_the_unet_has_the_papers_size():
    config = importlib.import_module("maa_jax.configs.t2a").get_config()
    # Without the stage, which would read a full-size autoencoder and text encoder.
    unet = nnx.eval_shape(lambda: UNet(UNetConfig(**config.unet), rngs=InitRngs(0)))
    assert _count(nnx.state(unet, nnx.Param)) == 160_223_684


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


@pytest.mark.parametrize(("arg", "count"), [(None, 13_936_130), ("bigvgan", 112_231_250)])
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
