import dataclasses
import shutil

import jax
import numpy as np
import pytest

from maa_jax.audio.mel import MelConfig, log_mel
from maa_jax.files import FolderError
from maa_jax.latents import LatentCodec, check_front_end
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from tests.conftest import random_network


@pytest.fixture(scope="module")
def three_levels(tmp_path_factory):
    """A folder whose autoencoder divides by 4, and not by 8 as the paper's."""
    folder = tmp_path_factory.mktemp("three")
    config = AutoencoderConfig(
        block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5
    )
    params = random_network(lambda rngs: Autoencoder(config, rngs=rngs), 0)
    networks.save_network(folder, "vae", config, params)
    save_index(folder, mel=dataclasses.asdict(MelConfig()))
    return folder


def test_a_decoded_sound_has_its_original_length(three_levels, tones):
    codec, params = LatentCodec.load(three_levels)
    audio = tones[:, :8192]
    latents = jax.jit(codec.encode)(params, audio)
    assert latents.shape == (2, *codec.shape(8192)) == (2, 20, 8, 4)
    assert jax.jit(codec.decode)(params, latents).shape == (2, 32, 80) == log_mel(audio).shape
    assert (codec.frames(8192), codec.samples(8)) == (32, 8192)


@pytest.mark.parametrize(
    ("samples", "multiple", "width"),
    [(1, 1, 1), (2048, 1, 1), (2049, 1, 2), (2049, 8, 8), (32768, 8, 16), (32769, 8, 24)],
)
def test_latents_are_as_wide_as_a_sound_needs(tiny_model, samples, multiple, width):
    assert LatentCodec.from_folder(tiny_model).shape(samples, multiple) == (10, width, 8)


def test_the_scale_is_the_configuration_s_unless_given(three_levels, tones):
    codec, params = LatentCodec.load(three_levels)
    encode = jax.jit(codec.encode, static_argnames="scale")
    audio, key = tones[:, :2048], jax.random.key(0)
    plain = encode(params, audio, scale=1.0)
    np.testing.assert_allclose(encode(params, audio), 0.5 * plain, rtol=1e-6)
    mels = jax.jit(codec.decode)(params, 0.5 * plain)
    again = jax.jit(codec.decode, static_argnames="scale")(params, plain, scale=1.0)
    np.testing.assert_allclose(mels, again, rtol=1e-6)
    # A sample is near the mean, within the posterior's standard deviation.
    draw = encode(params, audio, key, scale=1.0)
    vae = networks.build(codec.graphdef, params)
    deviation = np.exp(0.5 * jax.jit(vae.encode)(codec.image(audio))[1])
    noise = jax.random.normal(key, plain.shape)
    np.testing.assert_allclose((draw - plain) / deviation, noise, atol=1e-3)


def test_only_clips_that_fill_whole_latents_are_taken(three_levels):
    codec = LatentCodec.from_folder(three_levels)
    codec.check_clip(8192)
    for samples in (8192 + 1, 8192 + 256):
        with pytest.raises(ValueError, match=rf"data\.samples={samples}.*by 4: .*multiple of 1024"):
            codec.check_clip(samples)
    with pytest.raises(ValueError, match=r"mel\.n_mels=82: .*multiple of 4"):
        dataclasses.replace(codec, mel=MelConfig(n_mels=82))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(log="log"), "config.mel.log='log' here, 'log10' there"),
        (dict(fmax=6000.0), "config.mel.fmax=6000.0 here, 8000.0 there"),
        (dict(n_mels=64, hop_length=128), "config.mel.hop_length=128 here, 256 there; config.mel"),
        (dict(sample_rate=22050), "config.mel.sample_rate=22050, but recordings come at 16000 Hz"),
    ],
)
def test_an_autoencoder_of_another_front_end_is_refused(three_levels, settings, message):
    mel = MelConfig(**settings)
    with pytest.raises(ValueError) as e:
        LatentCodec.load(three_levels, mel=mel)
    assert message in str(e.value)
    assert ("set it to 16000" if "sample_rate" in settings else "Use its values") in str(e.value)


def test_a_vocoder_of_another_front_end_is_refused():
    check_front_end(MelConfig(), {"the vocoder in x": MelConfig(), "one that does not say": None})
    with pytest.raises(
        ValueError, match=r"the vocoder in x has .*mel\.fmin=50\.0 here, 0\.0 there"
    ):
        check_front_end(MelConfig(fmin=50.0), {"the vocoder in x": MelConfig()})


def test_an_autoencoder_that_states_no_front_end_takes_the_run_s(three_levels, tmp_path):
    """A folder as diffusers writes it, without model_index.json."""
    shutil.copytree(three_levels / "vae", tmp_path / "vae")
    codec, _ = LatentCodec.load(tmp_path, mel=MelConfig(log="log"))
    assert codec.mel.log == "log"
    with pytest.raises(FolderError, match=r"has no model_index\.json, which states the mel"):
        LatentCodec.load(tmp_path)


def test_opening_reads_no_weights(three_levels, monkeypatch):
    monkeypatch.setattr(networks, "load_network", lambda *a, **k: pytest.fail("read weights"))
    assert LatentCodec.from_folder(three_levels).downscale == 4
