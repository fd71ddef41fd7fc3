"""The training loop on several devices and in several processes."""

import json

import numpy as np
import pytest

from maa_jax.train import loop
from maa_jax.training import checkpoint
from tests.subprocesses import run_python, start_two


@pytest.fixture(scope="module")
def sharded_config(make_config):
    """A U-Net with kernels that are large enough to be split, and a batch for 8 devices."""
    config = make_config("t2a")
    config.total_steps, config.batch_size, config.log_every = 2, 8, 1
    config.eval_every = config.summary_every = config.checkpoint_every = 2
    config.unet.block_out_channels = (64,)
    return config


@pytest.fixture(scope="module")
def one(sharded_config, tmp_path_factory):
    """The losses of one device."""
    return loop.train(sharded_config, str(tmp_path_factory.mktemp("one")))


def test_eight_devices_give_the_losses_of_one(sharded_config, one, tmp_path):
    output = run_python(
        f"""
        import jax, json, ml_collections
        from maa_jax.train import loop
        config = ml_collections.ConfigDict(json.loads('''{sharded_config.to_json()}'''))
        for fsdp in (1, 4):  # data-parallel alone, and with split parameters
            config.mesh.fsdp = fsdp
            print("RESULT", json.dumps(loop.train(config, f"{tmp_path}/{{fsdp}}")))
        """,
        devices=8,
    )
    _assert_same_losses(one, output, runs=2)


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
    assert checkpoint.read_config(tmp_path / "two").batch_size == 8


def _assert_same_losses(expected, output, runs=1):
    lines = [x for x in output.splitlines() if x.startswith("RESULT ")]
    assert len(lines) == runs
    for line in lines:
        found = json.loads(line.removeprefix("RESULT "))
        for name, value in expected.items():
            if name.startswith(("train/", "validation/")):
                np.testing.assert_allclose(found[name], value, rtol=2e-4, err_msg=name)
