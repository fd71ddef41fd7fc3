import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from maa_jax.encoders.batching import Batches, gather, in_batches
from tests.subprocesses import run_python


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_any_number_of_rows_goes_through_one_program(count):
    shapes = []

    def function(params, x, more):
        shapes.append(x.shape)  # once for each compilation
        return {"sum": params + x.sum(axis=1) + more["y"], "x": x}

    batches = Batches(4, jax.local_devices()[:1])
    x, y = np.arange(2.0 * count).reshape(count, 2), np.arange(count)
    out = batches.run(jax.jit(function), batches.put(np.float32(1)), x, {"y": y})
    np.testing.assert_allclose(out["sum"], 1 + x.sum(axis=1) + y)
    np.testing.assert_array_equal(out["x"], x)
    assert shapes == [(4, 2)]


def test_rows_are_spread_over_all_devices():
    output = run_python(
        """
        import jax, numpy as np
        from maa_jax.encoders.batching import Batches
        batches, multiply, seen = Batches(3), jax.jit(lambda params, x: params * x), set()
        def function(params, x):
            seen.add(len(x.sharding.device_set))
            return multiply(params, x)
        x = np.arange(21.0)
        out = batches.run(function, batches.put(np.float32(2)), x)
        assert (out == 2 * x).all()
        print(batches.batch_size, seen)
        """,
        devices=8,
    )
    assert output.strip().splitlines()[-1] == "8 {8}"


def test_a_function_of_the_host_is_applied_batch_by_batch():
    np.testing.assert_array_equal(in_batches(lambda x: -x, np.arange(5), 2), -np.arange(5))


def test_rows_of_all_processes_are_gathered_in_order(monkeypatch):
    parts = [np.arange(6.0).reshape(3, 2), np.arange(6.0, 10).reshape(2, 2)]
    assert gather(parts[0]) is parts[0]  # one process alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def allgather(x):  # as process 1 sees it
        if x.shape == (2,):
            return np.array([part.shape for part in parts])
        return np.stack([parts[0], x])

    monkeypatch.setattr(multihost_utils, "process_allgather", allgather)
    np.testing.assert_array_equal(gather(parts[1]), np.arange(10.0).reshape(5, 2))
