"""Trains one stage: `python -m maa_jax.train --config=configs/STAGE.py[:arg] --workdir=DIR`.

Any key of the config can be set on the command line, `--config.batch_size=32`. A second start with
the same workdir goes on from the latest checkpoint, bit for bit. SIGTERM saves and exits with 0.
"""

import errno
import functools
import os
import signal
import sys
from collections import deque
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from etils import epath

from maa_jax import command, devices
from maa_jax.data import datasets, input_pipeline
from maa_jax.devices import batch_sharding, replicated
from maa_jax.files import user_path
from maa_jax.stages import make_stage
from maa_jax.training import optim, sharding
from maa_jax.training.checkpoint import Checkpoints, check_config, write_config
from maa_jax.training.metrics import Metrics
from maa_jax.training.state import begin_with

# A step's result is looked at this many steps later, so that the host stays ahead of the device.
_LAG = 2
# Batches that `prepare` sees before the first step (the diffusion stage's latent scale).
_PREPARE_BATCHES = 4


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Runs a stage from its latest checkpoint to its last step.

    Args:
      config: as the files in configs/ make it.
      workdir: folder for checkpoints, events and config.json.

    Returns:
      The last scalars written, by name.

    Raises:
      ValueError: for a config that cannot run, before any long work.
      FloatingPointError: at the first loss that is not finite. The state before that step and its
        batch are then in `workdir/failure`.
    """
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(config.batch_size, config.accumulate, mesh)
    workdir = user_path(workdir)
    check_config(workdir, config)
    kind = jax.devices()[0].device_kind
    _say(f"{jax.process_count()} process(es), {mesh.size} x {kind}, mesh {dict(mesh.shape)}")

    datasets.prepare(config.data, jax.process_index())
    examples = datasets.num_examples(config.data, config.data.split)
    steps_per_epoch = max(1, examples // config.batch_size)
    stage = make_stage(config, steps_per_epoch)
    total_steps = _total_steps(config, steps_per_epoch)
    feed = dict(
        batch_size=config.batch_size,
        prepare_text=stage.prepare_text,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    make_iterator = functools.partial(
        input_pipeline.train_iterator, config.data, seed=config.seed, **feed
    )
    iterator = make_iterator()

    whole, rows = replicated(mesh), batch_sharding(mesh)
    frozen = sharding.put_replicated(stage.load_frozen(), mesh)
    init_key, step_key, eval_key, halted = jax.jit(
        lambda: (*jax.random.split(jax.random.key(config.seed), 3), jnp.zeros((), bool)),
        out_shardings=whole,
    )()
    shapes = jax.eval_shape(stage.init, init_key)
    shardings = sharding.state_sharding(shapes, mesh)
    for name, tree in shapes.params.items():
        _say(f"{name}: {sum(x.size for x in jax.tree.leaves(tree)):,} parameters")
    _say(f"{examples} examples, {steps_per_epoch} steps an epoch, {total_steps} steps")

    with Checkpoints(workdir, keep=config.keep, best=config.best) as checkpoints:
        first = checkpoints.latest_step() or 0
        if first >= total_steps:
            _say(f"Step {first} is there already: nothing to do.")
            return {}
        if first:
            target = jax.tree.map(
                lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where),
                shapes,
                shardings,
            )
            state = checkpoints.restore(first, target, iterator)
            _say(f"Goes on from step {first}.")
        else:
            # It runs once: on a CPU, where compiling is slow, it is not worth optimising.
            options = {"xla_backend_optimization_level": 0} if kind == "cpu" else None
            init = jax.jit(stage.init, out_shardings=shardings, compiler_options=options)
            state = begin_with(init(init_key), stage.start_weights())
            state = _prepare(stage, state, frozen, make_iterator(), step_key, mesh, shardings)

        # Not before: a start that fails on a mistake leaves the workdir free for the mended config.
        write_config(workdir, config)
        guarded = jax.jit(
            functools.partial(_guarded_step, stage.train_step),
            donate_argnums=(0, 1),
            in_shardings=(shardings, whole, whole, rows, whole),
            out_shardings=(shardings, whole, whole),
        )
        score = functools.partial(
            _evaluate,
            jax.jit(functools.partial(_score, stage.eval_step), out_shardings=whole),
            config.data,
            feed,
            mesh,
            eval_key,
        )
        summarize = jax.jit(stage.summarize, out_shardings=whole)
        rate = optim.learning_rate(config.optimizer, config.batch_size, steps_per_epoch)
        metrics = Metrics(
            workdir, first_step=first, total_steps=total_steps, batch_size=config.batch_size
        )
        if not first:
            metrics.write_text(0, "config", config.to_json(indent=2))
        stop, written, validation = _StopSignal(checkpoints), {}, None
        behind: deque[tuple[int, Any, dict[str, Any]]] = deque()

        for step in range(first + 1, total_steps + 1):
            batch = next(iterator)
            if config.profile and step == config.profile[0]:
                jax.profiler.start_trace(workdir)
            on_device = sharding.put_batch(batch, mesh)
            with jax.transfer_guard("disallow"):
                state, halted, scalars = guarded(state, halted, frozen, on_device, step_key)
            behind.append((step, scalars.pop("halted"), batch))
            metrics.add(scalars)
            last = step == total_steps
            stopping = stop(step)
            saving = step % config.checkpoint_every == 0 or last or stopping
            while len(behind) > (0 if saving else _LAG):  # only good states are saved
                bad_step, bad, bad_batch = behind.popleft()
                if bad:
                    _keep_failure(workdir, bad_step, state, bad_batch)
            if config.profile and step == sum(config.profile) - 1:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            if step % config.log_every == 0 or last:
                written |= metrics.write(step, learning_rate=float(rate(step - 1)))
            with metrics.pause():
                validation = None
                if step % config.eval_every == 0 or last:
                    validation = score(state, frozen)
                    metrics.write_scalars(step, validation)
                    written |= validation
                if step % config.summary_every == 0 or last:
                    summary = jax.device_get(summarize(state, frozen, on_device, eval_key))
                    metrics.write_summary(step, summary, config.mel.sample_rate)
                if saving:
                    _save(checkpoints, workdir, step, state, iterator, validation)
            if stopping and not last:
                checkpoints.wait()
                metrics.close()
                _say(f"Told to stop: step {step} is saved.")
                sys.exit(0)
        metrics.close()
        _wait(checkpoints, workdir)
    return written


def _say(message: str) -> None:
    """Tells the person at the terminal, once however many processes there are."""
    if jax.process_index() == 0:
        print(message, flush=True)


def _total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """The run's length, given in steps or in epochs."""
    if config.get("total_epochs", 0):
        return int(config.total_epochs * steps_per_epoch)
    if config.total_steps < 1:
        raise ValueError(f"config.total_steps={config.total_steps}: give at least 1.")
    return config.total_steps


def _guarded_step(train_step, state, halted, frozen, batch, key):
    """One step, undone if any of its scalars is not finite; nothing moves after such a step."""
    new, scalars = train_step(state, frozen, batch, jax.random.fold_in(key, state.step))
    finite = jnp.stack([jnp.all(jnp.isfinite(x)) for x in scalars.values()]).all()
    halted = halted | ~finite
    state = jax.tree.map(lambda old, fresh: jnp.where(halted, old, fresh), state, new)
    # The flag leaves twice: the carried one is donated before the host reads it.
    return state, halted, {**scalars, "halted": halted.astype(jnp.int32)}


def _prepare(stage, state, frozen, iterator, key, mesh, shardings):
    """Lets the stage look at the first batches (a fresh iterator: training sees them again)."""
    if not hasattr(stage, "prepare"):
        return state
    prepare = jax.jit(stage.prepare, donate_argnums=0, out_shardings=shardings)
    for _ in range(_PREPARE_BATCHES):
        state = prepare(state, frozen, sharding.put_batch(next(iterator), mesh), key)
    return state


def _score(eval_step, state, frozen, batch, key):
    """Sums of the stage's scores over the real examples of a batch, and their number."""
    valid = batch["valid"]
    scores = eval_step(state, frozen, {k: v for k, v in batch.items() if k != "valid"}, key)
    return {name: jnp.sum(jnp.where(valid, x, 0)) for name, x in scores.items()}, valid.sum()


def _evaluate(score, data, feed, mesh, key, state, frozen) -> dict[str, float]:
    """Means of the stage's scores over the validation split."""
    sums, count = {}, 0
    for i, batch in enumerate(input_pipeline.eval_batches(data, **feed)):
        batch = sharding.put_batch(batch, mesh)
        part, valid = jax.device_get(score(state, frozen, batch, jax.random.fold_in(key, i)))
        sums = {name: sums.get(name, 0.0) + float(total) for name, total in part.items()}
        count += int(valid)
    return {f"validation/{name}": total / count for name, total in sums.items()}


def _save(checkpoints, workdir, step, state, iterator, metrics) -> None:
    try:
        checkpoints.save(step, state, iterator, metrics)
    except Exception as error:
        raise _checkpoint_error(checkpoints, workdir, error) from error


def _wait(checkpoints, workdir) -> None:
    try:
        checkpoints.wait()
    except Exception as error:
        raise _checkpoint_error(checkpoints, workdir, error) from error


def _checkpoint_error(checkpoints, workdir, error) -> OSError:
    # Tensorstore passes on the system's words, without its number.
    full = os.strerror(errno.ENOSPC) in str(error)
    return OSError(
        f"A checkpoint could not be written to {workdir}/checkpoints ({error}). Whole and usable "
        f"there: steps {checkpoints.all_steps()}. "
        f"{'The disk is full: make room' if full else 'Mend the cause'} and start the same command."
    )


def _keep_failure(workdir: str, step: int, state, batch: dict[str, np.ndarray]) -> None:
    """Keeps the state before a bad step and the batch that made it, then stops the run."""
    folder = epath.Path(workdir) / "failure" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"batch_{jax.process_index()}.npz").open("wb") as file:
        np.savez(file, **batch)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state, force=True)
    raise FloatingPointError(
        f"A loss or gradient is not finite at step {step}. The state before that step and its "
        f"batch are in {folder}. Lower config.optimizer.base_lr, or look at the batch."
    )


class _StopSignal:
    """Whether the run was asked to end: SIGTERM here, or an agreed step among processes."""

    def __init__(self, checkpoints: Checkpoints):
        self._checkpoints, self._told = checkpoints, False
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._tell)

    def _tell(self, *_):
        self._told = True

    def __call__(self, step: int) -> bool:
        if jax.process_count() == 1:
            return self._told
        return self._checkpoints.reached_preemption(step)


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    command.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run, local or in a bucket.", required=True)


def main() -> None:
    """Runs the program that this module's docstring describes."""
    devices.initialize()
    train(flags.FLAGS.config, flags.FLAGS.workdir)


def run() -> None:
    """Entry point of `python -m maa_jax.train` and of `maa-train`."""
    command.run(main, define_flags)


if __name__ == "__main__":
    run()
