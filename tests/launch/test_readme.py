"""The README's commands have flags and files that exist; its map of files is complete and true."""

import ast
import importlib
import json
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
MAP = (ROOT / "docs" / "architecture.md").read_text("utf-8").split("## Files")[1]
WITH_FLAGS = [f"maa_jax.{name}" for name in ("sample", "convert", "evaluate", "embed", "enhance")]
# Scripts whose flags are those of maa_jax.train.
TRAINS = ["launch/tpu_pod.sh", "launch/gpu_slurm.sh"]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)


def commands():
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    text += "\n" + "\n".join(re.findall(r"`((?:bash|python|pip) [^`]+)`", README))
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def flags_of(module):
    return [command[3:] for command in commands() if command[:3] == ["python", "-m", module]]


def test_every_module_named_is_checked_here():
    named = {command[2] for command in commands() if command[:2] == ["python", "-m"]}
    named = {name for name in named if name.startswith("maa_jax.")}
    assert named <= {"maa_jax.train", *WITH_FLAGS}


def test_benchmarks_have_the_flags_named():
    found = [
        command
        for command in commands()
        if command[2:3] and command[2].startswith(("benchmarks.", "tools."))
    ]
    assert found
    for _, _, module, *flags in found:
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
        defined = re.findall(r'DEFINE_\w+\(\s*"(\w+)"', source)
        assert {flag.removeprefix("--").split("=")[0] for flag in flags} <= set(defined), module


@pytest.mark.parametrize("module", WITH_FLAGS)
def test_flags_parse(module):
    # In a process of its own: flags are global, and two programs' may clash.
    script = (
        "import importlib, json, sys; from absl import flags; "
        "module = importlib.import_module(sys.argv[1]); "
        "module = getattr(module, 'define_flags', None) and module or "
        "importlib.import_module(sys.argv[1] + '.__main__'); module.define_flags(); "
        "rest = [flags.FLAGS(['x', *line]) for line in json.loads(sys.argv[2])]; "
        "assert all(len(line) == 1 for line in rest), rest"
    )
    lines = flags_of(module)
    assert lines
    run = subprocess.run(
        [sys.executable, "-c", script, module, json.dumps(lines)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr


def train_lines():
    launched = [c[2:] for c in commands() if set(c[1:2]) & set(TRAINS)]
    return [[f for f in line if f[:2] == "--"] for line in flags_of("maa_jax.train") + launched]


@pytest.mark.parametrize("line", train_lines(), ids=lambda line: " ".join(line)[:60])
def test_training_commands_are_of_existing_configs_and_keys(line):
    given = dict(flag.removeprefix("--").split("=", 1) for flag in line)
    file, _, arg = given.pop("config").partition(":")
    assert given.pop("workdir")
    assert (ROOT / file).is_file()
    config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config(
        arg or None
    )
    for key, value in given.items():
        node = config
        *path, last = key.removeprefix("config.").split(".")
        for name in path:
            node = node[name]
        assert last in node, key
        if node[last] is not None and not isinstance(node[last], str):
            assert type(ast.literal_eval(value)) is type(node[last]), key


@pytest.mark.parametrize("key", re.findall(r"`--config\.([\w.]+)=", README))
def test_keys_in_the_text_exist(key):
    from configs import common

    node = common.base("clap")
    for name in key.split("."):
        assert name in node
        node = node[name]


def test_scripts_exist():
    scripts = {word for line in commands() for word in line if word.startswith("launch/")}
    assert scripts
    for script in scripts:
        assert (ROOT / script).is_file()


def mapped():
    block = MAP.split("```")[1]
    paths, folder = set(), ""
    for line in block.strip("\n").splitlines():
        # An entry begins at most two places in; a line further in goes on with the one before.
        name, _, about = line.strip().partition(" ")
        if not line.startswith("   "):
            folder = ("maa_jax/" if line.startswith("  ") else "") + name
            paths.add(folder)
        else:
            about = line
        if folder.endswith("/") and folder != "tests/":
            paths |= {folder + f for f in re.findall(r"\w+(?:\.(?:py|sh|yaml)|/(?= ))", about)}
    return paths


def test_map_names_only_what_exists():
    assert [path for path in sorted(mapped()) if not (ROOT / path).exists()] == []


def test_map_names_every_file():
    files = {
        str(path.relative_to(ROOT))
        for folder in ("maa_jax", "configs", "launch", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".yaml") and path.name != "__init__.py"
    }
    assert files - mapped() == set()


def test_paths_in_the_text_exist():
    paths = re.findall(r"(?<![\w/])((?:maa_jax|configs|launch|benchmarks)/[\w./]*\w)", README)
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("block", blocks("python"), ids=["pipeline", "folder"])
def test_python_examples_are_python(block):
    ast.parse(block)


def test_python_example_runs(tiny_model, monkeypatch):
    code = blocks("python")[0].replace('"bundled"', repr(str(tiny_model)))
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["wavs"].shape == (2, round(2.048 * names["pipe"].sample_rate))


def test_diffusers_example_runs(tiny_model):
    pytest.importorskip("torch", reason="opens a model folder with PyTorch's classes")
    pytest.importorskip("diffusers", reason="opens a model folder with PyTorch's classes")
    code = blocks("python")[1].replace('"maa_jax/bundled_model"', repr(str(tiny_model)))
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["unet"].config.cross_attention_dim == 24
