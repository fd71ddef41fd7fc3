"""Flags, help, errors and logs of programs, as a user at a terminal sees them."""

import subprocess
import sys
import textwrap

import pytest

from maa_jax import command
from tests.subprocesses import ROOT, environment

PROGRAMS = ("train", "sample", "evaluate", "enhance", "embed", "report", "convert")


def run(*arguments, **more):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=120,
        **more,
    )


def start(code):
    """Runs a new program whose `main` is `code`."""
    source = f"""
import sys
sys.modules["__main__"].__spec__ = type(sys)("maa_jax.mine"); __spec__.name = "maa_jax.mine"
from absl import flags
from maa_jax import command
def define_flags():
    flags.DEFINE_integer("steps", 3, "Number of steps.")
    flags.DEFINE_string("out", "x", "Folder.")
def main():
{textwrap.indent(textwrap.dedent(code), "    ")}
command.run(main, define_flags)
"""
    return lambda *arguments: run("-c", source, *arguments)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_shows_the_programs_own_flags_without_loading_jax(program):
    code = f"""
import runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_module("maa_jax.{program}", run_name="__main__")
except SystemExit as end:
    assert not end.code
assert "jax" not in sys.modules
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    flags = [line.strip() for line in done.stdout.splitlines() if line.startswith("  --")]
    assert {"--out", "--workdir"} & set(flags)
    assert not [flag for flag in flags if "alsologtostderr" in flag]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--out=x", "--prompt=rain", "--stepz=3"], "Did you mean: steps"),
        (["sample", "--out=x", "--prompt=rain", "--steps=many"], "steps"),
        (["sample", "--out=x", "a crow"], "'a crow' is not a flag"),
        (["sample", "--prompt=rain"], "--out is missing"),
        (["evaluate", "--out=x", "--model=/none"], "model='/none'"),
        (["report", "--workdir=/none"], "/none/times.tsv is missing"),
        (["convert", "--out=x"], "give either --from"),
        (["embed", "--out=x"], "--config is missing"),
        (["embed", "--out=x", "--config=t2b"], "did you mean 't2a'"),
        (["embed", "--out=x", "--config=configs/t2b.py:demo"], "did you mean 't2a'"),
        (["embed", "--out=x", "--config=t2a:demoo"], "Unknown config argument 'demoo'"),
        (
            ["embed", "--out=x", "--config=t2a:demo", "--config.unet.layers_per_blok=2"],
            "did you mean config.unet.layers_per_block?",
        ),
        (
            ["embed", "--out=x", "--config=t2a:demo", "--config.batch_size=many"],
            "--config.batch_size=many",
        ),
    ],
)
def test_a_mistake_is_one_line_and_ends_with_2(arguments, message, tmp_path):
    program, *rest = arguments
    done = run("-m", f"maa_jax.{program}", *rest, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"maa_jax.{program}: ")


@pytest.mark.parametrize(
    ("code", "returncode", "message"),
    [
        ("raise ValueError('steps=0: give 1')", 2, "maa_jax.mine: steps=0: give 1\n"),
        ("open('/none/there')", 2, "/none/there"),
        ("open('/dev/null/file')", 2, "/dev/null/file"),
        ("open('/tmp/' + 'x' * 300)", 2, "File name too long"),
        ("raise KeyboardInterrupt", 130, ""),
        ("import json; json.loads('{')", 1, "Traceback"),
        ("raise OSError(28, 'No space left on device', '/full/file')", 1, "no room in /full: make"),
        ("raise RuntimeError('a.x: No space left on device') from None", 1, ": no room in x: make"),
        ("import grain.absent", 2, "pip install 'maa_jax[train]'"),
        ("import apache_beam.absent", 2, "pip install 'maa_jax[beam]'"),
    ],
)
def test_ways_to_end(code, returncode, message):
    done = start(code)()
    assert done.returncode == returncode
    assert message in done.stderr
    assert ("Traceback" in done.stderr) == (message == "Traceback")


@pytest.mark.parametrize("code", ["raise KeyError('x')", "import of_no_extra"])
def test_a_bug_keeps_its_traceback(code):
    done = start(code)()
    assert done.returncode == 1
    assert "Traceback" in done.stderr


SPEAKS = """
import pathlib, types
lines = [
    "import logging, warnings",
    "from absl import logging as absl_logging",
    "warnings.warn(f'{__name__} warns')",
    "logging.getLogger('x').warning(f'{__name__} logs')",
    "absl_logging.warning(f'{__name__} logs by absl')",
    "absl_logging.info(f'{__name__} informs')",
    "absl_logging.error(f'{__name__} fails')",
]
for name, folder in (("lib", "/site"), ("maa_jax.part", pathlib.Path(command.__file__).parent)):
    exec(compile("\\n".join(lines), f"{folder}/part.py", "exec"), types.ModuleType(name).__dict__)
"""


def test_only_this_package_and_errors_reach_the_terminal():
    lines = start(SPEAKS)().stderr
    for said in ("lib warns", "lib logs", "lib informs", "part informs"):
        assert said not in lines
    for said in ("part warns", "part logs", "part logs by absl", "lib fails", "part fails"):
        assert said in lines
    assert "\nWarning: maa_jax.part warns\n" in f"\n{lines}"  # one line, without the code's place


def test_verbosity_shows_what_libraries_log():
    lines = start(SPEAKS)("--verbosity=0").stderr
    assert "lib informs" in lines and "lib logs by absl" in lines


def test_configs_are_found_by_file_and_by_name(tmp_path, monkeypatch):
    own = tmp_path / "own.py"
    own.write_text(
        "from maa_jax.configs import clap\n"
        "def get_config(arg):\n"
        "    config = clap.get_config(arg)\n"
        "    config.batch_size = 77\n"
        "    return config\n"
    )
    monkeypatch.chdir(tmp_path)
    assert command.read_config("clap:demo").stage == "clap"
    assert command.read_config("own.py:demo").batch_size == 77
    monkeypatch.chdir(ROOT)
    by_name, by_file = (command.read_config(x) for x in ("t2a:bert", "configs/t2a.py:bert"))
    assert by_name == by_file and by_name.text_encoder == "bert"
    with pytest.raises(ValueError, match="did you mean 'vocoder'"):
        command.read_config("vocodr")
