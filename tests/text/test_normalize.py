import pathlib
import random
import subprocess
import sys

import pytest

from maa_jax.text.normalize import normalize

# Caption, then its accepted results, in different spellings.
CASES = [
    line.split("\t")
    for line in (pathlib.Path(__file__).parent / "captions.tsv").read_text().splitlines()
]

OTHER_LANGUAGES = (
    "2 Hunde bellen um 15:30 Uhr",
    "Der Zug fährt mit 120 km/h und bremst nach 3,5 Sek.",
    "2 perros ladran a las 3:15 en la calle n.º 4",
    "el año 1990, una canción de los 80",
    "le train de 10 h 30 passe à 50 km/h dans la gare",
    "两只狗在3:15叫了5次",
    "犬が2匹、午後3時15分に吠える",
    "3:15 बजे 2 कुत्ते भौंकते हैं",
    "٢ كلاب تنبح في الساعة 3:15",
    "в 10:30 проезжает 1 поезд",
    "een hond blaft 3 keer op 5 mei",
    "un cane abbaia 3 volte alle 10:30 nella strada",
)


def spoken(sentence):
    """The common part of spellings: no case, hyphens or punctuation; p.m. as pm."""
    sentence = sentence.casefold().replace("-", " ")
    for sign in ",.":
        sentence = sentence.replace(sign, " ")
    words = " ".join(sentence.split())
    return words.replace("p m", "pm").replace("a m", "am")


def test_there_are_sixty_captions():
    assert len({caption for caption, *_ in CASES}) == 60


@pytest.mark.parametrize(("caption", "expected"), [(case[0], case[1:]) for case in CASES])
def test_non_standard_words_are_written_out(caption, expected):
    written = normalize(caption)
    assert spoken(written) in map(spoken, expected)
    assert normalize(written) == written


@pytest.mark.parametrize("caption", OTHER_LANGUAGES)
def test_other_languages_pass(caption):
    assert normalize(caption) == caption


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("2 men talk in a café", "two men talk in a café"),
        ("a naïve tune is played 3 times by the piano", None),
        ("voilà, the 1st déjà vu of the day", "voilà, the first déjà vu of the day"),
    ],
)
def test_accents_stay(caption, expected):
    written = normalize(caption)
    assert not any(letter.isdigit() for letter in written)
    assert all(word in written for word in caption.split() if not word.isascii())
    assert expected in (None, written)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a dog barks, then a door slams - loudly!",
        "a well-known tune; (softly) it's raining.",
        "an owl hoots",
        "A US radio plays jazz",
    ],
)
def test_words_stay_as_they_are(caption):
    assert normalize(caption) == caption


def test_twice_is_once():
    draw = random.Random(0)
    pieces = [piece for case in CASES for piece in case[0].split()]
    pieces += ["#", "$", "-", "--", "7", "No.", "0.0.1", "1/0", "99:99", "€", "°C", "½", "x", "..."]
    for _ in range(300):
        caption = " ".join(draw.choices(pieces, k=draw.randint(1, 8)))
        once = normalize(caption)
        assert normalize(once) == once, caption


def test_importing_needs_neither_the_library_nor_a_framework():
    code = (
        "import sys; import maa_jax.text.normalize;"
        "print([m for m in ('normt2s', 'jax', 'torch', 'tensorflow') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"
