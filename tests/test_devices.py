import numpy as np
import pytest

from maa_jax.devices import share


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "items", [[], list(range(7)), np.arange(12)], ids=["none", "list", "array"]
)
def test_processes_share_all_of_the_work(items, count):
    shares = [share(items, index, count) for index in range(count)]
    assert [item for part in shares for item in part] == list(items)
    lengths = [len(part) for part in shares]
    assert max(lengths) - min(lengths) <= 1


def test_one_process_does_all_of_it():
    assert share(["a", "b"]) == ["a", "b"]
