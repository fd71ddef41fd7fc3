"""Turns a training run into a model folder.

    python -m maa_jax.convert --from=workdir --workdir=runs/t2a --out=models/mine

Writes the networks that the run's stage trained (their moving average, where one is kept). Runs
of several stages may be written into one folder, one after another: together they are a model.
"""

import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags


def define_flags() -> None:
    """Defines the flags; by this module as a program alone, or two programs' flags would clash."""
    flags.DEFINE_enum("from", None, ["workdir"], "What to convert.", required=True)
    flags.DEFINE_string("workdir", None, "Folder of a run of maa_jax.train.", required=True)
    flags.DEFINE_integer("step", None, "Which checkpoint; the latest by default.")
    flags.DEFINE_string("out", None, "The model folder to write to.", required=True)
    flags.DEFINE_enum("dtype", "float32", ["float32", "float16"], "How weights are stored.")


def workdir_to_folder(
    workdir: str, out: str, *, step: int | None = None, dtype: str = "float32"
) -> pathlib.Path:
    """Writes the networks of a run into a model folder.

    Args:
      workdir: of a run of maa_jax.train.
      out: the model folder; parts of it that this stage does not train are left as they are.
      step: which checkpoint; the latest by default.
      dtype: how weights are stored, "float32" or "float16".

    Returns:
      The path of the model folder.

    Raises:
      ValueError: there is no such run or checkpoint.
    """
    # After the flags, so that --help and a mistake in them answer at once.
    import jax

    from maa_jax import bundle
    from maa_jax.stages import make_stage
    from maa_jax.training.checkpoint import Checkpoints, read_config

    # An epoch's length sets learning rates alone.
    stage = make_stage(read_config(workdir), steps_per_epoch=1)
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
        jax.eval_shape(stage.init, jax.random.key(0)),
    )
    with Checkpoints(workdir) as checkpoints:
        steps = checkpoints.all_steps()
        if not steps:
            raise ValueError(
                f"--workdir={workdir} holds no finished checkpoint; train on until the first"
            )
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"--step={step}: --workdir={workdir} holds {steps}")
        state = checkpoints.restore(step, shapes)
    folder = pathlib.Path(out)
    stage.export(state.weights(), state.extra, folder)
    if dtype != "float32":
        for name in bundle.networks(folder):
            _, params = bundle.load_network(folder, name)
            bundle.save_network(folder, name, bundle.load_config(folder, name), params, dtype)
    return folder


def main(argv: Sequence[str]) -> None:
    """Runs the program that this module's docstring describes."""
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]!r} is not a flag")
    f = flags.FLAGS
    try:
        path = workdir_to_folder(f.workdir, f.out, step=f.step, dtype=f.dtype)
    except (ValueError, FileNotFoundError) as e:
        sys.exit(f"maa_jax.convert: {e}")
    print(f"Wrote {path}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
