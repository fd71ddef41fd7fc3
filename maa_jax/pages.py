"""What the project's HTML pages share."""

import html
from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Returns an HTML table of rows of cells, below a row of headings where there is one."""

    def line(tag, row):
        return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in row)}</tr>"

    lines = ([line("th", head)] if head else []) + [line("td", row) for row in rows]
    return f"<table>{''.join(lines)}</table>"


# Of both this page and the demo's.
STYLE = """
:root { color-scheme: light dark; --ink: #1d2026; --soft: #5d636d; --ground: #f6f5f3;
  --card: #fff; --line: #e3e1dd; --accent: #8d2b7e; --out: #c9c5bf }
@media (prefers-color-scheme: dark) { :root { --ink: #e9eaed; --soft: #a1a7b1; --ground: #131418;
  --card: #1c1e24; --line: #2d3038; --accent: #d27ac6; --out: #4a4e57 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 900px; margin: 0 auto; padding: 2.5rem 1rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .4rem; padding-top: 1rem;
  border-top: 2px solid var(--accent) }
h3 { font-size: 1.02rem; margin: 0; overflow-wrap: anywhere }
p { margin: .2rem 0 1rem; max-width: 68ch }
.note { color: var(--soft); font-size: .88rem; margin: 0; overflow-wrap: anywhere }
article { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 1rem; margin: 1rem 0; overflow-x: auto }
article.accepted { border-left: 4px solid var(--accent) }
article.rejected { border-left: 4px solid var(--out) }
audio { display: block; width: 100%; height: 40px; margin: .5rem 0 }
summary { color: var(--soft); font-size: .88rem; cursor: pointer }
table { width: 100%; border-collapse: collapse; font-size: .9rem }
th { text-align: left; font-weight: 400; color: var(--soft) }
th, td { padding: .25rem .8rem .25rem 0; vertical-align: top; font-variant-numeric: tabular-nums }
tr + tr > * { border-top: 1px solid var(--line) }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--soft); font-size: 11px; text-anchor: middle }
svg line { stroke: var(--ink); stroke-dasharray: 4 3 }
svg .in { fill: var(--accent) }
svg .out { fill: var(--out) }
"""
