"""Imports go down the floors of docs/architecture.md, and never form a cycle."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "maa_jax"
DOCUMENT = (ROOT / "docs" / "architecture.md").read_text("utf-8")
# The package itself offers the pipeline, on first use.
ABOVE_ALL = "maa_jax"


def floors() -> dict[str, int]:
    """{room: floor}, where a room is a folder, or a file outside any."""
    block = DOCUMENT.split("## Floors")[1].split("```")[1]
    plan = {}
    for line in block.strip().splitlines():
        floor, *rooms = line.split()
        for room in rooms:
            plan[f"maa_jax.{room.removesuffix('/').removesuffix('.py')}"] = int(floor)
    return plan


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    name_of(path): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] not in ("configs", "bundled_model")
}


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def known(name: str) -> str | None:
    """The module that a dotted name denotes, or that contains it."""
    while name.startswith("maa_jax"):
        if name in FILES:
            return name
        name = name.rpartition(".")[0]
    return None


def imports(module: str, source: str) -> set[str]:
    """The package's modules that a module imports: at its top, in functions, and by a string."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # Such as "maa_jax.models.unet" or "maa_jax.enhancement.retrieval:Retrieval".
            if match := re.fullmatch(r"(maa_jax(?:\.\w+)+)(?::\w+)?\.?", node.value):
                found.add(match[1])
    return {name for name in map(known, found) if name not in (None, module, ABOVE_ALL)}


def edges() -> list[tuple[str, str]]:
    return [
        (module, other)
        for module, path in FILES.items()
        for other in sorted(imports(module, path.read_text("utf-8")))
    ]


def wrong(pairs, plan) -> list[str]:
    """Imports that leave their room without going down; the ground floor is one room."""
    floors_of = lambda a, b: (plan[room_of(a)], plan[room_of(b)])
    return [
        f"{a} (floor {plan[room_of(a)]}) imports {b} (floor {plan[room_of(b)]})"
        for a, b in pairs
        if room_of(a) != room_of(b) and floors_of(a, b) != (0, 0)
        if plan[room_of(a)] <= plan[room_of(b)]
    ]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of a graph, [] if there is none."""
    done, path = set(), []

    def visit(node) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if found := visit(other):
                return found
        done.add(path.pop())
        return []

    return next(filter(None, map(visit, sorted(graph))), [])


def graph_of(pairs) -> dict[str, set[str]]:
    graph = {}
    for a, b in pairs:
        graph.setdefault(a, set()).add(b)
    return graph


def test_the_plan_has_every_room():
    rooms = {room_of(module) for module in FILES if module != ABOVE_ALL}
    assert rooms == set(floors())


def test_imports_go_down():
    pairs = [(a, b) for a, b in edges() if a != ABOVE_ALL]
    assert wrong(pairs, floors()) == []


def test_imports_of_files_form_no_cycle():
    assert cycle(graph_of(edges())) == []


def test_imports_of_folders_form_no_cycle():
    folder = lambda module: (
        module if FILES[module].stem == "__init__" else module.rpartition(".")[0]
    )
    # A folder inside another is a part of it and may use its siblings.
    inside = lambda a, b: a.startswith(f"{b}.") or b.startswith(f"{a}.")
    pairs = {(folder(a), folder(b)) for a, b in edges() if a != ABOVE_ALL}
    pairs = {(a, b) for a, b in pairs if a != b and ABOVE_ALL not in (a, b) and not inside(a, b)}
    assert cycle(graph_of(pairs)) == []


@pytest.mark.parametrize(
    "source",
    [
        "from maa_jax.stages import make_stage",
        "import maa_jax.stages.clap",
        "def f():\n    from maa_jax.pipeline import pipeline",
        "PLACES = {'x': 'maa_jax.enhancement.retrieval:Retrieval'}",
        "importlib.import_module('maa_jax.stages.' + name)",
        "importlib.import_module(f'maa_jax.stages.{name}')",
    ],
)
def test_an_import_upwards_is_found_wherever_it_is(source):
    pairs = [("maa_jax.models.unet", b) for b in imports("maa_jax.models.unet", source)]
    assert len(wrong(pairs, floors())) == 1


def test_cycles_are_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []
