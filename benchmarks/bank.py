r"""Time and memory of searching a bank of captions.

    python -m benchmarks.bank [--captions=1000000] [--width=128] [--queries=64] [--k=5]

Writes a bank of random embeddings, loads it onto the devices, and prints the time of a batch of
queries (after compilation) and the peak memory of the process.
"""

import resource
import sys
import tempfile
import time

import jax
import numpy as np
from absl import app, flags

from maa_jax.enhancement import bank

_CAPTIONS = flags.DEFINE_integer("captions", 1_000_000, "Captions in the bank.")
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the embeddings.")
_QUERIES = flags.DEFINE_integer("queries", 64, "Queries in a batch.")
_K = flags.DEFINE_integer("k", 5, "Captions per query.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Batches timed.")


def unit_vectors(count: int, seed: int) -> np.ndarray:
    """Returns random float32 [count, width] of unit length."""
    x = np.random.default_rng(seed).standard_normal((count, _WIDTH.value), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    queries = unit_vectors(_QUERIES.value, 0)
    with tempfile.TemporaryDirectory() as folder:
        bank.build(
            folder,
            (f"caption {i}" for i in range(_CAPTIONS.value)),
            lambda captions: unit_vectors(len(captions), int(captions[0].split()[1]) + 1),
            retriever="random",
            batch_size=8192,
        )
        start = time.perf_counter()
        opened = bank.Bank(folder, batch_size=_QUERIES.value)
        opened.search(queries, _K.value)
        ready = time.perf_counter() - start
        times = []
        for _ in range(_REPEATS.value):
            start = time.perf_counter()
            opened.search(queries, _K.value)
            times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gigabytes = peak / (2**30 if sys.platform == "darwin" else 2**20)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}")
    print("| captions | width | queries | k | ready after | ms per batch | peak memory |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {len(opened):,} | {_WIDTH.value} | {_QUERIES.value} | {_K.value} | {ready:.1f} s "
        f"| {1000 * min(times):.0f} | {gigabytes:.2f} GB |"
    )


if __name__ == "__main__":
    app.run(main)
