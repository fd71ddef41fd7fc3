"""Samplers: from noise to a latent, as one `lax.scan`.

A sampler is a table. Each of them takes the next latents to be a weighted sum of what is at hand
(the latents, those before, the network's output and the last three outputs), with weights that the
schedule alone decides. They are worked out beforehand, a row an evaluation of the network, and one
`step` serves all: a new sampler is a new table, and programs need not be compiled again for it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.checks import check_name
from maa_jax.diffusion.schedule import Schedule

Denoise = Callable[..., jax.Array]

# Columns of a table: the timestep; latents' and noise's weights in the clean estimate; whether the
# output that is summed and kept is that estimate rather than the noise; whether it is kept; weights
# of the latents, of those before, of this output and of the three kept before it; and the standard
# deviation of fresh noise.
COLUMNS = 12
_HISTORY = 3
_ADAMS_BASHFORTH = np.array(
    [[24, 0, 0, 0], [12, 12, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]
) / np.float64(24)  # the second row is Heun's


class Carry(NamedTuple):
    """What one step hands to the next.

    Attributes:
      latents: [b, h, w, c].
      previous: the latents one step before.
      history: outputs kept, the newest first, [3, b, h, w, c].
      clean: what the latents will be without noise, as estimated in this step; for previews.
    """

    latents: jax.Array
    previous: jax.Array
    history: jax.Array
    clean: jax.Array


def guided(
    unet: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    context: jax.Array,
    unconditional: jax.Array,
    guidance_scale: jax.Array | float | None = None,
) -> Denoise:
    """Classifier-free guidance, with and without the condition in one batch.

    Args:
      unet: (latents [2b, h, w, c], timesteps [2b], context [2b, n, d]) -> noise [2b, h, w, c].
      context: condition tokens [b, n, d].
      unconditional: tokens of the empty or the negative prompt, [b, n, d].
      guidance_scale: 1 is the condition alone; larger values follow it more closely. None where
        each step has its own, as a column behind the sampler's table.

    Returns:
      A denoiser (latents [b, h, w, c], timestep [], scale []) -> noise [b, h, w, c].
    """
    # The two of a sample are neighbours, so that they are on one device where batches are split.
    pairs = jnp.stack([unconditional, context], axis=1).reshape(-1, *context.shape[1:])

    def denoise(
        latents: jax.Array, timestep: jax.Array, scale: jax.Array | float | None = guidance_scale
    ) -> jax.Array:
        timesteps = jnp.broadcast_to(timestep, 2 * len(latents))
        noise = unet(jnp.repeat(latents, 2, axis=0), timesteps, pairs)
        noise = noise.reshape(-1, 2, *latents.shape[1:])
        return noise[:, 0] + scale * (noise[:, 1] - noise[:, 0])

    return denoise


def ddim(schedule: Schedule, steps: int, spacing: str = "ldm", eta: float = 0.0) -> np.ndarray:
    """The table of DDIM (Song et al. 2021, equation 12); diffusers' DDIMScheduler.

    `eta` 0 is deterministic, 1 has the noise of ancestral sampling. The last latent still has the
    schedule's first alpha, as in LDM (diffusers: set_alpha_to_one=False). Otherwise as in
    `coefficients`, and so for the other tables.
    """
    times, following = _path(schedule, steps, spacing)
    alphas = schedule.alphas_cumprod.astype(np.float64)
    here, there = alphas[times], alphas[following]
    sigma = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
    of_latents, of_noise = _move(here, there, sigma)
    return _table(times, alphas, latents=of_latents, weights=of_noise[:, None], noise=sigma)


def plms(schedule: Schedule, steps: int, spacing: str = "ldm") -> np.ndarray:
    """The table of PLMS (Liu et al. 2022); diffusers' PNDMScheduler(skip_prk_steps=True).

    The first step takes two evaluations of the network (Heun's rule): there is a row more than
    there are steps.
    """
    times, following = _path(schedule, steps, spacing)
    alphas = schedule.alphas_cumprod.astype(np.float64)
    rows = np.insert(np.arange(steps), 1, 1)[: steps + (steps > 1)]  # 0 1 1 2 3 ...
    start, end = times[rows], following[rows]
    second = np.arange(len(rows)) == 1
    if steps > 1:  # the second evaluation takes the first step again, from where that began
        start[1], end[1] = times[1] + times[0] - following[0], times[1]
    of_latents, of_noise = _move(alphas[start], alphas[end])
    orders = _ADAMS_BASHFORTH[np.minimum(np.arange(len(rows)), len(_ADAMS_BASHFORTH) - 1)]
    return _table(
        times[rows],
        alphas,
        kept=~second,
        latents=np.where(second, 0, of_latents),
        previous=np.where(second, of_latents, 0),
        weights=of_noise[:, None] * orders,
    )


def dpmpp_2m(schedule: Schedule, steps: int, spacing: str = "ldm") -> np.ndarray:
    """The table of DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), to the clean latents.

    Diffusers' DPMSolverMultistepScheduler of order 2, for which, too, the clean latents are the
    last of `steps` + 1 points of the path (but for "trailing", whose points leave out the end).
    """
    if spacing == "trailing":
        times = schedule.timesteps(steps, spacing)[::-1]
    elif steps == schedule.num_train_timesteps:
        raise ValueError(f"steps={steps}: sampler='dpmpp_2m' takes up to {steps - 1}")
    else:
        times = schedule.timesteps(steps + 1, spacing)[:0:-1]
    alphas = schedule.alphas_cumprod.astype(np.float64)
    here = alphas[times]
    there = np.append(here[1:], 1.0)
    with np.errstate(divide="ignore"):  # without noise the logarithm is infinite
        ends = [0.5 * np.log(alpha / (1 - alpha)) for alpha in (here, there)]
    length = ends[1] - ends[0]  # of each step, in half the logarithm of signal to noise
    before = np.append(0.0, length[:-1])
    weight = np.sqrt(there) * -np.expm1(-length)
    # Of the first order: the first step, the last, and any behind two equal timesteps.
    second = (before > 0) & np.isfinite(length)
    ratio = np.divide(length, 2 * before, out=np.zeros(steps), where=second)
    return _table(
        times,
        alphas,
        clean_output=np.ones(steps),
        latents=np.sqrt((1 - there) / (1 - here)),
        weights=np.stack([weight * (1 + ratio), -weight * ratio], axis=1),
    )


SAMPLERS = {"ddim": ddim, "plms": plms, "dpmpp_2m": dpmpp_2m}


def coefficients(
    sampler: str, schedule: Schedule, steps: int, *, spacing: str = "ldm", eta: float = 0.0
) -> np.ndarray:
    """Returns a sampler's table, float32 [evaluations, COLUMNS], in the order of sampling.

    Args:
      sampler: "ddim", "plms" or "dpmpp_2m".
      schedule: the noise schedule.
      steps: 1 to the schedule's length; evaluations are as many, or with "plms" one more.
      spacing: of the timesteps; see `Schedule.timesteps`.
      eta: 0 to 1, noise added on the way; "ddim" alone has it.

    Raises:
      ValueError: an argument is not as above; unknown names with the nearest that is known.
    """
    check_name("sampler", sampler, SAMPLERS)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: give a number from 0 to 1")
    if not eta:
        return SAMPLERS[sampler](schedule, steps, spacing)
    if sampler != "ddim":
        raise ValueError(f"eta={eta}: sampler={sampler!r} adds no noise; use sampler='ddim'")
    return ddim(schedule, steps, spacing, eta)


def start(latents: jax.Array) -> Carry:
    """Returns what the first step begins with: noise [b, h, w, c]."""
    history = jnp.zeros((_HISTORY, *latents.shape), latents.dtype)
    return Carry(latents, jnp.zeros_like(latents), history, jnp.zeros_like(latents))


def step(
    denoise: Denoise, keys: jax.Array | None = None
) -> Callable[[Carry, jax.Array], tuple[Carry, None]]:
    """Returns the step of all samplers, (carry, a row of the table) -> (carry, None), for a scan.

    Args:
      denoise: (latents [b, h, w, c], timestep [], any further columns) -> noise [b, h, w, c].
      keys: for a table with eta above 0, one a sample [b], so that a sample does not depend on its
        batch.
    """

    def take(carry: Carry, row: jax.Array) -> tuple[Carry, None]:
        timestep, clean_x, clean_e, clean_output, kept, of_x, of_previous, *rest = row[:COLUMNS]
        *weights, sigma = rest
        x, timestep = carry.latents, timestep.astype(jnp.int32)
        noise = denoise(x, timestep, *row[COLUMNS:])
        clean = clean_x * x + clean_e * noise
        output = jnp.where(clean_output > 0, clean, noise)
        y = of_x * x + of_previous * carry.previous
        for weight, term in zip(weights, (output, *carry.history), strict=True):
            y += weight * term
        if keys is not None:
            now = jax.vmap(jax.random.fold_in, (0, None))(keys, timestep)
            y += sigma * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(now)
        pushed = jnp.concatenate([output[None].astype(x.dtype), carry.history[:-1]])
        history = jnp.where(kept > 0, pushed, carry.history)
        return Carry(y.astype(x.dtype), x, history, clean.astype(x.dtype)), None

    return take


def sample(
    denoise: Denoise, latents: jax.Array, table: np.ndarray, keys: jax.Array | None = None
) -> jax.Array:
    """Takes all steps of a table with one `lax.scan`.

    Args:
      denoise: as in `step`, and `keys` too.
      latents: noise [b, h, w, c].
      table: from `coefficients`, with any further columns for the denoiser.
      keys: one a sample [b], where the table has eta above 0.

    Returns:
      Latents [b, h, w, c], scaled as the U-Net has them: divide by the autoencoder's scaling
      factor before decoding.
    """
    if keys is None and (table[:, COLUMNS - 1] > 0).any():
        raise ValueError("a table with eta above 0 adds noise: give keys, one a sample, or eta=0")
    return jax.lax.scan(step(denoise, keys), start(latents), jnp.asarray(table))[0].latents


def _path(schedule: Schedule, steps: int, spacing: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the timesteps in the order of sampling and where each step ends, both [steps]."""
    times = schedule.timesteps(steps, spacing)[::-1].copy()
    if spacing == "ldm":
        return times, np.append(times[1:], 0)
    # Diffusers' strides are all the same, also where the timesteps' are not.
    return times, np.maximum(times - schedule.num_train_timesteps // steps, 0)


def _move(here: np.ndarray, there: np.ndarray, sigma: np.ndarray | float = 0.0):
    """Returns the weights of latents and noise in a DDIM step between two alphas, [n] each."""
    left = np.sqrt(np.maximum(1 - there - np.square(sigma), 0))
    return np.sqrt(there / here), left - np.sqrt(there * (1 - here) / here)


def _table(
    times: np.ndarray,
    alphas: np.ndarray,
    *,
    latents: np.ndarray,
    weights: np.ndarray,
    clean_output: np.ndarray | float = 0.0,
    kept: np.ndarray | float = 1.0,
    previous: np.ndarray | float = 0.0,
    noise: np.ndarray | float = 0.0,
) -> np.ndarray:
    alpha = alphas[times]
    weights = np.pad(weights, ((0, 0), (0, 1 + _HISTORY - weights.shape[1])))
    columns = (times, 1 / np.sqrt(alpha), -np.sqrt((1 - alpha) / alpha), clean_output, kept,
               latents, previous, *weights.T, noise)  # fmt: skip
    return np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.float32)
