import errno
import os

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest

from maa_jax.training import checkpoint
from maa_jax.training.state import TrainState
from tests.subprocesses import run_python


def _state(value, ema=True):
    tree = {"net": {"w": jnp.full(3, value, jnp.float32)}}
    return TrainState(jnp.int32(value), tree, {"net": {}}, {"net": {}}, tree if ema else {})


def _dataset_iterator():
    import grain

    return iter(grain.MapDataset.range(100).to_iter_dataset())


def _shapes(state):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)


@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_brings_back_state_average_and_iterator(tmp_path, ema):
    iterator = _dataset_iterator()
    next(iterator), next(iterator)
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(5, ema), iterator)
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        fresh = _dataset_iterator()
        state = checkpoints.restore(1, _shapes(_state(0, ema)), fresh)
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail(), state, _state(5, ema))
    assert next(fresh) == 2


def test_the_best_step_outlives_newer_ones(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 4.0}
    with checkpoint.Checkpoints(tmp_path, keep=2, best="validation/loss") as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"validation/loss": loss}
            checkpoints.save(step, _state(step), _dataset_iterator(), metrics)
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path, keep=2, best="validation/loss") as checkpoints:
        assert checkpoints.all_steps() == [2, 5, 6]


def test_a_full_disk_leaves_the_previous_step_intact(tmp_path):
    # A limit on the size of files: the system refuses a write as on a full disk.
    output = run_python(
        f"""
        import resource, signal, sys
        import numpy as np, jax.numpy as jnp
        from maa_jax.training import checkpoint
        from maa_jax.training.state import TrainState
        import grain
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def save(step, size):
            value = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
            state = TrainState(jnp.int32(step), {{"net": value}}, {{}}, {{}}, {{}})
            checkpoints.save(step, state, iter(grain.MapDataset.range(9).to_iter_dataset()))
            checkpoints.wait()
        checkpoints = checkpoint.Checkpoints({str(tmp_path)!r}, keep=1)
        save(1, 10)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        try:
            save(2, 10_000_000)
        except Exception as error:
            print("refused:", type(error).__name__)
        else:
            sys.exit("the write went through")
        """
    )
    assert "refused" in output
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.all_steps() == [1]
        assert checkpoints.restore(1, _shapes(_first())).params["net"].shape == (10,)


def _first():
    return TrainState(jnp.int32(1), {"net": jnp.zeros(10)}, {}, {}, {})


def _config(**keys):
    base = {"stage": "clap", "optimizer": {"base_lr": 0.1, "b1": 0.9}, "log_every": 5}
    base |= {"data": {"workers": 0}}
    return ml_collections.ConfigDict(base | keys)


def test_a_workdir_of_another_config_is_refused_naming_the_keys(tmp_path):
    checkpoint.write_config(tmp_path, _config())
    with pytest.raises(ValueError, match=r"config.optimizer.b1=0.9 there, 0.5 here") as error:
        checkpoint.write_config(tmp_path, _config(optimizer={"base_lr": 0.2, "b1": 0.5}))
    assert "base_lr" not in str(error.value)  # which may change
    assert checkpoint.read_config(tmp_path).optimizer.b1 == 0.9


def test_the_learning_rate_and_clipping_may_change_and_the_changes_are_told(tmp_path):
    checkpoint.write_config(tmp_path, _config())
    changed = _config(optimizer={"base_lr": 0.2, "b1": 0.9, "clip_norm": 1.0})
    changes = checkpoint.check_config(tmp_path, changed)
    assert changes == [
        "config.optimizer.base_lr=0.1 there, 0.2 here",
        "config.optimizer.clip_norm='absent' there, 1.0 here",
    ]
    checkpoint.write_config(tmp_path, changed)
    assert checkpoint.read_config(tmp_path).optimizer.base_lr == 0.2


def test_how_a_run_is_monitored_may_change(tmp_path):
    config = {"sizes": ((1, 2), (3,))}  # tuples are lists in the file, and no difference
    checkpoint.write_config(tmp_path, _config(**config))
    checkpoint.write_config(tmp_path, _config(log_every=50, data={"workers": 4}, **config))


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a workdir"):
        checkpoint.read_config(tmp_path)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_checkpoint_that_cannot_be_written_says_why(code, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    state = TrainState(np.int32(1), {}, {}, {}, {})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(OSError, match=os.strerror(code)) as error:
            checkpoints.save(1, state, iterator=None)
    assert ("disk is full" in str(error.value)) == (code == errno.ENOSPC)


def test_a_run_from_before_a_key_existed_has_its_old_value(tmp_path):
    checkpoint.write_config(tmp_path, _config())  # without a schedule
    assert checkpoint.read_config(tmp_path).schedule.prediction_type == "epsilon"
    schedule = checkpoint.read_config(tmp_path).schedule.to_dict()
    checkpoint.check_config(tmp_path, _config(schedule=schedule))
    schedule["prediction_type"] = "sample"
    with pytest.raises(ValueError, match=r"schedule\.prediction_type='epsilon' there"):
        checkpoint.check_config(tmp_path, _config(schedule=schedule))


def test_a_run_goes_on_only_with_the_data_that_it_began_with(tmp_path):
    begun = {"mine:train": "1", "mine:validation": "2"}
    checkpoint.check_data(tmp_path, begun)
    checkpoint.write_data(tmp_path, begun)
    checkpoint.check_data(tmp_path, {"other:train": "3"})  # that start failed: there is no config
    checkpoint.write_config(tmp_path, ml_collections.ConfigDict({"batch_size": 1}))
    checkpoint.check_data(tmp_path, begun)
    with pytest.raises(ValueError, match=r"captions of mine:train are not.*remove .*data\.json"):
        checkpoint.check_data(tmp_path, begun | {"mine:train": "3"})
    (tmp_path / "data.json").unlink()
    checkpoint.check_data(tmp_path, {"mine:train": "3"})
