"""Samplers: from noise to a latent, as one `lax.scan`.

A sampler is a table. Each of them takes the next latents to be a weighted sum of what is at hand
(the latents, those before, an estimate from the network's output, and the last three such
estimates), with weights that the schedule alone decides. They are worked out beforehand, a row an
evaluation of the network, and one step serves all: a new sampler is a new table, and programs need
not be compiled again for it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from maa_jax.checks import check_name
from maa_jax.diffusion import SAMPLERS
from maa_jax.diffusion.schedule import Schedule

Tree = Any
Array = Any  # numpy's where tables are made, JAX's inside the scan
# (latents [b, h, w, c], timestep [], guidance scale []) -> what the network predicts of them,
# [b, h, w, c]: noise, clean latents or v, as the schedule's `prediction_type` says.
Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_HISTORY = 3
_ADAMS_BASHFORTH = np.array(
    [[24, 0, 0, 0], [12, 12, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]
) / np.float64(24)  # the second row is Heun's


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A sampler's weights, a row an evaluation of the network, in the order of sampling.

    Attributes:
      timestep: int32 [n].
      guidance_scale: classifier-free guidance of the evaluation, [n].
      pred_x0: weights of the latents and of the network's output in the clean latents that these
        estimate, [n, 2].
      pred_noise: the same for the noise, [n, 2].
      uses_x0: whether it is `pred_x0`, and not `pred_noise`, that is summed and kept, bool [n].
      kept: whether it is kept for the steps that follow, bool [n].
      latents: weight of the latents, [n].
      previous: weight of the latents one evaluation before, [n].
      estimates: weights of this estimate and of the three kept before it, newest first, [n, 4].
      noise: standard deviation of the fresh noise, [n].
      alpha: the level that the next latents are at, as the schedule's alphas_cumprod, [n].
    """

    timestep: Array
    guidance_scale: Array
    pred_x0: Array
    pred_noise: Array
    uses_x0: Array
    kept: Array
    latents: Array
    previous: Array
    estimates: Array
    noise: Array
    alpha: Array

    def __len__(self) -> int:
        return len(self.timestep)

    def __getitem__(self, rows: slice) -> Self:
        return jax.tree.map(lambda column: column[rows], self)


class SamplerState(NamedTuple):
    """What one step hands to the next.

    Attributes:
      latents: [b, h, w, c].
      previous: the latents one step before, [b, h, w, c].
      history: the estimates kept, the newest first, [3, b, h, w, c].
      pred_x0: the clean latents as estimated in this step, [b, h, w, c]; for previews.
    """

    latents: jax.Array
    previous: jax.Array
    history: jax.Array
    pred_x0: jax.Array


# (state after a step, alphas_cumprod [] of the level that its latents are at) -> state. Runs inside
# the scan, so it has to be pure.
Hook = Callable[[SamplerState, jax.Array], SamplerState]


def guided(
    network: Callable[..., jax.Array],
    context: jax.Array,
    unconditional: jax.Array,
    inputs: Tree = None,
) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022): both conditions in one batch.

    Args:
      network: (latents [2b, h, w, c], timesteps [2b], context [2b, n, d]) -> [2b, h, w, c]; where
        there are `inputs`, these are its fourth argument.
      context: the condition, [b, n, d].
      unconditional: the context of the empty or the negative prompt, [b, n, d].
      inputs: arrays [b, ...] that the network is given besides, with either condition, such as
        channels that it concatenates to the latents.
    """
    # The two of a sample are neighbours, so that they are on one device where batches are split.
    pairs = jnp.stack([unconditional, context], axis=1).reshape(-1, *context.shape[1:])
    more = () if inputs is None else (jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), inputs),)

    def predict(latents: jax.Array, timestep: jax.Array, guidance_scale: jax.Array) -> jax.Array:
        timesteps = jnp.broadcast_to(timestep, 2 * len(latents))
        output = network(jnp.repeat(latents, 2, axis=0), timesteps, pairs, *more)
        output = output.reshape(-1, 2, *latents.shape[1:])
        return output[:, 0] + guidance_scale * (output[:, 1] - output[:, 0])

    return predict


def coefficients(
    sampler: str,
    schedule: Schedule,
    steps: int,
    *,
    spacing: str = "ldm",
    eta: float = 0.0,
    start: int = 0,
    guidance_scale: float | Sequence[float] | np.ndarray = 1.0,
) -> Table:
    """Returns a sampler's table.

    Args:
      sampler: "ddim", "plms" or "dpmpp_2m".
      schedule: the noise schedule.
      steps: 1 to the schedule's length. There are as many rows, and with "plms" one more.
      spacing: how the timesteps are spread; see `Schedule.timesteps`.
      eta: 0 to 1, noise added on the way; "ddim" alone has it.
      start: steps left out at the beginning, for latents that are at the noise level of
        `timestep[0]` of the table. Methods of several steps warm up from there.
      guidance_scale: 1 is the condition alone; larger values follow it more closely. One number,
        or one for each of the `steps`.

    Raises:
      ValueError: an argument is not as above; unknown names with the nearest that is known.
    """
    check_name("sampler", sampler, SAMPLERS)
    schedule.timesteps(steps, spacing)  # raises where there are none
    if not 0 <= start < steps:
        raise ValueError(f"start={start}: give a number from 0 to {steps - 1}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: give a number from 0 to 1")
    if eta and sampler != "ddim":
        raise ValueError(f"eta={eta}: sampler={sampler!r} adds no noise; use sampler='ddim'")
    guidance = np.broadcast_to(np.asarray(guidance_scale, np.float32), steps)[start:]
    if sampler == "dpmpp_2m":
        return _dpmpp_2m(schedule, _points(schedule, steps, spacing)[start:], guidance)
    times, following = _path(schedule, steps, spacing, start)
    if sampler == "plms":
        return _plms(schedule, times, following, guidance)
    return _ddim(schedule, times, following, guidance, eta)


def _ddim(
    schedule: Schedule, times: np.ndarray, following: np.ndarray, guidance: np.ndarray, eta: float
) -> Table:
    """DDIM (Song et al. 2021, equation 12); diffusers' DDIMScheduler.

    `eta` 0 is deterministic, 1 has the noise of ancestral sampling. The last latents still have the
    schedule's first alpha, as in LDM (diffusers: set_alpha_to_one=False).
    """
    alphas = schedule.alphas_cumprod.astype(np.float64)
    here, there = alphas[times], alphas[following]
    sigma = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
    # Latents without any signal say nothing of the noise in them: the step is made of pred_x0.
    uses_x0 = here == 0
    latents, estimate = _move(np.where(uses_x0, 1, here), there, sigma)
    spread = np.sqrt(np.maximum(1 - there - np.square(sigma), 0))
    return _table(
        schedule,
        times,
        there,
        guidance,
        uses_x0=uses_x0,
        latents=np.where(uses_x0, spread, latents),
        estimates=np.where(uses_x0, np.sqrt(there), estimate)[:, None],
        noise=sigma,
    )


def _plms(
    schedule: Schedule, times: np.ndarray, following: np.ndarray, guidance: np.ndarray
) -> Table:
    """PLMS (Liu et al. 2022); diffusers' PNDMScheduler(skip_prk_steps=True).

    The first step takes two evaluations of the network (Heun's rule): there is a row more than
    there are steps. It is noise that is extrapolated, whatever the network predicts; diffusers
    extrapolates v, which is another method.
    """
    alphas, steps = schedule.alphas_cumprod.astype(np.float64), len(times)
    if (alphas[times] == 0).any():
        raise ValueError(
            "sampler='plms': cannot begin at pure noise, as this model does with these timesteps; "
            "use sampler='ddim' or 'dpmpp_2m'"
        )
    rows = np.insert(np.arange(steps), 1, 1)[: steps + (steps > 1)]  # 0 1 1 2 3 ...
    start, end = times[rows], following[rows]
    second = np.arange(len(rows)) == 1
    if steps > 1:  # the second evaluation takes the first step again, from where that began
        start[1], end[1] = times[1] + times[0] - following[0], times[1]
    latents, estimate = _move(alphas[start], alphas[end])
    orders = _ADAMS_BASHFORTH[np.minimum(np.arange(len(rows)), len(_ADAMS_BASHFORTH) - 1)]
    # Both evaluations of the first step have its guidance.
    step = np.maximum(np.arange(len(rows)) - (len(rows) - steps), 0)
    return _table(
        schedule,
        times[rows],
        alphas[end],
        guidance[step],
        kept=~second,
        latents=np.where(second, 0, latents),
        previous=np.where(second, latents, 0),
        estimates=estimate[:, None] * orders,
    )


def _dpmpp_2m(schedule: Schedule, times: np.ndarray, guidance: np.ndarray) -> Table:
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), to the clean latents.

    Diffusers' DPMSolverMultistepScheduler of order 2.
    """
    here = schedule.alphas_cumprod.astype(np.float64)[times]
    there = np.append(here[1:], 1.0)
    with np.errstate(divide="ignore"):  # infinite without noise, and without signal
        ends = [0.5 * np.log(alpha / (1 - alpha)) for alpha in (here, there)]
    length = ends[1] - ends[0]  # of each step, in half the logarithm of signal to noise
    before = np.append(0.0, length[:-1])
    weight = np.sqrt(there) * -np.expm1(-length)
    # Of the first order: the first step, the last, and any behind two equal timesteps.
    second = (before > 0) & np.isfinite(length)
    ratio = np.divide(length, 2 * before, out=np.zeros(len(times)), where=second)
    return _table(
        schedule,
        times,
        there,
        guidance,
        uses_x0=True,
        latents=np.sqrt((1 - there) / (1 - here)),
        estimates=np.stack([weight * (1 + ratio), -weight * ratio], axis=1),
    )


def _path(
    schedule: Schedule, steps: int, spacing: str, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the timesteps in the order of sampling and where each step ends, [steps - start]."""
    times = schedule.timesteps(steps, spacing)[::-1].copy()
    if spacing == "ldm":
        following = np.append(times[1:], 0)
    else:  # diffusers' strides are all the same, also where the timesteps' are not
        following = np.maximum(times - schedule.num_train_timesteps // steps, 0)
    return times[start:], following[start:]


def _points(schedule: Schedule, steps: int, spacing: str) -> np.ndarray:
    """Returns DPM-Solver's timesteps [steps]; the clean latents are the point behind them."""
    if spacing == "trailing":  # which leaves out the end by itself
        return schedule.timesteps(steps, spacing)[::-1]
    if steps == schedule.num_train_timesteps:
        raise ValueError(f"steps={steps}: sampler='dpmpp_2m' takes up to {steps - 1}")
    return schedule.timesteps(steps + 1, spacing)[:0:-1]


def _move(
    here: np.ndarray, there: np.ndarray, sigma: np.ndarray | float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights of latents and noise in a DDIM step between two alphas, [n] each."""
    left = np.sqrt(np.maximum(1 - there - np.square(sigma), 0))
    return np.sqrt(there / here), left - np.sqrt(there * (1 - here) / here)


def _table(
    schedule: Schedule,
    times: np.ndarray,
    alpha: np.ndarray,
    guidance: np.ndarray,
    *,
    latents: np.ndarray,
    estimates: np.ndarray,
    uses_x0: np.ndarray | bool = False,
    kept: np.ndarray | bool = True,
    previous: np.ndarray | float = 0.0,
    noise: np.ndarray | float = 0.0,
) -> Table:
    """Fills up the columns that a sampler has no need of."""
    pred_x0, pred_noise = schedule.conversions(times)

    def column(value: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.broadcast_to(value, len(times)).astype(dtype)

    return Table(
        timestep=column(times, np.int32),
        guidance_scale=column(guidance),
        pred_x0=pred_x0.astype(np.float32),
        pred_noise=pred_noise.astype(np.float32),
        uses_x0=column(uses_x0, bool),
        kept=column(kept, bool),
        latents=column(latents),
        previous=column(previous),
        estimates=np.pad(
            estimates.astype(np.float32), ((0, 0), (0, 1 + _HISTORY - estimates.shape[1]))
        ),
        noise=column(noise),
        alpha=column(alpha),
    )


def initial_state(latents: jax.Array) -> SamplerState:
    """Returns the state before the first step: noise, or latents at the table's first level."""
    history = jnp.zeros((_HISTORY, *latents.shape), latents.dtype)
    return SamplerState(latents, jnp.zeros_like(latents), history, jnp.zeros_like(latents))


def make_step(
    predict: Predict, keys: jax.Array | None = None, hook: Hook | None = None
) -> Callable[[SamplerState, Table], tuple[SamplerState, None]]:
    """Returns the step of all samplers, (state, a row of the table) -> (state, None), for a scan.

    Args:
      predict: the network under guidance, such as `guided` gives it.
      keys: for a table with eta above 0, one a sample [b], so that a sample does not depend on its
        batch.
      hook: called with the state behind every row and the noise level that its latents are at;
        what it returns goes into the next. It can blend known latents in, or join windows.
    """

    def step(state: SamplerState, row: Table) -> tuple[SamplerState, None]:
        x = state.latents
        output = predict(x, row.timestep, row.guidance_scale)
        pred_x0 = row.pred_x0[0] * x + row.pred_x0[1] * output
        pred_noise = row.pred_noise[0] * x + row.pred_noise[1] * output
        estimate = jnp.where(row.uses_x0, pred_x0, pred_noise)
        y = row.latents * x + row.previous * state.previous
        for weight, term in zip(row.estimates, (estimate, *state.history), strict=True):
            y += weight * term
        if keys is not None:
            now = jax.vmap(jax.random.fold_in, (0, None))(keys, row.timestep)
            y += row.noise * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(now)
        pushed = jnp.concatenate([estimate[None].astype(x.dtype), state.history[:-1]])
        history = jnp.where(row.kept, pushed, state.history)
        state = SamplerState(y.astype(x.dtype), x, history, pred_x0.astype(x.dtype))
        return state if hook is None else hook(state, row.alpha), None

    return step


def sample(
    predict: Predict,
    latents: jax.Array,
    table: Table,
    keys: jax.Array | None = None,
    hook: Hook | None = None,
) -> jax.Array:
    """Takes all steps of a table with one `lax.scan`.

    Args:
      predict: as in `make_step`, and so are `keys` and `hook`.
      latents: noise [b, h, w, c], or latents at the level of the table's first timestep.
      table: from `coefficients`.
      keys: one a sample [b], where the table has eta above 0.
      hook: called between steps.

    Returns:
      Latents [b, h, w, c], scaled as the U-Net has them: divide by the autoencoder's scaling
      factor before decoding.
    """
    if keys is None and (table.noise > 0).any():
        raise ValueError("a table with eta above 0 adds noise: give keys, one a sample, or eta=0")
    step = make_step(predict, keys, hook)
    return jax.lax.scan(step, initial_state(latents), table)[0].latents
