import subprocess
import sys

import grain
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import maa_jax
from configs import t2a
from maa_jax import bundle, convert
from maa_jax.stages import make_stage
from maa_jax.training.checkpoint import Checkpoints, write_config


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    """A workdir of the diffusion stage with checkpoints at steps 1 and 2, and the last state."""
    workdir = str(tmp_path_factory.mktemp("run"))
    config = t2a.get_config("runlocal")
    config.autoencoder = config.text_encoder = config.vocoder = str(tiny_model)
    config.unet.update(block_out_channels=(16, 16), layers_per_block=1, cross_attention_dim=24)
    config.data.samples = 16384
    write_config(workdir, config)
    rng = np.random.default_rng(0)  # quicker than to compile the initialisation
    state = jax.tree.map(
        lambda x: (0.1 * rng.standard_normal(x.shape)).astype(x.dtype),
        jax.eval_shape(make_stage(config, 1).init, jax.random.key(0)),
    )
    latents = state.extra["latents"] | {"scale": np.float32(0.25)}
    state = state.replace(extra=state.extra | {"latents": latents})
    iterator = iter(grain.MapDataset.range(4).to_iter_dataset())
    with Checkpoints(workdir, keep=2) as checkpoints:
        for step in (1, 2):
            ema = jax.tree.map(lambda x, step=step: x + step, state.params)
            state = state.replace(step=np.int32(step), ema=ema)
            checkpoints.save(step, state, iterator)
        checkpoints.wait()
    return workdir, state


def test_the_latest_average_becomes_a_model_that_speaks(run, tmp_path):
    workdir, state = run
    out = tmp_path / "models" / "mine"
    done = subprocess.run(
        [sys.executable, "-m", "maa_jax.convert", "--from=workdir", f"--workdir={workdir}",
         f"--out={out}"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(out) in done.stdout
    _, params = bundle.load_network(out, "unet")
    jax.tree.map(np.testing.assert_array_equal, params, jax.device_get(state.ema["unet"]))
    assert bundle.load_config(out, "vae").scaling_factor == 0.25
    pipe = maa_jax.Pipeline.from_pretrained(out)
    assert pipe("rain", steps=1).shape == (1, 16384)


def test_another_step_and_half_precision(run, tmp_path):
    workdir, state = run
    convert.workdir_to_folder(workdir, str(tmp_path), step=1, dtype="float16")
    _, params = bundle.load_network(tmp_path, "unet")
    want = jax.tree.map(lambda x: x - 1, jax.device_get(state.ema["unet"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), params, want)
    for path in tmp_path.glob("*/*.safetensors"):
        assert {v.dtype for v in load_file(path).values()} == {np.dtype("float16")}
    maa_jax.Pipeline.from_pretrained(tmp_path)


def test_mistakes_are_named(run, tmp_path):
    workdir, _ = run
    with pytest.raises(ValueError, match=r"--step=7: --workdir=.*holds \[1, 2\]"):
        convert.workdir_to_folder(workdir, str(tmp_path / "out"), step=7)
    with pytest.raises(FileNotFoundError, match=r"--workdir=.*config\.json"):
        convert.workdir_to_folder(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
