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
    table = samplers.coefficients("ddim", Schedule(), steps, guidance_scale=scale)

    @jax.jit
    def sample(params, x, context, unconditional):
        network = networks.build(graphdef, params)
        return samplers.sample(samplers.guided(network, context, unconditional), x, table)

    x = case["x_T"].transpose(0, 2, 3, 1)
    got = sample(params, x, case["context"], case["unconditional"])
    want = case[f"sample_{steps}_steps_scale_{scale}"].transpose(0, 2, 3, 1)
    assert np.abs(got - want).max() < 1e-3 * np.abs(want).max()


def toy(x, t, guidance_scale=1.0):
    """A network that depends on all its inputs."""
    return guidance_scale * (0.3 * jnp.sin(2 * x) + 0.5 * x * jnp.cos(t / 300.0))


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
    step = samplers.make_step(toy, keys)
    return jax.lax.scan(step, samplers.initial_state(x), table)[0].latents


def diffusers_sample(sampler, steps, spacing, eta=0.0, schedule=Schedule(), predict=toy):
    torch = pytest.importorskip("torch", reason="compares with PyTorch's samplers")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' samplers")
    name, settings = SCHEDULERS[sampler]
    config = schedule.to_hf() | settings | {"timestep_spacing": spacing}
    del config["_class_name"]
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(steps)
    x = torch.tensor(X)
    for t in scheduler.timesteps:
        output = torch.tensor(np.array(predict(x.numpy(), int(t))))
        extra = {}
        if eta:
            noise = [jax.random.normal(jax.random.fold_in(k, int(t)), X.shape[1:]) for k in KEYS]
            extra = dict(eta=eta, variance_noise=torch.tensor(np.stack(noise)))
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x.numpy()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_agrees_with_diffusers(sampler, spacing):
    for steps in (2, 3, 10, 16, 50):
        got = run(X, samplers.coefficients(sampler, Schedule(), steps, spacing=spacing))
        want = diffusers_sample(sampler, steps, spacing)
        assert np.abs(got - want).max() < 1e-3 * np.abs(want).max(), steps


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_every_prediction_type_agrees_with_diffusers(sampler, kind):
    schedule, predict = Schedule(prediction_type=kind), toy
    theirs = schedule
    if sampler == "plms":
        # Diffusers' PNDM does not support "sample", and extrapolates v itself.
        theirs = Schedule()

        def predict(x, t):
            weights = schedule.conversions(np.array([t]))[1][0]
            return weights[0] * x + weights[1] * toy(x, t)

    for steps in (3, 16):
        got = run(X, samplers.coefficients(sampler, schedule, steps, spacing="trailing"))
        want = diffusers_sample(sampler, steps, "trailing", schedule=theirs, predict=predict)
        assert np.abs(got - want).max() < 1e-3 * np.abs(want).max(), steps


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_zero_terminal_snr_agrees_with_diffusers(kind, eta):
    schedule = Schedule(prediction_type=kind, rescale_betas_zero_snr=True)
    table = samplers.coefficients("ddim", schedule, 10, spacing="trailing", eta=eta)
    want = diffusers_sample("ddim", 10, "trailing", eta, schedule)
    np.testing.assert_allclose(run(X, table, KEYS), want, atol=1e-3 * np.abs(want).max())
    with pytest.raises(ValueError, match=r"sampler='plms': cannot begin at pure noise"):
        samplers.coefficients("plms", schedule, 10, spacing="trailing")


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_eta_agrees_with_diffusers(eta):
    got = run(X, samplers.coefficients("ddim", Schedule(), 10, eta=eta), KEYS)
    np.testing.assert_allclose(got, diffusers_sample("ddim", 10, "leading", eta), atol=2e-4)


def test_the_default_spacing_is_the_release_s():
    for sampler in ("ddim", "plms"):
        for steps in (10, 20, 50, 100):  # divisors of 1000
            jax.tree.map(
                np.testing.assert_array_equal,
                samplers.coefficients(sampler, Schedule(), steps),
                samplers.coefficients(sampler, Schedule(), steps, spacing="leading"),
            )


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_tables_are_finite_and_come_to_the_same_end(sampler, spacing):
    for steps in (1, 2, 7, 97, 499, 999):
        table = samplers.coefficients(sampler, Schedule(), steps, spacing=spacing)
        assert len(table) == steps + (sampler == "plms" and steps > 1)
        assert all(np.isfinite(column).all() for column in jax.tree.leaves(table))
    # With exactly known noise, every sampler recovers the clean latents, at any length.
    if spacing in ("ldm", "trailing"):
        alphas = jnp.asarray(Schedule().alphas_cumprod)
        exact = lambda x, t, _: (x - jnp.sqrt(alphas[t]) * X) / jnp.sqrt(1 - alphas[t])
        for steps in (2, 25):
            table = samplers.coefficients(sampler, Schedule(), steps, spacing=spacing)
            a = alphas[table.timestep[0]]
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
    state = samplers.initial_state(X)
    for rows in (table[:1], table[1:4], table[4:]):
        state, _ = jax.lax.scan(samplers.make_step(toy), state, rows)
    np.testing.assert_allclose(state.latents, run(X, table), atol=1e-5)
    # The last estimate of the clean latents is close to the result.
    largest = np.abs(state.latents).max()
    np.testing.assert_allclose(state.pred_x0, state.latents, atol=0.05 * largest)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_resumes_from_any_step_bit_for_bit(spacing):
    table = samplers.coefficients("ddim", Schedule(), 10, spacing=spacing)
    jax.tree.map(
        np.testing.assert_array_equal,
        table,
        samplers.coefficients("ddim", Schedule(), 10, spacing=spacing, start=0),
    )
    for start in (1, 4, 9):
        rest = samplers.coefficients("ddim", Schedule(), 10, spacing=spacing, start=start)
        np.testing.assert_array_equal(run(run(X, table[:start]), rest), run(X, table))


@pytest.mark.parametrize("sampler", ["plms", "dpmpp_2m"])
def test_multistep_methods_warm_up_where_they_begin(sampler):
    rest = samplers.coefficients(sampler, Schedule(), 20, start=8)
    assert (rest.estimates[0, 1:] == 0).all() and (rest.previous[0] == 0)
    # From latents at the table's first noise level to the clean ones.
    noisy = Schedule().add_noise(X, X[::-1], rest.timestep[0])
    alphas = jnp.asarray(Schedule().alphas_cumprod)
    exact = lambda x, t, _: (x - jnp.sqrt(alphas[t]) * X) / jnp.sqrt(1 - alphas[t])
    np.testing.assert_allclose(samplers.sample(exact, noisy, rest), X, atol=0.1)


def test_a_hook_sees_each_state_at_its_noise_level():
    """Blending in known latents at every level preserves them, and the sampler does the rest."""
    table = samplers.coefficients("ddim", Schedule(), 10)
    alphas = Schedule().alphas_cumprod
    np.testing.assert_array_equal(table.alpha, alphas[[*table.timestep[1:], 0]])
    known = jnp.zeros(X.shape[1:]).at[:, :2].set(1)

    def blend(state, alpha):
        noisy = jnp.sqrt(alpha) * X + jnp.sqrt(1 - alpha) * X[::-1]
        return state._replace(latents=jnp.where(known, noisy, state.latents))

    got = samplers.sample(toy, X[::-1], table, hook=blend)
    kept = np.sqrt(alphas[0]) * X + np.sqrt(1 - alphas[0]) * X[::-1]
    np.testing.assert_allclose(got[:, :, :2], kept[:, :, :2], atol=1e-6)
    assert np.abs(got - X)[:, :, 2:].max() > 0.1
    plain = samplers.sample(toy, X[::-1], table, hook=lambda state, alpha: state)
    np.testing.assert_array_equal(plain, samplers.sample(toy, X[::-1], table))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(sampler="ddmi"), "sampler='ddmi': did you mean 'ddim'?"),
        (dict(sampler="dpm++2m"), "did you mean 'dpmpp_2m'?"),
        (dict(spacing="line"), "spacing='line': did you mean 'linspace'?"),
        (dict(eta=1.5), "eta=1.5: give a number from 0 to 1"),
        (dict(eta=0.5, sampler="plms"), "eta=0.5: sampler='plms' adds no noise"),
        (dict(steps=0), "steps=0"),
        (dict(start=5), "start=5: give a number from 0 to 4"),
        (dict(steps=1000, sampler="dpmpp_2m"), "steps=1000: sampler='dpmpp_2m' takes up to 999"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError) as e:
        samplers.coefficients(**{"sampler": "ddim", "schedule": Schedule(), "steps": 5} | arguments)
    assert message in str(e.value)


def test_guidance_runs_both_conditions_in_one_batch():
    calls = []

    def network(x, t, context):
        calls.append((x.shape, t.shape, context.shape))
        return x * context.mean((1, 2))[:, None, None, None]

    x, context = jnp.ones((2, 1, 3, 1)), jnp.full((2, 4, 5), 2.0)
    predict = samplers.guided(network, context, jnp.ones((2, 4, 5)))
    np.testing.assert_allclose(predict(x, jnp.int32(5), 3.0), 1 + 3 * (2 - 1) * x)
    assert calls == [((4, 1, 3, 1), (4,), (4, 4, 5))]


def test_further_inputs_reach_the_network_with_either_condition():
    """As for inpainting: further channels with the latents, the same for both conditions."""
    inputs = {"mask": jnp.arange(2.0).reshape(2, 1, 1, 1) * jnp.ones((2, 1, 3, 1))}

    def network(x, t, context, inputs):
        x = jnp.concatenate([x, inputs["mask"]], axis=-1)
        return x.sum(-1, keepdims=True) * context.mean((1, 2))[:, None, None, None]

    context = jnp.full((2, 4, 5), 2.0)
    predict = samplers.guided(network, context, jnp.ones((2, 4, 5)), inputs)
    got = predict(jnp.ones((2, 1, 3, 1)), jnp.int32(5), 3.0)
    np.testing.assert_allclose(got, 4 * (1 + inputs["mask"]))


@pytest.mark.parametrize(
    ("sampler", "rows"), [("ddim", [0, 1, 2, 3, 4]), ("plms", [0, 0, 1, 2, 3, 4])]
)
def test_guidance_may_change_from_step_to_step(sampler, rows):
    scales = np.linspace(0.1, 0.5, 5, dtype="f")
    table = samplers.coefficients(sampler, Schedule(), 5, guidance_scale=scales)
    np.testing.assert_array_equal(table.guidance_scale, scales[rows])
    state = samplers.initial_state(jnp.asarray(X))
    for i in range(len(table)):
        row = jax.tree.map(lambda column, i=i: column[i], table)
        scaled = lambda x, t, _, i=i: scales[rows[i]] * toy(x, t)
        state, _ = samplers.make_step(scaled)(state, row)
    np.testing.assert_allclose(run(X, table), state.latents, atol=1e-5)
    later = samplers.coefficients(sampler, Schedule(), 5, guidance_scale=scales, start=3)
    assert later.guidance_scale[0] == scales[3]
