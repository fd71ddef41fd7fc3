"""The state of a run, read from its workdir for use."""

import jax

from maa_jax.stages import make_stage
from maa_jax.stages.base import Stage
from maa_jax.training import config as run_config
from maa_jax.training.state import TrainState


def restored(workdir: str, step: int | None = None) -> tuple[Stage, TrainState]:
    """Returns the stage of a run and its state, on one device.

    Args:
      workdir: folder of a run of maa_jax.train.
      step: step of the checkpoint; the latest whole one by default.

    Raises:
      FileNotFoundError: there is no run in the workdir.
      ValueError: there is no such checkpoint, or it is broken.
    """
    # A training step, and with it this package, needs no Orbax.
    from maa_jax.training.checkpoint import Checkpoints
    from maa_jax.training.workdir_files import read_config, read_tokenizer

    config = read_config(workdir)
    run_config.check(config)
    stage = make_stage(config, tokenizer=read_tokenizer(workdir))
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
        if step is not None and step not in steps:
            raise ValueError(f"--step={step}: --workdir={workdir} holds {steps}")
        if step is not None:
            return stage, checkpoints.restore(step, shapes)
        newest = checkpoints.restore_newest(shapes)
        assert newest is not None  # there are steps
        return stage, newest[1]
