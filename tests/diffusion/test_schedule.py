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


def test_configuration_roundtrip_and_refusal():
    schedule = Schedule(beta_end=0.02)
    assert Schedule.from_hf(schedule.to_hf()) == schedule
    with pytest.raises(ValueError, match=r"prediction_type='v_prediction'.*'epsilon'"):
        Schedule.from_hf(schedule.to_hf() | {"prediction_type": "v_prediction"})
