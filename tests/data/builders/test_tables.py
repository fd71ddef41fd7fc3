"""A cell of a table is what its author wrote, or an error that names the line and the remedy."""

import json
import os

import pytest
from etils import epath

from maa_jax.data.builders import tables
from maa_jax.data.builders.audio_folder import config_name, read_table


def read(folder, name, content):
    """The recordings of a table of files that all exist."""
    table = folder / name
    table.write_bytes(content if isinstance(content, bytes) else content.encode())
    for file in ("a.wav", "b.wav", "c.wav"):
        (folder / file).touch()
    return read_table(epath.Path(folder), epath.Path(table))


def captions(folder, name, content):
    return {recording.id: recording.captions for recording in read(folder, name, content)}


RIGHT = {
    "lines with commas": (
        "t.csv",
        'file,caption,label\na.wav,"a dog barks\nthen rain, wind, and thunder",dog\n',
        ["a dog barks\nthen rain, wind, and thunder"],
    ),
    "a capital accent before a quote": (
        "t.csv",
        "file,caption,caption_2\na.wav,JOSÉ’S GUITAR,Kinder haben Spaß…\n",
        ["JOSÉ’S GUITAR", "Kinder haben Spaß…"],
    ),
    "a byte order mark": ("t.csv", "\ufefffile,caption\na.wav,x\n", ["x"]),
    "a byte order mark in JSON": ("t.jsonl", '\ufeff{"file": "a.wav", "caption": "x"}', ["x"]),
    "a quoted comma": ("t.csv", 'file,caption\na.wav,"a dog, then a bell"', ["a dog, then a bell"]),
    "a blank before a quote": ("t.csv", 'file, caption\na.wav, "a dog, a cat"', ["a dog, a cat"]),
    "doubled quotes": ("t.csv", 'file,caption\na.wav,"he says ""hi"""', ['he says "hi"']),
    "quotes within": ("t.csv", 'file,caption\na.wav,he says "hi" twice', ['he says "hi" twice']),
    "a line break": ("t.csv", 'file,caption\na.wav,"a dog,\nthen a bell"', ["a dog,\nthen a bell"]),
    "Windows' line ends": ("t.csv", "file,caption\r\na.wav,x\r\n", ["x"]),
    "old Macs' line ends": ("t.csv", "file,caption\ra.wav,x\r", ["x"]),
    "blank lines": ("t.csv", "\nfile,caption\n\na.wav,x\n  \n", ["x"]),
    "letters of all kinds": ("t.csv", "file,caption\na.wav,café 雨 🐦 – “x”", ["café 雨 🐦 – “x”"]),
    "an empty second caption": ("t.csv", "file,caption_1,caption_2\na.wav,x,", ["x"]),
    "other columns": ("t.csv", "file,caption,package,seconds,id\na.wav,x,p,1,2", ["x"]),
    "words around 'nan' and 'null'": ("t.csv", "file,caption\na.wav,nan bread", ["nan bread"]),
    "a caption that begins with a digit": ("t.csv", "file,caption\na.wav,2 dogs", ["2 dogs"]),
    "null where nothing is": ("t.jsonl", '{"file": "a.wav", "caption": "x", "label": null}', ["x"]),
    "escaped letters": (
        "t.jsonl",
        r'{"file": "a.wav", "caption": "\ud83d\udc26 \u00e9"}',
        ["🐦 é"],
    ),
    "tabs in cells of commas": ("t.tsv", "file\tcaption\na.wav\ta, b", ["a, b"]),
}


@pytest.mark.parametrize("what", RIGHT)
def test_captions_arrive_as_they_were_written(tmp_path, what):
    name, content, expected = RIGHT[what]
    assert captions(tmp_path, name, content) == {"a.wav": tuple(expected)}


HEAD = "file,caption\n"
WRONG = {
    "a comma that is not quoted": (
        "t.csv",
        HEAD + "a.wav,a dog, a bell\n",
        "line 2: 3 cells.*in qu",
    ),
    "a cell too few": ("t.csv", "file,caption,label\na.wav,x\n", "line 2: 2 cells"),
    "a comma at the end": ("t.csv", HEAD + "a.wav,x,\n", "line 2: 3 cells"),
    "a quote that is not closed": ("t.csv", HEAD + 'b.wav,x\na.wav,"y\nc.wav,z\n', "line 3 to 4: "),
    "a quote that takes in a line": (
        "t.csv",
        HEAD + 'a.wav,"a dog barks\nb.wav,a bell"\n',
        "line 2: a quote opens in 'caption' and takes in the line 'b.wav,a bell'",
    ),
    "a quote that takes in a line of three cells": (
        "t.csv",
        'file,label,caption\na.wav,x,"a dog\nb,y,a bell"\n',
        "line 2: a quote opens in 'caption'",
    ),
    "a quote that takes in a line with a rarer suffix": (
        "t.csv",
        HEAD + 'a.oga,"a dog barks\nb.oga,he says hello"\nc.oga,rain\n',
        "line 2: a quote opens in 'caption'",
    ),
    "two quotes that take in lines": (
        "t.csv",
        HEAD + 'a.wav,"a dog barks\nb.wav,x\nc.wav,"y"\n',
        "line 2 to 4: .*doubled",
    ),
    "backslashes before quotes": (
        "t.csv",
        HEAD + r'a.wav,"he says \"hi\", x"',
        "line 2: .*doubled",
    ),
    "a quote in tabs": ("t.tsv", 'file\tcaption\na.wav\t"x" y\n', "line 2: .*doubled"),
    "Latin-1": (
        "t.csv",
        HEAD.encode() + b"b.wav,x\na.wav,caf\xe9\n",
        "line 3: byte 0xe9 is not UTF-8",
    ),
    "Latin-1 in JSON": (
        "t.jsonl",
        b'{"file": "a.wav", "caption": "\xe9"}',
        "line 1: byte 0xe9.*UTF-8",
    ),
    "UTF-16": ("t.csv", (HEAD + "a.wav,x\n").encode("utf-16"), "line 1: is UTF-16; save"),
    "UTF-16 without a mark": ("t.csv", HEAD.encode("utf-16-le"), "line 1: holds a NUL"),
    "NUL": ("t.csv", HEAD + "a.wav,x\0y\n", "line 2: holds a NUL"),
    "NUL in JSON": (
        "t.jsonl",
        r'{"file": "a.wav", "caption": "x\u0000"}',
        "line 1: 'caption': holds a NUL",
    ),
    "a control character": (
        "t.csv",
        HEAD + "a.wav,x\x1a\n",
        r"line 2: holds the control .*U\+001A",
    ),
    "half a pair": (
        "t.jsonl",
        r'{"file": "a.wav", "caption": "\ud800"}',
        "line 1: .*half a surrogate",
    ),
    "half a pair in bytes": ("t.csv", HEAD.encode() + b"a.wav,\xed\xa0\x80\n", "line 2: byte 0xed"),
    "a mark in the middle": (
        "t.csv",
        HEAD + "a.wav,x\n\ufeffb.wav,y\n",
        "line 3: holds a byte order",
    ),
    "a lost letter": ("t.csv", HEAD + "a.wav,caf\ufffd\n", r"line 2: .*U\+FFFD"),
    "UTF-8 read as another": ("t.csv", HEAD + "a.wav,cafÃ© bar\n", "line 2: .*of 'café bar'"),
    "a giant cell": ("t.csv", HEAD + "a.wav," + "x" * 200_000 + "\n", "line 2: field larger"),
    "a giant line": ("t.jsonl", '{"file": "' + "x" * 2**20 + '"}', "line 1: has more than"),
    "no header's name": (
        "t.csv",
        ",file,caption\n0,a.wav,x\n",
        "line 1: column 1 has no name.*index=False",
    ),
    "a name twice": (
        "t.csv",
        "file,caption,caption\na.wav,x,y\n",
        "line 1: two columns.*'caption'",
    ),
    "another case": ("t.csv", "file,Caption\na.wav,x\n", "line 1: 'Caption'.*write 'caption'"),
    "a blank in a name": (
        "t.csv",
        "file,label,split \na.wav,x,test\n",
        "line 1: 'split '.*write 'split'",
    ),
    "a misspelt name": (
        "t.csv",
        "file,label,splits\na.wav,x,test\n",
        "line 1: 'splits'.*write 'split'",
    ),
    "a misspelt key": (
        "t.jsonl",
        '{"file": "a.wav", "label": "x", "Split": "test"}',
        "'Split'.*write",
    ),
    "semicolons": ("t.csv", "file;caption\na.wav;x\n", "no 'file'; the columns are"),
    "an empty file": ("t.csv", "", "t.csv is empty"),
    "a number": (
        "t.jsonl",
        '{"file": "a.wav", "caption": 3}',
        "line 1: 'caption' is 3, which is not",
    ),
    "true": ("t.jsonl", '{"file": "a.wav", "caption": true}', "line 1: 'caption' is true, which"),
    "an object": ("t.jsonl", '{"file": "a.wav", "caption": {"en": "x"}}', "'caption' is {\"en\""),
    "a list in a list": (
        "t.jsonl",
        '{"file": "a.wav", "captions": [["x"]]}',
        r"'captions' is \[\"x\"\]",
    ),
    "null in a list": (
        "t.jsonl",
        '{"file": "a.wav", "captions": ["x", null]}',
        "an item of 'captions'",
    ),
    "a number in a list": (
        "t.jsonl",
        '{"file": "a.wav", "captions": ["x", 1]}',
        "'captions' is 1, which",
    ),
    "a list of files": ("t.jsonl", '{"file": ["a.wav"], "caption": "x"}', "line 1: 'file' is"),
    "a number as a label": ("t.jsonl", '{"file": "a.wav", "label": 7}', "line 1: 'label' is 7"),
    "a number as a split": (
        "t.jsonl",
        '{"file": "a.wav", "label": "x", "split": 1}',
        "'split' is 1",
    ),
    "no caption": ("t.jsonl", '{"file": "a.wav", "caption": null}', "line 1: .*neither caption"),
    "NaN": ("t.jsonl", '{"file": "a.wav", "caption": NaN}', "line 1: NaN is not JSON"),
    "a key twice": (
        "t.jsonl",
        '{"file": "a.wav", "caption": "x", "caption": "y"}',
        "'caption' is there tw",
    ),
    "deep nesting": ("t.jsonl", "[" * 100_000, "line 1: nested too deeply"),
    "a giant number": (
        "t.jsonl",
        '{"file": "a.wav", "caption": "x", "n": ' + "1" * 9999 + "}",
        "line 1: ",
    ),
    "a JSON array": ("t.jsonl", '[\n{"file": "a.wav"}\n]', "line 1: .*one JSON object a line"),
    "a printed list": ("t.csv", HEAD + "a.wav,\"['a dog', 'a cat']\"\n", "line 2: .*printed list"),
    "a printed object": ("t.csv", HEAD + "a.wav,{'en': 'a dog'}\n", "line 2: .*printed list"),
    "an infinite caption": ("t.csv", HEAD + "a.wav,-inf\n", "line 2: .*not a sentence"),
    "a caption that is a number": ("t.csv", HEAD + "a.wav,1.5e3\n", "line 2: .*not a sentence"),
    "no file": ("t.csv", HEAD + ",x\n", "line 2: no 'file'"),
    "two licenses": (
        "t.csv",
        "file,label,license\na.wav,x,CC0\na.wav,y,CC-BY\n",
        "line 3: .*two licenses",
    ),
}
WRONG |= {
    f"a caption {text}": (
        "t.csv",
        HEAD + f"b.wav,x\na.wav,{text}\n",
        f"line 3: .*{text}.*missing value",
    )
    for text in ("nan", "NaN", "null", "None", "NA", "<NA>", "#N/A", "#REF!", "N/A")
}


@pytest.mark.parametrize("what", WRONG)
def test_what_no_one_wrote_is_named_with_its_file_and_line(tmp_path, what):
    name, content, message = WRONG[what]
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "device"])
def test_a_table_that_is_no_file_is_named_and_not_waited_for(tmp_path, kind):
    table = tmp_path / "t.csv"
    if kind == "pipe":
        os.mkfifo(table)
    elif kind == "folder":
        table.mkdir()
    else:
        table.symlink_to(table if kind == "loop" else "/dev/zero")
    for use in (read_table, config_name):
        with pytest.raises(ValueError, match=r"t\.csv"):
            use(epath.Path(tmp_path), epath.Path(table))


def test_files_are_found_by_any_spelling_of_their_place_and_name(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "u\u0308ber.wav").touch()  # as macOS writes it
    (tmp_path / " b.wav").touch()
    content = "file,caption\n./a.wav,one\na.wav,two\ndeep/../a.wav,three\n"
    content += "deep/\u00fcber.wav,four\ndeep//u\u0308ber.wav,five\nb.wav,six\n b.wav,seven\n"
    found = captions(tmp_path, "t.csv", content)
    assert found == {
        "a.wav": ("one", "two", "three"),
        "deep/u\u0308ber.wav": ("four", "five"),
        "b.wav": ("six", "seven"),
    }


@pytest.mark.parametrize(
    "name", ["../x.wav", "/etc/passwd", "deep/../../x.wav", "C:\\x.wav", ".", ".."]
)
def test_no_file_outside_the_folder_is_read(tmp_path, name):
    (tmp_path / "x.wav").touch()
    (tmp_path / "sounds").mkdir()
    with pytest.raises(ValueError, match=r"t\.csv, line 2: .*write"):
        read(tmp_path / "sounds", "t.csv", f"file,caption\n{name},x\n")


def test_a_link_may_not_lead_out_of_the_folder_but_the_folder_may_be_one(tmp_path):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "x.wav").touch()
    (tmp_path / "sounds/link.wav").symlink_to(tmp_path / "x.wav")
    (tmp_path / "sounds/inside.wav").symlink_to("a.wav")
    (tmp_path / "other").symlink_to("sounds")
    table = "file,caption\ninside.wav,x\n"
    assert set(captions(tmp_path / "other", "t.csv", table)) == {"inside.wav"}
    with pytest.raises(ValueError, match=r"line 3: 'link\.wav' is a link that leads out"):
        read(tmp_path / "sounds", "t.csv", table + "link.wav,y\n")


def test_a_file_that_is_not_there_is_a_fault_that_says_what_is_there(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    table = "file,caption\nA.wav,x\ndeep\\a.wav,y\npipe.wav,z\nb.wav,w\ngone.wav,v\n"
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.wav").touch()
    faults = {r.id: r.fault for r in read(tmp_path, "t.csv", table)}
    assert "No such file" in faults["A.wav"] and "'a.wav'" in faults["A.wav"]
    assert "'deep/a.wav'" in faults["deep\\a.wav"]
    assert faults["pipe.wav"] == "is not a regular file"
    assert faults["b.wav"] == ""
    assert "No such file" in faults["gone.wav"]


def test_rows_are_read_as_they_are_needed(tmp_path):
    path = epath.Path(tmp_path / "t.jsonl")
    path.write_text("".join(json.dumps({"file": f"{i}.wav"}) + "\n" for i in range(3)) + "broken")
    rows = tables.read(path)
    assert [next(rows)["file"] for _ in range(3)] == ["0.wav", "1.wav", "2.wav"]
    with pytest.raises(ValueError, match="line 4"):
        next(rows)
