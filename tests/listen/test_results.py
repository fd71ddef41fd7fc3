"""Tables of answers that are made here, by listeners with known opinions."""

import csv
import json

import numpy as np
import pytest
import scipy.stats

from maa_jax.listen import results
from maa_jax.listen.request import Listening


def known(out):
    return json.loads((out / "test.json").read_text())


def answers(test, number, rate, *, tones=6, ms=60_000, **more):
    """The file of a listener who heard each sound once; rate: function of (about, scale)."""
    sounds = test["sounds"]
    of = lambda kind: [name for name, about in sounds.items() if about["kind"] == kind]
    trials = [[name] for name in of("sound") + of("beeps")[:2] + of("damaged")[:1]]
    if test["tests"] in (["ab"], ["mushra"]):
        by_file = {
            file: [n for n in of("sound") if sounds[n]["file"] == file] for file in test["files"]
        }
        trials = list(by_file.values())
        if test["tests"] == ["ab"]:
            trials = [pair[:: 1 - 2 * (i % 2)] for i, pair in enumerate(trials)]
            trials += [[name, sounds[name]["of"]] for name in of("damaged")[:2]]
    given = []
    for names in trials:
        ratings = {s: [rate(sounds[name], s) for name in names] for s in test["tests"]}
        given.append({"sounds": names, "ratings": ratings, "plays": [1] * len(names), "ms": ms})
    checks = [
        {"sound": name, "answer": (sounds[name]["quietest"] + (i >= tones)) % 3}
        for i, name in enumerate(of("headphones"))
    ]
    content = {
        "test": test["test"],
        "listener": number,
        "id": "",
        "language": "en",
        "started": 1_700_000_000_000 + number,
        "finished": 1_700_000_600_000,
        "headphones": checks,
        "answers": given,
        "comment": "Größe 音",
    } | more
    return content | {"code": results.code_of(content)}


def careful(opinion):
    """Answers the traps as asked, and gives `opinion(about, scale)` on all else."""

    def rate(about, scale):
        if about["kind"] == "beeps":
            return 20 * about["beeps"]
        return 20 if about["kind"] == "damaged" else opinion(about, scale)

    return rate


def table(out, files):
    """Writes the results of {name: content}, and returns their text and rows."""
    folder = out.parent / "answers"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(data)
    text = results.write_results(Listening(out=out, results=(str(folder),)))
    with (out / "results.csv").open(newline="") as file:
        return text, list(csv.DictReader(file))


def test_means_and_the_three_intervals_are_those_of_their_formulas(make):
    out = make(test=("mos_q", "mos_f"))
    test, rng = known(out), np.random.default_rng(0)
    heard = {"ours": [], "theirs": [], "reference": []}
    files = {}
    for number in range(12):
        liking = rng.integers(-1, 2)  # a listener's own use of the scale

        def opinion(about, scale, liking=liking):
            level = {"ours": 3, "theirs": 2, "reference": 4}[about["system"]] + liking
            value = 20 * int(np.clip(level + rng.integers(0, 2), 1, 5))
            if scale == "mos_q":
                heard[about["system"]].append(value)
            return value

        files[f"{number}.json"] = answers(test, number, careful(opinion))
    text, rows = table(out, files)
    assert "12 of 12 listeners kept" in text, text
    for row in (row for row in rows if row["scale"] == "mos_q"):
        values = np.array(heard[row["system"]])
        assert int(row["ratings"]) == len(values) == 24 and int(row["listeners"]) == 12
        assert float(row["mean"]) == pytest.approx(values.mean())
        error = values.std(ddof=1) / np.sqrt(24)
        low, high = scipy.stats.t.interval(0.95, 23, values.mean(), error)
        assert float(row["paper_low"]) == pytest.approx(low, abs=1e-4)
        assert float(row["paper_high"]) == pytest.approx(high, abs=1e-4)
        assert float(row["p808_high"]) == pytest.approx(values.mean() + 1.96 * error, rel=1e-4)
        clustered = scipy.stats.bootstrap(
            (values.reshape(12, 2).mean(axis=1),), np.mean, method="percentile", rng=1
        ).confidence_interval
        assert float(row["bootstrap_low"]) == pytest.approx(clustered.low, abs=1.5)
        assert float(row["bootstrap_high"]) == pytest.approx(clustered.high, abs=1.5)
        if row["system"] == "theirs":  # where listeners differ by more than their sounds do
            assert float(row["bootstrap_low"]) < float(row["p808_low"])


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (3, 7), (50, 80), (9, 9)])
def test_the_interval_of_a_share_is_scipys(successes, n):
    expected = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert results.wilson(successes, n) == pytest.approx([expected.low, expected.high], abs=1e-6)


def opinion(about, scale):
    return {"ours": 80, "theirs": 60, "reference": 100}[about["system"]]


def no_beeps(about, scale):
    return 100 if about["kind"] == "beeps" else careful(opinion)(about, scale)


def likes_damage(about, scale):
    return 100 if about["kind"] == "damaged" else careful(opinion)(about, scale)


@pytest.mark.parametrize(
    ("rule", "rate", "more"),
    [
        ("headphones", careful(opinion), {"tones": 4}),
        ("beeps", no_beeps, {}),
        ("damaged", likes_damage, {}),
        ("too fast", careful(opinion), {"ms": 90}),
        ("all equal", careful(lambda *_: 40), {}),
        ("duplicate", careful(opinion), {"listener": 0}),
    ],
)
def test_each_rule_leaves_out_who_breaks_it_and_nobody_else(make, rule, rate, more):
    out = make(test=("mos_q", "mos_f"))
    test = known(out)
    files = {f"good{n}.json": answers(test, n, careful(opinion), tones=5) for n in range(2)}
    files["other.json"] = answers(test, 7, rate, **more)
    text, rows = table(out, files)
    assert "2 of 3 listeners kept" in text
    assert text.count(f"other.json: {rule}\n") == 1 and f"- {rule}: {results.RULES[rule]}" in text
    assert {row["mean"] for row in rows} == {"80.0", "60.0", "100.0"}
    listed = {row["file"]: row for row in csv.DictReader((out / "listeners.csv").open())}
    assert [row["kept"] for row in listed.values()].count("yes") == 2
    assert next(row for file, row in listed.items() if "other" in file)["why"] == rule


def changed(content, key, value):
    """An answer file with a valid code, which the page cannot have written."""
    content = {k: v for k, v in content.items() if k != "code"}
    content = json.loads(json.dumps(content))
    content[key] = value(content[key])
    return content | {"code": results.code_of(content)}


def rated(value):
    def change(given):
        given[0]["ratings"]["mos_q"] = value
        return given

    return change


def test_files_that_no_page_wrote_are_listed_with_their_reason(make):
    out = make(test=("mos_q",))
    test = known(out)
    good = answers(test, 1, careful(opinion))
    edited = json.loads(json.dumps(good))
    edited["answers"][0]["ratings"]["mos_q"] = [20]
    cases = {
        "cut.json": (json.dumps(good)[:99].encode(), "broken: no JSON"),
        "binary.json": (b"\xff\xfe\0", "broken: no JSON"),
        "list.json": (b"[]", "foreign: no answers"),
        "scores.json": ({"scores": {}}, "foreign: no answers"),
        "else.json": (good | {"test": "x"}, "foreign: of the test 'x'"),
        "edited.json": (edited, "changed: the code is not that of the answers"),
        "short.json": (
            changed(good, "answers", lambda a: a[:3]),
            "3 trials instead of 9",
        ),
        "high.json": (changed(good, "answers", rated([120])), "broken: mos_q [120]"),
        "float.json": (changed(good, "answers", rated([80.0])), "broken: mos_q [80.0]"),
        "none.json": (changed(good, "answers", rated(None)), "broken: TypeError"),
        "twice.json": (changed(good, "answers", lambda a: [a[0], *a[:-1]]), "stands twice"),
        "id.json": (changed(good, "id", lambda _: 3), "broken: listener, times or id"),
        "deep.json": (b"[" * 100_000, "broken: no JSON"),
    }
    text, _ = table(out, {"good.json": good} | {name: case for name, (case, _) in cases.items()})
    assert f"1 of {len(cases) + 1} listeners kept" in text
    for name, (_, reason) in cases.items():
        (line,) = [line for line in text.splitlines() if f"/{name}: " in line]
        assert reason in line, line


def test_lines_of_one_file_are_listeners(make):
    out = make(test=("mos_q",))
    lines = [json.dumps(answers(known(out), n, careful(opinion))) for n in range(3)]
    text, _ = table(out, {"posted.jsonl": ("\n".join([*lines, "{"]) + "\n").encode()})
    assert "3 of 4 listeners kept" in text and "posted.jsonl:4: broken" in text


def test_preferences_have_a_share_for_each_pair(make):
    out = make(test=("ab",), systems=("ours", "theirs"), prompts=6)
    prefer = lambda about, _: int(about["kind"] == "sound" and about["system"] == "ours")

    # Beside a damaged version of a sound, the sound itself is better whose ever it is.
    def clean(content):
        for answer in content["answers"]:
            kinds = [known(out)["sounds"][name]["kind"] for name in answer["sounds"]]
            if "damaged" in kinds:
                answer["ratings"]["ab"] = [int(kind == "sound") for kind in kinds]
        del content["code"]
        return content | {"code": results.code_of(content)}

    text, rows = table(out, {f"{n}.json": clean(answers(known(out), n, prefer)) for n in range(4)})
    (ours,) = [row for row in rows if row["system"] == "ours"]
    assert (ours["beside"], ours["ratings"], ours["mean"]) == ("theirs", "24", "100.0")
    assert float(ours["binomial_low"]) == pytest.approx(100 * results.wilson(24, 24)[0])
    assert "| ours | theirs | 24 | 4 | 100.0 |" in text


def test_mushra_lists_the_anchor_and_wants_the_hidden_reference_on_top(make):
    out = make(test=("mushra",))
    scores = {"ours": 70, "theirs": 50, "reference": 100, "anchor": 30}
    rate = lambda about, _: scores[about["system"]]
    low = lambda about, _: 80 if about["system"] == "reference" else rate(about, _)
    files = {"a.json": answers(known(out), 1, rate), "b.json": answers(known(out), 2, low)}
    text, rows = table(out, files)
    assert {row["system"]: float(row["mean"]) for row in rows} == scores
    assert "b.json: hidden reference" in text and "1 of 2 listeners kept" in text


def test_a_listeners_text_is_no_formula(make):
    out = make(test=("mos_q",))
    table(out, {"a.json": answers(known(out), 1, careful(opinion), id="=1+1", comment="@SUM(A1)")})
    (row,) = csv.DictReader((out / "listeners.csv").open())
    assert (row["id"], row["comment"]) == ("'=1+1", "'@SUM(A1)")


def test_missing_tests_and_answers_are_refused(make, tmp_path):
    with pytest.raises(ValueError, match=r"holds no test\.json"):
        results.write_results(Listening(out=tmp_path, results=("x",)))
    out = make()
    with pytest.raises(ValueError, match=r"results=.*none: there is no such file"):
        results.write_results(Listening(out=out, results=(str(tmp_path / "none"),)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"there is no \.json"):
        results.write_results(Listening(out=out, results=(str(tmp_path / "empty"),)))
