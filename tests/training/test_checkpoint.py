import errno
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from maa_jax import command
from maa_jax.training import checkpoint
from maa_jax.training.state import TrainState
from tests.subprocesses import run_python


def _state(value, ema=True):
    noise = np.random.default_rng(value).normal(size=2000)
    tree = {"net": {"w": jnp.full(3, value, jnp.float32), "v": jnp.asarray(noise, jnp.float32)}}
    return TrainState(jnp.int32(value), tree, {"net": {}}, {"net": {}}, tree if ema else {})


def _shapes(state):
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), state)


def _save(folder, *steps, **options):
    with checkpoint.Checkpoints(folder, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, _state(step))
        checkpoints.wait()


@pytest.mark.parametrize("ema", [True, False])
def test_a_checkpoint_brings_back_state_and_average(tmp_path, ema):
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state(5, ema))
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        state = checkpoints.restore(1, _shapes(_state(0, ema)))
    jax.tree.map(lambda a, b: (a == b).all() or pytest.fail(), state, _state(5, ema))


def _tear(path, how):
    """Damages a file as a crash, a full disk or a bad sector does."""
    content = bytearray(path.read_bytes())
    if how == "removed":
        path.unlink()
        return
    if how == "flipped" and content:
        content[len(content) // 2] ^= 0x10
    path.write_bytes({"cut": content[: len(content) // 2], "emptied": b"", "flipped": content}[how])


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A workdir with the steps 1 and 2."""
    folder = tmp_path_factory.mktemp("two_steps")
    _save(folder, 1, 2)
    return folder


@pytest.mark.parametrize("how", ["removed", "cut", "emptied", "flipped"])
def test_a_torn_file_never_changes_what_is_restored(how, two_steps, tmp_path, caplog):
    """Either the step is whole all the same, or it is named and the one before it is restored."""
    step = two_steps / "checkpoints" / "2"
    files = [path.relative_to(step) for path in step.rglob("*") if path.is_file()]
    assert len(files) > 10
    stepped_back = 0
    for i, file in enumerate(files):
        workdir = tmp_path / str(i)
        shutil.copytree(two_steps, workdir)
        _tear(workdir / "checkpoints" / "2" / file, how)
        caplog.clear()
        with checkpoint.Checkpoints(workdir) as checkpoints:
            found, state = checkpoints.restore_newest(_shapes(_state(0)))
        jax.tree.map(lambda a, b: (a == b).all() or pytest.fail(), state, _state(found))
        if found == 1:
            stepped_back += 1
            (line,) = [x.getMessage() for x in caplog.records if x.module == "checkpoint"]
            assert re.fullmatch(r"step 2 is broken \(\S+: .+\): going on from step 1", line)
    assert stepped_back >= 8


def test_going_on_after_a_broken_step_replaces_it(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
    with checkpoint.Checkpoints(tmp_path / "run", keep=2) as checkpoints:
        assert checkpoints.restore_newest(_shapes(_state(0)))[0] == 1
        assert checkpoints.all_steps() == [1, 2]  # nothing is changed before there is more
        checkpoints.save(2, _state(2))
        checkpoints.wait()
        assert checkpoints.all_steps() == [1, 2]
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore_newest(_shapes(_state(0)))[0] == 2
    assert (tmp_path / "run" / "broken" / "2").is_dir()


def test_a_step_under_the_name_of_another_is_broken(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "2").rename(tmp_path / "run" / "checkpoints" / "9")
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.restore_newest(_shapes(_state(0)))[0] == 1


def test_a_run_without_a_whole_step_is_an_error_that_names_all(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    for step in "12":
        shutil.rmtree(tmp_path / "run" / "checkpoints" / step / "ema")
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(checkpoint.BrokenCheckpoint, match=r"no whole.*step 2 .*; step 1 "):
            checkpoints.restore_newest(_shapes(_state(0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "int8", "bool"])
def test_a_checksum_sees_each_changed_element(dtype):
    x = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, jnp.dtype(dtype))
    sums = [checkpoint.checksums({"x": jnp.asarray(x)})]
    for i in range(x.size):
        changed = x.copy()
        changed.flat[i] = 1 - changed.flat[i]
        sums.append(checkpoint.checksums({"x": jnp.asarray(changed)}))
    sums.append(checkpoint.checksums({"x": jnp.asarray(x[:, :, ::-1])}))
    assert len({s["x"] for s in sums}) == x.size + 2


def test_reading_checkpoints_leaves_a_run_that_is_writing_alone(two_steps, tmp_path):
    """`convert` may read a workdir while training writes into it."""
    shutil.copytree(two_steps, tmp_path / "run")
    unfinished = tmp_path / "run" / "checkpoints" / "3.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        assert checkpoints.all_steps() == [1, 2]
        checkpoints.restore_newest(_shapes(_state(0)))
    assert unfinished.is_dir()


def test_metrics_that_cannot_be_read_do_not_stop_a_run(tmp_path):
    with checkpoint.Checkpoints(tmp_path, best="loss") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _state(step), {"loss": 1.0})
        checkpoints.wait()
    metadata = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
    metadata.write_text(metadata.read_text()[:-9])
    with checkpoint.Checkpoints(tmp_path, best="loss") as checkpoints:
        assert checkpoints.restore_newest(_shapes(_state(0)))[0] == 2
        checkpoints.save(3, _state(3), {"loss": 1.0})
        checkpoints.wait()
        assert checkpoints.all_steps() == [2, 3]


def test_the_best_step_outlives_newer_ones(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: None, 4: 2.0, 5: None, 6: 4.0}
    with checkpoint.Checkpoints(tmp_path, keep=2, best="validation/loss") as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"validation/loss": loss}
            checkpoints.save(step, _state(step), metrics)
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path, keep=2, best="validation/loss") as checkpoints:
        assert checkpoints.all_steps() == [2, 5, 6]


def test_a_score_of_sounds_chooses_the_best_step_by_its_highest_value(tmp_path):
    with checkpoint.Checkpoints(tmp_path, keep=1, best="-clap-ms/score") as checkpoints:
        for step, score in {1: 0.1, 2: 0.4, 3: 0.2}.items():
            checkpoints.save(step, _state(step), {"clap-ms/clap_12ab/score": score})
        checkpoints.wait()
    with checkpoint.Checkpoints(tmp_path, keep=1, best="-clap-ms/score") as checkpoints:
        assert checkpoints.all_steps() == [2, 3]


def test_a_full_disk_leaves_the_previous_step_intact(tmp_path):
    # A limit on the size of files: the system refuses a write as on a full disk.
    output = run_python(
        f"""
        import resource, signal, sys
        import numpy as np, jax.numpy as jnp
        from maa_jax.training import checkpoint
        from maa_jax.training.state import TrainState
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        def save(step, size):
            value = jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32)
            state = TrainState(jnp.int32(step), {{"net": value}}, {{}}, {{}}, {{}})
            checkpoints.save(step, state)
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


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES])
def test_a_checkpoint_that_cannot_be_written_says_why(code, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    state = TrainState(np.int32(1), {}, {}, {}, {})
    with checkpoint.Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(OSError, match=os.strerror(code)) as error:
            checkpoints.save(1, state)
    assert (command.no_room(error.value) != "") == (code == errno.ENOSPC)
