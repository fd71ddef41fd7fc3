import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from maa_jax.training import optim


def _config(**keys):
    return ml_collections.ConfigDict({"base_lr": 1e-3, **keys})


def test_learning_rate_follows_ldms_rule_and_warms_up():
    rate = optim.learning_rate(_config(scale_lr=True, warmup_steps=10), batch_size=16)
    np.testing.assert_allclose(rate(0), 16e-3 / 10, rtol=1e-6)
    np.testing.assert_allclose(rate(9), 16e-3, rtol=1e-6)
    np.testing.assert_allclose(rate(5000), 16e-3, rtol=1e-6)


def test_learning_rate_decays_every_so_many_steps():
    rate = optim.learning_rate(_config(decay_rate=0.5, decay_steps=4), batch_size=1)
    np.testing.assert_allclose([float(rate(i)) for i in (0, 3, 4, 8)], [1e-3, 1e-3, 5e-4, 2.5e-4])


def test_learning_rate_ends_at_zero_along_a_cosine():
    rate = optim.learning_rate(_config(cosine_steps=100), batch_size=1)
    np.testing.assert_allclose(rate(50), 5e-4, rtol=1e-5)
    np.testing.assert_allclose(rate(100), 0, atol=1e-9)


def test_clipping_bounds_the_gradient_that_reaches_adam():
    params = {"w": jnp.zeros(2)}
    tx = optim.make_optimizer(_config(clip_norm=1.0), batch_size=1)
    opt = tx.init(params)
    _, opt = optim.update(tx, {"w": jnp.array([30.0, 40.0])}, params, opt)
    first_moment = next(x for x in jax.tree.leaves(opt) if x.shape == (2,))
    np.testing.assert_allclose(first_moment, [0.06, 0.08], rtol=1e-5)  # (1 - b1) x unit vector


@pytest.mark.parametrize("microbatches", [2, 4])
def test_accumulated_gradients_equal_those_of_the_whole_batch(microbatches):
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(3,)), jnp.float32)}
    batch = {"x": jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)}

    def loss_fn(params, batch, key):
        error = jnp.square(batch["x"] @ params["w"] - 1)
        return error.mean(), {"largest": error.mean() * 2}

    key = jax.random.key(0)
    (whole, aux), grads = optim.accumulated_grad(loss_fn, 1)(params, batch, key)
    (parts, parts_aux), parts_grads = optim.accumulated_grad(loss_fn, microbatches)(
        params, batch, key
    )
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(parts_aux["largest"], aux["largest"], rtol=1e-6)
    np.testing.assert_allclose(parts_grads["w"], grads["w"], rtol=1e-5)


def test_the_norm_of_a_gradient_is_logged_by_network_and_module():
    grads = {"unet": {"conv_in": {"kernel": jnp.array([3.0, 0]), "bias": jnp.array(4.0)}}}
    grads["unet"]["mid"] = {"kernel": jnp.array([12.0])}
    norms = optim.grad_norms(grads)
    assert norms == {"grad_norm/unet": 13, "grad_norm/unet.conv_in": 5, "grad_norm/unet.mid": 12}


def test_the_optimizers_state_is_the_same_with_and_without_clipping():
    params = {"w": jnp.zeros(2)}
    states = (optim.make_optimizer(_config(clip_norm=x), 1).init(params) for x in (0.0, 1.0))
    a, b = map(jax.tree.structure, states)
    assert a == b
