import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from maa_jax.models.kernels import cpu1d, onednn
from tests.models.test_layers import always_onednn, random

HELD = pytest.mark.skipif(
    not onednn._held(), reason="oneDNN's operations need a trusted jaxlib on Linux x86-64"
)


def calls(f, *args):
    """Whether the program of f holds a call of oneDNN."""
    return "__onednn$" in jax.jit(lambda *args: f(*args)).lower(*args).as_text()


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_product_and_two_gradients_equal_xlas(transpose_a, transpose_b, batch, monkeypatch):
    always_onednn(monkeypatch)
    a = random(*batch, *((5, 4) if transpose_a else (4, 5)))
    b = random(*batch, *((6, 5) if transpose_b else (5, 6)), seed=1)
    swapped = lambda x, swap: x.swapaxes(-1, -2) if swap else x
    mine = lambda a, b: onednn.matmul(a, b, transpose_a, transpose_b)
    wanted = lambda a, b: swapped(a, transpose_a) @ swapped(b, transpose_b)
    assert calls(mine, a, b)

    def results(product):
        loss = lambda a, b: jnp.sum(jnp.tanh(product(a, b)))
        penalty = lambda a, b: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(a, b))
        return product(a, b), jax.grad(loss, (0, 1))(a, b), jax.grad(penalty, (0, 1))(a, b)

    for x, y in zip(*(jax.tree.leaves(results(f)) for f in (mine, wanted)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


@pytest.mark.parametrize("length", [25, 400])  # the sound or the kernel is the smaller
@pytest.mark.parametrize("flipped", [False, True])
def test_convolution_over_time_equals_xlas(length, flipped, monkeypatch):
    x, kernel = random(2, length, 12 if flipped else 9), random(7, 9, 12, seed=1)
    assert (x.size < kernel.size) == (length == 25)

    def results():
        out, pull = jax.vjp(lambda x, k: cpu1d.conv(x, k, 5, 3, flipped), x, kernel)
        return out, *pull(random(*out.shape, seed=2))

    with monkeypatch.context() as patch:
        patch.setattr(onednn, "usable", lambda: False)
        wanted = results()
    always_onednn(monkeypatch)
    for mine, right in zip(results(), wanted, strict=True):
        np.testing.assert_allclose(mine, right, atol=2e-5 * np.abs(right).max())


@HELD
def test_programs_that_are_kept_on_disk_hold_no_calls(tmp_path):
    x = random(64, 64)
    assert calls(onednn.matmul, x, x)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert not calls(onednn.matmul, x, x)
    # JAX goes on to write to a cache once it is open.
    jax.jit(lambda x: x + len(str(tmp_path)))(x)
    jax.config.update("jax_compilation_cache_dir", None)
    assert not calls(onednn.matmul, x, x)
    reset_cache()
    assert calls(onednn.matmul, x, x)


@HELD
@pytest.mark.parametrize(
    "place, name, value",
    [
        ("jaxlib", "__version__", "0.99.0"),
        ("sys", "platform", "darwin"),
        ("jax", "device_count", lambda: 8),
        ("jax", "default_backend", lambda: "tpu"),
    ],
)
def test_untried_places_get_xlas_operations(place, name, value, monkeypatch):
    x = random(64, 64)
    monkeypatch.setattr(getattr(onednn, place), name, value)
    monkeypatch.setattr(onednn, "_held", onednn._held.__wrapped__)
    assert not calls(onednn.matmul, x, x)


@HELD
def test_mixed_precision_is_left_to_xla():
    x = random(64, 64)
    assert not calls(onednn.matmul, x, x.astype(jnp.bfloat16))


@HELD
def test_less_precise_numbers_and_small_matrices_are_left_to_xla():
    x = random(64, 64)
    assert not calls(onednn.matmul, x.astype(jnp.bfloat16), x.astype(jnp.bfloat16))
    assert not calls(onednn.matmul, x[:8], x)


@HELD
def test_calls_can_be_vectorised():
    x = random(3, 64, 64)
    mine = jax.vmap(onednn.matmul)(x, x)
    np.testing.assert_allclose(mine, x @ x, atol=1e-4)
