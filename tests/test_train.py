"""The training loop, with every stage, on real data and real checkpoints."""

import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maa_jax import files, stages
from maa_jax.configs import common
from maa_jax.convert.folders import workdir_to_folder
from maa_jax.text.tokenizer import Tokenizer
from maa_jax.train import loop
from maa_jax.training import checkpoint, sharding, workdir_files
from tests.subprocesses import start_python

STAGES = (
    *("audio_classifier", "autoencoder", "captioner", "clap", "clip", "retriever", "t2a"),
    "vocoder",
)


def _flags(config, **more):
    """Command-line flags that make the same run as `make_config("clap")`."""
    keys = {"data.data_dir": config.data.data_dir, **more}
    return [f"--config.{key}={value}" for key, value in keys.items()]


def _arrays(config, workdir, step):
    """Every array of a checkpoint, by path."""
    stage = loop.make_stage(config)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=one), shapes)
    with checkpoint.Checkpoints(str(workdir)) as checkpoints:
        state = checkpoints.restore(step, target)
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(state)}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder of compiled programs, so that a stage's runs compile each of them once."""
    return str(tmp_path_factory.mktemp("programs"))


# Waits until the checkpoint of step 2 is complete, then kills the process, like a lost machine.
KILLED_AT_3 = """
import json, ml_collections, os, signal, time
from maa_jax.train import loop
from maa_jax.training.metrics import Metrics
config = ml_collections.ConfigDict(json.loads({config!r}))
steps = []
def add(self, scalars, add=Metrics.add):
    steps.append(scalars)
    while len(steps) == 3:
        if os.path.isdir({workdir!r} + "/checkpoints/2"):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
    add(self, scalars)
Metrics.add = add
loop.train(config, {workdir!r})
"""


# Those that train as another stage here does, with the same step and the same kind of input.
ALIKE = ("retriever", "clip", "audio_classifier")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE))
        for name in (*STAGES, "inpainting")
    ],
)
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    name, make_config, programs, tmp_path
):
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    config = make_config(name)
    config.total_steps = config.eval_every = config.summary_every = 4
    config.checkpoint_every = 2
    whole = loop.train(config, str(tmp_path / "whole"))
    assert all(np.isfinite(value) for value in whole.values()), whole
    shown = EventAccumulator(str(tmp_path / "whole")).Reload().Tags()
    assert shown["images"] and bool(shown["audio"]) == (name == "vocoder")

    workdir = str(tmp_path / "parts")
    killed = start_python(
        "-c",
        KILLED_AT_3.format(config=config.to_json(), workdir=workdir),
        JAX_COMPILATION_CACHE_DIR=programs,
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )
    output, _ = killed.communicate(timeout=600)
    assert killed.returncode == -signal.SIGKILL, output
    parts = loop.train(config, workdir)

    expected, found = (_arrays(config, tmp_path / run, 4) for run in ("whole", "parts"))
    assert expected.keys() == found.keys()
    differ = [k for k in expected if not np.array_equal(expected[k], found[k])]
    assert not differ
    assert whole["validation/loss"] == parts["validation/loss"]


def test_a_run_goes_on_with_another_number_of_workers_bit_for_bit(make_config, tmp_path):
    config = make_config("clap")
    config.eval_every = config.summary_every = config.total_steps = 4
    loop.train(config, str(tmp_path / "whole"))
    config.total_steps = 2
    loop.train(config, str(tmp_path / "parts"))
    config.total_steps, config.data.workers, config.data.prefetch = 4, 2, 3
    loop.train(config, str(tmp_path / "parts"))
    expected, found = (_arrays(config, tmp_path / run, 4) for run in ("whole", "parts"))
    assert not [k for k in expected if not np.array_equal(expected[k], found[k])]


def test_two_runs_in_one_workdir_are_refused(make_config, tmp_path):
    with files.lock(tmp_path):
        with pytest.raises(ValueError, match=r"in use by process \d+.*another folder"):
            loop.train(make_config("clap"), str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_run_scores_the_sounds_that_it_makes(make_config, tiny_model, tmp_path):
    config = make_config("t2a")
    config.total_steps = 1
    for name in ("clap_score", "label_accuracy", "clap-ms"):
        config.evaluators[name].update(every=1, num_prompts=3, clap=str(tiny_model))
    config.best = "-clap-ms/score"
    with pytest.raises(ValueError, match=r"config\.evaluators\.clap.*config\.vocoder"):
        loop.train(config, str(tmp_path / "silent"))
    config.vocoder = str(tiny_model)
    scores = loop.train(config, str(tmp_path / "run"))
    assert -1 <= scores["clap_score/clap_score"] <= 1
    assert scores["label_accuracy/prompts"] == 3
    shown = EventAccumulator(str(tmp_path / "run")).Reload().Tags()
    assert "image/sample/0" in shown["images"] and "audio/sample/0" in shown["audio"]
    assert "clap_score/clap_score" in shown["scalars"]
    assert any(re.fullmatch(r"clap-ms/clap_\w{8}/score", name) for name in shown["scalars"])
    config.best = "clap-ms/score"
    config.evaluators["clap-ms"].every = 0
    with pytest.raises(ValueError, match=r"config\.best='clap-ms/score': give validation/loss, EV"):
        loop.train(config, str(tmp_path / "other"))
    assert 0 <= scores["label_accuracy/clap/top_1"] <= 1


def test_a_run_needs_no_dataset_once_it_is_trained(make_config, data_dir, tmp_path):
    """The tokenizer that was built from the captions is kept in the workdir."""
    config = make_config("clap")
    assert config.tokenizer == "captions"
    shutil.copytree(data_dir, tmp_path / "data")
    config.data.data_dir = str(tmp_path / "data")
    config.total_steps = 1
    loop.train(config, str(tmp_path / "run"))
    shutil.rmtree(tmp_path / "data")
    assert loop.train(config, str(tmp_path / "run")) == {}
    folder = workdir_to_folder(str(tmp_path / "run"), str(tmp_path / "model"))
    kept, exported = (Tokenizer.from_folder(x / "tokenizer") for x in (tmp_path / "run", folder))
    np.testing.assert_array_equal(kept(["a crow caws"]), exported(["a crow caws"]))
    assert not (tmp_path / "data").exists()


def test_paths_may_be_relative_or_begin_with_a_tilde(
    make_config, data_dir, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = make_config("vocoder")
    config.data.data_dir = os.path.relpath(data_dir)
    config.total_steps, config.checkpoint_every = 2, 1
    loop.train(config, "runs/v")
    config.total_steps = 3
    loop.train(config, "~/runs/v")  # resumes there
    folder = workdir_to_folder("runs/v", "~/models/v")
    assert folder == tmp_path / "models" / "v" and (folder / "vocoder" / "config.json").is_file()
    kept = json.loads((tmp_path / "runs" / "v" / "config.json").read_text())
    assert kept["data"]["data_dir"] == config.data.data_dir  # as it was written

    config = make_config("t2a")
    config.autoencoder = os.path.relpath(tiny_model)
    config.text_encoder = f"~/{os.path.relpath(tiny_model)}"
    config.init_from = f"~/{os.path.relpath(tiny_model)}"
    config.unet.update(block_out_channels=(16, 32), num_heads=2)
    stage = loop.make_stage(config)
    assert stage.start_weights().keys() == {"unet"}


def test_a_start_that_fails_leaves_the_workdir_free(make_config, tmp_path):
    config = make_config("t2a")
    config.autoencoder = "absent"
    with pytest.raises(ValueError, match="absent"):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_workdir_that_cannot_be_used_is_an_error_of_one_line(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(
            ValueError, match=r"--workdir=.*cannot be used.*another folder"
        ) as error:
            loop.train(make_config("vocoder"), str(workdir))
        assert "\n" not in str(error.value)


def test_each_batch_that_prepares_a_state_has_a_key_of_its_own():
    def prepare(state, frozen, batch, key):
        return jnp.stack([state[1], jax.random.normal(key)])

    stage = types.SimpleNamespace(prepare=prepare, prepare_batches=2)
    mesh = sharding.create_mesh(common.base("clap").mesh)
    batches = [{"audio": np.zeros((1, 1))}] * 3
    key, everywhere = jax.random.key(0), sharding.replicated(mesh)
    first, second = loop._prepare(stage, jnp.zeros(2), {}, batches, key, everywhere, mesh)
    assert first != second and first != 0


@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_scores_that_are_not_one_for_each_example_are_refused(shape):
    stage = types.SimpleNamespace(eval_step=lambda *_: {"loss": jnp.zeros(shape)})
    score = loop._jit_score(stage, sharding.create_mesh(common.base("clap").mesh))
    with pytest.raises(TypeError, match=r"'loss' has the shape"):
        score({}, {}, {"valid": np.ones(2, bool)}, jax.random.key(0))


def test_a_validation_score_that_is_not_finite_is_told_and_never_the_best(capsys):
    def eval_step(state, frozen, batch, key):
        return {"loss": batch["audio"][:, 0], "l1": jnp.ones_like(batch["index"])}

    mesh = sharding.create_mesh(common.base("clap").mesh)
    score = loop._jit_score(types.SimpleNamespace(eval_step=eval_step), mesh)
    batch = {"audio": np.array([[1.0], [np.nan]], "f"), "index": np.arange(2)}
    evaluate = lambda valid: loop._evaluate(
        score, {}, {}, [{**batch, "valid": np.array(valid)}], mesh, jax.random.key(0)
    )
    assert evaluate([True, True]) == {"validation/l1": 1}
    assert "left out: validation/loss" in capsys.readouterr().out
    assert evaluate([True, False]) == {"validation/l1": 1, "validation/loss": 1}  # padding


def test_a_loss_that_is_not_finite_stops_the_run_and_is_kept_for_debugging(
    make_config, tmp_path, monkeypatch
):
    stage = stages.STAGES["clap"]
    clean = stage.loss

    def loss(self, *args):
        value, aux = clean(self, *args)
        return value * jnp.inf, aux

    monkeypatch.setattr(stage, "loss", loss)
    config = make_config("clap")
    with pytest.raises(FloatingPointError, match="Not finite at step 1: loss, ") as error:
        loop.train(config, str(tmp_path))
    failure = tmp_path / "failure" / "1"
    with np.load(failure / "batch_0.npz") as batch:
        assert batch["audio"].shape == (config.batch_size, config.data.samples)
    assert (failure / "state").is_dir()
    assert "config.optimizer.base_lr" in str(error.value)


@jax.custom_vjp
def _spoiling(x):
    """The identity, whose gradient is NaN."""
    return x


_spoiling.defvjp(lambda x: (x, None), lambda _, grad: (jnp.full_like(grad, jnp.nan),))


def _spoil(stage, network, module):
    """Makes one gradient of a module NaN; the loss keeps its value."""
    clean = stage.loss

    def loss(self, params, *args):
        leaves, tree = jax.tree.flatten(params[network][module])
        spoilt = jax.tree.unflatten(tree, [_spoiling(leaves[0]), *leaves[1:]])
        params = params | {network: params[network] | {module: spoilt}}
        return clean(self, params, *args)

    return loss


@pytest.mark.parametrize(
    ("name", "network", "module"),
    [
        ("clap", "clap", "audio_projection"),  # a single network
        ("vocoder", "vocoder", "conv_post"),  # a generator
        ("vocoder", "period", "discriminators"),
    ],
)
def test_a_gradient_that_is_not_finite_is_named_and_spoils_no_checkpoint(
    name, network, module, make_config, programs, tmp_path, monkeypatch
):
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    config, workdir = make_config(name), str(tmp_path)
    config.total_steps = config.checkpoint_every = 1
    if name == "vocoder":
        config.discriminator.start = 0
    loop.train(config, workdir)
    before = _arrays(config, workdir, 1)
    assert all(np.isfinite(x).all() for x in before.values())

    config.total_steps = 3
    stage = stages.STAGES[config.stage]
    with monkeypatch.context() as patch:
        patch.setattr(stage, "loss", _spoil(stage, network, module))
        with pytest.raises(FloatingPointError, match="Not finite at step 2") as error:
            loop.train(config, workdir)
    assert f"step 2: grad_norm/{network}.{module}. The state" in str(error.value)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        assert checkpoints.all_steps() == [1]


def test_a_run_goes_on_with_another_learning_rate_and_clipping_and_says_so(
    make_config, programs, tmp_path, capsys
):
    """As the error of a run that diverged advises."""
    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    config, workdir = make_config("clap"), str(tmp_path)
    config.optimizer.clip_norm = 0.0
    config.total_steps = 1
    loop.train(config, workdir)
    config.total_steps, config.optimizer.base_lr, config.optimizer.clip_norm = 2, 5e-4, 0.5
    capsys.readouterr()
    scores = loop.train(config, workdir)
    said = capsys.readouterr().out
    assert "From step 2 on:\nconfig.optimizer.base_lr=0.001 there, 0.0005 here\n" in said
    assert scores["train/learning_rate"] == pytest.approx(5e-4 * 2 / 50, rel=0.2)  # warming up
    kept = json.loads((tmp_path / "config.json").read_text())["optimizer"]
    assert kept["base_lr"] == 5e-4 and kept["clip_norm"] == 0.5
    assert "config/changes/text_summary" in EventAccumulator(workdir).Reload().Tags()["tensors"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_is_told_to_stop_saves_first(number, status, make_config, tmp_path):
    config = make_config("vocoder")
    flags = _flags(config, total_steps=100_000, checkpoint_every=100_000, log_every=1)
    workdir = tmp_path / "run"
    process = start_python(
        "-m",
        "maa_jax.train",
        "--config=configs/vocoder.py:runlocal",
        f"--workdir={workdir}",
        "--config.optimizer.cosine_steps=0",
        *flags,
    )
    deadline = time.monotonic() + 300
    while not list(workdir.glob("events.*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.5)
    time.sleep(3)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status, output
    with checkpoint.Checkpoints(str(workdir)) as checkpoints:
        assert checkpoints.latest_step() > 0


TWICE_INTERRUPTED = """
import os, signal, time
from maa_jax.train.stop_signal import StopSignal
with StopSignal() as stop:
    assert not stop(1)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop(1)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""


def test_a_second_ctrl_c_ends_a_run_at_once():
    process = start_python("-c", TWICE_INTERRUPTED)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130, output
    assert "again to end at once" in output and "Traceback" not in output


def _error(*flags):
    process = start_python("-m", "maa_jax.train", *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0, output
    return output


def test_a_wrong_key_is_named_with_the_nearest_right_one(tmp_path):
    output = _error(
        "--config=configs/clap.py:runlocal", f"--workdir={tmp_path}", "--config.batch_sise=3"
    )
    assert "batch_sise" in output and "batch_size" in output.replace("batch_sise", "")


def test_a_workdir_of_another_config_is_refused(make_config, tmp_path):
    config = make_config("clap")
    workdir_files.write_config(tmp_path, config)
    output = _error(
        "--config=configs/clap.py:runlocal",
        f"--workdir={tmp_path}",
        *_flags(config, seed=7),
    )
    assert "config.seed=0 there, 7 here" in output


def test_a_missing_model_folder_is_named_with_the_remedy(make_config, tmp_path):
    config = make_config("t2a")
    config.autoencoder = str(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"config.autoencoder=.*absent.*maa_jax.convert"):
        loop.train(config, str(tmp_path / "run"))


def test_disagreeing_widths_are_named(make_config, tmp_path):
    config = make_config("t2a")
    config.unet.cross_attention_dim = 32
    with pytest.raises(ValueError, match=r"cross_attention_dim=32.*gives 24"):
        loop.train(config, str(tmp_path / "run"))


@pytest.mark.parametrize("name", STAGES)
def test_every_config_has_its_arguments(name):
    get_config = importlib.import_module(f"maa_jax.configs.{name}").get_config
    for arg in (None, "demo", "runlocal", "bundled"):
        assert get_config(arg).stage in stages.STAGES
    with pytest.raises(ValueError, match="choose from"):
        get_config("nonsense")


def test_every_config_is_tested():
    folder = pathlib.Path(common.__file__).parent
    # The classifier, which needs a soundfont, has its own tests.
    known = {*STAGES, "common", "event_classifier", "inpainting", "v2a"}
    assert {p.stem for p in folder.glob("[!_]*.py")} == known


def test_a_run_whose_recordings_have_changed_does_not_go_on(make_config, tmp_path):
    config = make_config("clap")
    workdir_files.write_data(tmp_path, {"sonic_sounds:train": "another"})
    workdir_files.write_config(tmp_path, config)
    with pytest.raises(ValueError, match="captions of sonic_sounds:train, sonic_sounds:validation"):
        loop.train(config, str(tmp_path))
