import csv
import json

import numpy as np
import pytest
import soundfile
from absl import flags
from absl.testing import flagsaver

from maa_jax.data.builders.audio_folder import read_table
from tools import corpora
from tools.debian_sounds import clip_of

KIT = "usr/share/hydrogen/data/drumkits/The Black Pearl 1.0/"


@pytest.mark.parametrize(
    ("path", "label", "caption"),
    [
        (KIT + "PearlSnare-Softest.wav", "snare drum", "very soft snare drum"),
        (KIT + "PearlSnareRimshot-Hard.wav", "rimshot", "loud rimshot"),
        ("usr/share/games/wesnoth/1.16/sounds/wolf-growl-2.ogg", "wolf", "a wolf"),
        ("usr/share/games/wesnoth/1.16/sounds/bow-puny-fire.ogg", "arrow", "arrow"),
        ("usr/share/games/flare/soundfx/environment/forest_owl_loop.ogg", "bird", "an owl"),
        ("usr/share/games/lincity-ng/sounds/WindMill1.wav", "machine", "a mill"),
        ("usr/share/buckle/wav/3b-1.wav", "typewriter key", "key of an old keyboard"),
    ],
)
def test_names_become_labels_and_captions(path, label, caption):
    clip = clip_of(path)
    assert clip.label == label
    assert len(set(clip.captions)) == 3
    assert any(caption in sentence for sentence in clip.captions)


@pytest.mark.parametrize(
    "path",
    [
        "usr/share/games/megaglest/units/archer/sounds/archer_select8.wav",
        "usr/share/tuxpaint/stamps/animals/birds/crow_desc_de.ogg",
        "usr/share/games/widelands/data/music/bird_00.ogg",
        "usr/share/games/elsewhere/dog.wav",
    ],
)
def test_speech_music_and_other_packages_are_left_out(path):
    assert clip_of(path) is None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    packages, noise = root / "packages", np.random.default_rng(0)
    (packages / KIT).mkdir(parents=True)
    for drum in ("Snare", "Kick", "TomFloor"):
        for kind in "ABCDE":
            for manner in ("Soft", "Hard"):
                wav = 0.1 * noise.standard_normal(1600)
                soundfile.write(packages / KIT / f"{kind} {drum}-{manner}.wav", wav, 16000)
    twice = packages / KIT / "OtherSnare-Med.wav"
    twice.write_bytes((packages / KIT / "A Snare-Soft.wav").read_bytes())
    (packages / KIT / "BrokenSnare.wav").write_bytes(b"RIFF")
    flags.FLAGS.mark_as_parsed()
    for out in ("tables", "again"):
        with flagsaver.flagsaver(packages=str(packages), out=str(root / out)):
            corpora.main([])
    return root


def test_tables_are_read_by_audio_folder(written):
    packages = written / "packages"
    known = read_table(packages, written / "tables/known.csv")
    unknown = read_table(packages, written / "tables/unknown.csv")
    assert len(known) + len(unknown) == 30  # Without the copy and the broken one.
    assert 0.5 <= len(known) / 30 <= 0.7
    assert all(len(recording.captions) == 3 for recording in known)
    assert not any(recording.captions for recording in unknown)
    synonyms = json.loads((written / "tables/synonyms.json").read_text())
    assert {r.labels[0] for r in known} == {r.labels[0] for r in unknown} == set(synonyms)
    assert "snare" in synonyms["snare drum"]


def test_takes_of_one_thing_stay_together(written):
    def families(part):
        with (written / f"tables/{part}.csv").open() as file:
            return {clip_of(row["file"]).family for row in csv.DictReader(file)}

    assert families("known") and not families("known") & families("unknown")


def test_the_same_tables_again(written):
    for name in ("known.csv", "unknown.csv", "synonyms.json"):
        assert (written / "tables" / name).read_bytes() == (written / "again" / name).read_bytes()
