"""Text normalisation of English captions (paper section 5.1).

Numbers, currency, measures, dates, times, abbreviations and addresses become the words that a
speaker would say: "2 dogs bark at 3:15 pm" is "two dogs bark at three fifteen p m". The library
`normt2s` does most of it; the rules here are those that it lacks. Captions in other languages are
left unchanged.
"""

import functools
import re
from collections.abc import Callable

_MONTHS = (
    "January February March April May June July August September October November December"
).split()
_DECADES = dict(
    zip("23456789", "twen thir for fif six seven eigh nine".split(), strict=True)
)  # stems of "twenties" to "nineties"
_PARTS = {"2": "half", "3": "third", "4": "quarter", "8": "eighth"}
_DEGREES = {"C": "Celsius", "F": "Fahrenheit"}
_ROMAN = {"I": 1, "V": 5, "X": 10}
# Abbreviation without its full stop -> word.
_ABBREVIATIONS = {
    "approx": "approximately",
    "ave": "Avenue",
    "blvd": "Boulevard",
    "bldg": "building",
    "capt": "captain",
    "col": "colonel",
    "dept": "department",
    "feat": "featuring",
    "gen": "general",
    "jr": "junior",
    "lt": "lieutenant",
    "mt": "Mount",
    "rd": "Road",
    "sgt": "sergeant",
    "sr": "senior",
    "vol": "volume",
}
_ABBREVIATIONS |= {month[:3].lower(): month for month in _MONTHS if month != "May"}
# Unit after a number, without its full stop -> plural of the word.
_UNITS = {
    "bpm": "beats per minute",
    "hr": "hours",
    "hrs": "hours",
    "kph": "kilometers per hour",
    "min": "minutes",
    "mins": "minutes",
    "mos": "months",
    "mph": "miles per hour",
    "rpm": "revolutions per minute",
    "sec": "seconds",
    "secs": "seconds",
}
_DIGITS = "zero one two three four five six seven eight nine".split()

# Frequent words of English only, and of other languages in Latin script only.
_ENGLISH = frozenset(
    "the of and with at by from to are for while then as into his her their it near over".split()
)
_FOREIGN = frozenset(
    # German, Dutch and the Scandinavian languages.
    "der das den dem des ein eine einen einem einer und mit auf ist sind im zum zur um von vor bei"
    " nach uhr het een en van op met zijn og och med på är det ett av"
    # French, Spanish, Portuguese and Italian.
    " le la les des du une et est dans avec sur el los las un uno una y con del por para se que"
    " os um uma com na em il lo gli di che nel della sono ed al"
    # Polish, Czech, Turkish, Indonesian.
    " na się jest bir ve dan yang di".split()
)
# English words that are spelt with accents.
_BORROWED = frozenset("café cafés façade fiancé fiancée naïve piñata déjà décor".split())

# A caption that does not match needs no normalisation.
_SUSPECT = re.compile(r"[^A-Za-z ,'!?;:().\-]|\.\w|\w\.(?=.)|\b[A-Z]\w*\.|\b[IVX]{2,}\b|\betc\.")
_OTHER_SCRIPT = re.compile(r"[^\W\d_\u0000-\u024f\u1e00-\u1eff]")  # a letter that is not Latin
_NUMBER = r"\d+(?:[.,]\d+)*"


def normalize(caption: str) -> str:
    """Writes out the non-standard words of an English caption (paper section 5.1).

    Args:
      caption: sentence to normalise. If it has a letter that is not Latin, or more frequent words
        of other languages than of English, it is taken for another language and left unchanged.

    Returns:
      The caption in words. Normalising it again changes nothing.
    """
    # Rarely, as for "$#5", one pass yields something that another must write out.
    for _ in range(4):
        if not _SUSPECT.search(caption) or not _is_english(caption):
            break
        before, caption = caption, _once(caption)
        if caption == before:
            break
    return caption


def _is_english(text: str) -> bool:
    """Whether a text looks at least as English as foreign."""
    if _OTHER_SCRIPT.search(text):
        return False
    words = re.findall(r"[a-z\u00df-\u024f]+", text.lower())
    foreign = sum(word in _FOREIGN or not (word.isascii() or word in _BORROWED) for word in words)
    return foreign <= sum(word in _ENGLISH for word in words)


def _once(text: str) -> str:
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    text = _library()(text)
    return " ".join(text.split())


@functools.cache
def _library() -> Callable[[str], str]:
    # Imported on first use, since it takes long.
    import normt2s

    return normt2s.normalize


def _spoken_digits(match: re.Match) -> str:
    return " ".join(_DIGITS[int(digit)] for digit in match[0] if digit.isdecimal())


def _date(year: str, month: str, day: str, otherwise: str) -> str:
    if int(month) > 12:  # the day comes first, as outside the United States
        month, day = day, month
    if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
        return otherwise
    return f"{_MONTHS[int(month) - 1]} {_ordinal(int(day))}, {year}"


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number % 100 < 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _mixed(match: re.Match) -> str:
    whole, above, below = match.groups()
    part = _PARTS[below] if above == "1" else f"{above} {_PARTS[below]}s"
    part = part.replace("halfs", "halves")
    article = "a " if above == "1" else ""
    return f"{whole} and {article}{part}"


def _unit(match: re.Match) -> str:
    number, unit = match.groups()
    words = _UNITS[unit.lower()]
    if number == "1":
        first, *rest = words.split()
        words = " ".join([first[:-1], *rest])
    return f"{number} {words}"


def _roman(match: re.Match) -> str:
    title, name, numeral = match.groups()
    values = [_ROMAN[letter] for letter in numeral]
    pairs = zip(values, [*values[1:], 0], strict=True)
    number = sum(-value if value < after else value for value, after in pairs)
    of_rulers = title or name in _TITLES.split("|")
    return f"{title}{name} {f'the {_ordinal(number)}' if of_rulers else number}"


def _any_of(words: dict[str, str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_TITLES = "King|Queen|Pope|Emperor|Prince|Princess|Tsar|Czar|Kaiser|Henry|Louis|Elizabeth|George"
_RULES: list[tuple[re.Pattern, str | Callable[[re.Match], str]]] = [
    (re.compile(r"\bw/o\b"), "without"),
    (re.compile(r"\bw/(?=\s|\w)\s*"), "with "),
    (re.compile(r"\b24/7\b"), "twenty-four seven"),
    # Telephone numbers.
    (
        re.compile(
            r"(?<![\w-])(?:\+?\d{1,3}[-. ])?(?:\(\d{3}\) ?|\d{3}[-. ])?"
            r"\d{3}-\d{4}(?![\w-])"
        ),
        _spoken_digits,
    ),
    # Dates in digits.
    (
        re.compile(r"\b(\d{4})-(\d\d)-(\d\d)\b"),
        lambda m: _date(m[1], m[2], m[3], m[0]),
    ),
    (
        re.compile(r"\b(\d{1,2})/(\d{1,2})/(\d{4})\b"),
        lambda m: _date(m[3], m[1], m[2], m[0]),
    ),
    # Numbers of several parts.
    (re.compile(r"\b(\d+)[ -](\d)/([2348])\b"), _mixed),
    (re.compile(r"(?<![\w.-])(\d+) ?[x×] ?(?=\d)"), r"\1 by "),
    (re.compile(rf"(?<![\w.:/-])({_NUMBER}) ?[-–] ?(?={_NUMBER}(?![\d/:]*-))"), r"\1 to "),
    (
        re.compile(r"(?<![\w'’])['’]?([2-9])0'?s\b"),
        lambda m: _DECADES[m[1]] + "ties",
    ),
    (re.compile(r"(?:\b[Nn][Oo]\. ?|#)(?=\d)"), "number "),
    # Measures.
    (
        re.compile(rf"\b({_NUMBER}) ?({_any_of(_UNITS)})\b\.?", re.IGNORECASE),
        _unit,
    ),
    (re.compile(rf"\b({_NUMBER})[ -]?in\.(?=\s[a-z])"), r"\1 inch"),
    (
        re.compile(r"(?<=\d) ?(?:°|degrees?|deg\.?) ?([CF])\b"),
        lambda m: f" degrees {_DEGREES[m[1]]}",
    ),
    (re.compile(r"(?<=\d) ?([VW])\b"), lambda m: {"V": " volts", "W": " watts"}[m[1]]),
    (re.compile(r" @ "), " at "),
    # Letters and digits in one word.
    (re.compile(r"\b([A-Z])-(?=\d)"), r"\1 "),
    (re.compile(r"(?<=[A-Za-z])(?=\d)"), " "),
    # Addresses, titles and other abbreviations.
    (re.compile(r"\bSt\. ?(?=[A-Z])"), "Saint "),
    (re.compile(r"(?<=\w )St\.?(?=$|[\s,.])"), "Street"),
    (
        re.compile(rf"\b({_any_of(_ABBREVIATIONS)})\.", re.IGNORECASE),
        lambda m: _ABBREVIATIONS[m[1].lower()],
    ),
    (re.compile(rf"\b((?:{_TITLES}) )([A-Z][a-z]+) ([IVX]+)\b"), _roman),
    (re.compile(rf"()\b({_TITLES}|[A-Z][a-z]+) ([IVX]{{2,}})\b"), _roman),
    # A slash between words is not spoken.
    (re.compile(r"(?<=[A-Za-z])/(?=[A-Za-z]{2})"), " "),
]
