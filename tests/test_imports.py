import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import maa_jax
from maa_jax import command
from tests.subprocesses import ROOT, run_python

HEAVY = "torch", "tensorflow", "transformers", "orbax", "tensorflow_datasets", "grain", "librosa"
PACKAGE = pathlib.Path(maa_jax.__file__).parent
# What a training step needs; absl and yaml come with ml_collections.
STEP = {"jax", "jaxlib", "flax", "optax", "numpy", "ml_collections", "safetensors", "absl", "yaml"}


# Installed by hand, as its error says: its own requirements include PyAudio, which is not needed.
BY_HAND = {"tinysoundfont"}


def third_party() -> set[str]:
    """Returns the third-party modules that the package imports anywhere."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            found |= {name.partition(".")[0] for name in names}
    return found - set(sys.stdlib_module_names) - {"maa_jax"}


def test_every_module_is_in_the_base_install_or_its_extra_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = lambda requirements: {
        re.match(r"[\w-]+", r)[0].replace("-", "_").lower() for r in requirements
    }
    base, extras = names(project["dependencies"]), project["optional-dependencies"]
    distributions = importlib.metadata.packages_distributions()
    for module in sorted(third_party() - BY_HAND):
        own = {name.replace("-", "_").lower() for name in distributions[module]} & (
            base | names(extras[command.EXTRAS.get(module, "train")])
        )
        assert own, f"{module} is in no requirement"
        assert own & base or module in command.EXTRAS, f"command.EXTRAS lacks {module}"


def run(code, *arguments):
    code = f"import sys\n{code}\nprint(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2].split()


def test_the_package_is_light():
    """`import maa_jax` loads none of the networks, nor JAX."""
    code = "import maa_jax; assert maa_jax.__version__; assert 'jax' not in sys.modules"
    assert run(code) == []


def test_sampling_loads_no_library_of_training(tiny_model, tmp_path):
    code = (
        "from maa_jax import sample\n"
        "how = dict(model=sys.argv[1], out=sys.argv[2], steps=1, duration=0.1)\n"
        "sample.sample(['rain'], sample.Sampling(**how))"
    )
    assert run(code, tiny_model, tmp_path) == []
    assert (tmp_path / "000_rain.wav").exists()


# As if these modules were not installed.
WITHOUT = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: (
    None if name.partition(".")[0] in {missing} else find(name, *rest)
)
"""


PROGRAMS = (
    "train.__main__",
    "sample",
    "evaluate",
    "enhance",
    "embed",
    "report",
    "convert.__main__",
    "listen.__main__",
)


def test_programs_of_a_base_install_name_the_extra_that_they_need():
    code = WITHOUT.format(missing=set(command.EXTRAS)) + "import importlib\n"
    run_python(code + "".join(f"import maa_jax.{program}\n" for program in PROGRAMS))


def test_a_training_step_needs_jax_and_its_kin_alone():
    missing = third_party() - STEP
    assert {"grain", "orbax", "tokenizers", "soundfile"} <= missing
    run_python(
        WITHOUT.format(missing=missing)
        + """
import importlib, pkgutil
import jax, numpy as np
import maa_jax.models, maa_jax.stages, maa_jax.training.optim, maa_jax.training.state
for package in (maa_jax.models, maa_jax.stages):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

from maa_jax.configs import vocoder
stage = maa_jax.stages.make_stage(vocoder.get_config("runlocal"))
state = stage.init(jax.random.key(0))
batch = {"audio": np.full((2, 4096), 0.1, np.float32)}
state, scalars = stage.train_step(state, stage.load_frozen(), batch, jax.random.key(0))
assert state.step == 1 and all(np.isfinite(value) for value in scalars.values())
"""
    )


def test_data_is_built_and_trained_on_without_tensorflow(tmp_path):
    run_python(
        WITHOUT.format(missing={"tensorflow"})
        + f"""
from maa_jax.train import loop
from maa_jax.configs import vocoder
config = vocoder.get_config("runlocal")
config.data.data_dir = {str(tmp_path / "data")!r}
config.total_steps = 2
loop.train(config, {str(tmp_path / "run")!r})
"""
    )
    assert list(tmp_path.glob("data/sonic_sounds/*/*.array_record*"))
    assert list(tmp_path.glob("run/events.*"))


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="Pipelin"):
        _ = maa_jax.Pipelin
