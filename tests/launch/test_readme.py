"""Commands, flags, configs, keys, paths and links in the README and docs/*.md exist."""

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib

import pytest

from maa_jax import command
from maa_jax.configs import common
from maa_jax.data.builders import BUILDERS
from maa_jax.evaluators import EVALUATORS, PROTOCOLS
from maa_jax.pipeline.request import Request
from tests.launch.documents import ALL, ROOT, TEXTS, blocks, check_flags, commands, flags_of

MAP = TEXTS["docs/architecture.md"].split("## Files")[1]
PROGRAMS = sorted(
    {words[2] for words in commands(ALL) if words[:2] == ["python", "-m"]}
    - {"maa_jax.train", "pytest"}
)
# Scripts whose flags are those of maa_jax.train.
TRAINS = ["launch/tpu_pod.sh", "launch/gpu_slurm.sh"]


def test_the_documents_show_every_program():
    assert {f"maa_jax.{name}" for name in ("sample", "convert", "evaluate", "embed", "enhance")} < {
        *PROGRAMS
    }


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_flags_of_the_commands_exist(program):
    check_flags(program, flags_of(program))


@pytest.fixture(scope="module")
def known_flags():
    """The flags of all programs."""
    help_texts = [
        subprocess.run(
            [sys.executable, "-m", name, "--help"], capture_output=True, text=True, cwd=ROOT
        ).stdout
        for name in [program for program in PROGRAMS if program.startswith("maa_jax.")]
    ]
    flags = re.findall(r"^  --(\[no\])?(\w+)$", "\n".join(help_texts), re.M)
    return {no.strip("[]") + name for no, name in flags} | {name for _, name in flags}


@pytest.mark.parametrize("document", TEXTS)
def test_flags_in_the_text_exist(document, known_flags):
    named = set(re.findall(r"`--(\w+)", TEXTS[document])) - {"config"}  # keys are checked below
    assert named <= known_flags


def train_lines():
    launched = [words[2:] for words in commands(ALL) if set(words[1:2]) & set(TRAINS)]
    lines = flags_of("maa_jax.train") + launched
    return [[f for f in line if f.startswith("--")] for line in lines if line[0].startswith("--")]


@pytest.mark.parametrize("line", train_lines(), ids=lambda line: " ".join(line)[:60])
def test_training_commands_name_existing_configs_and_keys(line):
    given = dict(flag.removeprefix("--").split("=", 1) for flag in line)
    assert given.pop("workdir")
    config = command.read_config(given.pop("config"))
    for key, value in given.items():
        node = config
        *path, last = key.removeprefix("config.").split(".")
        for name in path:
            node = node[name]
        assert last in node, key
        if node[last] is not None and not isinstance(node[last], str):
            assert type(ast.literal_eval(value)) is type(node[last]), key


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`--config\.([\w.]+)=", ALL))))
def test_keys_in_the_text_exist(key):
    nodes = [common.base("clap"), command.read_config("clap"), command.read_config("t2a")]

    def has(node):
        for name in key.split("."):
            if name not in node:
                return False
            node = node[name]
        return True

    assert any(map(has, nodes))


def test_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for words in commands(ALL)
        if words[:2] == ["pip", "install"]
        for extra in re.findall(r"[\w-]+", words[-1].partition("[")[2])
    }
    assert "train" in named
    assert named <= set(project["optional-dependencies"])


def listed(document, section=""):
    """The names in the first column of the tables of a document, or of one of its sections."""
    text = (
        TEXTS[document].partition(section)[2].partition("\n## ")[0] if section else TEXTS[document]
    )
    rows = re.findall(r"^\| (`.*?) \|", text, re.M)
    return {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}


def test_every_option_of_sampling_is_listed():
    fields = {field.name for field in dataclasses.fields(Request)}
    others = {"image", "video", "audio", "mask", "initial_latents", "callback"}
    assert listed("docs/sample.md", "## Options") == fields | others


def test_every_evaluator_is_listed():
    assert listed("docs/evaluate.md") >= EVALUATORS.keys() | PROTOCOLS.keys()


def test_every_dataset_is_described():
    text = TEXTS["docs/data.md"]
    assert [name for name in BUILDERS if f"`{name}`" not in text and f"={name}" not in text] == []


def test_every_stage_is_listed():
    configs = {path.stem for path in (ROOT / "configs").glob("[!_]*.py")} - {"common"}
    assert configs <= listed("docs/train.md")


def test_scripts_exist():
    scripts = {word for words in commands(ALL) for word in words if word.startswith("launch/")}
    assert scripts
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []


@pytest.mark.parametrize("document", TEXTS)
def test_paths_in_the_text_exist(document):
    pattern = r"(?<![\w/.])((?:maa_jax|configs|launch|benchmarks|tools|docs|tests)/[\w./]*\w)"
    text = TEXTS[document].split("## Files")[0]  # the map is checked below
    paths = set(re.findall(pattern, text))
    paths = {path for path in paths if "NAME" not in path}  # stands for any name
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def anchors(text):
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", TEXTS)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)]+)\)", TEXTS[document]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        path = (ROOT / document).parent / path if path else ROOT / document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text("utf-8")), target


def mapped():
    block = MAP.split("```")[1]
    paths, folder = set(), ""
    for line in block.strip("\n").splitlines():
        # An entry begins at most two places in; a line further in continues the one before.
        name, _, about = line.strip().partition(" ")
        if not line.startswith("   "):
            folder = ("maa_jax/" if line.startswith("  ") else "") + name
            paths.add(folder)
        else:
            about = line
        if folder.endswith("/") and folder != "tests/":
            paths |= {folder + f for f in re.findall(r"\w+(?:\.(?:py|sh|yaml)|/(?= ))", about)}
    return paths


def test_the_map_names_only_what_exists():
    assert [path for path in sorted(mapped()) if not (ROOT / path).exists()] == []


def test_the_map_names_every_file():
    files = {
        str(path.relative_to(ROOT))
        for folder in ("maa_jax", "launch", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".sh", ".yaml") and path.name != "__init__.py"
    }
    assert files - mapped() == set()


def run_example(document, model):
    (code,) = blocks(TEXTS[document], "python")
    for name in ('"bundled"', '"maa_jax/bundled_model"'):
        code = code.replace(name, repr(str(model)))
    names = {}
    exec(compile(code, document, "exec"), names)
    return names


def test_the_python_example_of_the_readme_runs(tiny_model):
    names = run_example("README.md", tiny_model)
    assert names["wavs"].shape == (2, round(2.048 * names["pipe"].sample_rate))


def test_the_python_example_of_sampling_runs(tiny_model, monkeypatch):
    from maa_jax.pipeline.pipeline import Pipeline

    # The tiny model's sounds are shorter than the example's.
    monkeypatch.setattr(
        Pipeline,
        "__call__",
        lambda self, *args, call=Pipeline.__call__, **kw: call(self, *args, **kw | {"duration": 1}),
    )
    names = run_example("docs/sample.md", tiny_model)
    assert len(names["wavs"]) == len(names["scores"]) == len(names["indices"]) == 6


def test_the_diffusers_example_runs(tiny_model):
    pytest.importorskip("torch", reason="opens a model folder with PyTorch's classes")
    pytest.importorskip("diffusers", reason="opens a model folder with PyTorch's classes")
    names = run_example("docs/model_folders.md", tiny_model)
    assert names["unet"].config.cross_attention_dim == 24
