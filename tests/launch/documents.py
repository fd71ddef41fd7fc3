"""The README and docs/*.md, and the commands and examples in them."""

import pathlib
import re
import shlex

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
