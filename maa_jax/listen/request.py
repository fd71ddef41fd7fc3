"""Options of a listening test."""

import dataclasses
import json
import pathlib
import re
from typing import Any

from maa_jax.checks import check_name, nearest
from maa_jax.files import user_path
from maa_jax.options import FINE, REQUIRED, Options, option

# What is asked of listeners: quality and faithfulness on the paper's scales, A/B, MUSHRA.
TESTS = ("mos_q", "mos_f", "ab", "mushra")
# The system whose sounds are the recordings themselves.
REFERENCE = "reference"
# MUSHRA's low-passed reference, which stands beside the systems.
ANCHOR = "anchor"
TEXTS = pathlib.Path(__file__).parent / "texts"


def _check_tests(names: tuple[str, ...], _: Options) -> str:
    for name in names:
        check_name("test", name, TESTS)
    if len(set(names)) < len(names) or not names:
        return f"some of {', '.join(TESTS)}, each once"
    if len(names) > 1 and set(names) != {"mos_q", "mos_f"}:
        return "one test, or mos_q,mos_f, which are two scales of one page"
    return FINE


def _check_sounds(sounds: tuple[str, ...], _: Options) -> str:
    names = [text.partition("=")[0] for text in sounds]
    for text, name in zip(sounds, names, strict=True):
        if not re.fullmatch(r"[\w.-]+=.+", text):
            return f"NAME=FOLDER instead of {text!r}, such as ours=out/ours,{REFERENCE}=recordings"
        if name == ANCHOR:
            return f"another name than {ANCHOR!r}, which is the low-passed reference's"
        if names.count(name) > 1:
            return f"each name once; {name!r} stands {names.count(name)} times"
    return FINE


def _check_url(url: str | None, _: Options) -> str:
    fine = url is None or re.fullmatch(r"https?://\S+", url)
    return FINE if fine else "an address that begins with https:// or http://"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listening(Options):
    """What is heard, what is asked, and where page and table are written."""

    out: str = option(REQUIRED, "Folder of the test: page/, test.json, results.", path=True)
    sounds: tuple[str, ...] = option(
        (),
        "Systems, NAME=FOLDER,NAME=FOLDER: wav files of the same names in each. The name "
        f"{REFERENCE!r} is that of recordings.",
        check=_check_sounds,
    )
    test: tuple[str, ...] = option(
        ("mos_q",), f"{', '.join(TESTS)}; or mos_q,mos_f on one page.", check=_check_tests
    )
    captions_file: str | None = option(
        None,
        "CSV file with file,caption of the sounds; by default a folder's samples.jsonl.",
        path=True,
    )
    shown_file: str | None = option(
        None,
        "CSV file with file,picture of the sounds: pictures and videos that are shown in place of "
        "captions; by default those of a folder's samples.jsonl.",
        path=True,
    )
    prompts_per_listener: int = option(
        10, "Prompts a listener hears; all, where there are fewer.", least=1
    )
    headphone_check: bool = option(True, "Ask for headphones, and check by tones that they are on.")
    post_url: str | None = option(
        None, "Address that gets each listener's answers by HTTP POST.", check=_check_url
    )
    language: tuple[str, ...] = option(
        ("en",),
        "Languages that listeners can choose from: names of the package, or JSON files.",
    )
    seed: int = option(0, "Seed of all random choices.", least=0, most=2**31 - 1)
    results: tuple[str, ...] = option(
        (), "Answers of listeners, files or folders of files: makes the table of --out's test."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.sounds) == bool(self.results):
            raise ValueError(
                "give --sounds=NAME=FOLDER,... to make a page, or --results=FILES to make the "
                "table of a page's answers"
            )
        if self.results:
            return
        systems = self.systems
        if "ab" in self.test and len(systems) < 2:
            raise ValueError(f"sounds={self.sounds!r}: A/B compares two systems; add another")
        if "mushra" in self.test and (REFERENCE not in systems or len(systems) < 2):
            raise ValueError(
                f"sounds={self.sounds!r}: MUSHRA compares systems with recordings; give "
                f"{REFERENCE}=FOLDER and a system"
            )

    @property
    def systems(self) -> dict[str, pathlib.Path]:
        """Folder of each system."""
        pairs = (text.partition("=") for text in self.sounds)
        return {name: pathlib.Path(user_path(folder)) for name, _, folder in pairs}

    def texts(self) -> dict[str, dict[str, Any]]:
        """Returns {code of a language: its texts}, in the order given.

        Raises:
          ValueError: there is no such language or file, or a file lacks a text.
        """
        found = {}
        for language in self.language or ("en",):
            if language.endswith(".json"):
                path = pathlib.Path(user_path(language))
                if not path.is_file():
                    raise ValueError(f"language={language!r}: there is no such file")
            else:
                check_name("language", language, sorted(p.stem for p in TEXTS.glob("*.json")))
                path = TEXTS / f"{language}.json"
            texts = _read_texts(path)
            found[texts["code"]] = texts
        return found


def _read_texts(path: pathlib.Path) -> dict[str, Any]:
    """Returns the texts of a file, which must be those that the English one has."""
    model = json.loads((TEXTS / "en.json").read_text("utf-8"))
    try:
        texts = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}): correct it") from error
    if not isinstance(texts, dict):
        raise ValueError(f"{path} holds no object: {TEXTS / 'en.json'} is a model")
    for key in [*model, *texts]:
        if key not in texts:
            raise ValueError(f"{path} lacks {key!r}: add it; {TEXTS / 'en.json'} is a model")
        if key not in model:
            raise ValueError(f"{path}: there is no text {key!r}; meant {nearest(key, model)!r}?")
        size = len(model[key]) if isinstance(model[key], list) else None
        given = texts[key] if size is not None else [texts[key]]
        if (
            not isinstance(given, list)
            or (size is not None and len(given) != size)
            or not all(isinstance(text, str) and text for text in given)
        ):
            wanted = "a text" if size is None else f"a list of {size} texts"
            raise ValueError(f"{path}: {key!r} is {texts[key]!r}; give {wanted}")
    return texts
