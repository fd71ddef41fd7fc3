"""Tables of captions: as programs and people spoil them, and what is no table at all."""

import gzip
import json
import os
import pathlib
import socket

import numpy as np
import soundfile
from etils import epath

from maa_jax.data import datasets
from maa_jax.data.builders.audio_folder import config_name, read_table
from tests.fuzz.frame import Case

LARGE = 150

FILES = ("a.wav", "b.wav", "deep/c.wav")
SENTENCES = (
    "a dog barks",
    "a dog, then a bell",
    'he says "hello"',
    "café – 雨 🐦",
    "two lines:\none, two",
    "it's nan bread",
    "x" * 300,
)
# Captions that no one wrote.
NO_SENTENCES = (
    "nan",
    "NaN",
    "null",
    "None",
    "NA",
    "<NA>",
    "#N/A",
    "#REF!",
    "#VALUE!",
    "3.14",
    "-7",
)
NO_SENTENCES += ("1e5", "inf", "TRUE", "['a dog', 'a cat']", "{'en': 'a dog'}", "caf\ufffd", "[]")
NO_SENTENCES += ("cafÃ© bar", "x\0y", "x\x1ay", "x\ufeffy", "x\x07", "y" * 200_000)
OUTSIDE = (
    "../x.wav",
    "/etc/passwd",
    "..",
    ".",
    "deep/../../x.wav",
    "C:\\x.wav",
    "out.wav",
    "//x.wav",
)
OUTSIDE += ("gs://bucket/x.wav", "file:///etc/passwd", "\\\\server\\x.wav", "out/x.wav")
ABSENT = (
    "gone.wav",
    "A.WAV",
    "deep\\c.wav",
    "z" * 300 + ".wav",
    "pipe.wav",
    "deep",
    "b.wav/",
    "~/x",
)
NO_TEXTS = (1, 1.5, True, False, [], {}, ["x"], {"x": "y"}, [["x"]], [None], ["x", 1], 10**400)
BYTES = (
    b"\0",
    b"\xff",
    b"\xe9",
    b"\xed\xa0\x80",
    b'"',
    b'""',
    b",",
    b"\n",
    b"\r",
    b"\t",
    b"\\",
    b"'",
)
BYTES += (b"{", b"}", b"[", b"\xef\xbb\xbf", b"\xc3", b"\x1a", b";", b"\\ud800", b"\\u0000", b"nan")


def csv_text(rows: list[list[str]], delimiter: str = ",") -> str:
    """Returns a table in which every cell is in quotes."""
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in rows]
    return "".join(delimiter.join(row) + "\n" for row in quoted)


def cells(rng: np.random.Generator) -> list[list[str]]:
    """Returns the rows of a right table."""
    texts = [str(rng.choice(SENTENCES)) for _ in FILES]
    return [["file", "caption", "label"], *([f, t, "l"] for f, t in zip(FILES, texts, strict=True))]


def objects(rng: np.random.Generator) -> list[dict]:
    return [{"file": f, "captions": [str(rng.choice(SENTENCES))], "label": "l"} for f in FILES]


def one_of(rng, values):
    return values[rng.integers(len(values))]


def encoded(rng, path):
    """Saves the table in another encoding, or with a mark."""
    encoding = one_of(rng, ["latin-1", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-8-sig"])
    rows = [*cells(rng), ["a.wav", "ein Vögelchen", "l"]]
    path.write_bytes(csv_text(rows).encode(encoding, "ignore"))
    return f"as {encoding}", encoding != "utf-8-sig"


def separated(rng, path):
    """Separates cells by something else than the suffix says."""
    delimiter = one_of(rng, [";", "|", "\t", " "])
    path.write_text(csv_text(cells(rng), delimiter))
    return f"separated by {delimiter!r}", True


def unquoted(rng, path):
    path.write_text("file,caption\na.wav,x\nb.wav,a dog, then a bell\n")
    return "a comma that is not quoted", True


def quoted(rng, path):
    """Opens a quote, or closes one where it is not open."""
    lines = ["file,caption", "a.wav,a dog", "b.wav,a bell", "deep/c.wav,rain"]
    number = int(rng.integers(1, 4))
    line = lines[number]
    end = one_of(rng, ["", '"', '" x', '"",'])
    lines[number] = line.replace(",", ',"') + end
    if rng.random() < 0.5:
        lines[3] += '"'
    path.write_text("\n".join(lines) + "\n")
    return f"quotes: {lines}", False


def sentence(rng, path):
    rows, text = cells(rng), one_of(rng, NO_SENTENCES)
    rows[rng.integers(1, 4)][1] = text
    path.write_text(csv_text(rows), newline="")
    return f"caption {text[:20]!r}", True


def header(rng, path):
    rows = cells(rng)
    rows[0] = one_of(
        rng,
        [
            ["file", "caption", "caption"],
            ["", "file", "caption"],
            ["File", "caption", "label"],
            ["file", " Caption", "label"],
            ["file", "captoin", "label"],
            ["file ", "caption", "label"],
            ["file", "caption", "splits"],
            ["file", "caption"],
            ["file", "caption", "label", "split"],
            ["a.wav", "a dog", "l"],
            ["# file", "caption", "label"],
            ["path", "text", "class"],
        ],
    )
    path.write_text(csv_text(rows))
    return f"header {rows[0]}", True


def place(rng, path):
    """Names a file that is outside the folder, or not there."""
    (path.parent.parent / f"{path.parent.name}-x.wav").touch()
    out = path.parent / "out.wav"
    out.symlink_to(path.parent.parent / f"{path.parent.name}-x.wav")
    (path.parent / "out").symlink_to(path.parent.parent)
    os.mkfifo(path.parent / "pipe.wav")
    outside = rng.random() < 0.6
    rows, name = cells(rng), one_of(rng, OUTSIDE if outside else ABSENT)
    rows[rng.integers(1, 4)][0] = name
    if rng.random() < 0.5:
        path = path.with_suffix(".jsonl")
        path.write_text(
            "".join(json.dumps({"file": f, "caption": c}) + "\n" for f, c, _ in rows[1:])
        )
    else:
        path.write_text(csv_text(rows))
    return f"file {name[:40]!r}", outside, path


def value(rng, path):
    """Gives a key of a JSON line a value of another type."""
    path, rows, key = (
        path.with_suffix(".jsonl"),
        objects(rng),
        one_of(rng, ["file", "label", "captions", "caption", "split", "license"]),
    )
    wrong = one_of(rng, NO_TEXTS)
    rows[rng.integers(3)][key] = wrong
    with path.open("w") as file:
        for row in rows:
            text = json.dumps({**row, key: "HERE"} if row.get(key) == 10**400 else row)
            file.write(text.replace('"HERE"', "1" * 5000) + "\n")
    fine = key == "captions" and wrong in ([], ["x"])
    return f"{key}: {str(wrong)[:20]}", not fine, path


JSON_LINES = (
    '{"file": "a.wav", "caption": NaN}',
    '{"file": "a.wav", "caption": "x", "caption": "y"}',
    '{"file": "a.wav", "caption": "x"} {"file": "b.wav", "caption": "y"}',
    '{"file": "a.wav", "caption": "x"',
    '{"file": "a.wav", "caption": "\\ud800"}',
    '{"file": "a.wav", "caption": "\\u0000"}',
    '{"file": "a.wav", "caption": "x\\ufeff"}',
    '{"file": "a.wav", "Caption": "x", "label": "y"}',
    "{'file': 'a.wav', 'caption': 'x'}",
    '["a.wav", "x"]',
    '"a.wav"',
    "null",
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"file": "' + "a" * 2_000_000,
    '{"file": "a.wav", "caption": ' + "9" * 5_000 + "}",
    "\ufeff",
)


def json_line(rng, path):
    path, lines = path.with_suffix(".jsonl"), [json.dumps(row) for row in objects(rng)]
    wrong = one_of(rng, JSON_LINES)
    lines.insert(int(rng.integers(1, 4)), wrong)
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"line {wrong[:60]}", True, path


def changed(rng, path):
    """Cuts a right table, or changes, inserts and repeats bytes in it."""
    data = csv_text(cells(rng)).encode()
    if rng.random() < 0.4:
        path = path.with_suffix(".jsonl")
        data = "".join(json.dumps(row) + "\n" for row in objects(rng)).encode()
    done = []
    for _ in range(int(rng.choice([1, 1, 2, 5]))):
        at, kind = int(rng.integers(len(data))), one_of(rng, ["cut", "flip", "insert", "repeat"])
        if kind == "cut":
            data = data[: at + 1]
        elif kind == "flip":
            data = data[:at] + bytes([data[at] ^ int(rng.integers(1, 256))]) + data[at + 1 :]
        elif kind == "insert":
            data = data[:at] + one_of(rng, BYTES) + data[at:]
        else:
            data = data[:at] + data[max(0, at - 40) : at] + data[at:]
        done.append(f"{kind} at {at}")
    path.write_bytes(data)
    return f"{path.suffix}: {', '.join(done)}", False, path


def other(rng, path):
    """Puts something else in the table's place."""
    kind = one_of(
        rng,
        [
            "fifo",
            "folder",
            "loop",
            "zero",
            "socket",
            "empty",
            "missing",
            "gzip",
            "zip",
            "wav",
            "random",
        ],
    )
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("loop", "zero"):
        path.symlink_to(path if kind == "loop" else "/dev/zero")
    elif kind == "socket":
        there = os.getcwd()
        os.chdir(path.parent)  # a socket's whole path may have 107 bytes
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
        os.chdir(there)
    elif kind != "missing":
        content = {
            "gzip": gzip.compress(b"file,caption\na.wav,x\n"),
            "zip": b"PK\3\4" + rng.bytes(500),
        }
        content |= {
            "wav": (path.parent / "a.wav").read_bytes(),
            "random": rng.bytes(3000),
            "empty": b"",
        }
        path.write_bytes(content[kind])
    return f"in its place: {kind}", True


SPOILT = [encoded, separated, unquoted, quoted, sentence, sentence, header, place, value, value]
SPOILT += [json_line, json_line, changed, changed, changed, other, other]


def make(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Writes three recordings and one table."""
    (folder / "deep").mkdir()
    for i, name in enumerate(FILES):
        wav = 0.5 * np.sin(2 * np.pi * (100 + i) * np.arange(800) / 16000)
        soundfile.write(folder / name, wav, 16000)
    what, broken, *path = one_of(rng, SPOILT)(rng, folder / "captions.csv")
    return Case(what, path[0] if path else folder / "captions.csv", broken)


def use(path: pathlib.Path) -> None:
    """Reads it, and builds a dataset if all the files that it names are there."""
    folder = epath.Path(path.parent)
    config_name(folder, path)
    recordings = read_table(folder, epath.Path(path))
    for recording in (r for r in recordings if not r.fault):
        inside = os.path.realpath(folder / recording.id).startswith(os.path.realpath(folder))
        assert inside, recording.id
        assert all(text.strip() == text != "" for text in (*recording.captions, *recording.labels))
        assert not set(recording.captions) & set(NO_SENTENCES), recording.captions
        assert not any(f"{file}," in text for text in recording.captions for file in FILES), (
            recording
        )
    if any(recording.fault for recording in recordings):
        return
    config = {"dataset": "audio_folder", "folder": str(folder), "captions_file": str(path)}
    found = datasets.Datasets(config | {"data_dir": str(folder / "tfds"), "samples": 400})
    stored = [found.open_split(name) for name in ("train",)]
    assert sum(map(len, stored)) <= len(recordings)


def warm() -> None:
    """Imports what builds datasets."""
    import tensorflow_datasets  # noqa: F401
