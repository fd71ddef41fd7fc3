import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maa_jax.training import state


def make_state(value, ema=True):
    params = {"net": {"kernel": jnp.full((2, 2), value), "bias": jnp.zeros(2)}}
    extra = {"net": {"mean": jnp.zeros(2)}, "scale": {"value": jnp.ones(())}}
    average = {"net": jax.tree.map(jnp.copy, params["net"])} if ema else {}
    return state.TrainState(jnp.int32(0), params, extra, {"net": {}}, average)


def test_evaluation_takes_the_average_where_one_is_kept():
    train = make_state(1.0).replace(params=make_state(5.0).params)
    assert train.weights()["net"]["kernel"][0, 0] == 1
    assert train.replace(ema={}).weights()["net"]["kernel"][0, 0] == 5


@pytest.mark.parametrize(("step", "decay"), [(1, 2 / 11), (8, 9 / 18), (10**6, 0.99)])
def test_the_average_forgets_the_random_start_within_the_first_steps(step, decay):
    found = state.average({"net": jnp.zeros(2)}, {"net": jnp.ones(2)}, 0.99, jnp.int32(step))
    np.testing.assert_allclose(found["net"], 1 - decay, rtol=1e-5)


def test_an_update_counts_the_step_and_keeps_the_rest():
    train = make_state(1.0)
    changed = {"net": {"mean": jnp.ones(2)}}
    new = state.apply_update(train, make_state(2.0).params, train.opt, 0.99, changed)
    assert new.step == 1
    assert new.params["net"]["kernel"][0, 0] == 2
    assert new.extra["net"]["mean"][0] == 1 and new.extra["scale"]["value"] == 1
    np.testing.assert_allclose(new.ema["net"]["kernel"], 2 / 11 * 1 + 9 / 11 * 2, rtol=1e-6)


def test_pretrained_weights_replace_those_that_they_name():
    given = {"net": {"kernel": np.full((2, 2), 7.0, "f"), "mean": np.full(2, 3.0, "f")}}
    train = state.load_pretrained(make_state(1.0), given)
    for weights in (train.params, train.ema):
        np.testing.assert_array_equal(weights["net"]["kernel"], 7)
        np.testing.assert_array_equal(weights["net"]["bias"], 0)
    np.testing.assert_array_equal(train.extra["net"]["mean"], 3)
    assert train.extra["scale"]["value"] == 1


def test_the_parts_of_a_state_are_named_by_field_network_and_module():
    train = make_state(1.0).replace(opt={"net": optax.adam(1e-3).init(make_state(1.0).params)})
    names = train.parts()
    assert names["params.net.kernel"][0].shape == (2, 2)
    assert {"extra.scale.value", "ema.net.bias"} < names.keys()
    assert len(names["opt.net.net"]) == 4  # both of Adam's moments, of both arrays
