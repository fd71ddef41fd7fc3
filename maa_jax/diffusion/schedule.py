"""The noise schedule, and the denoiser's training target."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax import schema
from maa_jax.checks import check_name
from maa_jax.diffusion import BETA_SCHEDULES, PREDICTION_TYPES, SPACINGS

# Settings of diffusers for which this schedule supports only one value.
_FIXED = {
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "thresholding": False,
    "trained_betas": None,
}
# What diffusers' oldest files do not state.
_OLD = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Variances of the forward process; the defaults are latent diffusion's and Make-An-Audio's.

    Attributes:
      num_train_timesteps: length of the chain.
      beta_start: variance of the noise added at the first timestep.
      beta_end: variance of the noise added at the last timestep.
      beta_schedule: "scaled_linear", linear in the square root of beta, or "linear".
      prediction_type: output of the denoiser: "epsilon", the noise; "sample", the clean latents; or
        "v_prediction", sqrt(alpha) * noise - sqrt(1 - alpha) * latents (Salimans and Ho 2022).
      rescale_betas_zero_snr: whether betas are rescaled so that the last timestep is pure noise
        (Lin et al. 2023, algorithm 1). Sample such a model with the spacing "trailing".
    """

    num_train_timesteps: int = schema.size(1000, most=100_000)
    beta_start: float = schema.field(0.00085, least=1e-9, most=0.9999)
    beta_end: float = schema.field(0.0120, least=1e-9, most=0.9999)
    beta_schedule: str = schema.field("scaled_linear", choices=BETA_SCHEDULES)
    prediction_type: str = schema.field("epsilon", choices=PREDICTION_TYPES)
    rescale_betas_zero_snr: bool = False

    def __post_init__(self):
        schema.check(self)
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"beta_start={self.beta_start}, beta_end={self.beta_end}: give numbers between 0 "
                "and 1 that do not decrease"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr=True: the last timestep is pure noise, of which "
                "prediction_type='epsilon' tells nothing; use 'v_prediction' or 'sample'"
            )
        with np.errstate(all="ignore"):
            weights = self.conversions(np.arange(self.num_train_timesteps))
        if not np.isfinite(weights).all():
            raise ValueError(
                f"num_train_timesteps={self.num_train_timesteps}, beta_start={self.beta_start}, "
                f"beta_end={self.beta_end}: some timesteps have no signal or no noise left, of "
                f"which prediction_type={self.prediction_type!r} tells nothing; change one of them"
            )

    @property
    def betas(self) -> np.ndarray:
        """Variance of the noise added at each timestep, float64 [num_train_timesteps]."""
        power = 2 if self.beta_schedule == "scaled_linear" else 1
        start, end = np.array([self.beta_start, self.beta_end]) ** (1 / power)
        betas = np.linspace(start, end, self.num_train_timesteps) ** power
        if not self.rescale_betas_zero_snr:
            return betas
        root = np.sqrt(np.cumprod(1 - betas))
        root = (root - root[-1]) * root[0] / (root[0] - root[-1])
        return 1 - np.square(root / np.append(1, root[:-1]))

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """Share of the signal's variance left at each timestep, float32 [num_train_timesteps]."""
        return np.cumprod(1 - self.betas).astype(np.float32)  # the product in float64, as in LDM

    def add_noise(self, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """Draws from q(x_t | x_0).

        Args:
          latents: clean latents [b, ...].
          noise: standard normal noise [b, ...].
          timesteps: timesteps, int [b].

        Returns:
          Noisy latents [b, ...].
        """
        signal, spread = self._weights(timesteps, latents.ndim)
        return signal * latents + spread * noise

    def target(self, latents: jax.Array, noise: jax.Array, timesteps: jax.Array) -> jax.Array:
        """Returns the denoiser's training target [b, ...]; for the arguments see `add_noise`."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latents
        signal, spread = self._weights(timesteps, latents.ndim)
        return signal * noise - spread * latents

    def _weights(self, timesteps: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
        """Returns the standard deviations of signal and noise, [b, 1, ...] each."""
        alpha = jnp.asarray(self.alphas_cumprod)[timesteps]
        alpha = alpha.reshape(-1, *(1,) * (ndim - 1))
        return jnp.sqrt(alpha), jnp.sqrt(1 - alpha)

    def conversions(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the weights that turn the denoiser's output into clean latents and noise.

        Args:
          timesteps: timesteps, int [n].

        Returns:
          (pred_x0, pred_noise), float64 [n, 2] each: the weights of the noisy latents and of the
          output. For "epsilon", the weights of pred_x0 are not finite where no signal is left; for
          "sample", those of pred_noise are not where there is no noise.
        """
        alpha = self.alphas_cumprod.astype(np.float64)[timesteps]
        signal, spread = np.sqrt(alpha), np.sqrt(1 - alpha)
        zeros, ones = np.zeros_like(alpha), np.ones_like(alpha)
        match self.prediction_type:
            case "epsilon":
                # Not `spread / signal`, which rounds differently.
                pred_x0, pred_noise = (1 / signal, -np.sqrt((1 - alpha) / alpha)), (zeros, ones)
            case "v_prediction":
                pred_x0, pred_noise = (signal, -spread), (spread, signal)
            case "sample":
                pred_x0, pred_noise = (zeros, ones), (1 / spread, -signal / spread)
        return np.stack(pred_x0, axis=1), np.stack(pred_noise, axis=1)

    def timesteps(self, steps: int, spacing: str = "ldm") -> np.ndarray:
        """Returns the timesteps that a sampler visits, ascending int32 [steps].

        Args:
          steps: number of timesteps, 1 to num_train_timesteps.
          spacing: "ldm", that of the release: 1, 1 + 1000/n, ...; or diffusers' "leading" (with
            offset 1), "trailing" or "linspace" (Lin et al. 2023, Table 2).

        Raises:
          ValueError: `steps` is out of range, or the spacing unknown.
        """
        check_name("spacing", spacing, SPACINGS)
        total, n = self.num_train_timesteps, np.arange(steps)
        if not 1 <= steps <= total:
            raise ValueError(f"steps={steps}: give a number from 1 to {total}")
        match spacing:
            case "ldm":
                # Where n divides 1000 these are LDM's. Otherwise LDM visits more than n timesteps,
                # and "leading" starts at a lower timestep, where the model expects some signal in
                # the noise.
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
        return {"_class_name": "DDIMScheduler"} | dataclasses.asdict(self) | _FIXED

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> Self:
        """Reads a scheduler_config.json.

        Raises:
          ValueError: settings are missing, invalid or not supported; all are named.
        """
        problems = [
            f"{key}={schema.shown(config[key])} is not supported; use {value!r}"
            for key, value in _FIXED.items()
            if config.get(key, value) != value
        ]
        names = [field.name for field in dataclasses.fields(cls)]
        given = {name: config[name] for name in names if name in config}
        try:
            schedule = schema.build(cls, _OLD | given, complete=True)
        except ValueError as error:
            problems.append(str(error))
        if problems:
            raise ValueError("; ".join(problems))
        return schedule
