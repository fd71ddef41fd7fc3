"""The training loop of all stages."""

import contextlib
import functools
import itertools
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import grain
import jax
import jax.numpy as jnp
import ml_collections
from clu import parameter_overview
from etils import epath
from jax.sharding import Mesh

from maa_jax import evaluators, peers
from maa_jax.data import datasets, input_pipeline, stored_latents
from maa_jax.data.config import DataConfig
from maa_jax.devices import batch_sharding, replicated
from maa_jax.evaluators.periodic import PeriodicEvaluators
from maa_jax.files import lock, user_path
from maa_jax.stages import make_stage
from maa_jax.stages.base import Stage
from maa_jax.train.finite_steps import Batch, FiniteSteps
from maa_jax.train.stop_signal import StopSignal
from maa_jax.training import config as run_config
from maa_jax.training import optim, sharding
from maa_jax.training.checkpoint import Checkpoints
from maa_jax.training.metrics import Metrics
from maa_jax.training.state import TrainState, load_pretrained
from maa_jax.training.workdir_files import (
    check_config,
    check_data,
    holds_run,
    read_tokenizer,
    write_config,
    write_data,
    write_tokenizer,
)

Tree = Any


def train(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Runs a stage from its latest checkpoint to its last step.

    Args:
      config: config of a stage, such as those in configs/.
      workdir: folder for checkpoints, events and config.json, local or in a bucket.

    Returns:
      The last value written of each scalar, by name.

    Raises:
      ValueError: the config is invalid; raised before any long work.
      FloatingPointError: a loss or gradient is not finite. The state before that step and its batch
        are then in `workdir/failure`.
    """
    run_config.check(config)
    for name in config.evaluators:
        evaluators.find(name)
    workdir = user_path(workdir)
    mesh = sharding.create_mesh(config.mesh)
    sharding.check_batch(config.batch_size, config.accumulate, mesh)
    kind = jax.devices()[0].device_kind
    _say(f"{jax.process_count()} process(es), {mesh.size} x {kind}, mesh {dict(mesh.shape)}")

    with (
        peers.watch(functools.partial(_how_to_go_on, workdir)),
        _claimed(workdir),
        Checkpoints(workdir, keep=config.keep, best=config.best) as checkpoints,
    ):
        changes = check_config(workdir, config)
        if holds_run(workdir) and not config.total_epochs:
            latest = checkpoints.latest_step() or 0
            if config.total_steps <= latest:  # the dataset may be gone by now
                stage = make_stage(config, read_tokenizer(workdir))
                found = checkpoints.restore_newest(_shapes(stage, mesh))
                if found and found[0] >= config.total_steps:
                    return _nothing_to_do(found[0])

        # Data and stage.
        data = datasets.contents(config.data, jax.process_index())
        check_data(workdir, data)
        examples = datasets.num_examples(config.data, config.data.split)
        steps_per_epoch = max(1, examples // config.batch_size)
        total_steps = _total_steps(config, steps_per_epoch)
        stage = make_stage(config, read_tokenizer(workdir))
        evaluate_sounds = _evaluators(config, stage, mesh)
        if stage.latents:
            wanted = stored_latents.facts(DataConfig.of(config.data), data, config.seed)
            stage.latents.check(wanted)
        train_batches, eval_batches = _batches(config, stage)
        train_batches()  # its errors come before any long work
        shapes = _shapes(stage, mesh)
        shardings = jax.tree.map(lambda x: x.sharding, shapes)
        for name, tree in shapes.params.items():
            _say(f"{name}: {sum(x.size for x in jax.tree.leaves(tree)):,} parameters")
        _say(f"{examples} examples, {steps_per_epoch} steps per epoch, {total_steps} steps")

        # Init or restore.
        frozen = sharding.put_replicated(stage.load_frozen(), mesh)
        init_key, step_key, eval_key, prepare_key, halted = jax.jit(
            lambda: (*jax.random.split(jax.random.key(config.seed), 4), jnp.zeros((), bool)),
            out_shardings=replicated(mesh),
        )()
        if found := checkpoints.restore_newest(shapes):
            first, state = found
            _say(f"Resuming from step {first}.")
        else:
            # Training sees the batches that prepare the state again.
            first, state = 0, _init(stage, init_key, shardings)
            state = _prepare(stage, state, frozen, train_batches(), prepare_key, shardings, mesh)
        # Not earlier: a start that fails on a mistake leaves the workdir free for another config.
        write_tokenizer(workdir, stage.tokenizer)
        write_data(workdir, data)
        write_config(workdir, config)
        if first >= total_steps:
            return _nothing_to_do(first)
        iterator = train_batches(start=first)

        train_step = _jit_step(stage, shardings, mesh)
        score = _jit_score(stage, mesh)
        summarize = jax.jit(stage.summarize, out_shardings=replicated(mesh))
        rate = optim.learning_rate(config.optimizer, config.batch_size)
        metrics = Metrics(
            workdir, first_step=first, total_steps=total_steps, batch_size=config.batch_size
        )
        metrics.write_text(first, "config", config.to_json(indent=2))
        if changes:
            _say("\n".join([f"From step {first + 1} on:", *changes]))
            metrics.write_text(first, "config/changes", "\n".join(changes))
        for name, tree in shapes.params.items():
            table = parameter_overview.get_parameter_overview(tree, include_stats=False)
            metrics.write_text(first, f"parameters/{name}", table)
        steps = FiniteSteps(workdir)
        _profile(config.profile, workdir, first, state)

        with StopSignal() as stop:
            for step in range(first + 1, total_steps + 1):
                last = step == total_steps
                batch = next(iterator)
                on_device = sharding.put_batch(batch, mesh)
                with jax.transfer_guard("disallow"):
                    state, halted, scalars, result = train_step(
                        state, halted, frozen, on_device, step_key
                    )
                steps.add(step, result, batch)
                metrics.add(scalars)
                stopping = stop(step)
                saving = step % config.checkpoint_every == 0 or last or stopping
                steps.check(state, all_steps=saving)  # only good states are saved
                _profile(config.profile, workdir, step, state)
                if step % config.log_every == 0 or last:
                    metrics.write(step, learning_rate=float(rate(step - 1)))
                with metrics.pause():
                    scores: dict[str, float] = {}
                    if step % config.eval_every == 0 or last:
                        scores |= _evaluate(score, state, frozen, eval_batches(), mesh, eval_key)
                    if evaluate_sounds is not None:
                        scores |= evaluate_sounds(step, state, frozen, last=last)
                    metrics.write_scalars(step, scores)
                    if step % config.summary_every == 0 or last:
                        summary = jax.device_get(summarize(state, frozen, on_device, eval_key))
                        metrics.write_summary(step, summary, config.mel.sample_rate)
                    if saving:
                        checkpoints.save(step, state, scores)
                if stopping and not last:
                    checkpoints.wait()
                    metrics.close()
                    _say(f"Stopping: step {step} is saved.")
                    sys.exit(stop.status)
        checkpoints.wait()
        metrics.close()
    return metrics.latest


def _say(message: str) -> None:
    """Prints a message, on process 0 only."""
    if jax.process_index() == 0:
        print(message, flush=True)


@contextlib.contextmanager
def _claimed(workdir: str) -> Iterator[None]:
    """Makes the workdir, and holds it for this run alone; process 0 does this for all.

    A start that fails before it writes anything leaves no empty folder.

    Raises:
      ValueError: the folder cannot be used, or another run uses it.
    """
    if jax.process_index() or "://" in workdir:
        yield
        return
    folder = pathlib.Path(workdir)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.callback(_remove_empty, missing)
            held.enter_context(lock(folder))
        except OSError as error:
            raise ValueError(
                f"--workdir={workdir}: cannot be used ({error}); give another folder."
            ) from error
        yield


def _how_to_go_on(workdir: str) -> str:
    folder = epath.Path(workdir) / "checkpoints"
    steps = [int(x.name) for x in folder.glob("*") if x.name.isdigit()]
    place = f"from step {max(steps)}" if steps else "from the beginning"
    return f"Start all processes again with the same command: the run goes on {place}."


def _remove_empty(folders: Iterable[pathlib.Path]) -> None:
    with contextlib.suppress(OSError):  # not empty: so are those above it
        for folder in folders:
            folder.rmdir()


def _nothing_to_do(step: int) -> dict[str, float]:
    _say(f"Step {step} has been reached: nothing to do.")
    return {}


def _total_steps(config: ml_collections.ConfigDict, steps_per_epoch: int) -> int:
    """Returns the run's length in steps; the config gives it in steps or epochs."""
    if config.total_epochs:
        return int(config.total_epochs * steps_per_epoch)
    return config.total_steps


def _batches(
    config: ml_collections.ConfigDict, stage: Stage
) -> tuple[Callable[..., grain.DatasetIterator], Callable[[], Iterable[Batch]]]:
    """Returns functions that start the stream of training batches, and a pass over validation."""
    reading = dict(
        batch_size=config.batch_size,
        prepare_text=stage.prepare_text,
        draw_mask=stage.draw_mask,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    stream = functools.partial(input_pipeline.train_iterator, config.data, seed=config.seed)
    return (
        functools.partial(stream, latents=stage.latents, **reading),
        functools.partial(input_pipeline.eval_batches, config.data, **reading),
    )


def _init(stage: Stage, key: jax.Array, shardings: Tree) -> TrainState:
    """Returns the state of step 0, with pretrained weights where the config names some."""
    # It runs once: on a CPU, where compilation is slow, optimising it does not pay.
    on_cpu = jax.devices()[0].platform == "cpu"
    options = {"xla_backend_optimization_level": 0} if on_cpu else None
    init = jax.jit(stage.init, out_shardings=shardings, compiler_options=options)
    return load_pretrained(init(key), stage.start_weights())


def _prepare(
    stage: Stage,
    state: TrainState,
    frozen: Tree,
    batches: Iterable[Batch],
    key: jax.Array,
    shardings: Tree,
    mesh: Mesh,
) -> TrainState:
    """Returns the state after the stage has seen the first batches."""
    prepare = jax.jit(stage.prepare, donate_argnums=0, out_shardings=shardings)
    for i, batch in enumerate(itertools.islice(batches, stage.prepare_batches)):
        batch = sharding.put_batch(batch, mesh)
        state = prepare(state, frozen, batch, jax.random.fold_in(key, i))
    return state


def _shapes(stage: Stage, mesh: Mesh) -> TrainState:
    """Returns the shapes and shardings of the state."""
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    return jax.tree.map(
        lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        shapes,
        sharding.state_sharding(shapes, mesh),
    )


def _jit_step(stage: Stage, shardings: Tree, mesh: Mesh) -> Callable[..., Any]:
    """Compiles a step that has no effect once it, or an earlier one, is not finite.

    Returns:
      A function to (state, halted, scalars, (halted, finite)), where `finite` tells of each scalar
      and each part of the step's new state, by name, whether it is finite.
    """

    def step(state, halted, frozen, batch, key):
        new, scalars = stage.train_step(state, frozen, batch, jax.random.fold_in(key, state.step))
        _check_shapes(scalars, ())
        # The state too: a loss may be finite where its gradient is not, or where Adam's second
        # moment overflows.
        parts = {name: [x] for name, x in scalars.items()} | new.parts()
        finite = {
            name: jnp.stack([jnp.isfinite(x).all() for x in arrays]).all()
            for name, arrays in parts.items()
        }
        halted = halted | ~jnp.stack(list(finite.values())).all()
        state = jax.tree.map(lambda old, new: jnp.where(halted, old, new), state, new)
        # The flag leaves twice: the carried one is donated before the host reads it.
        return state, halted, scalars, (halted.astype(jnp.int32), finite)

    whole, rows = replicated(mesh), batch_sharding(mesh)
    return jax.jit(
        step,
        donate_argnums=(0, 1),
        in_shardings=(shardings, whole, whole, rows, whole),
        out_shardings=(shardings, whole, whole, whole),
    )


def _check_shapes(scores: Mapping[str, jax.Array], shape: tuple[int, ...]) -> None:
    """Raises a TypeError for a stage whose scores would be broadcast, and so averaged wrongly."""
    for name, score in scores.items():
        if score.shape != shape:
            raise TypeError(f"score {name!r} has the shape {score.shape}, not {shape}")


def _jit_score(stage: Stage, mesh: Mesh) -> Callable[..., Any]:
    """Compiles the sums of the stage's scores over the real examples of a batch."""

    def score(state, frozen, batch, key):
        valid = batch["valid"]
        examples = {name: x for name, x in batch.items() if name != "valid"}
        with jax.default_matmul_precision("highest"):
            scores = stage.eval_step(state, frozen, examples, key)
        _check_shapes(scores, valid.shape)
        sums = {name: jnp.sum(jnp.where(valid, x, 0)) for name, x in scores.items()}
        return sums, valid.sum()

    return jax.jit(score, out_shardings=replicated(mesh))


def _evaluate(
    score: Callable[..., Any],
    state: TrainState,
    frozen: Tree,
    batches: Iterable[Batch],
    mesh: Mesh,
    key: jax.Array,
) -> dict[str, float]:
    """Returns the means of the stage's scores over the validation split.

    A mean that is not finite is told and left out: compared with others, it could be the best.
    """
    sums: dict[str, float] = {}
    count = 0
    for batch in batches:
        # One key: what a stage draws for an example depends on its index and not on its batch.
        part, valid = jax.device_get(score(state, frozen, sharding.put_batch(batch, mesh), key))
        sums = {name: sums.get(name, 0.0) + float(total) for name, total in part.items()}
        count += int(valid)
    means = {f"validation/{name}": total / count for name, total in sums.items()}
    faulty = [name for name, mean in means.items() if not math.isfinite(mean)]
    if faulty:
        _say(f"\nNot finite, and left out: {', '.join(faulty)}. Look at the validation recordings.")
    return {name: mean for name, mean in means.items() if name not in faulty}


def _profile(steps: tuple[int, ...], workdir: str, step: int, state: TrainState) -> None:
    """Starts a trace before the first of the steps (first, number), and stops it after the last."""
    if steps and step + 1 == steps[0]:
        jax.profiler.start_trace(workdir)
    if steps and step + 1 == sum(steps):
        jax.block_until_ready(state)
        jax.profiler.stop_trace()


def _evaluators(
    config: ml_collections.ConfigDict, stage: Stage, mesh: Mesh
) -> PeriodicEvaluators | None:
    """Returns the evaluators that score the run's sounds during training, None for none."""
    used = {name: block for name, block in config.evaluators.items() if block.every}
    if not used:
        return None
    generate = stage.sound_generator()
    assert generate is not None and stage.prepare_text is not None  # by the config's check
    data, rate = DataConfig.of(config.data), config.mel.sample_rate
    return PeriodicEvaluators(used, data, rate, generate, stage.prepare_text, mesh)
