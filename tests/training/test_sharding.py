import ml_collections
import pytest

from maa_jax.devices import initialize_distributed
from maa_jax.training import sharding
from tests.subprocesses import run_python


def _mesh(data, fsdp):
    return sharding.create_mesh(ml_collections.ConfigDict({"data": data, "fsdp": fsdp}))


def test_a_batch_that_does_not_split_is_refused_with_the_nearest_that_does():
    run_python(
        """
        import ml_collections, pytest
        from maa_jax.training import sharding
        mesh = sharding.create_mesh(ml_collections.ConfigDict({"data": -1, "fsdp": 2}))
        assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
        sharding.check_batch(16, 2, mesh)
        with pytest.raises(ValueError, match="config.batch_size=20.*8 devices.*nearest.*: 16"):
            sharding.check_batch(20, 2, mesh)
        """,
        devices=8,
    )


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
    with pytest.raises(ValueError, match="data=3 x fsdp=1 does not cover the 1 devices"):
        _mesh(3, 1)


def test_fsdp_splits_only_large_arrays():
    run_python(
        """
        import jax, jax.numpy as jnp, ml_collections
        from maa_jax.training import sharding
        mesh = sharding.create_mesh(ml_collections.ConfigDict({"data": 2, "fsdp": 4}))
        shapes = {"kernel": jax.ShapeDtypeStruct((3, 3, 128, 256), jnp.float32),
                  "bias": jax.ShapeDtypeStruct((256,), jnp.float32)}
        specs = sharding.state_sharding(shapes, mesh)
        assert tuple(specs["kernel"].spec) == (None, None, None, "fsdp"), specs
        assert tuple(specs["bias"].spec) == (), specs
        """,
        devices=8,
    )


def test_half_of_the_coordinator_variables_is_an_error(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES"):
        initialize_distributed()
