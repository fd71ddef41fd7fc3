"""The paper's tables and figures, from the models that a file of rows names.

The program's docstring (`__main__.py`) describes that file.
"""

import csv
import dataclasses
import pathlib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from maa_jax.checks import nearest
from maa_jax.evaluate.evaluation import SCORES, Evaluation, evaluate
from maa_jax.evaluators.paper import FIGURES, TABLES, Column, Figure, Table
from maa_jax.files import make_folder, read_json, replace_file
from maa_jax.options import option

# What is known of a cell: its text, and where it was measured its value and interval.
Cell = tuple[str, float | None, tuple[float, float] | None]
_NONE: Cell = ("", None, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tabulation(Evaluation):
    """Options of a table or a figure, or of one evaluation if neither is named.

    The fields of `Evaluation` are the defaults of the rows, but for evaluators and protocols.
    """

    table: str = option("", f"Table: {', '.join(TABLES)}.", choices=("", *TABLES), recorded=False)
    figure: str = option(
        "", f"Figure: {', '.join(FIGURES)}.", choices=("", *FIGURES), recorded=False
    )
    rows: str | None = option(
        None, "CSV file of the rows of the table or figure.", path=True, recorded=False
    )
    zero_shot: str = option(
        "", "DATASET:SPLIT of the zero-shot columns; none by default.", recorded=False
    )

    def __post_init__(self):
        super().__post_init__()
        if self.table and self.figure:
            raise ValueError(f"table={self.table!r}, figure={self.figure!r}: give one of them")
        if bool(self.table or self.figure) != bool(self.rows):
            raise ValueError(
                f"table={self.table!r}, figure={self.figure!r}, rows={self.rows!r}: a table or a "
                "figure has rows; give both, or neither"
            )


def tabulate(request: Tabulation) -> list[list[Cell]]:
    """Scores all rows and writes the table or figure into `request.out`.

    Returns:
      The cells of each row, in the order of the columns.

    Raises:
      ValueError: the file of rows is broken, or a row cannot be scored; it is named.
    """
    plan: Table | Figure = TABLES[request.table] if request.table else FIGURES[request.figure]
    columns = plan.columns if isinstance(plan, Table) else (plan.x, *plan.y)
    rows = _read(request, columns)
    evaluations = [_evaluations(request, plan, columns, row) for row in rows]  # checks them all
    out = make_folder(str(request.out))
    cells = []
    for row, wanted in zip(rows, evaluations, strict=True):
        print(f"{row['name']}:")
        scores: dict[bool, dict[str, Any]] = {}
        for zero_shot, evaluation in wanted.items():
            try:
                evaluate(evaluation)
            except ValueError as error:
                raise ValueError(f"{request.rows}, row {row['name']!r}: {error}") from error
            scores[zero_shot] = read_json(pathlib.Path(str(evaluation.out), SCORES))
        cells.append([_cell(column, row, scores) for column in columns])
    names = [row["name"] for row in rows]
    published = plan.published if isinstance(plan, Table) else {}
    _write(out, plan, columns, names, cells, published)
    print(f"{plan.title}: {out / 'table.md'}, {out / 'table.csv'}, {out / 'table.png'}")
    return cells


def _read(request: Tabulation, columns: Sequence[Column]) -> list[dict[str, str]]:
    """Returns the rows of the file, checked."""
    path = pathlib.Path(str(request.rows))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"rows={request.rows!r} cannot be read ({error})") from error
    known = {"name", *(column.title.lower() for column in columns if not column.score)}
    known |= {field.name for field in dataclasses.fields(Evaluation) if field.metadata["flag"]}
    if not rows:
        raise ValueError(f"rows={request.rows!r} holds no row: give a table with the column name")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {number}: it has another number of cells than line 1")
        for name in row:
            if name not in known:
                raise ValueError(
                    f"{path}: the column {name!r} is no option of maa_jax.evaluate (the nearest is "
                    f"{nearest(name, known)!r})"
                )
        if not row.get("name"):
            raise ValueError(f"{path}, line {number}: 'name' is empty; give the row a name")
    return rows


def _evaluations(
    request: Tabulation, plan: Table | Figure, columns: Sequence[Column], row: Mapping[str, str]
) -> dict[bool, Evaluation]:
    """Returns the evaluations of a row, {whether it is the zero-shot one: its options}."""
    types_ = typing.get_type_hints(Evaluation)
    given: dict[str, Any] = {
        field.name: getattr(request, field.name) for field in dataclasses.fields(Evaluation)
    }
    for name, text in row.items():
        if name in types_ and text:
            given[name] = _value(name, text, types_[name])
    protocols = (plan.protocol,) if isinstance(plan, Table) else plan.protocols
    given["evaluators"] = () if isinstance(plan, Table) else plan.evaluators
    given["protocol"] = protocols
    if isinstance(plan, Table) and plan.recordings:
        given["recordings"] = True
    settings = "-".join(f"{k}={v}" for k, v in row.items() if k in types_ and v and k != "name")
    slug = re.sub(r"[^\w.=-]+", "_", f"{row['name']}-{settings}")[:150]
    found = {}
    for zero_shot in {column.zero_shot for column in columns if column.score}:
        more = {"out": f"{request.out}/{slug}{'-zero_shot' if zero_shot else ''}"}
        if zero_shot:
            if not request.zero_shot:
                continue
            dataset, _, split = request.zero_shot.rpartition(":")
            if not dataset:
                raise ValueError(f"zero_shot={request.zero_shot!r}: give DATASET:SPLIT")
            more |= {"dataset": dataset, "split": split}
        found[zero_shot] = Evaluation(**given | more)
    return found


def _value(name: str, text: str, kind: Any) -> Any:
    """Returns the value of a cell as its option has it."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if name in ("guidance_scale", "duration", "eta", "strength"):
            return float(text)
        if kind in (int, int | None):
            return int(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={text!r} in the file of rows: give a value of its kind") from None
    return text


def _cell(column: Column, row: Mapping[str, str], scores: Mapping[bool, dict[str, Any]]) -> Cell:
    if not column.score:
        text = row.get(column.title.lower(), "")
        number = re.match(r"[-+]?\d+(\.\d+)?", text)
        return text, float(number[0]) if number else None, None
    content = scores.get(column.zero_shot, {"scores": {}, "details": {}})
    for name, value in content["scores"].items():
        if name.rpartition("/")[2] == column.score:
            interval = content["details"].get(name, {}).get("interval")
            ends = f" ({interval[0]:.3g} to {interval[1]:.3g})" if interval else ""
            return f"{value:.3g}{ends}", value, tuple(interval) if interval else None
    return _NONE


def _write(
    out: pathlib.Path,
    plan: Table | Figure,
    columns: Sequence[Column],
    names: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    published: Mapping[str, Sequence[str]],
) -> None:
    titles = [column.title for column in columns]
    head = ["", *titles, *(f"{title}, published" for title in titles if published)]
    rows = []
    for name, row in zip(names, cells, strict=True):
        theirs = list(published.get(name, [""] * len(titles))) if published else []
        rows.append([name, *(text for text, _, _ in row), *theirs])
    lines = ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]
    text = f"{plan.title}\n\n" + "\n".join(lines) + f"\n\n95 % intervals. {plan.note}\n"
    with replace_file(out / "table.md") as new:
        new.write_text(text, "utf-8")
    with (
        replace_file(out / "table.csv") as new,
        new.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([head, *rows])
    print(text)
    figure = _curves(columns, names, cells) if isinstance(plan, Figure) else None
    figure = figure or _dots(columns, names, cells, published)
    with replace_file(out / "table.png") as new, new.open("wb") as file:
        figure.savefig(file, format="png", dpi=120)


def _dots(
    columns: Sequence[Column],
    names: Sequence[str],
    cells: Sequence[Sequence[Cell]],
    published: Mapping[str, Sequence[str]],
) -> Any:
    """Draws a panel for each column, with a dot, its interval and the published value a row."""
    from matplotlib.figure import Figure as Canvas

    width, height = 2.2 + 2.2 * len(columns), 1.2 + 0.35 * len(names)
    canvas = Canvas(figsize=(width, height), layout="constrained")
    panels = canvas.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    paper = dict(marker="D", linestyle="", color="C1", markerfacecolor="none", label="published")
    for number, (column, panel) in enumerate(zip(columns, panels, strict=True)):
        for place, (name, row) in enumerate(zip(names, cells, strict=True)):
            _, value, interval = row[number]
            if value is not None:
                panel.plot([value], [place], "o", color="C0", label="here")
            if interval:
                panel.plot(interval, [place, place], color="C0")
            theirs = re.match(r"\d+(\.\d+)?", published.get(name, [""] * len(columns))[number])
            if theirs:
                panel.plot([float(theirs[0])], [place], **paper)
        panel.set_title(column.title)
        panel.set_yticks(range(len(names)), names)
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    handles: dict[str, Any] = {}
    for panel in panels:
        drawn, called = panel.get_legend_handles_labels()
        handles |= dict(zip(called, drawn, strict=True))
    canvas.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return canvas


def _curves(
    columns: Sequence[Column], names: Sequence[str], cells: Sequence[Sequence[Cell]]
) -> Any:
    """Draws each further column against the first, a curve for each name."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4.5 * (len(columns) - 1), 3.6), layout="constrained")
    panels = canvas.subplots(1, len(columns) - 1, squeeze=False)[0]
    for number, (column, panel) in enumerate(zip(columns[1:], panels, strict=True), 1):
        for name in dict.fromkeys(names):
            of = [row for other, row in zip(names, cells, strict=True) if other == name]
            points = [(row[0][1], row[number][1]) for row in of]
            x, y = zip(*(point for point in points if None not in point), strict=True)
            panel.plot(x, y, "o-", label=name)
        panel.set_xlabel(columns[0].title)
        panel.set_ylabel(column.title)
        panel.grid(alpha=0.3)
        panel.legend()
    return canvas
