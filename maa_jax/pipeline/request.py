"""What may be asked of a pipeline."""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maa_jax.checks import check_name
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule

BATCH_SIZE = 8  # Samples made at a time; more prompts are taken one batch after another.


OUTPUTS = {"latents": (), "mel": ("vae",), "wav": ("vae", "vocoder")}  # and the networks they need


Guidance = float | Sequence[float] | Callable[[float], float]


def check_request(
    *,
    steps: int = 100,
    sampler: str = "ddim",
    eta: float = 0.0,
    spacing: str = "ldm",
    guidance_scale: Guidance = 3.0,
    seed: int = 0,
    duration: float | Sequence[float] | None = None,
    num_samples: int = 1,
    num_candidates: int | None = None,
    batch_size: int = BATCH_SIZE,
    output: str = "wav",
    start_index: int = 0,
    max_duration: float = math.inf,
) -> None:
    """Checks a request, as far as that goes without a model's weights.

    Args are those of `Pipeline.__call__`, and the model's limit in seconds.

    Raises:
      ValueError: naming the argument, its value and the remedy.
    """

    def need(name: str, value: Any, good: bool, remedy: str) -> None:
        if not good:
            raise ValueError(f"{name}={value!r}: give {remedy}")

    for name, value, low in (
        ("steps", steps, 1),
        ("num_samples", num_samples, 1),
        ("num_candidates", num_samples if num_candidates is None else num_candidates, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
        ("start_index", start_index, 0),
    ):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        need(name, value, whole and low <= value < 2**32, f"a whole number from {low}")
    need("steps", steps, steps <= 1000, "a number from 1 to 1000")
    if num_candidates is not None:
        enough = num_candidates >= num_samples
        need("num_candidates", num_candidates, enough, f"num_samples={num_samples} or more")
    need("eta", eta, is_finite(eta), "a number from 0 to 1")
    samplers.coefficients(sampler, Schedule(), steps, spacing=spacing, eta=eta)
    check_name("output", output, OUTPUTS)
    guidance_scales(guidance_scale, steps)
    limit = f" and up to {max_duration:g}, the model's limit" if is_finite(max_duration) else ""
    for value in duration if is_list(duration) else [duration]:
        fits = value is None or (is_finite(value) and 0 < value <= max_duration)
        need("duration", value, fits, f"seconds above 0{limit}")


def is_finite(value: Any) -> bool:
    """Whether a value is a real, finite number."""
    return isinstance(value, numbers.Real) and math.isfinite(value)


def is_list(value: Any) -> bool:
    """Whether a value is a sequence of values, and no string."""
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def guidance_scales(scale: Guidance, steps: int) -> np.ndarray:
    """Returns the guidance scale of every step, float32 [steps]."""
    values = scale
    if callable(scale):
        values = [scale(step / max(1, steps - 1)) for step in range(steps)]
    elif not is_list(scale):
        values = [scale] * steps
    if len(values) != steps or not all(map(is_finite, values)):
        raise ValueError(
            f"guidance_scale={scale!r}: give a finite number, such as 3.0, or {steps} of them, one "
            "a step, or a function of the progress from 0 to 1"
        )
    return np.asarray(values, np.float32)
