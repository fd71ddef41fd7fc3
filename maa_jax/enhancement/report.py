"""Summary of a prompt enhancement, as text and as a page with audible examples."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from maa_jax import pages
from maa_jax.audio.io import SAMPLE_RATE
from maa_jax.enhancement.distill import best
from maa_jax.enhancement.shards import Shard, open_windows, read_record

EXAMPLES = 50
_BINS = 48


def summarize(shards: Sequence[Shard], work: epath.PathLike, threshold: float) -> dict[str, Any]:
    """Summarizes the records of all shards.

    Args:
      shards: shards of the run.
      work: folder of their records.
      threshold: lowest score of an accepted caption.

    Returns:
      `windows`, `accepted`, `threshold`; `sources`: {dataset: windows, accepted and the mean of
      the best scores}; `experts`: {name: number of candidates, and, for each window's best
      candidate of the expert, the mean score, how many pass and how many were chosen}; `scores`:
      float32 [windows with candidates], the best of each; `examples`: shard, index and candidates
      of up to 50 windows, evenly spread over the scores, highest first.
    """
    sources: dict[str, Any] = {}
    experts: dict[str, Any] = {}
    scores, places = [], []
    for shard in shards:
        source = sources.setdefault(shard.source.label, collections.Counter())
        for row, (_, candidates) in enumerate(read_record(work, shard)):
            source["windows"] += 1
            chosen = best(candidates, -1)
            accepted = best(candidates, threshold)
            source["accepted"] += accepted is not None
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
                expert["windows"] += 1
                expert["score"] += max(values)
                expert["passes"] += max(values) >= threshold
                expert["chosen"] += accepted is not None and accepted.expert == name
    order = np.argsort(-np.array(scores, np.float32), kind="stable")
    picked = order[np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).astype(int)]
    shown = collections.defaultdict(list)
    for i in picked:
        shown[places[i][0]].append(places[i][1])
    # Each record is read once, however many examples it has.
    found = {
        (index, row): read[row][1]
        for index, rows in shown.items()
        for read in [read_record(work, shards[index])]
        for row in rows
    }
    for counts in (*sources.values(), *experts.values()):
        scored = counts.pop("scored", counts["windows"])
        counts["mean_score"] = counts.pop("score", 0.0) / max(1, scored)
    return {
        "windows": sum(source["windows"] for source in sources.values()),
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
    """Returns a table of sources and one of experts; the first row of each is its header."""
    sources: list[tuple[str, ...]] = [("source", "windows", "accepted", "", "mean score")]
    for name, s in summary["sources"].items():
        share = f"{s['accepted'] / s['windows']:.1%}"
        score = f"{s['mean_score']:.3f}"
        sources.append((name, f"{s['windows']:,}", f"{s['accepted']:,}", share, score))
    experts: list[tuple[str, ...]] = [
        ("expert", "candidates", "would be accepted", "", "mean score", "chosen")
    ]
    for name, e in summary["experts"].items():
        share = f"{e['passes'] / summary['windows']:.1%}"
        score = f"{e['mean_score']:.3f}"
        row = (name, f"{e['candidates']:,}", f"{e['passes']:,}", share, score, f"{e['chosen']:,}")
        experts.append(row)
    return [sources, experts]


def text(name: str, summary: Mapping[str, Any]) -> str:
    """Returns the summary as lines to print."""
    lines = [headline(name, summary)]
    for rows in tables(summary):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip())
    return "\n".join(lines)


def headline(name: str, summary: Mapping[str, Any]) -> str:
    """Returns how many windows have an accepted caption."""
    accepted, count = summary["accepted"], summary["windows"]
    line = f"{name}: {accepted:,} of {count:,} windows accepted ({accepted / count:.1%})"
    line += f" at threshold {summary['threshold']:g}"
    if not accepted and len(summary["scores"]):
        line += f"; the highest score is {summary['scores'].max():.3f}"
    return line


def histogram(
    scores: np.ndarray, threshold: float
) -> tuple[list[tuple[float, float, int]], np.ndarray]:
    """Returns the distribution of scores [n], with a bin that begins at the threshold.

    Returns:
      [(left edge, right edge, count)] in ascending order, and the multiples of 0.1 that they span.
    """
    low, high = min([threshold, *scores]), max([threshold, *scores])
    width = max(high - low, 0.1) / _BINS
    first = np.floor((low - threshold) / width)
    last = np.floor((high - threshold) / width) + 1
    edges = threshold + width * np.arange(first, last + 1)
    counts, _ = np.histogram(scores, edges)
    ticks = np.arange(np.ceil(edges[0] * 10), np.floor(edges[-1] * 10) + 1) / 10
    return list(zip(edges.tolist(), edges[1:].tolist(), counts.tolist(), strict=False)), ticks


def _example(shard: Shard, index: int, candidates: Sequence, threshold: float) -> dict[str, Any]:
    """Returns a window and its candidates, highest score first."""
    example = open_windows(shard.source)[index]
    ranked = sorted(candidates, key=lambda candidate: -candidate.score)
    labels = ", ".join(label.decode() for label in example["labels"])
    at = f"from {example['start'] / SAMPLE_RATE:.1f} s" if example["start"] else ""
    facts = (shard.source.label, example["id"].decode(), at, example["license"].decode())
    return {
        "caption": ranked[0].caption,
        "score": f"{ranked[0].score:.3f}",
        "verdict": "accepted" if ranked[0].score >= threshold else "rejected",
        "note": ", ".join(filter(None, facts)) + (f"; labels: {labels}" if labels else ""),
        "audio": pages.data_uri(example["audio"], "audio/flac"),
        "candidates": [(c.caption, c.expert, f"{c.score:.3f}") for c in ranked],
    }


def page(name: str, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Returns the self-contained page.

    Args:
      name: name of the dataset.
      settings: options that the candidates depend on.
      summary: summary from `summarize`.
    """
    threshold = summary["threshold"]
    bins, ticks = histogram(summary["scores"], threshold)
    return pages.render(
        "enhancement.html",
        name=name,
        headline=headline(name, summary),
        bins=bins,
        ticks=ticks,
        threshold=threshold,
        tables=tables(summary),
        examples=[
            _example(shard, index, candidates, threshold)
            for shard, index, candidates in summary["examples"]
        ],
        settings=[
            (key.replace("_", " "), ", ".join(map(str, v)) if isinstance(v, list | tuple) else v)
            for key, v in settings.items()
        ],
    )
