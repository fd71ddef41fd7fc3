"""A bank of captions: embedded once, kept on disk, searched exactly on the devices."""

import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maa_jax.data import encoded
from maa_jax.encoders.batching import in_batches

_REMEDY = "write the bank with python -m maa_jax.embed --retriever"


def build(
    folder: str | os.PathLike[str],
    captions: Iterable[str],
    encode: Callable[[Sequence[str]], np.ndarray],
    *,
    retriever: str,
    batch_size: int = 64,
    dtype: str = "float16",
    process_index: int = 0,
    process_count: int = 1,
) -> int:
    """Embeds and writes this process's share of a bank.

    Args:
      folder: folder for the bank, to which all processes have access.
      captions: all captions, in any order, the same in every process. Duplicates and empty ones
        are left out; white space within a caption becomes single spaces.
      encode: function from up to `batch_size` captions to rows of unit length [n, width].
      retriever: digest of the embedding network, kept as `Bank.retriever`.
      batch_size: number of captions embedded at a time.
      dtype: type of the embeddings on disk, float16 or float32.
      process_index: index of this process.
      process_count: number of processes.

    Returns:
      The number of captions written.

    Raises:
      ValueError: there are fewer captions than processes.
    """
    unique = {" ".join(caption.split()) for caption in captions} - {""}
    return encoded.write(
        folder,
        sorted(unique),
        encode,
        facts={"retriever": retriever},
        line=str,
        dtype=dtype,
        batch_size=batch_size,
        process_index=process_index,
        process_count=process_count,
    )


def digest(folder: str | os.PathLike[str]) -> str:
    """Returns a digest of the captions of a bank and the network that embedded them."""
    return encoded.read_index(folder, _REMEDY)["run"]


class Bank:
    """A bank in the memory of the devices, in float32, split evenly between them.

    A search is a matrix product and a top-k on each device's part, then a top-k over the devices.
    Every process of a run holds the whole bank and searches independently.

    Attributes:
      retriever: digest of the network that embedded the captions; see `build`.
      width: channels of the embeddings.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        devices: Sequence[jax.Device] | None = None,
        batch_size: int = 64,
    ):
        """Reads a bank onto the devices.

        Args:
          folder: folder that `build` filled.
          devices: devices that share the bank, by default all of this process.
          batch_size: number of queries at a time; each takes 4 bytes of memory per caption.

        Raises:
          ValueError: the folder is not a bank, lacks files, all of which are named, or is broken.
        """
        stored = encoded.Encoded(folder, _REMEDY)
        if "retriever" not in stored.facts:
            raise ValueError(f"{folder} holds no bank of captions: {_REMEDY}")
        self.retriever: str = stored.facts["retriever"]
        parts = stored.rows
        self._captions = [caption for captions in stored.lines for caption in captions]
        self.width: int = parts[0].shape[1]
        self._batch_size = batch_size
        mesh = Mesh(np.array(devices or jax.local_devices()), ("bank",))
        rows = -(-len(self) // mesh.size) * mesh.size  # the last part may end with empty rows

        def read(index: Any) -> np.ndarray:
            return _rows(parts, *index[0].indices(rows)[:2])

        self._embeddings = jax.make_array_from_callback(
            (rows, self.width), NamedSharding(mesh, P("bank")), read
        )
        self._best = jax.jit(functools.partial(_best, mesh, len(self)), static_argnames="k")

    def __len__(self) -> int:
        """Returns the number of captions."""
        return len(self._captions)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, list[list[str]]]:
        """Returns the k captions nearest to each query, nearest first.

        Args:
          queries: query embeddings [n, width], rows of unit length.
          k: number of captions per query.

        Returns:
          Scores (cosines) float32 [n, k], and n lists of k captions.

        Raises:
          ValueError: k is larger than the bank, or the queries have another width.
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k}, but the bank has {len(self)} captions: give 1 to {len(self)}")
        if queries.shape[1] != self.width:
            raise ValueError(
                f"queries of width {queries.shape[1]} in a bank of width {self.width}: embed both "
                "with one retriever"
            )
        if not len(queries):
            return np.zeros((0, k), np.float32), []
        best = functools.partial(self._best, self._embeddings, k=k)
        scores, found = in_batches(best, np.asarray(queries, np.float32), self._batch_size)
        return scores, [[self._captions[place] for place in row] for row in found]


def _best(
    mesh: Mesh, count: int, rows: jax.Array, queries: jax.Array, *, k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns scores and indices [n, k] of the best of the first `count` rows; pure."""

    def best_of_part(part, queries):
        first = jax.lax.axis_index("bank") * len(part)
        # Exact: the default precision of an accelerator's products would reorder near neighbours.
        scores = jnp.matmul(queries, part.T, precision=jax.lax.Precision.HIGHEST)
        scores = jnp.where(first + jnp.arange(len(part)) < count, scores, -jnp.inf)
        scores, places = jax.lax.top_k(scores, min(k, len(part)))
        return scores, first + places

    scores, places = jax.shard_map(
        best_of_part, mesh=mesh, in_specs=(P("bank"), P()), out_specs=P(None, "bank")
    )(rows, queries)
    scores, order = jax.lax.top_k(scores, k)
    return scores, jnp.take_along_axis(places, order, axis=1)


def _rows(parts: Sequence[np.ndarray], start: int, stop: int) -> np.ndarray:
    """Returns rows start..stop of the concatenated parts, in float32; zeros after the last."""
    rows = np.zeros((stop - start, parts[0].shape[1]), np.float32)
    first = 0
    for part in parts:
        low, high = max(start, first), min(stop, first + len(part))
        if low < high:
            rows[low - start : high - start] = part[low - first : high - first]
        first += len(part)
    return rows


def _names(index: int, count: int) -> tuple[str, str]:
    """Returns the names of a process's two files."""
    suffix = f"{index:05}-of-{count:05}"
    return f"embeddings-{suffix}.npy", f"captions-{suffix}.txt"
