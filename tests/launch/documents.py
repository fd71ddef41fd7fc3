"""The README and docs/*.md, and the commands and examples in them."""

import json
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in FILES}
ALL = "\n".join(TEXTS.values())


def blocks(text: str, language: str) -> list[str]:
    """Returns the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text: str) -> list[list[str]]:
    """Returns the words of each command in bash blocks and in the running text."""
    text = (
        "\n".join(blocks(text, "bash"))
        + "\n"
        + "\n".join(re.findall(r"`((?:bash|python|pip) [^`]+)`", text))
    )
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def flags_of(program: str) -> list[list[str]]:
    """Returns the flags of each command that runs a module, in all documents."""
    return [words[3:] for words in commands(ALL) if words[:3] == ["python", "-m", program]]


def check_flags(program: str, lines: list[list[str]]) -> None:
    """Asserts that a program knows the flags of some commands.

    In a process of its own: flags are global, and those of two programs may clash.
    """
    script = """
import importlib, json, sys
from absl import flags
name, lines = sys.argv[1], json.loads(sys.argv[2])
module = importlib.import_module(name)
if hasattr(module, "__path__"):
    module = importlib.import_module(name + ".__main__")
getattr(module, "define_flags", lambda: None)()  # without it, importing defines them
for line in lines:
    sys.argv = ["program", *line]  # where a config looks for its keys
    assert not flags.FLAGS(sys.argv)[1:], line
    for key in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, key)  # the next line may set it again
"""
    run = subprocess.run(
        [sys.executable, "-c", script, program, json.dumps(lines)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
