import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import signal

from maa_jax.audio.mel import MelConfig
from maa_jax.model_folder import networks
from maa_jax.vocoder import Vocoder


@pytest.fixture(scope="module")
def vocoder(tiny_model):
    return Vocoder.from_folder(tiny_model, MelConfig()), networks.load_network(
        tiny_model, "vocoder"
    )[1]


def mels(frames=24, count=2):
    return np.random.default_rng(0).uniform(-5, 1, (count, frames, 80)).astype("f")


def test_a_sound_is_the_network_s_after_silence_without_its_offset(vocoder):
    vocode, params = vocoder
    wavs, clipped = jax.jit(vocode)(params, mels())
    around = np.pad(mels(), ((0, 0), (30, 0), (0, 0)), constant_values=-5)
    around = np.pad(around, ((0, 0), (0, 30), (0, 0)), mode="edge")
    raw = np.array(jax.jit(networks.build(vocode.graphdef, params))(around))
    decay = np.exp(-2 * np.pi * 10 / 16000)
    expected = signal.lfilter(np.array([1, -1]) * (1 + decay) / 2, [1, -decay], raw)
    raw, expected = (wav[:, 30 * 256 : -30 * 256] for wav in (raw, expected))
    expected[:, -80:] *= np.arange(80, 0, -1) / 80
    np.testing.assert_allclose(wavs, np.clip(expected, -1, 1), atol=1e-5)
    assert wavs.shape == (2, 24 * 256) and (clipped == (np.abs(raw) >= 1 - 2**-15).mean(1)).all()


class Offset(nnx.Module):
    """A tone with an offset that lasts as long as the sound, as of a badly trained vocoder."""

    def __call__(self, mel):
        loud = jnp.repeat(mel[..., 0] > -5, 256, axis=1)
        tone = 0.3 * jnp.sin(2 * jnp.pi * 440 / 16000 * jnp.arange(loud.shape[1]))
        return jnp.where(loud, tone - 0.2, -0.05)


def test_an_offset_leaves_no_mean_and_no_step():
    vocode = Vocoder(MelConfig(), nnx.graphdef(Offset()))
    mel = np.full((1, 96, 80), -5, "f")
    mel[:, 32:64] = 0
    (wav,), _ = jax.jit(vocode)({}, mel)
    assert abs(wav.mean()) < 1e-3
    assert np.abs(wav[: 31 * 256]).max() < 1e-5  # silence before the tone
    assert np.abs(wav[-16 * 256 :]).max() < 1e-4  # and after it
    np.testing.assert_allclose(wav[48 * 256 : 64 * 256].std(), 0.3 / np.sqrt(2), rtol=0.01)


class Loud(nnx.Module):
    """A tone as loud as the mel's first bin says, as of a vocoder whose range has no end."""

    def __call__(self, mel):
        tone = jnp.sin(2 * jnp.pi * 440 / 16000 * jnp.arange(mel.shape[1] * 256))
        return jnp.repeat(10 ** mel[..., 0], 256, axis=1) * tone


def test_a_sound_beyond_full_scale_is_made_quieter_and_not_clipped():
    vocode = Vocoder(MelConfig(), nnx.graphdef(Loud()))
    mel = np.full((2, 96, 80), -5, "f")
    mel[0, 32:64, 0], mel[0, 64:80, 0] = np.log10(2), np.log10(0.5)
    mel[1, 32:64, 0] = np.log10(0.5)
    wavs, clipped = jax.jit(vocode)({}, mel)
    assert not clipped.any()
    assert np.abs(wavs[0]).max() == pytest.approx(0.99)
    loud, half = (wavs[0, n * 256 : (n + 12) * 256].std() for n in (36, 66))
    np.testing.assert_allclose(loud / half, 4, rtol=0.01)  # the shape of the sound is kept
    assert np.abs(wavs[1]).max() == pytest.approx(0.5, rel=0.02)  # and so are other sounds
    free, _ = jax.jit(functools.partial(vocode, bounded=False))({}, mel)
    np.testing.assert_allclose(free[0] / np.abs(free[0]).max() * 0.99, wavs[0], atol=1e-6)
    assert np.abs(free[0]).max() > 1.5


def test_a_sound_fades_out_where_it_is_cut(vocoder):
    vocode, params = vocoder
    program = jax.jit(vocode)
    whole, _ = program(params, mels())
    cut, _ = program(params, mels(), np.array([3000, 24 * 256]))
    np.testing.assert_allclose(cut[1], whole[1], atol=1e-6)
    np.testing.assert_allclose(cut[0, :2920], whole[0, :2920], atol=1e-6)
    assert not cut[0, 3000:].any()
    np.testing.assert_allclose(
        cut[0, 2920:3000], whole[0, 2920:3000] * np.arange(80, 0, -1) / 80, atol=1e-6
    )
    one, _ = program(params, mels(), np.array([1, 40]))
    assert one[0, 0] == pytest.approx(whole[0, 0]) and not one[0, 1:].any()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_multiplies_in_float32_with_the_highest_precision_on_accelerators(vocoder, platform):
    vocode, params = vocoder
    traced = jax.jit(vocode).trace(params, mels())
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if re.search(r"dot_general|\.convolution", line)]
    assert len(products) > 10
    for line in products:
        assert re.search(r"precision.*HIGHEST.*HIGHEST", line) and "bf16" not in line, line
