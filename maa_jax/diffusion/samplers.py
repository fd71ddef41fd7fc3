"""Samplers: from noise to a latent, as one `lax.scan`.

A sampler is a table of coefficients. Every sampler computes the next latents as a weighted sum of
the current latents, the previous ones, an estimate from the network's output, and the last three
such estimates, with weights that depend only on the schedule. The table holds them, one row per
evaluation of the network, and all samplers share the step: a new sampler is a new table, for which
nothing is recompiled.
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
Array = Any  # numpy where tables are made, JAX inside the scan
# (latents [b, h, w, c], timestep [], guidance scale []) -> the network's prediction [b, h, w, c]:
# noise, clean latents or v, according to the schedule's `prediction_type`.
Predict = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

_HISTORY = 3
_ADAMS_BASHFORTH = np.array(
    [[24, 0, 0, 0], [12, 12, 0, 0], [36, -12, 0, 0], [46, -32, 10, 0], [55, -59, 37, -9]]
) / np.float64(24)  # the second row is Heun's


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A sampler's coefficients, one row per evaluation of the network, in the order of sampling.

    Attributes:
      timestep: timestep of the evaluation, int32 [n].
      guidance_scale: classifier-free guidance of the evaluation, [n].
      pred_x0: weights of the latents and of the network's output in the estimate of the clean
        latents, [n, 2].
      pred_noise: weights of the same two in the estimate of the noise, [n, 2].
      uses_x0: whether the estimate used is `pred_x0` and not `pred_noise`, bool [n].
      kept: whether the estimate is kept for later steps, bool [n].
      latents: weight of the latents, [n].
      previous: weight of the latents one evaluation before, [n].
      estimates: weights of this estimate and of the three kept before it, newest first, [n, 4].
      noise: standard deviation of the fresh noise, [n].
      alpha: noise level of the next latents, as the schedule's alphas_cumprod, [n].
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
    """State carried from one step to the next.

    Attributes:
      latents: current latents, [b, h, w, c].
      previous: latents one step before, [b, h, w, c].
      history: estimates kept, newest first, [3, b, h, w, c].
      pred_x0: estimate of the clean latents in this step, [b, h, w, c]; for previews.
    """

    latents: jax.Array
    previous: jax.Array
    history: jax.Array
    pred_x0: jax.Array


# (state after a step, noise level of its latents as alphas_cumprod []) -> state. Runs inside the
# scan, so it must be pure.
Hook = Callable[[SamplerState, jax.Array], SamplerState]


def widened(network: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a network with a fourth argument, channels that it takes beside the latents.

    They are [b, h, w, k], or None for a network that takes latents alone.
    """

    def call(
        latents: jax.Array,
        timesteps: jax.Array,
        context: jax.Array,
        channels: jax.Array | None = None,
    ) -> jax.Array:
        if channels is not None:
            latents = jnp.concatenate([latents, channels], axis=-1)
        return network(latents, timesteps, context)

    return call


def guided(
    network: Callable[..., jax.Array],
    context: jax.Array,
    unconditional: jax.Array,
    inputs: Tree = None,
) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022): both conditions in one batch.

    Args:
      network: function (latents [2b, h, w, c], timesteps [2b], context [2b, n, d]) -> [2b, h, w, c]
        that takes `inputs`, where given, as its fourth argument.
      context: context of the prompts, [b, n, d].
      unconditional: context of the empty or the negative prompt, [b, n, d].
      inputs: further arrays [b, ...] for the network, the same with both contexts, such as channels
        that it concatenates to the latents.
    """
    # A sample's two rows are adjacent, so that a split batch keeps them on one device.
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
      schedule: noise schedule.
      steps: number of steps, 1 to the schedule's length; the number of rows is one more for "plms".
      spacing: spacing of the timesteps; see `Schedule.timesteps`.
      eta: amount of noise added at each step, 0 to 1; only "ddim" supports it.
      start: number of steps to skip, for latents that are at the noise level of `timestep[0]` of
        the table. Multistep methods warm up from there.
      guidance_scale: scale of classifier-free guidance, one number or one for each of the `steps`;
        1 is none, larger values follow the condition more closely.

    Raises:
      ValueError: an argument is invalid; for an unknown name, the error has the nearest one.
    """
    check_name("sampler", sampler, SAMPLERS)
    schedule.timesteps(steps, spacing)  # raises if the arguments are invalid
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


def inversion(schedule: Schedule, table: Table) -> Table:
    """Returns the table that takes clean latents to the noise that a sampler's table starts from.

    It is that of DDIM in the other direction over the same timesteps, with the noise estimated at
    the lower end of each step (Song et al. 2021, section 4.3), and without guidance.
    """
    times = np.unique(table.timestep)
    return _ddim(schedule, np.append(0, times[:-1]), times, np.ones(len(times), np.float32), 0.0)


def _ddim(
    schedule: Schedule, times: np.ndarray, following: np.ndarray, guidance: np.ndarray, eta: float
) -> Table:
    """DDIM (Song et al. 2021, equation 12); diffusers' DDIMScheduler.

    `eta` 0 is deterministic, 1 has the noise of ancestral sampling. The last latents still have the
    schedule's first alpha, as in LDM (diffusers: set_alpha_to_one=False).
    """
    alphas = schedule.alphas_cumprod.astype(np.float64)
    here, there = alphas[times], alphas[following]
    sigma = np.zeros(len(times))
    if eta:
        sigma = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
    # Latents that are pure noise have no pred_noise estimate: the step uses pred_x0.
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

    The first step takes two evaluations of the network (Heun's rule), so there is one more row than
    steps. The noise is extrapolated, whatever the network predicts; diffusers extrapolates the
    network's output, which for v is another method.
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
    if steps > 1:  # the second evaluation repeats the first step, from its start
        start[1], end[1] = times[1] + times[0] - following[0], times[1]
    latents, estimate = _move(alphas[start], alphas[end])
    orders = _ADAMS_BASHFORTH[np.minimum(np.arange(len(rows)), len(_ADAMS_BASHFORTH) - 1)]
    # Both evaluations of the first step use its guidance scale.
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
    """DPM-Solver++(2M) (Lu et al. 2022b, algorithm 2), ending at the clean latents.

    The same as diffusers' DPMSolverMultistepScheduler of order 2.
    """
    here = schedule.alphas_cumprod.astype(np.float64)[times]
    there = np.append(here[1:], 1.0)
    with np.errstate(divide="ignore"):  # infinite where there is no noise or no signal
        ends = [0.5 * np.log(alpha / (1 - alpha)) for alpha in (here, there)]
    length = ends[1] - ends[0]  # step length in half the log signal-to-noise ratio
    before = np.append(0.0, length[:-1])
    weight = np.sqrt(there) * -np.expm1(-length)
    # First order: the first step, the last, and any after two equal timesteps.
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
    else:  # diffusers uses one stride throughout, even where the timesteps' differ
        following = np.maximum(times - schedule.num_train_timesteps // steps, 0)
    return times[start:], following[start:]


def _points(schedule: Schedule, steps: int, spacing: str) -> np.ndarray:
    """Returns DPM-Solver's timesteps [steps], after which come the clean latents."""
    if spacing == "trailing":  # already excludes the end
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
    """Returns a table, with defaults for the columns that a sampler does not use."""
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
    """Returns the state before the first step, from noise or latents at the table's first level."""
    history = jnp.zeros((_HISTORY, *latents.shape), latents.dtype)
    return SamplerState(latents, jnp.zeros_like(latents), history, jnp.zeros_like(latents))


def make_step(
    predict: Predict, keys: jax.Array | None = None, hook: Hook | None = None
) -> Callable[[SamplerState, Table], tuple[SamplerState, None]]:
    """Returns the step of all samplers, (state, row of the table) -> (state, None), for a scan.

    Args:
      predict: network with guidance, such as `guided` returns.
      keys: keys, one per sample [b], for a table with eta above 0; a sample thus does not depend on
        its batch.
      hook: function called after every row with the state and the noise level of its latents; the
        state that it returns enters the next row. It can blend in known latents, or join windows.
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
      predict: network with guidance; see `make_step`.
      latents: noise [b, h, w, c], or latents at the noise level of the table's first timestep.
      table: table from `coefficients`.
      keys: keys, one per sample [b], for a table with eta above 0.
      hook: function called after every row; see `make_step`.

    Returns:
      Latents [b, h, w, c], scaled as the U-Net has them: divide by the autoencoder's scaling
      factor before decoding.
    """
    if keys is None and (table.noise > 0).any():
        raise ValueError("a table with eta above 0 adds noise: give keys, one per sample, or eta=0")
    step = make_step(predict, keys, hook)
    return jax.lax.scan(step, initial_state(latents), table)[0].latents
