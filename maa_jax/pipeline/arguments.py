"""Checks of a pipeline's arguments that are no options: prompts, arrays and types."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.checks import check_text
from maa_jax.pipeline.request import is_list


def sentences(prompts: str | Sequence[str]) -> list[str]:
    """Returns prompts as a list.

    Raises:
      ValueError: they are no strings, or there are none.
    """
    several = isinstance(prompts, Iterable) and not isinstance(prompts, str)
    given: list[Any] = list(prompts) if several else [prompts]
    if not given or not all(isinstance(sentence, str) for sentence in given):
        raise ValueError(f"prompts={prompts!r}: give one sentence or more, as strings")
    for sentence in given:
        check_text("prompts", sentence)
    return given


def short(prompt: str) -> str:
    """Returns a prompt for a message, at most 60 characters of it."""
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:57]}...")


def initial_noise(
    latents: Any, shapes: Sequence[tuple[int, ...]], listed: bool
) -> Sequence[np.ndarray]:
    """Returns initial latents, of which there must be an entry of the right shape for each sound.

    Raises:
      ValueError: they are no numbers, of other shapes, or not finite.
    """
    want: Any = shapes if listed else (len(shapes), *shapes[0])
    if listed and is_list(latents):
        arrays: Any = [numbers("initial_latents", x) for x in latents]
        got: Any = [array.shape for array in arrays]
    else:
        arrays = numbers("initial_latents", latents)
        got = arrays.shape
    if got != want:
        raise ValueError(
            f"initial_latents has shape {got}: give {want}, [n, height, width, channels]"
        )
    return arrays


def numbers(key: str, value: Any) -> np.ndarray:
    """Returns an array in float32.

    Raises:
      ValueError: it is none of finite numbers.
    """
    try:
        array = np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key} is no array of numbers ({error})") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{key} holds NaN or infinity: give finite numbers")
    return array


def float_type(dtype: Any) -> Any:
    """Returns a compute dtype, by default that of the platform.

    Raises:
      ValueError: networks cannot compute in it.
    """
    if dtype is None:
        return jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    known = (jnp.float32, jnp.bfloat16, jnp.float16)
    with contextlib.suppress(TypeError):  # no dtype at all
        if jnp.dtype(dtype) in map(jnp.dtype, known):
            return jnp.dtype(dtype)
    raise ValueError(f"dtype={dtype!r}: give jnp.float32 or jnp.bfloat16")
