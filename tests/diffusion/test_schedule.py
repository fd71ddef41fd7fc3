import numpy as np
import pytest

from maa_jax.diffusion.schedule import Schedule
from tests.parity.named_weights import reference


def test_agrees_with_the_reference():
    case = reference("ddim_unet_small")
    np.testing.assert_allclose(Schedule().alphas_cumprod, case["alphas_cumprod"], rtol=1e-6)
    for steps in (20, 25, 100):
        np.testing.assert_array_equal(
            Schedule().timesteps(steps), np.sort(case[f"timesteps_{steps}"])
        )


@pytest.mark.parametrize("steps", [1, 3, 30, 600, 999, 1000])
def test_any_number_of_steps_spans_the_chain(steps):
    timesteps = Schedule().timesteps(steps)
    assert len(timesteps) == steps
    assert timesteps[0] == 1
    assert 999 - 1000 / steps <= timesteps[-1] <= 999
    assert (np.diff(timesteps) >= 0).all()


@pytest.mark.parametrize("steps", [0, -5, 1001])
def test_refuses_other_numbers_of_steps(steps):
    with pytest.raises(ValueError, match=f"steps={steps}.*1 to 1000"):
        Schedule().timesteps(steps)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_are_those_of_diffusers(spacing):
    pytest.importorskip("torch", reason="compares with diffusers' DDIM")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' DDIM")
    config = Schedule().to_hf() | {"timestep_spacing": spacing}
    scheduler = diffusers.DDIMScheduler.from_config(config)
    for steps in (1, 7, 10, 30, 50, 600):
        scheduler.set_timesteps(steps)
        ours = Schedule().timesteps(steps, spacing)
        np.testing.assert_array_equal(ours[::-1], scheduler.timesteps.numpy())


def test_unknown_spacings_are_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"spacing='trail'.*'trailing'"):
        Schedule().timesteps(10, "trail")


def test_noise_is_added_with_unit_variance():
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 4, 50, 40, 4)).astype("f")
    y = Schedule().add_noise(x, noise, np.array([0, 300, 700, 999]))
    np.testing.assert_allclose(np.std(y, axis=(1, 2, 3)), 1, atol=0.03)
    assert np.abs(y[0] - x[0]).max() < np.abs(y[3] - x[3]).max()
    alpha = Schedule().alphas_cumprod[300]
    np.testing.assert_allclose(
        y[1], np.sqrt(alpha) * x[1] + np.sqrt(1 - alpha) * noise[1], atol=1e-6
    )


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_clean_latents_and_noise_come_back_from_the_target(kind):
    schedule = Schedule(prediction_type=kind)
    x, noise = np.random.default_rng(0).standard_normal((2, 4, 5, 4, 4)).astype("f")
    t = np.array([0, 300, 700, 999])
    noisy, target = schedule.add_noise(x, noise, t), schedule.target(x, noise, t)
    for weights, want in zip(schedule.conversions(t), (x, noise), strict=True):
        weights = weights[..., None, None, None]
        np.testing.assert_allclose(weights[:, 0] * noisy + weights[:, 1] * target, want, atol=1e-3)


def test_the_velocity_is_that_of_diffusers():
    torch = pytest.importorskip("torch", reason="compares with diffusers' DDIM")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' DDIM")
    schedule = Schedule(prediction_type="v_prediction")
    scheduler = diffusers.DDIMScheduler.from_config(schedule.to_hf())
    x, noise = np.random.default_rng(0).standard_normal((2, 4, 5, 4, 4)).astype("f")
    t = np.array([0, 300, 700, 999])
    want = scheduler.get_velocity(*map(torch.tensor, (x, noise, t)))
    np.testing.assert_allclose(schedule.target(x, noise, t), want, atol=1e-6)


@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_variances_are_those_of_diffusers(beta_schedule, rescaled):
    pytest.importorskip("torch", reason="compares with diffusers' DDIM")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' DDIM")
    schedule = Schedule(
        beta_schedule=beta_schedule, prediction_type="sample", rescale_betas_zero_snr=rescaled
    )
    want = diffusers.DDIMScheduler.from_config(schedule.to_hf()).alphas_cumprod
    np.testing.assert_allclose(schedule.alphas_cumprod, want, rtol=1e-3, atol=1e-6)
    assert (schedule.alphas_cumprod[-1] == 0) == rescaled


def test_configurations_are_read_back_and_others_refused():
    schedule = Schedule(500, beta_end=0.02, beta_schedule="linear", prediction_type="sample")
    assert Schedule.from_hf(schedule.to_hf()) == schedule
    # Folders written before these two were settings.
    old = Schedule().to_hf()
    del old["rescale_betas_zero_snr"], old["prediction_type"]
    assert Schedule.from_hf(old) == Schedule()
    with pytest.raises(ValueError, match=r"steps_offset=0 is not supported; use 1"):
        Schedule.from_hf(schedule.to_hf() | {"steps_offset": 0})
    with pytest.raises(ValueError, match=r"prediction_type='v-prediction': .*'v_prediction'"):
        Schedule.from_hf(schedule.to_hf() | {"prediction_type": "v-prediction"})
    # An absent key means another default in diffusers.
    with pytest.raises(ValueError, match="beta_start is missing"):
        Schedule.from_hf({k: v for k, v in schedule.to_hf().items() if k != "beta_start"})
    with pytest.raises(ValueError, match="trained_betas="):
        Schedule.from_hf(schedule.to_hf() | {"trained_betas": [0.1]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(beta_schedule="cosine"), "beta_schedule='cosine': give one of"),
        (dict(prediction_type="eps"), "prediction_type='eps': give one of 'epsilon'"),
        (dict(beta_end=2.0), "beta_end=2.0: give a number from"),
        (dict(beta_end=float("nan")), "beta_end=nan: give a number from"),
        (dict(beta_start=-1e-4), "beta_start=-0.0001: give a number from"),
        (dict(beta_start=0.02), "give numbers between 0 and 1 that do not decrease"),
        (dict(beta_end=0.99), "some timesteps have no signal"),
        (dict(num_train_timesteps=0), "num_train_timesteps=0: give a whole number from 1"),
        (dict(num_train_timesteps=10**10), "num_train_timesteps=10000000000: give"),
        (dict(num_train_timesteps=1000.0), "num_train_timesteps=1000.0: give"),
        (dict(rescale_betas_zero_snr=True), "use 'v_prediction' or 'sample'"),
    ],
)
def test_schedules_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError) as e:
        Schedule(**settings)
    assert message in str(e.value)
