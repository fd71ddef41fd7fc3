import json
import re

import numpy as np
import PIL.Image
import pytest
import soundfile

from maa_jax import files
from maa_jax.audio import io, levels
from maa_jax.listen import page
from maa_jax.listen.request import TEXTS, Listening
from tests.listen.conftest import CAPTIONS


def test_all_sounds_have_one_loudness_and_none_clips(make):
    out = make(test=("mos_q", "mos_f"), seconds=1)
    test = json.loads((out / "test.json").read_text())
    assert test["level_db"] < -23  # the clicks ask for room
    for name, about in test["sounds"].items():
        wav, rate = soundfile.read(out / "page" / "sounds" / f"{name}.wav", always_2d=True)
        assert np.abs(wav).max() < 0.9
        if about["kind"] in ("sound", "damaged", "volume"):
            assert levels.loudest(wav[:, 0], rate) == pytest.approx(test["level_db"], abs=0.05)


def test_a_sound_keeps_its_sample_rate(make, tmp_path):
    (tmp_path / "ours").mkdir()
    for i in range(2):
        wav = np.random.default_rng(i).standard_normal(8820) * 0.1
        io.write_wav(tmp_path / "ours" / f"{i}.wav", wav, 44100)
    out = make(systems=("ours", "theirs"))
    test = json.loads((out / "test.json").read_text())
    rates = {
        about["system"]: soundfile.info(out / "page" / "sounds" / f"{name}.wav").samplerate
        for name, about in test["sounds"].items()
        if about["kind"] == "sound"
    }
    assert rates == {"ours": 44100, "theirs": 16000}


def test_nothing_that_is_published_tells_the_systems(make):
    out = make(test=("mos_q", "mos_f"))
    text = (out / "page" / "index.html").read_text("utf-8")
    assert not re.search(r"ours|theirs|\d\.wav", text.split("<script>")[0])
    assert {path.name for path in out.iterdir()} == {"page", "test.json"}
    names = {path.name for path in (out / "page").rglob("*.wav")}
    assert all(re.fullmatch(r"[0-9a-f]{16}\.wav", name) for name in names)
    assert names == {f"{n}.wav" for n in json.loads((out / "test.json").read_text())["sounds"]}


def test_captions_cannot_break_out_of_the_page(make):
    text = (make(test=("mos_f",), prompts=3) / "page" / "index.html").read_text("utf-8")
    assert CAPTIONS[2] not in text and r"a \u003cb\u003ebell" in text


def test_the_same_options_make_the_same_page_and_others_are_refused(make):
    out = make()
    first = (out / "page" / "index.html").read_bytes()
    make()
    assert (out / "page" / "index.html").read_bytes() == first
    with pytest.raises(ValueError, match="a test with other seed"):
        make(seed=1)
    make(post_url="https://example.org/answers")  # changes no question


def test_unpaired_sounds_are_named(make, tmp_path):
    make(out="first")
    (tmp_path / "theirs" / "1.wav").unlink()
    with pytest.raises(ValueError, match=r"theirs=.* lacks 1 of 2 files, such as 1\.wav"):
        make()


def test_sounds_of_other_lengths_are_named(make, tmp_path):
    make(out="first")
    io.write_wav(tmp_path / "theirs" / "1.wav", np.full(8000, 0.1), 16000)
    with pytest.raises(ValueError, match=r"1\.wav has 0\.10 s in ours and 0\.50 s in theirs"):
        make()


def test_captions_must_be_there_and_agree(make, tmp_path):
    make(out="first")
    path = tmp_path / "theirs" / "samples.jsonl"
    path.write_text(path.read_text().replace("crow", "dog"))
    with pytest.raises(ValueError, match=r"0\.wav is 'a crow caws' in ours and 'a dog caws' in"):
        make(test=("mos_f",))
    for system in ("ours", "theirs", "reference"):
        (tmp_path / system / "samples.jsonl").unlink()
    with pytest.raises(ValueError, match=r"2 of 2 sounds have no caption and no picture"):
        make(test=("mos_f",))
    assert not (tmp_path / "out").exists()


def test_pictures_and_videos_stand_in_for_captions(make, tmp_path):
    picture = tmp_path / "a crow.jpg"
    exif = PIL.Image.Exif()
    exif[0x010F] = "a camera"
    PIL.Image.fromarray(np.full((900, 1200, 3), (200, 30, 30), np.uint8)).save(picture, exif=exif)
    make(out="first", prompts=2)
    for system in ("ours", "theirs", "reference"):
        table = tmp_path / system / "samples.jsonl"
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        rows[0] |= {"prompt": "", "image": str(picture)}
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = make(test=("mos_f",))
    known = json.loads((out / "test.json").read_text())
    assert known["captions"] == ["", "rain on a roof"]
    assert known["shown"] == [files.sha256(str(picture)), ""]
    (shown,) = (out / "page" / "shown").iterdir()
    assert shown.suffix == ".png" and "crow" not in shown.name
    with PIL.Image.open(shown) as written:
        assert written.size == (720, 540) and not written.getexif()
    assert known["sounds"] and "a camera" not in (out / "page" / "index.html").read_text()
    # A table of one's own, for sounds of other programs.
    mine = tmp_path / "shown.csv"
    mine.write_text(f"file,picture\n0.wav,{picture}\n1.wav,{picture}\n")
    out = make(test=("mos_f",), shown_file=str(mine), out="mine")
    assert json.loads((out / "test.json").read_text())["captions"] == ["", ""]
    mine.write_text("file,picture\n0.wav,gone.png\n")
    with pytest.raises(ValueError, match=r"shown\.csv, line 2: .*gone\.png is not there: start"):
        make(test=("mos_f",), shown_file=str(mine), out="gone")
    other = tmp_path / "other.png"
    PIL.Image.new("RGB", (8, 8)).save(other)
    table.write_text(table.read_text().replace(str(picture), str(other)))
    with pytest.raises(ValueError, match=r"0\.wav shows .*other\.png, and .*crow\.jpg in another"):
        make(test=("mos_f",), out="other")
    mine.write_text(f"file,picture\n0.wav,{mine}\n")
    with pytest.raises(ValueError, match=r"shown\.csv: is no picture that can be read"):
        make(test=("mos_f",), shown_file=str(mine), out="other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sounds=("ours",)), "sounds=.*NAME=FOLDER instead of 'ours'"),
        (dict(sounds=("a=x", "a=y")), "each name once; 'a' stands 2 times"),
        (dict(sounds=("anchor=x",)), "another name than 'anchor'"),
        (dict(sounds=()), "give --sounds=NAME=FOLDER"),
        (dict(sounds=("a=x",), results=("b",)), "give --sounds=NAME=FOLDER"),
        (dict(sounds=("a=x",), test=("mos",)), "did you mean 'mos_"),
        (dict(sounds=("a=x", "b=y"), test=("ab", "mos_q")), "one test, or mos_q,mos_f"),
        (dict(sounds=("a=x",), test=("ab",)), "A/B compares two systems"),
        (dict(sounds=("a=x", "b=y"), test=("mushra",)), "give reference=FOLDER and a system"),
        (dict(sounds=("a=x",), post_url="example.org"), "begins with https://"),
    ],
)
def test_wrong_options_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Listening(out=tmp_path, **options)


def test_every_language_has_the_same_texts():
    files = sorted(TEXTS.glob("*.json"))
    codes = tuple(path.stem for path in files)
    assert {"en", "de"} < set(codes)
    assert list(Listening(sounds=("a=x",), out=".", language=codes).texts()) == list(codes)


def test_a_language_file_that_lacks_a_text_is_refused(tmp_path):
    texts = json.loads((TEXTS / "en.json").read_text())
    own = tmp_path / "fr.json"
    request = Listening(sounds=("a=x",), out=".", language=(str(own),))
    own.write_text(json.dumps(texts | {"code": "fr", "mos_q_answers": ["mal", "bien"]}))
    with pytest.raises(ValueError, match=r"'mos_q_answers'.*give a list of 5 texts"):
        request.texts()
    own.write_text(json.dumps({key: texts[key] for key in texts if key != "next"}))
    with pytest.raises(ValueError, match="lacks 'next'"):
        request.texts()
    with pytest.raises(ValueError, match="language='dd': did you mean 'de'"):
        request.replace(language=("dd",)).texts()


def test_only_headphones_tell_the_quietest_of_three_tones():
    wav = page.three_tones(quiet=2, opposed=0, level=-23.0)
    tones = [wav[round((0.5 + 1.5 * i + 0.2) * 16000) :][: round(0.6 * 16000)] for i in range(3)]
    power = lambda x: 10 * np.log10((x**2).mean() + 1e-12)
    ear = [power(tone[:, 0]) for tone in tones]
    air = [power(tone.mean(axis=1)) for tone in tones]
    assert ear == pytest.approx([-23, -23, -29], abs=0.05)
    assert np.argmin(air) == 0 and air[0] < -100


def test_the_low_anchor_holds_what_is_below_3500_hz():
    t = np.arange(16000) / 16000
    low, high = np.sin(2 * np.pi * 3400 * t), np.sin(2 * np.pi * 4000 * t)
    assert page.low_passed(low + high, 16000) == pytest.approx(low, abs=1e-3)


def test_a_beep_for_each_count():
    for count in range(1, 6):
        on = np.abs(page.beeps(count, -23.0)) > 0.01
        envelope = np.convolve(on, np.ones(800), "same") > 0
        assert np.count_nonzero(np.diff(envelope.astype(int)) == 1) == count
