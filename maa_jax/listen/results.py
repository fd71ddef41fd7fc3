"""The table of a listening test, from the files of its listeners' answers.

Every file is read, checked and listed. A listener who fails a rule is left out of all means; the
rules are `RULES`. Intervals are of 95 % and come in three ways, since they answer different
questions: the paper's ± and that of ITU-T P.808 take all ratings as independent, and the bootstrap
draws listeners, each with all of their ratings, as these resemble each other.
"""

import collections
import csv
import dataclasses
import io
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from maa_jax.files import output_folder, read_json, replace_file, user_path
from maa_jax.listen.page import MOS_VALUES, TEST
from maa_jax.listen.request import ANCHOR, REFERENCE, Listening
from maa_jax.metrics import intervals

# By which listeners are left out. Numbers: Woods et al. 2017 for the tones; ITU-R BS.1534-3 for the
# hidden reference; microsoft/P.808 leaves out whoever gives one answer to all.
HEADPHONES = 5  # of 6 right
HIDDEN, HIDDEN_SHARE = 90, 0.15
QUICK = 0.3  # seconds after the sounds
RULES = {
    "duplicate": "an earlier file is of the same listener (?id=, else the number)",
    "headphones": f"fewer than {HEADPHONES} of the 6 headphone checks are right",
    "beeps": "a sound of beeps did not get the answer of their number",
    "damaged": "a damaged sound got no less than the listener's mean quality (A/B: was preferred)",
    "hidden reference": f"it got less than {HIDDEN} in more than {HIDDEN_SHARE:.0%} of the trials",
    "too fast": f"half of the answers came less than {QUICK} s after the sounds could have ended",
    "all equal": "every rating is the same (A/B: always the same side)",
}


@dataclasses.dataclass
class Listener:
    """One listener's answers.

    Attributes:
      where: file, and line if it holds several.
      answers: the file's content.
      failed: rules that the listener fails.
    """

    where: str
    answers: dict[str, Any]
    failed: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        """What identifies the listener: what `?id=` said, else the number."""
        return self.answers["id"] or str(self.answers["listener"])


@dataclasses.dataclass(frozen=True)
class Rating:
    """One number that a listener gave to a sound of a system."""

    listener: int
    scale: str
    system: str
    file: str
    value: int
    beside: str = ""  # the other system, in A/B


def write_results(request: Listening) -> str:
    """Writes `results.md`, `results.csv`, `ratings.csv` and `listeners.csv`; returns the first.

    Raises:
      ValueError: the folder holds no test, or there are no answers.
    """
    place = pathlib.Path(request.out)
    if not (place / TEST).is_file():
        raise ValueError(
            f"--out={place} holds no {TEST}: give the folder that --sounds=... wrote, where the"
            " results are written too"
        )
    test = read_json(place / TEST)
    listeners, refused = read_answers(request.results, test)
    screen(listeners, test)
    ratings = ratings_of(listeners, test)
    rows = summarize(ratings, request.seed)
    text = report(test, listeners, refused, rows)
    with output_folder(request.out) as folder:
        with replace_file(folder / "results.md") as new:
            new.write_text(text, "utf-8")
        _write_csv(folder / "results.csv", rows)
        _write_csv(
            folder / "ratings.csv",
            [dataclasses.asdict(r) | {"listener": listeners[r.listener].name} for r in ratings],
        )
        _write_csv(folder / "listeners.csv", _listed(listeners, refused))
    return text


def read_answers(
    paths: Sequence[str], test: Mapping[str, Any]
) -> tuple[list[Listener], dict[str, str]]:
    """Reads files of answers, each of one listener, or of one in each line.

    Args:
      paths: files, and folders whose .json and .jsonl files are read.
      test: content of `test.json`.

    Returns:
      The listeners, those who began first in front, and {file: what is wrong with it}.

    Raises:
      ValueError: a path does not exist, or there is no file.
    """
    files: list[pathlib.Path] = []
    for path in (pathlib.Path(user_path(path)) for path in paths):
        if not path.exists():
            raise ValueError(f"results={path}: there is no such file or folder")
        found = sorted(p for p in path.glob("*") if p.suffix in (".json", ".jsonl"))
        files += found if path.is_dir() else [path]
    if not files:
        raise ValueError(f"results={','.join(paths)}: there is no .json or .jsonl file")
    listeners, refused = [], {}
    for where, content in itertools.chain.from_iterable(map(_contents, files)):
        try:
            listeners.append(Listener(where, checked(content, test)))
        except ValueError as error:
            refused[where] = str(error)
    return sorted(listeners, key=lambda one: (one.answers["started"], one.where)), refused


def _contents(file: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    content = file.read_bytes()
    if file.suffix != ".jsonl":
        yield str(file), content
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            yield f"{file}:{number}", line


def checked(content: bytes, test: Mapping[str, Any]) -> dict[str, Any]:
    """Returns one listener's answers.

    Raises:
      ValueError: they are broken, changed, incomplete, or of another test.
    """
    try:
        answers = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"broken: no JSON ({error})") from error
    if not isinstance(answers, dict) or "code" not in answers or "answers" not in answers:
        raise ValueError("foreign: no answers of a listening test")
    if answers.get("test") != test["test"]:
        raise ValueError(f"foreign: of the test {answers.get('test')!r}, not {test['test']!r}")
    if code_of(answers) != answers["code"]:
        raise ValueError("changed: the code is not that of the answers")
    try:
        _check(answers, test)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"broken: {type(error).__name__} {error}") from error
    return answers


def code_of(answers: Mapping[str, Any]) -> str:
    """Returns the completion code: a 64-bit FNV-1a checksum of all else, as the page makes it."""
    content = {key: value for key, value in answers.items() if key != "code"}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    code = 0xCBF29CE484222325
    for byte in text.encode("utf-8", "replace"):
        code = (code ^ byte) * 0x100000001B3 % 2**64
    return f"{code:016x}"


def _check(answers: Mapping[str, Any], test: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the page can have written these answers."""
    given, sounds = answers["answers"], test["sounds"]
    for what, count, due in (
        ("trials", len(given), test["trials"]),
        ("headphone checks", len(answers["headphones"]), 6 * test["headphone_check"]),
    ):
        if count != due:
            raise ValueError(f"wrong number: {count} {what} instead of {due}")
    numbers = (answers["listener"], answers["started"], answers["finished"])
    if not all(_is_int(n) for n in numbers) or not isinstance(answers["id"], str):
        raise ValueError("broken: listener, times or id")
    wanted = {"ab": 2, "mushra": len(test["systems"]) + 1}.get(test["tests"][0], 1)
    limits = {"ab": (0, 1), "mushra": range(101)}
    seen = set()
    for answer in given:
        names = answer["sounds"]
        abouts = [sounds.get(name, {}) for name in names]
        known = all(a.get("kind") in ("sound", "damaged", "beeps") for a in abouts)
        if not known or len(set(names)) != wanted or len({a.get("file") for a in abouts}) != 1:
            raise ValueError(f"foreign: sounds {names}")
        if list(answer["ratings"]) != test["tests"] or not _is_int(answer["ms"]):
            raise ValueError(f"broken: {answer}")
        for scale, values in answer["ratings"].items():
            fine = limits.get(scale, MOS_VALUES)
            if len(values) != wanted or not all(_is_int(v) and v in fine for v in values):
                raise ValueError(f"broken: {scale} {values}")
            if scale == "ab" and sum(values) != 1:
                raise ValueError(f"broken: {scale} {values}")
        seen.add(tuple(sorted(names)))
    if len(seen) != len(given):
        raise ValueError("broken: a trial stands twice")
    tones = [check["sound"] for check in answers["headphones"]]
    if len(set(tones)) != len(tones) or any(sounds[t]["kind"] != "headphones" for t in tones):
        raise ValueError("broken: headphone checks")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def screen(listeners: Sequence[Listener], test: Mapping[str, Any]) -> None:
    """Writes into `failed` of each listener which of the `RULES` they fail."""
    checks = {
        "headphones": _headphones,
        "beeps": _beeps,
        "damaged": _damaged,
        "hidden reference": _hidden,
        "too fast": _too_fast,
        "all equal": _all_equal,
    }
    known: set[str] = set()
    for one in listeners:
        failed = {rule for rule, fails in checks.items() if fails(one, test)}
        failed |= {"duplicate"} if one.name in known else set()
        one.failed = [rule for rule in RULES if rule in failed]
        known.add(one.name)


def _of(one: Listener, test: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """Returns the answers to a kind of trial: "sound", "damaged" or "beeps"."""
    sounds = test["sounds"]
    kinds = lambda answer: {sounds[name]["kind"] for name in answer["sounds"]}
    # A trap of A/B is a damaged sound beside a system's.
    return [a for a in one.answers["answers"] if kinds(a) - {"sound"} == {kind} - {"sound"}]


def _headphones(one: Listener, test: Mapping[str, Any]) -> bool:
    checks = one.answers["headphones"]
    right = sum(test["sounds"][c["sound"]]["quietest"] == c["answer"] for c in checks)
    return bool(checks) and right < HEADPHONES


def _beeps(one: Listener, test: Mapping[str, Any]) -> bool:
    return any(
        value != MOS_VALUES[test["sounds"][answer["sounds"][0]]["beeps"] - 1]
        for answer in _of(one, test, "beeps")
        for (value,) in answer["ratings"].values()
    )


def _damaged(one: Listener, test: Mapping[str, Any]) -> bool:
    for answer in _of(one, test, "damaged"):
        if "ab" in answer["ratings"]:
            best = answer["sounds"][answer["ratings"]["ab"].index(1)]
            if test["sounds"][best]["kind"] == "damaged":
                return True
        elif "mos_q" in answer["ratings"]:
            others = [a["ratings"]["mos_q"][0] for a in _of(one, test, "sound")]
            if answer["ratings"]["mos_q"][0] >= np.mean(others):
                return True
    return False


def _hidden(one: Listener, test: Mapping[str, Any]) -> bool:
    if test["tests"] != ["mushra"]:
        return False
    low = [
        value < HIDDEN
        for answer in one.answers["answers"]
        for name, value in zip(answer["sounds"], answer["ratings"]["mushra"], strict=True)
        if test["sounds"][name]["system"] == REFERENCE
    ]
    return float(np.mean(low)) > HIDDEN_SHARE


def _too_fast(one: Listener, test: Mapping[str, Any]) -> bool:
    spare = [
        answer["ms"] / 1000 - sum(test["sounds"][name]["seconds"] for name in answer["sounds"])
        for answer in one.answers["answers"]
    ]
    return float(np.median(spare)) < QUICK


def _all_equal(one: Listener, test: Mapping[str, Any]) -> bool:
    answers = _of(one, test, "sound")
    if "ab" in test["tests"]:
        return len(answers) > 5 and len({a["ratings"]["ab"][0] for a in answers}) == 1
    values = [v for a in answers for values in a["ratings"].values() for v in values]
    return len(values) > 1 and len(set(values)) == 1


def ratings_of(listeners: Sequence[Listener], test: Mapping[str, Any]) -> list[Rating]:
    """Returns all ratings of the systems' sounds by listeners who fail no rule."""
    ratings = []
    for number, one in enumerate(listeners):
        for answer in [] if one.failed else _of(one, test, "sound"):
            abouts = [test["sounds"][name] for name in answer["sounds"]]
            for scale, values in answer["ratings"].items():
                for i, value in enumerate(values):
                    about = abouts[i]
                    beside = abouts[1 - i]["system"] if scale == "ab" else ""
                    ratings.append(
                        Rating(number, scale, about["system"], about["file"], value, beside)
                    )
    return ratings


def summarize(ratings: Sequence[Rating], seed: int = 0) -> list[dict[str, Any]]:
    """Returns a row for each scale and system, in A/B for each ordered pair of systems.

    A row holds the number of ratings and of listeners, the mean (in A/B the share of preferences,
    in %), and the ends of its intervals: `paper` and `p808`, in A/B `binomial`; `bootstrap`. Ends
    that cannot be known, from one rating or one listener, are NaN.
    """
    groups: dict[tuple[str, str, str], list[Rating]] = collections.defaultdict(list)
    for rating in ratings:
        groups[rating.scale, rating.system, rating.beside].append(rating)
    rows = []
    for (scale, system, beside), group in sorted(groups.items()):
        values = np.array([r.value for r in group], float) * (100 if scale == "ab" else 1)
        who = np.array([r.listener for r in group])
        row: dict[str, Any] = {"scale": scale, "system": system}
        if scale == "ab":
            row["beside"] = beside
        row |= {"ratings": len(values), "listeners": len(set(who)), "mean": float(values.mean())}
        n, unknown = len(values), (np.nan, np.nan)
        if scale == "ab":
            low, high = wilson(round(values.sum() / 100), n)
            ways = {"binomial": (100 * low, 100 * high)}
        else:
            found = {"paper": intervals.student, "p808": intervals.normal}
            ways = {
                name: _ends_of(way(values)) if n > 1 else unknown for name, way in found.items()
            }
        enough = len(set(who)) > 1
        ways["bootstrap"] = (
            _ends_of(intervals.bootstrap(np.mean, values, groups=who, seed=seed))
            if enough
            else unknown
        )
        for name, (low, high) in ways.items():
            row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row)
    return rows


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share by Wilson's score, which stays within [0, 1]."""
    z = 1.959964
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def _ends_of(interval: intervals.Interval) -> tuple[float, float]:
    return interval.low, interval.high


def report(
    test: Mapping[str, Any],
    listeners: Sequence[Listener],
    refused: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the tables, the rules and every file that was left out, in Markdown."""
    kept = [one for one in listeners if not one.failed]
    lines = [
        f"# {', '.join(test['tests'])}: {', '.join(test['systems'])}",
        "",
        f"Test {test['test']}; {len(kept)} of {len(listeners) + len(refused)} listeners kept; "
        f"{len(test['files'])} prompts.",
        "",
    ]
    ab = test["tests"] == ["ab"]
    if rows and ab:
        lines += ["| better | than | answers | listeners | % | binomial | bootstrap |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {r['system']} | {r['beside']} | {r['ratings']} | {r['listeners']} | {r['mean']:.1f}"
            f" | {_ends(r, 'binomial')} | {_ends(r, 'bootstrap')} |"
            for r in rows
        ]
    elif rows:
        lines += ["| scale | system | ratings | listeners | paper | P.808 | bootstrap |"]
        lines += ["|---|---|--:|--:|--:|--:|--:|"]
        lines += [
            f"| {r['scale']} | {r['system']} | {r['ratings']} | {r['listeners']} |"
            f" {_plus_minus(r, 'paper')} | {_plus_minus(r, 'p808')} |"
            f" {r['mean']:.1f} {_ends(r, 'bootstrap')} |"
            for r in rows
        ]
    else:
        lines += ["No listener is left."]
    ways = {
        "paper": "mean ± Student's t times s/√n over all ratings; the paper gives its ± (95 %)"
        " without a formula",
        "P.808": "mean ± 1.96 s/√n",
        "binomial": "Wilson's score interval of the share",
        "bootstrap": "percentiles of 1,000 draws of listeners with all of their ratings",
    }
    shown = ("binomial", "bootstrap") if ab else ("paper", "P.808", "bootstrap")
    lines += ["", *(f"- {name}: {ways[name]}" for name in shown)] if rows else []
    if ANCHOR in {r["system"] for r in rows}:
        lines += [f"- {ANCHOR}: the reference without what lies above 3.5 kHz"]
    left_out = [(one.where, ", ".join(one.failed)) for one in listeners if one.failed]
    left_out += sorted(refused.items())
    if left_out:
        lines += ["", f"## Left out ({len(left_out)})", ""]
        lines += [f"- {where}: {why}" for where, why in left_out]
        failed = {rule for one in listeners for rule in one.failed}
        if failed:
            lines += ["", "Rules:", ""]
            lines += [f"- {rule}: {RULES[rule]}" for rule in RULES if rule in failed]
    return "\n".join(lines) + "\n"


def _ends(row: Mapping[str, Any], way: str) -> str:
    low, high = row[f"{way}_low"], row[f"{way}_high"]
    return "–" if np.isnan(low) else f"[{low:.1f}, {high:.1f}]"


def _plus_minus(row: Mapping[str, Any], way: str) -> str:
    half = row[f"{way}_high"] - row["mean"]
    return f"{row['mean']:.1f} ± " + ("–" if np.isnan(half) else f"{half:.2f}")


def _listed(
    listeners: Sequence[Listener], refused: Mapping[str, str]
) -> list[dict[str, str | int]]:
    """Returns a row for each listener and each refused file, by which people are paid."""
    rows: list[dict[str, str | int]] = []
    for one in listeners:
        a = one.answers
        about = {"id": _cell(a["id"]), "listener": a["listener"], "code": a["code"]}
        seconds = round((a["finished"] - a["started"]) / 1000)
        kept = "no" if one.failed else "yes"
        about |= {"seconds": seconds, "kept": kept, "why": ", ".join(one.failed)}
        rows.append({"file": one.where, **about, "comment": _cell(a.get("comment"))})
    rows += [{"file": where, "kept": "no", "why": why} for where, why in sorted(refused.items())]
    return rows


def _cell(text: Any) -> str:
    """Returns a listener's text, such that no program takes it for a formula."""
    text = str(text or "")
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(key for row in rows for key in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(path) as new:
        new.write_text(text.getvalue(), "utf-8", newline="")
