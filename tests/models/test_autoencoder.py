import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import released
from maa_jax.model_folder import networks, torch_layout
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.models.rngs import InitRngs
from tests.parity.named_weights import reference, state_dict

SMALL = AutoencoderConfig(block_out_channels=(32, 64, 64, 128))
TINY = AutoencoderConfig(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
ONE_LEVEL = dataclasses.replace(TINY, block_out_channels=(4,))


def weights(case, config):
    abstract = nnx.eval_shape(lambda: Autoencoder(config, rngs=InitRngs(0)))
    return torch_layout.from_torch(abstract, released.autoencoder_from_ldm(state_dict(case)))


def run(config, params, mel, **kwargs):
    """Returns the moments and the reconstruction of the mean, NCHW in and out."""
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Autoencoder(config, rngs=InitRngs(0), **kwargs)))

    @jax.jit
    def both(params, image):
        model = nnx.merge(graphdef, params)
        mean, logvar = model.encode(image)
        return jnp.concatenate([mean, logvar], -1), model.decode(mean)

    outputs = both(params, mel.transpose(0, 2, 3, 1))
    assert all(x.dtype == jnp.float32 for x in outputs)
    return [np.asarray(x).transpose(0, 3, 1, 2) for x in outputs]


def check(case, config, tolerance=1e-4, **kwargs):
    arrays = reference(case)
    outputs = run(config, weights(case, config), arrays["mel"], **kwargs)
    for mine, name in zip(outputs, ("moments", "reconstruction"), strict=True):
        assert np.abs(mine - arrays[name]).max() < tolerance * np.abs(arrays[name]).max()


def test_agrees_with_the_reference():
    check("autoencoder_small", SMALL)


@pytest.mark.full
def test_full_size_agrees_with_the_reference():
    check("autoencoder_paper", AutoencoderConfig())


def test_bfloat16_stays_near():
    check("autoencoder_small", SMALL, tolerance=0.1, dtype=jnp.bfloat16)


def test_latents_and_mels_keep_float32_whatever_is_computed_between_them():
    params = weights("autoencoder_small", SMALL)
    outputs = run(SMALL, params, reference("autoencoder_small")["mel"], dtype=jnp.bfloat16)
    for x in outputs:
        rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
        assert np.mean(x != rounded) > 0.9
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: Autoencoder(SMALL, dtype=jnp.bfloat16, rngs=InitRngs(0)))
    )
    program = str(jax.make_jaxpr(nnx.merge(graphdef, params).decode)(jnp.zeros((1, 2, 2, 4))))
    assert "bf16" in program and "precision=highest" in program


def test_full_size_has_the_papers_number_of_parameters():
    state = nnx.state(nnx.eval_shape(lambda: Autoencoder(AutoencoderConfig(), rngs=InitRngs(0))))
    assert sum(x.size for x in jax.tree.leaves(state)) == 68_984_037


def test_rematerialised_gradient_is_the_same():
    image = np.random.default_rng(0).normal(size=(1, 8, 6, 1)).astype("f")

    def grads(remat):
        graphdef = nnx.graphdef(
            nnx.eval_shape(lambda: Autoencoder(ONE_LEVEL, remat=remat, rngs=InitRngs(0)))
        )

        def loss(params):
            model = nnx.merge(graphdef, params)
            return jnp.mean(model.decode(model.encode(image)[0]) ** 2)

        params = nnx.state(nnx.eval_shape(lambda: Autoencoder(ONE_LEVEL, rngs=InitRngs(0))))
        rng = np.random.default_rng(1)
        params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype("f") / 4, params)
        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    plain, again = grads(False), grads(True)
    scale = max(np.abs(g).max() for g in plain)
    for a, b in zip(plain, again, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * scale)


def test_sizes_that_cannot_be_halved_are_refused():
    encode = lambda: Autoencoder(TINY, rngs=InitRngs(0)).encode(jnp.ones((1, 8, 7, 1)))
    with pytest.raises(ValueError, match="multiples of 2"):
        jax.eval_shape(encode)


def test_config_survives_the_round_trip():
    for config in (SMALL, TINY, AutoencoderConfig(latent_channels=32, scaling_factor=0.25)):
        assert AutoencoderConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


def test_config_names_what_is_not_supported():
    config = SMALL.to_hf() | {"shift_factor": 0.1, "mid_block_add_attention": False}
    config["down_block_types"] = ["DownEncoderBlock2D"] * 4
    with pytest.raises(ValueError) as error:
        AutoencoderConfig.from_hf(config)
    for part in ("shift_factor=0.1", "mid_block_add_attention=False", "down_block_types="):
        assert part in str(error.value)


def test_diffusers_opens_the_folder_and_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    params, mel = weights("autoencoder_small", SMALL), reference("autoencoder_small")["mel"]
    networks.save_network(tmp_path, "vae", SMALL, params)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert AutoencoderConfig.from_hf(dict(theirs.config)) == SMALL
    with torch.no_grad():
        latents = theirs.encode(torch.tensor(mel)).latent_dist
        wanted = torch.cat([latents.mean, latents.logvar], 1), theirs.decode(latents.mean).sample
    for mine, other in zip(run(SMALL, params, mel), wanted, strict=True):
        assert np.abs(mine - other.numpy()).max() < 1e-4 * np.abs(other.numpy()).max()
