import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert.released import unet_from_ldm
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import SPACINGS, Schedule
from maa_jax.model_folder import networks, torch_layout
from maa_jax.models.rngs import InitRngs
from maa_jax.models.unet import UNet, UNetConfig
from tests.parity.named_weights import reference, state_dict


@pytest.fixture(scope="module")
def unet():
    config = UNetConfig(block_out_channels=(32, 64), cross_attention_dim=48)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: UNet(config, rngs=InitRngs(0))))
    params = torch_layout.from_torch(state, unet_from_ldm(state_dict("unet_small")))
    return graphdef, jax.device_put(params)


@pytest.mark.parametrize(("steps", "scale"), [(20, 3), (100, 3), (25, 1)])
def test_ddim_agrees_with_the_reference(unet, steps, scale):
    case, (graphdef, params) = reference("ddim_unet_small"), unet
    table = samplers.coefficients("ddim", Schedule(), steps)

    @jax.jit
    def sample(params, x, context, unconditional, scale):
        denoise = samplers.guided(networks.build(graphdef, params), context, unconditional, scale)
        return samplers.sample(denoise, x, table)

    x = case["x_T"].transpose(0, 2, 3, 1)
    got = sample(params, x, case["context"], case["unconditional"], scale)
    want = case[f"sample_{steps}_steps_scale_{scale}"].transpose(0, 2, 3, 1)
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()


def toy(x, t):
    """A denoiser that depends on everything it is given."""
    return 0.3 * jnp.sin(2 * x) + 0.5 * x * jnp.cos(t / 300.0)


X = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype("f")
KEYS = jax.random.split(jax.random.key(1), 3)
SCHEDULERS = {
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", dict(skip_prk_steps=True)),
    "dpmpp_2m": (
        "DPMSolverMultistepScheduler",
        dict(algorithm_type="dpmsolver++", solver_order=2, steps_offset=1),
    ),
}


@jax.jit
def run(x, table, keys=None):
    return jax.lax.scan(samplers.step(toy, keys), samplers.start(x), table)[0].latents


def diffusers_sample(sampler, steps, spacing, eta=0.0):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's samplers")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' samplers")
    name, settings = SCHEDULERS[sampler]
    config = Schedule().to_hf() | settings | {"timestep_spacing": spacing}
    del config["_class_name"]
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(steps)
    x = torch.tensor(X)
    for t in scheduler.timesteps:
        eps = torch.tensor(np.array(toy(x.numpy(), int(t))))
        extra = {}
        if eta:
            noise = [jax.random.normal(jax.random.fold_in(k, int(t)), X.shape[1:]) for k in KEYS]
            extra = dict(eta=eta, variance_noise=torch.tensor(np.stack(noise)))
        x = scheduler.step(eps, t, x, **extra).prev_sample
    return x.numpy()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_agrees_with_diffusers(sampler, spacing):
    for steps in (2, 3, 10, 16, 50):
        got = run(X, samplers.coefficients(sampler, Schedule(), steps, spacing=spacing))
        want = diffusers_sample(sampler, steps, spacing)
        assert np.abs(got - want).max() < 1e-3 * np.abs(want).max(), steps


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_agrees_with_diffusers(eta):
    got = run(X, samplers.coefficients("ddim", Schedule(), 10, eta=eta), KEYS)
    np.testing.assert_allclose(got, diffusers_sample("ddim", 10, "leading", eta), atol=2e-4)


def test_the_default_spacing_is_the_release_s():
    for sampler in ("ddim", "plms"):
        for steps in (10, 20, 50, 100):  # divisors of 1000
            np.testing.assert_array_equal(
                samplers.coefficients(sampler, Schedule(), steps),
                samplers.coefficients(sampler, Schedule(), steps, spacing="leading"),
            )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_tables_are_finite_and_come_to_the_same_end(sampler, spacing):
    for steps in (1, 2, 7, 97, 499, 999):
        table = samplers.coefficients(sampler, Schedule(), steps, spacing=spacing)
        assert table.shape == (steps + (sampler == "plms" and steps > 1), samplers.COLUMNS)
        assert np.isfinite(table).all()
    # With noise that is known exactly, every sampler recovers what was noised, at any length.
    if spacing in ("ldm", "trailing"):
        alphas = jnp.asarray(Schedule().alphas_cumprod)
        exact = lambda x, t: (x - jnp.sqrt(alphas[t]) * X) / jnp.sqrt(1 - alphas[t])
        for steps in (2, 25):
            table = samplers.coefficients(sampler, Schedule(), steps, spacing=spacing)
            a = alphas[table[0, 0].astype(int)]
            noisy = jnp.sqrt(a) * X + jnp.sqrt(1 - a) * X[::-1]
            np.testing.assert_allclose(samplers.sample(exact, noisy, table), X, atol=0.1)


def test_noise_of_a_sample_does_not_depend_on_its_batch():
    table = samplers.coefficients("ddim", Schedule(), 10, eta=1.0)
    np.testing.assert_allclose(run(X, table, KEYS)[2:], run(X[2:], table, KEYS[2:]), atol=1e-5)
    with pytest.raises(ValueError, match=r"eta above 0.*keys"):
        samplers.sample(toy, X, table)


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_segments_make_the_whole(sampler):
    table = samplers.coefficients(sampler, Schedule(), 10)
    carry = samplers.start(X)
    for rows in (table[:1], table[1:4], table[4:]):
        carry, _ = jax.lax.scan(samplers.step(toy), carry, rows)
    np.testing.assert_allclose(carry.latents, run(X, table), atol=1e-5)
    # The last estimate of the clean latents is nearly what comes out.
    largest = np.abs(carry.latents).max()
    np.testing.assert_allclose(carry.clean, carry.latents, atol=0.05 * largest)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sampler="ddmi"), "sampler='ddmi': did you mean 'ddim'?"),
        (dict(sampler="dpm++2m"), "did you mean 'dpmpp_2m'?"),
        (dict(spacing="line"), "spacing='line': did you mean 'linspace'?"),
        (dict(eta=1.5), "eta=1.5: give a number from 0 to 1"),
        (dict(eta=0.5, sampler="plms"), "eta=0.5: sampler='plms' adds no noise"),
        (dict(steps=0), "steps=0"),
        (dict(steps=1000, sampler="dpmpp_2m"), "steps=1000: sampler='dpmpp_2m' takes up to 999"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError) as e:
        samplers.coefficients(**{"sampler": "ddim", "schedule": Schedule(), "steps": 5} | arguments)
    assert message in str(e.value)


def test_guidance_runs_both_conditions_in_one_batch():
    calls = []

    def unet(x, t, context):
        calls.append((x.shape, t.shape, context.shape))
        return x * context.mean((1, 2))[:, None, None, None]

    x, context = jnp.ones((2, 1, 3, 1)), jnp.full((2, 4, 5), 2.0)
    denoise = samplers.guided(unet, context, jnp.ones((2, 4, 5)), 3.0)
    np.testing.assert_allclose(denoise(x, jnp.int32(5)), 1 + 3 * (2 - 1) * x)
    assert calls == [((4, 1, 3, 1), (4,), (4, 4, 5))]


def test_guidance_may_change_from_step_to_step():
    context, unconditional = jnp.ones((3, 1, 1)), jnp.zeros((3, 1, 1))
    denoise = samplers.guided(lambda x, t, c: x * c[..., None], context, unconditional)
    scales = np.linspace(0.1, 0.5, 5, dtype="f")
    table = samplers.coefficients("ddim", Schedule(), 5)
    got = samplers.sample(denoise, X, np.concatenate([table, scales[:, None]], axis=1))
    carry = samplers.start(jnp.asarray(X))
    for row, scale in zip(table, scales, strict=True):
        carry, _ = samplers.step(lambda x, t, s=scale: s * x)(carry, row)
    np.testing.assert_allclose(got, carry.latents, atol=1e-5)
