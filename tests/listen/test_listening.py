"""Real listening tests, clicked and typed through in a browser."""

import collections
import http.server
import itertools
import json
import threading

import pytest

from maa_jax.listen import results
from maa_jax.listen.request import Listening
from tests.browser import Browser


@pytest.fixture(scope="module")
def browser():
    browser = Browser()
    yield browser
    browser.close()


def address(out, query=""):
    """Of a page; without a query it is another listener's in each test, as pages keep answers."""
    query = query or f"listener=1&id={out.parent.name}"
    return f"{(out / 'page' / 'index.html').as_uri()}?{query}"


def step(tab):
    return tab.run("state.step")


def hear(tab):
    """Plays the first sound that was not heard, by the keyboard."""
    plays = "players.reduce((n, p) => n + p.plays, 0)"
    before = tab.run(plays)
    tab.press(" ")
    tab.wait(f"{plays} > {before}")


def begin(tab):
    """Goes to the practice, or the headphone check."""
    tab.click("#consent")
    tab.press("Enter")
    hear(tab)
    tab.press("Enter")


def answer(tab, digit):
    """Answers a step of the test by keys; digit: function of the names of a trial's sounds."""
    for _ in range(tab.run("players.length")):
        hear(tab)
    trial = "heard.trials[state.step - (steps.length - 2 - heard.trials.length)]"
    names = tab.run(f"({trial} ?? {{}}).sounds ?? []")
    for i in range(tab.run("document.querySelectorAll('input[type=range]').length")):
        tab.click(f"article:nth-of-type({i + 2}) input")
        tab.press("ArrowRight")
    for _ in range(tab.run("document.querySelectorAll('fieldset').length")):
        tab.press(str(digit(names)))
    before = step(tab)
    tab.press("Enter")
    assert step(tab) == before + 1, tab.text()


def finish(tab, digit=lambda names: 1):
    """Answers until the end, and returns the record."""
    while not tab.run("!!document.querySelector('textarea')"):
        answer(tab, digit)
    tab.click("textarea")
    tab.press("1")
    tab.click("button.main")
    return tab.run("record()")


class Server(http.server.BaseHTTPRequestHandler):
    """Fails once, then takes what is posted."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append(body)
        self.send_response(200 if len(self.server.posted) > 1 else 503)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.HTTPServer(("localhost", 0), Server)
    server.posted = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_test_is_taken_by_keys_and_its_posted_answers_make_the_table(
    make, browser, server, tmp_path, monkeypatch
):
    monkeypatch.setattr(results, "QUICK", 0)  # no person is so quick
    url = f"http://localhost:{server.server_port}/"
    out = make(test=("mos_q", "mos_f"), prompts_per_listener=1, post_url=url)
    known = json.loads((out / "test.json").read_text())["sounds"]
    tab = browser.open(address(out, "listener=1&id=worker-7"), width=390)

    def digit(names):
        about = known[names[0]] if names else {}
        digits = {"ours": 5, "theirs": 3, "reference": 4}
        return about.get("beeps") or digits.get(about.get("system"), 1)

    begin(tab)
    for _ in range(6):
        name = tab.run("heard.headphones[state.step - 2]")
        answer(tab, lambda _, name=name: known[name]["quietest"] + 1)
    record = finish(tab, digit)
    tab.wait("!document.querySelector('article').hidden")
    assert record["code"] in tab.text() and record["id"] == "worker-7" and record["comment"] == "1"
    assert [json.loads(body) for body in server.posted] == [record] * 2
    assert {a for a in tab.addresses() if not a.startswith("file:")} == {url}
    assert tab.run("document.documentElement.scrollWidth") <= 390

    (tmp_path / "posted.jsonl").write_bytes(server.posted[-1] + b"\n")
    text = results.write_results(Listening(out=out, results=(str(tmp_path / "posted.jsonl"),)))
    assert "1 of 1 listeners kept" in text
    assert (
        "| mos_q | ours | 1 | 1 | 100.0 ± –" in text and "| mos_f | theirs | 1 | 1 | 60.0" in text
    )


def test_no_answer_comes_before_the_sound_was_heard_to_its_end(make, browser):
    out = make(headphone_check=False, seconds=1, prompts_per_listener=1)
    tab = browser.open(address(out))
    tab.press("Enter")
    assert step(tab) == 0  # without consent
    begin(tab)
    at = step(tab)
    enabled = "!document.querySelector('fieldset').disabled"
    tab.press("3")
    tab.click(".answers label")
    tab.click("button.main")
    tab.press(" ")
    tab.wait("players[0].playing()")
    tab.press(" ")  # stopped
    assert not tab.run(enabled)
    # What a headset's or a media key's seeking does.
    tab.press(" ")
    tab.wait("players[0].playing()")
    tab.run("{ [...loaded.values()].find(audio => !audio.paused).currentTime = 0.95; }")
    tab.wait("!players[0].playing()")
    assert not tab.run(enabled) and "hear it to its end" in tab.text()
    hear(tab)
    assert tab.run(enabled)
    tab.press("Enter")
    assert step(tab) == at  # heard, but not answered
    tab.press("3")
    tab.click("button.main", times=2)
    assert step(tab) == at + 1


def test_a_video_is_shown_in_place_of_a_caption_and_plays_with_the_sound(make, browser, tmp_path):
    pytest.importorskip("av", reason="videos need PyAV")
    from tests.visual.test_videos import write

    video = write(tmp_path / "crow.mp4", "libx264", range(30), 24)
    table = tmp_path / "shown.csv"
    table.write_text(f"file,picture\n0.wav,{video}\n1.wav,{video}\n")
    out = make(
        headphone_check=False,
        seconds=1,
        prompts_per_listener=1,
        test=("mos_f",),
        shown_file=str(table),
    )
    tab = browser.open(address(out))
    begin(tab)
    assert "align with what is shown" in tab.text() and "Description" not in tab.text()
    tab.wait("film.readyState >= 2")
    assert tab.run("film.muted && film.paused && film.videoWidth == 64")
    tab.press(" ")
    tab.wait("!film.paused && film.currentTime > 0.2")
    tab.press(" ")
    tab.wait("film.paused")
    tab.press(" ")
    tab.wait("film.currentTime > 0")
    assert tab.run("film.currentTime") < 0.5  # from its beginning again
    tab.press(" ")
    tab.wait("film.paused")
    record = finish(tab)
    assert len(record["answers"]) == 5


def test_a_reload_goes_on_where_the_listener_was(make, browser):
    out = make(headphone_check=False, prompts_per_listener=1)
    tab = browser.open(address(out, "id=x"))
    begin(tab)
    for _ in range(3):
        answer(tab, lambda _: 2)
    before = tab.run("({listener: state.listener, answers: state.answers, step: state.step})")
    tab.go(address(out, "id=x"))
    assert (
        tab.run("({listener: state.listener, answers: state.answers, step: state.step})") == before
    )
    assert len(before["answers"]) == 1
    tab.go(address(out, "id=y"))
    assert step(tab) == 0  # another listener at the same computer


def test_a_second_tab_stops_the_first(make, browser):
    out = make(headphone_check=False)
    first = browser.open(address(out))
    begin(first)
    second = browser.open(address(out))
    answer(second, lambda _: 2)
    first.wait("document.body.innerText.includes('open in another tab')")
    first.press(" ")
    first.click("button.main")
    there = f"document.body?.innerText.includes('Practice') && state.step === {step(second)}"
    first.wait(there)


def test_a_browser_that_keeps_nothing_still_takes_the_test(make, browser):
    out = make(systems=("ours",), test=("mos_q",), prompts_per_listener=1, headphone_check=False)
    barred = "Object.defineProperty(window, 'localStorage', {get() { throw new Error('no') }})"
    tab = browser.open(address(out), before=barred)
    assert "keeps no answers" in tab.text()
    begin(tab)
    assert len(finish(tab)["answers"]) == 1 + 2 + 1
    assert "send us the file" in tab.text()
    tab.click("button.main")
    assert tab.run("record().code") in tab.text()


@pytest.mark.parametrize("test", ["ab", "mushra"])
def test_comparisons_are_answered_and_counted(make, browser, tmp_path, test):
    out = make(test=(test,), headphone_check=False, prompts_per_listener=1)
    known = json.loads((out / "test.json").read_text())["sounds"]
    tab = browser.open(address(out))
    begin(tab)
    bad = lambda name: known[name]["kind"] == "damaged"
    record = finish(tab, lambda names: 2 if names and bad(names[0]) else 1)
    (tmp_path / "a.json").write_text(json.dumps(record))
    text = results.write_results(Listening(out=out, results=(str(tmp_path / "a.json"),)))
    if test == "ab":
        assert "1 of 1 listeners kept" in text and "| 100.0 | [" in text
    else:
        assert "hidden reference" in text  # every slider was left near the middle


def test_a_sound_that_cannot_be_loaded_is_told_and_tried_again(make, browser):
    out = make(headphone_check=False)
    test = json.loads((out / "test.json").read_text())
    (noise,) = [name for name, about in test["sounds"].items() if about["kind"] == "volume"]
    file = out / "page" / "sounds" / f"{noise}.wav"
    away = file.rename(file.with_suffix(".away"))
    tab = browser.open(address(out))
    tab.click("#consent")
    tab.press("Enter")
    tab.press(" ")
    tab.wait("document.body.innerText.includes('cannot be loaded')")
    tab.wait("document.body.innerText.includes('▶ Play')")
    tab.press("Enter")
    assert step(tab) == 1
    away.rename(file)
    hear(tab)
    assert "cannot be loaded" not in tab.text()


def test_listeners_choose_their_language(make, browser):
    tab = browser.open(address(make(language=("en", "de")), "language=de"))
    assert "Hörtest" in tab.text() and tab.run("document.documentElement.lang") == "de"
    tab.run("{ const s = document.querySelector('select'); s.value = 'en'; s.onchange(); }")
    assert "Listening test" in tab.text() and tab.run("document.documentElement.lang") == "en"


def test_all_prompts_and_pairs_are_heard_equally_often_by_listeners_in_a_row(make, browser):
    out = make(test=("ab",), prompts=5, prompts_per_listener=2)
    known = json.loads((out / "test.json").read_text())["sounds"]
    tab = browser.open(address(out))
    for listeners in (1, 7, 15):
        trials = tab.run(f"Array.from({{length: {listeners}}}, (_, n) => trialsOf(n).trials)")
        prompts, pairs = collections.Counter(), collections.Counter()
        for trial in itertools.chain.from_iterable(trials):
            abouts = [known[name] for name in trial["sounds"]]
            if all(about["kind"] == "sound" for about in abouts):
                prompts[abouts[0]["file"]] += 1
                pairs[frozenset(about["system"] for about in abouts)] += 1
        assert sum(prompts.values()) == 2 * listeners
        assert max(prompts.values()) - min(prompts[f"{i}.wav"] for i in range(5)) <= 1
    assert set(pairs.values()) == {10} and len(pairs) == 3


def test_the_same_number_hears_the_same_in_the_same_order(make, browser):
    tab = browser.open(address(make(prompts=6, prompts_per_listener=3)))
    assert tab.run("JSON.stringify(trialsOf(8)) === JSON.stringify(trialsOf(8))")
    assert tab.run("JSON.stringify(trialsOf(8)) !== JSON.stringify(trialsOf(10))")
