import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert.vocoders import bigvgan_tensors
from maa_jax.model_folder import networks
from maa_jax.model_folder.torch_layout import from_torch
from maa_jax.models.bigvgan import (
    AntiAliased,
    BigVGAN,
    BigVGANConfig,
    kaiser_sinc,
    sin_squared,
)
from maa_jax.models.layers1d import fold_weight_norm
from maa_jax.models.rngs import InitRngs
from tests.parity.named_weights import reference, state_dict

SMALL = BigVGANConfig(upsample_initial_channel=128)
TINY = BigVGANConfig(
    model_in_dim=8,
    upsample_initial_channel=16,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 3), (1, 2)),
)


def check_parity(case, config):
    tensors, arrays = state_dict(case), reference(case)
    # The release stores its filters beside the parameters.
    tensors["activation_post.upsample.filter"] = np.zeros((1, 1, 12), np.float32)
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: BigVGAN(config, weight_norm=True, rngs=InitRngs(0)))
    )
    params = from_torch(state, bigvgan_tensors(tensors))
    mel, expected = arrays["mel"].transpose(0, 2, 1), arrays["wav"][:, 0]
    wav = jax.jit(lambda p: nnx.merge(graphdef, p)(mel))(params)
    assert np.abs(wav - expected).max() < 1e-4 * np.abs(expected).max()


def test_agrees_with_the_reference():
    check_parity("bigvgan_small", SMALL)


@pytest.mark.full
def test_released_size_agrees_with_the_reference():
    check_parity("bigvgan_released", BigVGANConfig())


def test_released_size_has_its_parameter_count():
    abstract = nnx.eval_shape(lambda: BigVGAN(BigVGANConfig(), weight_norm=True, rngs=InitRngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.state(abstract))) == 112_231_250


def test_anti_aliased_activation_is_upsampling_then_downsampling():
    """Against the definition: zeros between samples, filter, activate, filter, drop."""
    taps = kaiser_sinc(0.25, 0.3, 12).astype(np.float64)
    x = np.random.default_rng(0).normal(size=15)
    padded = np.pad(x, 5, mode="edge")
    spread = np.zeros(2 * len(padded))
    spread[::2] = padded
    high = 2 * np.convolve(spread, taps)[15 : 15 + 2 * len(x)]
    high = high + np.sin(high) ** 2
    expected = np.correlate(np.pad(high, (5, 6), mode="edge"), taps)[::2]
    ours = AntiAliased(1)(jnp.asarray(x, jnp.float32)[None, :, None])[0, :, 0]
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_sin_squared_and_its_derivative():
    x = jnp.linspace(-20, 20, 4001)
    np.testing.assert_allclose(sin_squared(x), np.sin(x) ** 2, atol=2e-6)
    gradient = jax.vmap(jax.grad(sin_squared))(x)
    np.testing.assert_allclose(gradient, np.sin(2 * x), atol=5e-6)


def test_a_folder_gives_the_trained_network_back(tmp_path):
    model = BigVGAN(TINY, weight_norm=True, rngs=InitRngs(1))
    mel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 8)), jnp.float32)
    expected = jax.jit(lambda mel: model(mel))(mel)
    networks.save_network(
        tmp_path, "vocoder", TINY, fold_weight_norm(nnx.to_pure_dict(nnx.state(model)))
    )
    graphdef, params = networks.load_network(tmp_path, "vocoder")
    wav = jax.jit(lambda p, mel: networks.build(graphdef, p)(mel))(params, mel)
    assert wav.shape == (2, 12 * TINY.hop_length)
    np.testing.assert_allclose(wav, expected, atol=1e-6)


def test_config_survives_the_round_trip_and_refuses_others():
    assert BigVGANConfig.from_hf(TINY.to_hf()) == TINY
    with pytest.raises(ValueError, match="snake='snake'"):
        BigVGANConfig.from_hf({**TINY.to_hf(), "snake": "snake"})
    with pytest.raises(ValueError, match="upsample_rates is missing"):
        BigVGANConfig.from_hf({k: v for k, v in TINY.to_hf().items() if k != "upsample_rates"})
