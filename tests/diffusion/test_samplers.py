import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax import bundle
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.interop import torch_layout
from maa_jax.interop.released import unet_from_ldm
from maa_jax.models.unet import UNet, UNetConfig
from tests.parity.named_weights import reference, state_dict


@pytest.fixture(scope="module")
def unet():
    config = UNetConfig(block_out_channels=(32, 64), cross_attention_dim=48)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=nnx.Rngs(0))))
    params = torch_layout.from_torch(state, unet_from_ldm(state_dict("unet_small")))
    return graphdef, jax.device_put(params)


@pytest.mark.parametrize(("steps", "scale"), [(20, 3), (100, 3), (25, 1)])
def test_ddim_agrees_with_the_reference(unet, steps, scale):
    case, (graphdef, params) = reference("ddim_unet_small"), unet
    schedule = Schedule()

    @jax.jit
    def sample(params, x, context, unconditional, scale):
        denoise = samplers.guided(bundle.build(graphdef, params), context, unconditional, scale)
        return samplers.ddim(denoise, x, schedule.ddim_timesteps(steps), schedule.alphas_cumprod)

    x = case["x_T"].transpose(0, 2, 3, 1)
    got = sample(params, x, case["context"], case["unconditional"], scale)
    want = case[f"sample_{steps}_steps_scale_{scale}"].transpose(0, 2, 3, 1)
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()


def toy(x, t):
    """A denoiser that depends on everything it is given."""
    return 0.3 * jnp.sin(2 * x) + 0.5 * x * jnp.cos(t / 300.0)


def diffusers_sample(x, steps, eta, noise):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's DDIM")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' DDIM")
    scheduler = diffusers.DDIMScheduler.from_config(Schedule().to_hf())
    scheduler.set_timesteps(steps)
    x = torch.tensor(x)
    for t in scheduler.timesteps:
        eps = torch.tensor(np.array(toy(x.numpy(), int(t))))
        z = torch.tensor(np.array(noise(int(t))))
        x = scheduler.step(eps, t, x, eta=eta, variance_noise=z if eta else None).prev_sample
    return x.numpy()


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_eta_agrees_with_diffusers(eta):
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype("f")
    keys = jax.random.split(jax.random.key(1), 3)

    def noise(t):
        return jnp.stack([jax.random.normal(jax.random.fold_in(k, t), x.shape[1:]) for k in keys])

    schedule = Schedule()
    got = samplers.ddim(
        toy, x, schedule.ddim_timesteps(10), schedule.alphas_cumprod, eta, keys if eta else None
    )
    np.testing.assert_allclose(got, diffusers_sample(x, 10, eta, noise), atol=2e-4)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype("f")
    keys = jax.random.split(jax.random.key(1), 3)
    schedule = Schedule()

    def sample(x, keys):
        times = schedule.ddim_timesteps(5)
        return samplers.ddim(toy, x, times, schedule.alphas_cumprod, 1.0, keys)

    np.testing.assert_allclose(sample(x, keys)[2:], sample(x[2:], keys[2:]), atol=1e-5)
    with pytest.raises(ValueError, match=r"eta=1\.0.*key"):
        sample(x, None)


def test_segments_make_the_whole():
    x = np.random.default_rng(0).standard_normal((2, 2, 4, 4)).astype("f")
    schedule = Schedule()
    whole = samplers.ddim(toy, x, schedule.ddim_timesteps(6), schedule.alphas_cumprod)
    rows = samplers.ddim_coefficients(schedule.ddim_timesteps(6), schedule.alphas_cumprod)
    half = samplers.ddim_scan(toy, x, rows[:3])
    np.testing.assert_allclose(samplers.ddim_scan(toy, half, rows[3:]), whole, atol=1e-6)


def test_guidance_runs_both_conditions_in_one_batch():
    calls = []

    def unet(x, t, context):
        calls.append((x.shape, t.shape, context.shape))
        return x * context.mean((1, 2))[:, None, None, None]

    x, context = jnp.ones((2, 1, 3, 1)), jnp.full((2, 4, 5), 2.0)
    denoise = samplers.guided(unet, context, jnp.ones((2, 4, 5)), 3.0)
    np.testing.assert_allclose(denoise(x, jnp.int32(5)), 1 + 3 * (2 - 1) * x)
    assert calls == [((4, 1, 3, 1), (4,), (4, 4, 5))]
