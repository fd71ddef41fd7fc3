import tracemalloc

import numpy as np

from maa_jax.evaluators.neighbours import nearest


def by_sorting(queries, items):
    distances = np.square(queries[:, None].astype(np.float64) - items[None]).sum(-1)
    return np.argsort(distances, axis=1, kind="stable")


def test_the_nearest_are_those_that_sorting_everything_finds():
    rng = np.random.default_rng(0)
    queries, items = (rng.normal(3, 1, (n, 7)).astype("f") for n in (600, 40))
    found = nearest(queries, items, 5)
    np.testing.assert_array_equal(found, by_sorting(queries, items)[:, :5])
    assert nearest(queries, items, 99).shape == (600, 40)


def test_none_finds_itself():
    items = np.random.default_rng(0).normal(size=(300, 7)).astype("f")
    found = nearest(items, items, 3, leave_out_self=True)
    np.testing.assert_array_equal(found, by_sorting(items, items)[:, 1:4])
    assert nearest(items[:3], items[:3], 5, leave_out_self=True).shape == (3, 2)


def test_memory_does_not_hold_all_differences():
    items = np.zeros((2000, 256), np.float32)
    tracemalloc.start()
    nearest(items, items, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # all distances alone would be 32 MB, all differences 8 GB
