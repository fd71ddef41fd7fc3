"""The noise schedule: how much of a latent is left at each timestep."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.checks import check_name

SPACINGS = ("ldm", "leading", "trailing", "linspace")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Latent diffusion's schedule, linear in the square root of beta (LDM, Make-An-Audio).

    Attributes:
      num_train_timesteps: length of the chain.
      beta_start: variance of the noise added at the first step.
      beta_end: the same at the last step.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.0120

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """Share of the signal's variance left at each timestep, float32 [num_train_timesteps]."""
        ends = np.sqrt([self.beta_start, self.beta_end])
        betas = np.linspace(*ends, self.num_train_timesteps, dtype=np.float64) ** 2
        return np.cumprod(1 - betas).astype(np.float32)  # the product in float64, as LDM has it

    def add_noise(self, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """Returns q(x_t | x_0): latents and noise [b, ...], timesteps int [b]."""
        alpha = jnp.asarray(self.alphas_cumprod)[timesteps]
        alpha = alpha.reshape(-1, *(1,) * (latents.ndim - 1))
        return jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise

    def timesteps(self, steps: int, spacing: str = "ldm") -> np.ndarray:
        """Returns the timesteps that a sampler visits, ascending int32 [steps].

        Args:
          steps: how many, 1 to num_train_timesteps.
          spacing: "ldm" is the release's, 1, 1 + 1000/n, ...; "leading" (with offset 1),
            "trailing" and "linspace" are diffusers' (Lin et al. 2023, Table 2).

        Raises:
          ValueError: steps out of range, or an unknown spacing.
        """
        check_name("spacing", spacing, SPACINGS)
        total, n = self.num_train_timesteps, np.arange(steps)
        if not 1 <= steps <= total:
            raise ValueError(f"steps={steps}: give a number from 1 to {total}")
        match spacing:
            case "ldm":
                # Where n divides 1000 these are LDM's; where not, LDM visits more than n of them
                # and "leading" starts late in the chain, from noise that is not noise to the model.
                timesteps = n * total // steps + 1
            case "leading":
                timesteps = n * (total // steps) + 1
            case "trailing":
                timesteps = np.round(total - n * (total / steps))[::-1] - 1
            case "linspace":
                timesteps = np.round(np.linspace(0, total - 1, steps))
        return np.minimum(timesteps, total - 1).astype(np.int32)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of a diffusers DDIMScheduler's scheduler_config.json."""
        return {
            "_class_name": "DDIMScheduler",
            "num_train_timesteps": self.num_train_timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "set_alpha_to_one": False,
            "clip_sample": False,
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Schedule":
        """Reads a scheduler_config.json.

        Raises:
          ValueError: a value that asks for another schedule than this one.
        """
        numbers = {f.name for f in dataclasses.fields(cls)}
        for key, value in cls().to_hf().items():
            if key not in numbers | {"_class_name"} and config.get(key, value) != value:
                raise ValueError(
                    f"scheduler: {key}={config[key]!r} is not supported; use {value!r}"
                )
        return cls(**{k: config[k] for k in numbers if k in config})
