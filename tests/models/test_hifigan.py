import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert.vocoders import hifigan_name
from maa_jax.model_folder.torch_layout import from_torch, to_torch
from maa_jax.models.hifigan import HifiGan, HifiGanConfig, fold_weight_norm
from maa_jax.models.layers1d import Conv1d, ConvTranspose1d
from maa_jax.models.rngs import InitRngs
from tests.parity.named_weights import reference, state_dict

SMALL = HifiGanConfig(upsample_initial_channel=64)
TINY = HifiGanConfig(
    model_in_dim=8,
    upsample_initial_channel=16,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 3), (1, 2)),
)


def abstract(config, weight_norm):
    return nnx.split(
        nnx.eval_shape(lambda: HifiGan(config, weight_norm=weight_norm, rngs=InitRngs(0)))
    )


def check_parity(case, config, tensors, arrays):
    graphdef, state = abstract(config, weight_norm=True)
    params = from_torch(state, tensors, rename=hifigan_name)
    mel, expected = arrays["mel"].transpose(0, 2, 1), arrays["wav"][:, 0]
    wav = jax.jit(lambda p: nnx.merge(graphdef, p)(mel))(params)
    assert np.abs(wav - expected).max() < 1e-4 * np.abs(expected).max(), case

    folded_graphdef, _ = abstract(config, weight_norm=False)
    folded = jax.jit(lambda p: nnx.merge(folded_graphdef, p)(mel))(fold_weight_norm(params))
    assert np.abs(folded - expected).max() < 1e-4 * np.abs(expected).max(), case


def test_agrees_with_the_reference():
    check_parity("small", SMALL, state_dict("hifigan_small"), reference("hifigan_small"))


@pytest.mark.full
def test_v1_agrees_with_the_reference():
    check_parity("v1", HifiGanConfig(), state_dict("hifigan_v1"), reference("hifigan_v1"))


def test_v1_has_the_papers_parameter_count():
    _, state = abstract(HifiGanConfig(), weight_norm=True)
    assert sum(x.size for x in jax.tree.leaves(state)) == 13_936_130


def test_transformers_opens_what_is_written(tmp_path):
    torch = pytest.importorskip("torch", reason="compares with transformers' class in PyTorch")
    transformers = pytest.importorskip("transformers", reason="opens the folder")
    from maa_jax.model_folder import networks

    params = nnx.to_pure_dict(nnx.state(HifiGan(TINY, weight_norm=True, rngs=InitRngs(1))))
    networks.save_network(tmp_path, "vocoder", TINY, fold_weight_norm(params))
    theirs = transformers.SpeechT5HifiGan.from_pretrained(tmp_path / "vocoder").eval()
    mel = np.random.default_rng(0).normal(size=(2, 12, 8)).astype(np.float32)
    with torch.inference_mode():
        expected = theirs(torch.from_numpy(mel)).numpy()
    wav = networks.build(*networks.load_network(tmp_path, "vocoder"))(mel)
    assert wav.shape == (2, 12 * TINY.hop_length)
    np.testing.assert_allclose(wav, expected, atol=1e-6)


def test_config_survives_the_round_trip():
    assert HifiGanConfig.from_hf(TINY.to_hf()) == TINY


def test_config_refuses_what_it_cannot_be():
    with pytest.raises(ValueError, match="normalize_before"):
        HifiGanConfig.from_hf({**TINY.to_hf(), "normalize_before": True})
    with pytest.raises(ValueError, match="model_type"):
        HifiGanConfig.from_hf({**TINY.to_hf(), "model_type": "bert"})
    with pytest.raises(ValueError, match="upsample_kernel_sizes"):
        HifiGanConfig(upsample_rates=(8, 8), upsample_kernel_sizes=(16, 16, 4))
    with pytest.raises(ValueError, match="upsample_initial_channel"):
        HifiGanConfig(upsample_initial_channel=24)


@pytest.mark.parametrize(
    ("channels", "features", "size", "options"),
    [
        (6, 8, 5, {"padding": 4, "dilation": 2}),
        (6, 8, 5, {"padding": 1}),
        (6, 80, 3, {"padding": 3, "dilation": 3}),
        (6, 8, 4, {"stride": 3, "padding": 2}),
        (6, 8, 5, {"stride": 4}),
        (6, 4, 5, {"stride": 2, "padding": 2, "groups": 2}),
        (6, 4, 3, {"groups": 2}),
    ],
)
def test_conv1d_and_its_gradients_are_pytorchs(channels, features, size, options):
    torch = pytest.importorskip("torch", reason="compares with torch.nn.Conv1d")
    theirs = torch.nn.Conv1d(channels, features, size, **options)
    check_layer(theirs, Conv1d(channels, features, size, **options, rngs=InitRngs(0)))


@pytest.mark.parametrize(
    ("size", "options"),
    [(8, {"stride": 4, "padding": 2}), (5, {"stride": 2}), (7, {"stride": 3, "padding": 1})],
)
def test_conv_transpose1d_and_its_gradients_are_pytorchs(size, options):
    torch = pytest.importorskip("torch", reason="compares with torch.nn.ConvTranspose1d")
    theirs = torch.nn.ConvTranspose1d(6, 4, size, **options)
    check_layer(theirs, ConvTranspose1d(6, 4, size, **options, rngs=InitRngs(0)))


def check_layer(theirs, ours):
    import torch

    graphdef, state = nnx.split(ours)
    params = from_torch(state, {k: v.detach().numpy() for k, v in theirs.named_parameters()})
    x = np.random.default_rng(0).normal(size=(2, 17, 6)).astype(np.float32)
    x_torch = torch.from_numpy(x.transpose(0, 2, 1)).requires_grad_()
    expected = theirs(x_torch)
    expected.square().sum().backward()

    def loss(params, x):
        y = nnx.merge(graphdef, params)(x)
        return jnp.sum(y**2), y

    (grads, grad_x), y = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(y, expected.detach().numpy().transpose(0, 2, 1), **tolerance)
    np.testing.assert_allclose(grad_x, x_torch.grad.numpy().transpose(0, 2, 1), **tolerance)
    for name, grad in to_torch(grads).items():
        np.testing.assert_allclose(grad, theirs.get_parameter(name).grad.numpy(), **tolerance)


def test_weight_norm_starts_at_the_identity_and_trains_its_scale():
    conv = Conv1d(3, 4, 5, weight_norm=True, rngs=InitRngs(0))
    folded = fold_weight_norm(nnx.to_pure_dict(nnx.state(conv)))
    np.testing.assert_allclose(folded["kernel"], conv.weight_v[...], rtol=1e-6)
    graphdef, params = nnx.split(conv)
    x = jnp.ones((1, 9, 3))
    grads = jax.grad(lambda p: jnp.sum(nnx.merge(graphdef, p)(x) ** 2))(params)
    assert np.abs(grads["weight_g"][...]).max() > 0
