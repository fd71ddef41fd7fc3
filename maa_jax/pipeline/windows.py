"""Windows of long sounds: networks see one at a time, and their results are joined.

In every step of sampling the denoiser's results of overlapping windows are averaged (Bar-Tal et al.
2023, "MultiDiffusion"), so that one latent, from one noise, grows over all of them. What encodes
and decodes goes by the same windows, once. The memory of networks does not depend on the length.

Very long sounds are made section by section, so that their beginning can be heard before their end
is made.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Network = Callable[..., jax.Array]


class Windows(NamedTuple):
    """Places of windows along a sound.

    Attributes:
      starts: first latent column of each window, int [n].
      weights: share of each window's columns in the result, [n, width]; they sum to 1 everywhere.
      width: columns of a window.
      total: columns of the sound.
      loop: whether the end goes on at the beginning.
    """

    starts: np.ndarray
    weights: np.ndarray
    width: int
    total: int
    loop: bool

    def columns(self, window: int, size: int = 1) -> np.ndarray:
        """Returns a window's columns of something that has `size` for each of the latents'."""
        start = int(self.starts[window])
        return np.arange(start * size, (start + self.width) * size) % (self.total * size)


def plan(total: int, width: int, *, loop: bool = False) -> Windows:
    """Returns windows that overlap by half or more.

    Args:
      total: latent columns of the sound.
      width: columns of a window, at most `total`.
      loop: whether the sound's end goes on at its beginning, so that windows do.
    """
    stride = max(1, width // 2)
    if loop:
        starts = np.arange(0, total, stride)
    else:
        count = max(1, math.ceil((total - width) / stride) + 1)
        starts = np.round(np.linspace(0, total - width, count)).astype(int)
    # A quarter of the overlap at an edge does not count: it was seen without what lies beyond.
    distance = np.minimum(np.arange(width), np.arange(width)[::-1]) + 0.5
    inner = np.clip((distance - width / 8) / (width / 4), 1e-6, 1)
    weights = np.tile(inner, (len(starts), 1))
    if not loop:
        weights[0, : width // 2] = 1
        weights[-1, width - width // 2 :] = 1
    sums = np.zeros(total)
    for start, weight in zip(starts, weights, strict=True):
        np.add.at(sums, (start + np.arange(width)) % total, weight)
    places = (starts[:, None] + np.arange(width)) % total
    return Windows(starts, (weights / sums[places]).astype(np.float32), width, total, loop)


def windowed(network: Network, starts: jax.Array, weights: jax.Array) -> Network:
    """Returns a denoiser of long latents that sees one window at a time; pure.

    Args:
      network: function (latents [b, h, w, c], timesteps [b], context [b, n, d], channels) -> [b, h,
        w, c]; see `samplers.widened`.
      starts: see `Windows`.
      weights: see there.

    Returns:
      The same function for latents of any width. Its context may also be [b, windows, n, d], one
      for each window.
    """

    def call(
        latents: jax.Array,
        timesteps: jax.Array,
        context: jax.Array,
        channels: jax.Array | None = None,
    ) -> jax.Array:
        total, width = latents.shape[2], weights.shape[1]
        own = context.ndim == 4

        def add(joined: jax.Array, window: tuple) -> tuple[jax.Array, None]:
            start, weight, mine = window
            place = (start + jnp.arange(width)) % total
            beside = None if channels is None else channels[:, :, place]
            seen = network(latents[:, :, place], timesteps, mine if own else context, beside)
            return joined.at[:, :, place].add(weight[:, None] * seen.astype(joined.dtype)), None

        contexts = jnp.moveaxis(context, 1, 0) if own else jnp.zeros(len(starts))
        return jax.lax.scan(add, jnp.zeros_like(latents), (starts, weights, contexts))[0]

    return call


class Part(NamedTuple):
    """An array with some entries for each latent column, along one of its axes."""

    array: np.ndarray | jax.Array
    axis: int
    size: int


def join(
    function: Callable[..., Any],
    given: Sequence[Part],
    windows: Windows | None,
    *,
    axis: int,
    size: int,
) -> Any:
    """Returns a function's results of all windows, joined.

    Args:
      function: from the windows of some arrays to a result.
      given: the arrays.
      windows: the windows; None for a single one, whose result is returned as it is.
      axis: axis of the result that has `size` entries for each latent column.
      size: see `axis`.
    """
    if windows is None:
        return function(*(part.array for part in given))

    def see(window: int) -> Any:
        return function(
            *(
                np.take(np.asarray(x), windows.columns(window, entries), axis=along)
                for x, along, entries in given
            )
        )

    return np.concatenate(list(pieces(see, windows, axis=axis, size=size)), axis)


def pieces(
    function: Callable[[int], Any], windows: Windows, *, axis: int, size: int
) -> Iterator[np.ndarray]:
    """Yields what the windows' results are joined to, as far as no later window changes it.

    No more than a window is held, except for a loop, which is yielded at its end.

    Args:
      function: from the number of a window to its result; called in their order.
      windows: the windows.
      axis: axis of the results that has `size` entries for each latent column.
      size: see `axis`.
    """
    # Column c lies at c modulo the ring's length.
    length = (windows.total if windows.loop else windows.width) * size
    ring = np.empty(0, np.float32)
    done = 0
    for window in range(len(windows.starts)):
        made = np.moveaxis(np.asarray(function(window)), axis, 0)
        if not ring.size:
            ring = np.zeros((length, *made.shape[1:]), np.float32)
        # Between the middles of two columns the weights change evenly.
        middles = (np.arange(windows.width * size) + 0.5) / size - 0.5
        ramp = np.interp(middles, np.arange(windows.width), windows.weights[window])
        ramp = ramp.astype(np.float32).reshape(-1, *[1] * (made.ndim - 1))
        ring[windows.columns(window, size) % length] += ramp * made
        ready = windows.total
        if window + 1 < len(windows.starts):
            ready = 0 if windows.loop else int(windows.starts[window + 1])
        if ready > done:
            places = np.arange(done * size, ready * size) % length
            yield np.moveaxis(ring[places], 0, axis)
            ring[places] = 0
            done = ready


class Growing:
    """An array that is made piece by piece, while windows of it are read from left to right.

    Args:
      made: the pieces.
      axis: axis along which they follow each other.
    """

    def __init__(self, made: Iterator[np.ndarray], axis: int):
        self._made, self._axis = made, axis
        self._held, self._first = np.empty(0), 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns the entries from `start` to `stop`, and forgets those before `start`."""
        held = [] if not self._held.size else [self._forget(start)]
        count = sum(piece.shape[self._axis] for piece in held)
        while self._first + count < stop:
            held.append(next(self._made))
            count += held[-1].shape[self._axis]
        self._held = np.concatenate(held, self._axis)
        return self._slice(start, stop)

    def _forget(self, start: int) -> np.ndarray:
        kept = self._slice(start, None)
        self._first = start
        return kept

    def _slice(self, start: int, stop: int | None) -> np.ndarray:
        end = None if stop is None else stop - self._first
        place: list[Any] = [slice(None)] * self._held.ndim
        place[self._axis] = slice(start - self._first, end)
        return self._held[tuple(place)]


class Section(NamedTuple):
    """A part of a very long sound, which is made as a whole.

    Attributes:
      first: its first latent column in the sound.
      known: columns at its beginning that the section before has made.
      end: its column at which the next section goes on: what it makes after that is thrown away.
      windows: its windows.
    """

    first: int
    known: int
    end: int
    windows: Windows


def sections(total: int, width: int, longest: int) -> list[Section]:
    """Divides a sound into sections of equal length.

    A section sees the last half window of the one before, and makes half a window beyond its end:
    the networks expect that sounds begin and end where a window does.

    Args:
      total: latent columns of the sound.
      width: columns of a window.
      longest: columns of the longest section, more than a window.
    """
    half = width // 2
    count = max(1, math.ceil((total - width) / (longest - width)))
    length = min(total, math.ceil((total + (count - 1) * width) / count))
    firsts = np.round(np.linspace(0, total - length, count)).astype(int)
    made = plan(length, width)
    ends = [*(firsts[:-1] + length - half), total]
    known = [0, *(ends[:-1] - firsts[1:])]
    return [
        Section(int(first), int(before), int(end - first), made)
        for first, before, end in zip(firsts, known, ends, strict=True)
    ]
