import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import released
from maa_jax.model_folder import networks, torch_layout
from maa_jax.models.rngs import InitRngs
from maa_jax.models.unet import UNet, UNetConfig
from tests.conftest import random_network
from tests.parity.named_weights import reference, state_dict

SMALL = UNetConfig(block_out_channels=(32, 64), cross_attention_dim=48)
TINY = UNetConfig(
    block_out_channels=(8, 16),
    layers_per_block=1,
    num_heads=2,
    cross_attention_dim=5,
    norm_num_groups=4,
)
ONE_LEVEL = dataclasses.replace(TINY, block_out_channels=(8,))


def weights(case, config):
    abstract = nnx.eval_shape(lambda: UNet(config, rngs=InitRngs(0)))
    return torch_layout.from_torch(abstract, released.unet_from_ldm(state_dict(case)))


def predict(config, params, arrays, **kwargs):
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: UNet(config, rngs=InitRngs(0), **kwargs)))
    x = arrays["x"].transpose(0, 2, 3, 1)
    run = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs))
    return run(params, x, arrays["t"], arrays["context"])


def check(case, config, tolerance=1e-4, **kwargs):
    arrays = reference(case)
    eps = predict(config, weights(case, config), arrays, **kwargs)
    wanted = arrays["eps"].transpose(0, 2, 3, 1)
    assert eps.dtype == jnp.float32
    assert np.abs(eps - wanted).max() < tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("remat", [False, True])
def test_agrees_with_the_reference(remat):
    check("unet_small", SMALL, remat=remat)


@pytest.mark.full
def test_full_size_agrees_with_the_reference():
    check("unet_paper", UNetConfig())


def test_full_size_has_the_papers_number_of_parameters():
    state = nnx.state(nnx.eval_shape(lambda: UNet(UNetConfig(), rngs=InitRngs(0))))
    assert sum(x.size for x in jax.tree.leaves(state)) == 160_223_684


def test_a_fresh_network_predicts_zero_and_every_parameter_is_float32():
    @jax.jit
    def fresh():
        model = UNet(ONE_LEVEL, dtype=jnp.bfloat16, rngs=InitRngs(0))
        noise = model(jnp.ones((1, 4, 4, 4)), jnp.array([3]), jnp.ones((1, 2, 5)))
        return noise, nnx.state(model)

    eps, params = fresh()
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    assert eps.dtype == jnp.float32 and not eps.any()


def test_rematerialised_gradient_is_the_same():
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((1, 4, 6, 4)), rng.standard_normal((1, 3, 5))

    def grads(remat):
        abstract = nnx.eval_shape(lambda: UNet(ONE_LEVEL, remat=remat, rngs=InitRngs(0)))
        graphdef, params = nnx.split(abstract)
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype("f") / 4, params)

        def loss(params):
            return jnp.mean(nnx.merge(graphdef, params)(x, jnp.array([3]), context) ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    plain, again = grads(False), grads(True)
    scale = max(np.abs(g).max() for g in plain)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


def test_bfloat16_stays_near():
    check("unet_small", SMALL, tolerance=0.1, dtype=jnp.bfloat16)


def test_sizes_that_cannot_be_halved_are_refused():
    def run():
        model = UNet(TINY, rngs=InitRngs(0))
        return model(jnp.ones((1, 5, 4, 4)), jnp.array([3]), jnp.ones((1, 2, 5)))

    with pytest.raises(ValueError, match="multiples of 2"):
        jax.eval_shape(run)


def test_config_survives_the_round_trip():
    wide = UNetConfig(num_heads=4, block_out_channels=(64, 96, 128))
    for config in (SMALL, UNetConfig(), wide, dataclasses.replace(wide, num_heads=(2, 3, 4))):
        assert UNetConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_config_names_what_is_not_supported():
    config = SMALL.to_hf() | {"use_linear_projection": True, "encoder_hid_dim": 8}
    del config["in_channels"]
    with pytest.raises(ValueError) as error:
        UNetConfig.from_hf(config)
    for part in ("in_channels is missing", "use_linear_projection=True", "encoder_hid_dim=8"):
        assert part in str(error.value)
    for heads in (3, (8, 16, 8), (8, 7)):
        with pytest.raises(ValueError, match=rf"num_heads={re.escape(str(heads))}: give a divisor"):
            UNetConfig(num_heads=heads)


def test_diffusers_agrees_on_numbers_of_heads_for_each_level(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    config = dataclasses.replace(
        TINY, block_out_channels=(8, 16, 24), num_heads=(1, 4, 3), cross_attention_dim=6
    )
    params = random_network(lambda rngs: UNet(config, rngs=rngs), 0)
    networks.save_network(tmp_path, "unet", config, params)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    blocks = [*theirs.down_blocks, theirs.mid_block, *theirs.up_blocks]
    heads = [block.attentions[0].transformer_blocks[0].attn1.heads for block in blocks]
    assert heads == [1, 4, 3, 3, 3, 4, 1]
    assert UNetConfig.from_hf(dict(theirs.config)) == config
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 4, 8, 12), "context": (2, 3, 6)}
    arrays = {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()}
    arrays["t"] = np.array([3, 700])
    with torch.no_grad():
        eps = theirs(*(torch.tensor(arrays[k]) for k in ("x", "t", "context"))).sample.numpy()
    wanted = eps.transpose(0, 2, 3, 1)
    assert np.abs(predict(config, params, arrays) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_diffusers_opens_the_folder_and_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    params, arrays = weights("unet_small", SMALL), reference("unet_small")
    networks.save_network(tmp_path, "unet", SMALL, params)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert UNetConfig.from_hf(dict(theirs.config)) == SMALL
    with torch.no_grad():
        eps = theirs(*(torch.tensor(arrays[k]) for k in ("x", "t", "context"))).sample.numpy()
    mine = predict(SMALL, params, arrays)
    wanted = eps.transpose(0, 2, 3, 1)
    assert np.abs(mine - wanted).max() < 1e-4 * np.abs(wanted).max()
