r"""A corpus of recorded sounds from Debian packages, as tables for the dataset `audio_folder`.

    mkdir debs packages
    (cd debs && apt-get download $(python -m tools.corpora --list))
    for deb in debs/*.deb; do dpkg-deb -x $deb packages/$(basename $deb .deb | cut -d_ -f1); done
    python -m tools.corpora --packages=packages --out=corpus

Nothing is installed or copied: the tables refer to recordings in `packages`, the dataset's
`folder`. debian_sounds.py derives class labels and captions from file names. Speech, music, exact
duplicates and files that cannot be decoded are left out.

    known.csv      60 %: file, label, caption_1 to caption_3, package, license
    unknown.csv    40 %: file, label, package, license; the label serves only for checks
    synonyms.json  label -> words that name it

No sound source is in both parts: takes that differ only in their number or in how hard something is
hit stay together, unless they make up more than a third of their label.
"""

import collections
import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from absl import app, flags

from maa_jax.audio.io import AudioError, is_silent, load
from tools.debian_sounds import SOUNDS, SOURCES, Clip, clip_of

KNOWN = 0.6  # share of the recordings of each label
MAX_SECONDS = 20.0
MIN_SECONDS = 0.03
MAX_OF_LABEL = 150  # recordings; otherwise most of the corpus would be drums
MIN_OF_LABEL = 8
_SUFFIXES = {".wav", ".ogg", ".flac", ".aiff"}

_PACKAGES = flags.DEFINE_string("packages", None, "Folder with the extracted packages.")
_OUT = flags.DEFINE_string("out", None, "Folder to write the tables into.")
_LIST = flags.DEFINE_bool("list", False, "Prints the names of the packages instead.")


@dataclasses.dataclass
class Corpus:
    """The recordings of a corpus.

    Attributes:
      clips: recordings with labels and captions.
      seconds: {file: length in seconds}.
      left_out: {reason: number of recordings that are not in it}.
    """

    clips: list[Clip]
    seconds: dict[str, float]
    left_out: collections.Counter[str]


def collect(root: pathlib.Path, paths: Iterable[pathlib.Path]) -> Corpus:
    """Returns the sounds among recordings, at most `MAX_OF_LABEL` and at least `MIN_OF_LABEL` each.

    Args:
      root: folder with the extracted packages.
      paths: recordings in it.
    """
    corpus = Corpus([], {}, collections.Counter())
    contents: set[bytes] = set()
    of_label: collections.Counter[str] = collections.Counter()
    # Sorted by hash, so that neither the cap nor the choice among duplicates is alphabetical.
    for path in sorted(paths, key=lambda p: hashlib.sha256(p.name.encode()).digest()):
        clip = clip_of(path.relative_to(root).as_posix())
        if clip is None:
            corpus.left_out["speech, music or no class"] += 1
            continue
        if of_label[clip.label] == MAX_OF_LABEL:
            corpus.left_out[f"over {MAX_OF_LABEL} of a label"] += 1
            continue
        try:
            wav = load(path)
        except AudioError:
            corpus.left_out["cannot be decoded"] += 1
            continue
        content = hashlib.sha256(wav.tobytes()).digest()
        if not _fits(wav):
            corpus.left_out["silent, too short or too long"] += 1
        elif content in contents:
            corpus.left_out["duplicates"] += 1
        else:
            contents.add(content)
            of_label[clip.label] += 1
            corpus.seconds[clip.file] = len(wav) / 16000
            corpus.clips.append(clip)
    rare = {label for label, count in of_label.items() if count < MIN_OF_LABEL}
    corpus.left_out["of rare labels"] = sum(clip.label in rare for clip in corpus.clips)
    corpus.clips = [clip for clip in corpus.clips if clip.label not in rare]
    return corpus


def _fits(wav: np.ndarray) -> bool:
    return not is_silent(wav) and MIN_SECONDS <= len(wav) / 16000 <= MAX_SECONDS


def divide(clips: list[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Divides the families of each label into known and unknown by their hashes."""
    known, unknown = [], []
    by_label = collections.defaultdict(lambda: collections.defaultdict(list))
    for clip in clips:
        by_label[clip.label][clip.family].append(clip)
    for families in by_label.values():
        total = sum(map(len, families.values()))
        first = len(known)
        for family in [f for f in families if len(families[f]) > total / 3]:
            # Otherwise the whole label would be in one part.
            families |= {clip.file: [clip] for clip in families.pop(family)}
        for family in sorted(families, key=lambda f: hashlib.sha256(f.encode()).digest()):
            fits = len(known) - first + len(families[family]) <= KNOWN * total + 1
            (known if fits else unknown).extend(families[family])
    return sorted(known, key=lambda c: c.file), sorted(unknown, key=lambda c: c.file)


def write_tables(out: pathlib.Path, known: Sequence[Clip], unknown: Sequence[Clip]) -> None:
    """Writes the three files that the head of this module describes."""
    out.mkdir(parents=True, exist_ok=True)
    columns = ("caption_1", "caption_2", "caption_3")
    for name, part in (("known", known), ("unknown", unknown)):
        with (out / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            captioned = columns if name == "known" else ()
            writer.writerow(("file", "label", *captioned, "package", "license"))
            for clip in part:
                captions = clip.captions if captioned else ()
                where = (clip.source.package, clip.source.license)
                writer.writerow((clip.file, clip.label, *captions, *where))
    names = {
        sound.label: sorted({sound.label, *sound.names.values(), *sound.synonyms})
        for sound in SOUNDS
    }
    labels = sorted({clip.label for clip in known})
    (out / "synonyms.json").write_text(json.dumps({k: names[k] for k in labels}, indent=2) + "\n")


def print_summary(corpus: Corpus, known: Sequence[Clip], unknown: Sequence[Clip]) -> None:
    """Prints the labels, what was left out, and the licences."""
    labels = sorted({clip.label for clip in known})
    print("| label | known | unknown | seconds |\n|---|---|---|---|")
    for label in labels:
        parts = [[clip for clip in part if clip.label == label] for part in (known, unknown)]
        time = sum(corpus.seconds[clip.file] for part in parts for clip in part)
        print(f"| {label} | {len(parts[0])} | {len(parts[1])} | {time:.0f} |")
    time = sum(corpus.seconds[clip.file] for clip in (*known, *unknown))
    print(f"\n{len(known)} known, {len(unknown)} unknown, {len(labels)} labels, {time:.0f} seconds")
    print("left out: " + ", ".join(f"{n} {why}" for why, n in corpus.left_out.most_common()))
    licenses = collections.Counter(
        (clip.source.package, clip.source.license) for clip in (*known, *unknown)
    )
    print("\n| package | license | recordings |\n|---|---|---|")
    for (package, license_), count in sorted(licenses.items()):
        print(f"| {package} | {license_} | {count} |")


def main(argv: list[str]) -> None:
    """Writes the tables and prints a summary of them."""
    del argv
    if _LIST.value:
        print(" ".join(dict.fromkeys(source.package for source in SOURCES)))
        return
    if not _PACKAGES.value or not _OUT.value:
        raise app.UsageError("give --packages (extracted packages) and --out, or --list")
    root = pathlib.Path(_PACKAGES.value)
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    if not paths:
        raise app.UsageError(f"--packages={root}: holds no recordings; extract the packages there")
    corpus = collect(root, paths)
    known, unknown = divide(corpus.clips)
    write_tables(pathlib.Path(_OUT.value), known, unknown)
    print_summary(corpus, known, unknown)


if __name__ == "__main__":
    app.run(main)
