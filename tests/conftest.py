"""Fixtures that several test modules share."""

import dataclasses
import importlib
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from maa_jax.models.rngs import InitRngs

CAPTIONS = ("a crow caws", "rain falls on a tin roof", "a dog barks twice, then a door slams")


def pytest_collection_modifyitems(items):
    """Puts the longest files first, so that two workers finish at about the same time."""
    items.sort(key=lambda item: item.path.name not in ("test_train.py", "test_devices.py"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Turns off most compiler optimizations, as most of the tests' time is compilation.

    It also keeps a compilation cache that an entry point sets from affecting other tests.
    """
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()
    jax.config.update("jax_disable_most_optimizations", not item.get_closest_marker("full"))


def random_network(make, seed):
    """Returns random parameters of a network, as a nested dict of numpy arrays.

    No layer is zero, as some are in a network's own initialisation, which would leave their
    computation untested; and nothing is compiled.
    """
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        noise = rng.standard_normal(x.shape).astype("f")
        if path[-1].key in ("scale", "var"):
            return 1 + 0.05 * np.abs(noise)
        if len(x.shape) < 2:
            return 0.05 * noise
        return noise / np.float32(np.sqrt(np.prod(x.shape[:-1])))

    state = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make(InitRngs(0)))))
    return jax.tree_util.tree_map_with_path(leaf, state)


def write_tiny_model(folder: pathlib.Path, seed: int = 0, *, fills: bool = False) -> pathlib.Path:
    """Writes a whole model folder with tiny random networks, for sounds of up to 2.048 s.

    Its denoiser is one for inpainting if `fills`.
    """
    from maa_jax.audio.mel import MelConfig
    from maa_jax.diffusion.schedule import Schedule
    from maa_jax.model_folder import networks
    from maa_jax.model_folder.index import save_index, save_scheduler
    from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
    from maa_jax.models.bert import Bert, BertConfig
    from maa_jax.models.clap import Projection, ProjectionConfig
    from maa_jax.models.cnn14 import Cnn14, Cnn14Config
    from maa_jax.models.hifigan import HifiGan, HifiGanConfig
    from maa_jax.models.unet import UNet, UNetConfig
    from maa_jax.text.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(CAPTIONS, folder / "tokenizer", 128)
    text = BertConfig(tokenizer.vocab_size, 16, 1, 2, 32, max_position_embeddings=77)
    sound = Cnn14Config(n_mels=16, channels=(4, 8, 16))
    parts = {
        "text_encoder": (Bert, text),
        "text_projection": (Projection, ProjectionConfig(16, 24)),
        "audio_encoder": (Cnn14, sound),
        "audio_projection": (Projection, ProjectionConfig(16, 24)),
        "vae": (
            Autoencoder,
            AutoencoderConfig(
                latent_channels=8,
                block_out_channels=(8, 8, 16, 16),
                layers_per_block=1,
                norm_num_groups=4,
                scaling_factor=0.5,
            ),
        ),
        "unet": (
            UNet,
            UNetConfig(
                in_channels=17 if fills else 8,
                out_channels=8,
                block_out_channels=(16, 32),
                layers_per_block=1,
                num_heads=2,
                cross_attention_dim=24,
                norm_num_groups=8,
            ),
        ),
        "vocoder": (
            HifiGan,
            HifiGanConfig(
                upsample_initial_channel=16,
                resblock_kernel_sizes=(3,),
                resblock_dilation_sizes=((1, 3),),
            ),
        ),
    }
    for i, (name, (network, config)) in enumerate(parts.items()):
        params = random_network(lambda r, n=network, c=config: n(c, rngs=r), seed + i)
        networks.save_network(folder, name, config, params)
    save_scheduler(folder, Schedule())
    save_index(folder, mel=dataclasses.asdict(MelConfig()), sample_rate=16000, max_duration=2.048)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A model folder with tiny random networks. Do not write into it: copy it."""
    return write_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture
def tones():
    """Waveform [2, 16000]: a sine and a chirp."""
    t = np.arange(16000) / 16000
    return 0.5 * np.sin(2 * np.pi * np.stack([440 * t, 200 * t + 900 * t**2])).astype("f")


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The bundled recordings, built once for this session."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> pathlib.Path:
    """The own folder of a tiny CLIP with both towers, as wide as the tiny model's context."""
    from tests.tiny_encoders import write_clip

    return write_clip(tmp_path_factory.mktemp("tiny_clip") / "clip")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> pathlib.Path:
    """A folder of 12 pictures in several formats and sizes, and a table of their captions."""
    import PIL.Image

    folder = tmp_path_factory.mktemp("pictures")
    lines = ["file,caption,label"]
    for i, colour in enumerate(("red", "green", "blue", "white", "black", "yellow") * 2):
        name = f"{i}.{('png', 'jpg', 'webp', 'gif')[i % 4]}"
        PIL.Image.new("RGB", (20 + i, 40 - i), colour).save(folder / name)
        lines.append(f"{name},a {colour} picture,{colour}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_config(data_dir, tiny_model, tiny_clip, pictures):
    """Returns the `:runlocal` config of a file in configs/, with the tiny model's networks.

    It has fewer levels, because nearly all the time is compilation.
    """

    def make(name):
        config = importlib.import_module(f"maa_jax.configs.{name}").get_config("runlocal")
        config.data.data_dir = data_dir
        if name in ("t2a", "v2a", "inpainting"):
            config.autoencoder = str(tiny_model)
            config.text_encoder = str(tiny_clip if name == "v2a" else tiny_model)
            config.unet.cross_attention_dim = 24
            config.unet.block_out_channels = (16,)
        if name == "clip":
            config.data.folder = str(pictures)
            config.data.captions_file = str(pictures / "captions.csv")
        if name == "audio_classifier":
            config.classifier.name = "cnn14"
        if name == "autoencoder":
            config.autoencoder.block_out_channels = (8,)
        return config

    return make
