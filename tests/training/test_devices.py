"""The training loop on several devices and in several processes."""

import json
import signal

import numpy as np
import pytest

from maa_jax.train import loop
from maa_jax.training import workdir_files
from tests.subprocesses import run_python, start_two


@pytest.fixture(scope="module")
def sharded_config(make_config):
    """A U-Net with kernels that are large enough to be split, and a batch for 8 devices."""
    config = make_config("t2a")
    config.total_steps, config.batch_size, config.log_every = 3, 8, 1
    config.eval_every = config.summary_every = config.checkpoint_every = 3
    config.unet.block_out_channels = (64,)
    return config


@pytest.fixture(scope="module")
def one(sharded_config, tmp_path_factory):
    """The losses of one device."""
    return loop.train(sharded_config, str(tmp_path_factory.mktemp("one")))


TRAIN = """
import json, ml_collections
from maa_jax.train import loop
config = ml_collections.ConfigDict(json.loads({config!r}))
config.mesh.fsdp, config.total_steps = {fsdp}, {steps}
print("RESULT", json.dumps(loop.train(config, {workdir!r})))
"""


def test_eight_devices_and_four_that_take_over_give_the_losses_of_one(
    sharded_config, one, tmp_path
):
    config = sharded_config.to_json()
    workdir = str(tmp_path / "run")
    # Batches split in two and parameters in four, which four devices split in two each.
    run_python(TRAIN.format(config=config, fsdp=4, steps=2, workdir=workdir), devices=8)
    output = run_python(TRAIN.format(config=config, fsdp=2, steps=3, workdir=workdir), devices=4)
    assert "Resuming from step 2" in output
    _assert_same_losses(one, output)


def test_two_processes_train_together_and_give_the_losses_of_one(sharded_config, one, tmp_path):
    code = f"""
import json, ml_collections
from maa_jax.train import loop
from maa_jax.devices import initialize_distributed
initialize_distributed()
config = ml_collections.ConfigDict(json.loads('''{sharded_config.to_json()}'''))
print("RESULT", json.dumps(loop.train(config, {str(tmp_path / "two")!r})))
"""
    for process in start_two("-c", code, devices=2):
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        _assert_same_losses(one, output)
    assert workdir_files.read_config(tmp_path / "two").batch_size == 8


def _assert_same_losses(expected, output):
    """The losses of the first run in the output are those expected."""
    line = next(x for x in output.splitlines() if x.startswith("RESULT "))
    found = json.loads(line.removeprefix("RESULT "))
    for name, value in expected.items():
        if name.startswith(("train/", "validation/")):
            np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)


# Process 1 is lost at step 5, once the checkpoint of step 4 is complete.
LOST_AT_5 = """
import jax, json, ml_collections, os, signal, time
from maa_jax import devices
from maa_jax.train import loop
from maa_jax.training.metrics import Metrics
devices.initialize_distributed()
config = ml_collections.ConfigDict(json.loads({config!r}))
steps = []
def add(self, scalars, add=Metrics.add):
    steps.append(scalars)
    while len(steps) == 3 and jax.process_index() == 1:
        if os.path.isdir({workdir!r} + "/checkpoints/4"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
    add(self, scalars)
Metrics.add = add
loop.train(config, {workdir!r})
"""


def test_a_run_goes_on_with_another_number_of_processes_and_after_the_loss_of_one(
    make_config, tmp_path
):
    """One process, then two with one device each, of which one is lost, then one again."""
    config = make_config("clap")
    config.checkpoint_every = config.log_every = 2
    config.eval_every = config.summary_every = config.total_steps = 6
    whole = loop.train(config, str(tmp_path / "whole"))

    workdir = str(tmp_path / "run")
    config.total_steps = 2
    loop.train(config, workdir)
    config.total_steps = 6
    processes = start_two("-c", LOST_AT_5.format(config=config.to_json(), workdir=workdir))
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, -signal.SIGKILL], outputs
    assert "Resuming from step 2" in outputs[0]
    end = outputs[0].splitlines()[-1]
    assert end.startswith("Process 1 is gone") and end.endswith("the run goes on from step 4.")
    assert "Check failure stack trace" not in outputs[0] and "Traceback" not in outputs[0]

    config.data.workers = 1
    parts = loop.train(config, workdir)
    assert parts.keys() == whole.keys()
    for name in ("train/loss", "validation/loss"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-3, err_msg=name)
