"""Scores on disk, and the differences of two files of scores.

scores.json holds each score's value, its 95 % interval, and the facts that led to it; the values
for resampled sounds are in replicates.npz beside it. Two scores may be compared if their facts are
equal: then sounds of the same prompts were drawn in each resample, and the replicates' differences
give the interval of the difference, as a paired bootstrap does.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maa_jax.checks import differences
from maa_jax.files import read_json, replace_file, write_json

if TYPE_CHECKING:
    from maa_jax.evaluators.base import Score

_REPLICATES = "replicates.npz"


def write(
    folder: pathlib.Path, name: str, result: Mapping[str, Any], scores: "Sequence[Score]"
) -> None:
    """Writes `folder/name` and the scores' replicates.

    Args:
      folder: folder of the files.
      name: name of the JSON file.
      result: what is written beside the scores.
      scores: the scores.
    """
    found = {score.name: score.replicates for score in scores if len(score.replicates)}
    with replace_file(folder / _REPLICATES) as new, new.open("wb") as file:
        np.savez(file, **found)  # type: ignore[arg-type]
    details = {
        score.name: {"interval": score.interval, **score.facts, "notes": list(score.notes)}
        for score in scores
        if score.facts
    }
    write_json(folder / name, {**result, "details": details})


def show(first: pathlib.Path, second: pathlib.Path) -> dict[str, float]:
    """Prints the differences of two files' scores, and returns them by name.

    A score whose facts differ is named with what differs, and not subtracted.

    Args:
      first: path of a scores.json.
      second: path of another one, from which the first is subtracted.

    Raises:
      ValueError: a file is no scores.json, or no score may be compared.
    """
    ours, theirs = (_read(path) for path in (first, second))
    names = [name for name in ours if name in theirs]
    found, refused = {}, []
    for name in names:
        (value, facts, replicates), (other, other_facts, other_replicates) = (
            ours[name],
            theirs[name],
        )
        different = differences(facts, other_facts)
        if different or not facts:
            refused.append(f"{name}: {'; '.join(different) or 'nothing says how it was made'}")
            continue
        found[name] = other - value
        ends = ""
        if len(replicates) and len(replicates) == len(other_replicates):
            low, high = np.percentile(other_replicates - replicates, [2.5, 97.5])
            ends = f"   {low:+.4g} to {high:+.4g}"
        print(f"{name:<30}{value:>9.4g}{other:>9.4g}{other - value:>+9.4g}{ends}")
    for line in refused:
        print(f"Not comparable: {line}")
    if not found:
        raise ValueError(
            f"compare={first},{second}: no score of both was made alike: score both with the same "
            "protocol, networks, captions and reference"
        )
    return found


def _read(path: pathlib.Path) -> dict[str, tuple[float, dict[str, Any], np.ndarray]]:
    """Returns {name: (value, facts, replicates)} of a file."""
    if not path.is_file():
        raise ValueError(
            f"compare={path}: there is no such file; give scores.json of an evaluation"
        )
    content = read_json(path)
    if not isinstance(content.get("scores"), dict) or not isinstance(content.get("details"), dict):
        raise ValueError(f"compare={path} is no scores.json of maa_jax.evaluate: give one")
    replicates: dict[str, np.ndarray] = {}
    stored = path.parent / _REPLICATES
    if stored.is_file():
        with np.load(stored) as arrays:
            replicates = dict(arrays)
    details = content["details"]
    return {
        name: (
            value,
            {k: v for k, v in details.get(name, {}).items() if k not in ("interval", "notes")},
            replicates.get(name, np.zeros(0)),
        )
        for name, value in content["scores"].items()
    }
