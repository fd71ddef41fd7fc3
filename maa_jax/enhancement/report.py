"""What prompt enhancement found: a summary, as text and as one page with examples to hear."""

import base64
import collections
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maa_jax.enhancement.distill import best
from maa_jax.enhancement.shards import Shard, open_split, read_record
from maa_jax.pages import STYLE, table

EXAMPLES = 50
_BINS = 48


def summarize(shards: Sequence[Shard], work: epath.PathLike, threshold: float) -> dict[str, Any]:
    """Returns what the records of all shards say.

    Args:
        shards: of a build.
        work: folder of their records.
        threshold: score from which on a caption is accepted.

    Returns:
        `recordings`, `accepted`, `threshold`; `sources`: {dataset: recordings, accepted and the
        mean of the best scores}; `experts`: {name: candidates, and of its own best candidates the
        mean score, how many pass and how many were chosen}; `scores`: float32 [recordings with
        candidates], the best of each; `examples`: shard, index and candidates of up to 50
        recordings, evenly over the scores, the highest first.
    """
    sources, experts = {}, {}
    scores, places = [], []
    for shard in shards:
        source = sources.setdefault(shard.dataset, collections.Counter())
        for row, (_, candidates) in enumerate(read_record(work, shard)):
            source["recordings"] += 1
            chosen = best(candidates, -1)
            accepted = chosen is not None and chosen.score >= threshold
            source["accepted"] += accepted
            if chosen:
                source["scored"] += 1
                source["score"] += chosen.score
                scores.append(chosen.score)
                places.append((shard.index, row))
            own = collections.defaultdict(list)
            for candidate in candidates:
                own[candidate.expert].append(candidate.score)
            for name, values in own.items():
                expert = experts.setdefault(name, collections.Counter())
                expert["candidates"] += len(values)
                expert["recordings"] += 1
                expert["score"] += max(values)
                expert["passes"] += max(values) >= threshold
                expert["chosen"] += accepted and chosen.expert == name
    order = np.argsort(-np.array(scores, np.float32), kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int)]
    shown = collections.defaultdict(list)
    for i in picked:
        shown[places[i][0]].append(places[i][1])
    # A record is read once, whatever the number of its examples.
    found = {
        (index, row): read[row][1]
        for index, rows in shown.items()
        for read in [read_record(work, shards[index])]
        for row in rows
    }
    for counts in (*sources.values(), *experts.values()):
        scored = counts.pop("scored", counts["recordings"])
        counts["mean_score"] = counts.pop("score", 0.0) / max(1, scored)
    return {
        "recordings": sum(source["recordings"] for source in sources.values()),
        "accepted": sum(source["accepted"] for source in sources.values()),
        "threshold": threshold,
        "sources": {name: dict(source) for name, source in sources.items()},
        "experts": {name: dict(expert) for name, expert in experts.items()},
        "scores": np.array(scores, np.float32),
        "examples": [
            (shards[index], shards[index].start + row, found[index, row])
            for index, row in (places[i] for i in picked)
        ],
    }


def tables(summary: Mapping[str, Any]) -> list[list[tuple[str, ...]]]:
    """Returns two tables, of sources and of experts, the first row of each its head."""
    sources = [("source", "recordings", "accepted", "", "mean score")]
    for name, s in summary["sources"].items():
        share = f"{s['accepted'] / s['recordings']:.1%}"
        score = f"{s['mean_score']:.3f}"
        sources.append((name, f"{s['recordings']:,}", f"{s['accepted']:,}", share, score))
    experts = [("expert, alone", "candidates", "would pass", "", "mean score", "chosen")]
    for name, e in summary["experts"].items():
        share = f"{e['passes'] / summary['recordings']:.1%}"
        score = f"{e['mean_score']:.3f}"
        row = (name, f"{e['candidates']:,}", f"{e['passes']:,}", share, score, f"{e['chosen']:,}")
        experts.append(row)
    return [sources, experts]


def text(name: str, summary: Mapping[str, Any]) -> str:
    """Returns the summary as lines to print."""
    lines = [_headline(name, summary)]
    for rows in tables(summary):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def _headline(name: str, summary: Mapping[str, Any]) -> str:
    accepted, count = summary["accepted"], summary["recordings"]
    line = f"{name}: {accepted:,} of {count:,} recordings accepted ({accepted / count:.1%})"
    line += f" at threshold {summary['threshold']:g}"
    if not accepted and len(summary["scores"]):
        line += f"; the highest score is {summary['scores'].max():.3f}"
    return line


def histogram(scores: np.ndarray, threshold: float) -> str:
    """Returns the distribution of scores [n] as an SVG element, the threshold marked."""
    low = np.floor(min([threshold, *scores]) * 10) / 10
    high = max(np.ceil(max([threshold, *scores]) * 10) / 10, low + 0.1)
    counts, edges = np.histogram(scores, _BINS, (low, high))
    x = lambda score: 10 + 700 * (score - low) / (high - low)
    bars = [
        f'<rect class="{"in" if left >= threshold else "out"}" x="{x(left):.1f}" '
        f'y="{180 - height:.1f}" width="{700 / _BINS - 1:.1f}" height="{height:.1f}">'
        f"<title>{left:.3f} to {right:.3f}: {count:,}</title></rect>"
        for left, right, count in zip(edges, edges[1:], counts, strict=False)
        for height in [160 * count / max(1, counts.max())]
    ]
    ticks = [
        f'<text x="{x(mark):.1f}" y="198">{mark:.1f}</text>'
        for mark in np.arange(low, high + 0.01, 0.1)
    ]
    line = (
        f'<line x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="8" y2="184"/>'
        f'<text x="{x(threshold):.1f}" y="8">{threshold:g}</text>'
    )
    return (
        '<svg viewBox="0 -6 720 210" role="img" aria-label="distribution of the best scores">'
        f"{''.join(bars)}{''.join(ticks)}{line}</svg>"
    )


def _example(shard: Shard, index: int, candidates: Sequence, threshold: float) -> str:
    """Returns a recording's player and what was proposed for it, the highest score first."""
    example = open_split(shard.folder, shard.split)[index]
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    rows = [(f"{candidate.score:.3f}", candidate.expert, candidate.caption) for candidate in ranked]
    verdict = "accepted" if ranked[0].score >= threshold else "rejected"
    note = ", ".join(
        filter(None, (shard.dataset, example["id"].decode(), example["license"].decode()))
    )
    labels = [label.decode() for label in example["labels"]]
    note += f"; labels: {', '.join(labels)}" if labels else ""
    sound = base64.b64encode(example["audio"]).decode()
    return (
        f'<article class="{verdict}"><h3>“{html.escape(ranked[0].caption)}”</h3>'
        f'<p class="note">{verdict}, {ranked[0].score:.3f}; {html.escape(note)}</p>'
        f'<audio controls preload="none" aria-label="{html.escape(ranked[0].caption)}" '
        f'src="data:audio/flac;base64,{sound}"></audio>'
        f"<details><summary>{len(rows)} candidates</summary>{table(rows)}</details></article>"
    )


def page(name: str, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns the page, which needs nothing beside it.

    Args:
        name: of the dataset.
        settings: what the candidates hang on.
        summary: what `summarize` returned.
    """
    threshold = summary["threshold"]
    by_source, by_expert = (f"<article>{table(t[1:], t[0])}</article>" for t in tables(summary))
    examples = "".join(_example(*example, threshold) for example in summary["examples"])
    values = [
        (key.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list) else v)
        for key, v in settings.items()
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(name)}</h1>
<p>{html.escape(_headline(name, summary))}. Everything is in this one file.</p>

<h2>Scores</h2>
<p>CLAP score of the best caption of each recording; from the threshold on it is accepted.</p>
<article>{histogram(summary["scores"], threshold)}</article>

<h2>Acceptance</h2>
<p>By source; and what each expert's own best captions would have come to without the others.</p>
{by_source}{by_expert}

<h2>Examples</h2>
<p>{len(summary["examples"])} recordings, evenly from the highest score to the lowest.</p>
{examples}

<h2>Settings</h2>
<article>{table(values)}</article>
</main>
</body>
</html>
"""
