"""Each published dataset from a small tree in its publisher's layout."""

import json

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from maa_jax.data.builders import BUILDERS, builder_class
from maa_jax.data.builders.published import group_split, name_labels

PUBLISHED = sorted(set(BUILDERS) - {"sonic_sounds", "general_midi", "audio_folder", "image_folder"})
TAU = "TAU-urban-acoustic-scenes-2019-development/audio"
SEGMENTS = (
    "# Segments csv created Sun Mar  5 10:54:31 2017\n"
    "# num_ytids=2, num_segs=2, num_unique_labels=2, num_positive_labels=2\n"
    "# YTID, start_seconds, end_seconds, positive_labels\n"
)
ONTOLOGY = {  # id: (name, children)
    "/m/09l8g": ("Human voice", ["/m/09x0r", "/m/015lz1"]),
    "/m/09x0r": ("Speech", ["/m/05zppz"]),
    "/m/05zppz": ("Male speech, man speaking", []),
    "/m/015lz1": ("Singing", []),
    "/m/04rlf": ("Music", ["/m/04szw"]),
    "/m/04szw": ("Musical instrument", ["/m/0342h"]),
    "/m/0342h": ("Guitar", []),
    "/m/0bt9lr": ("Dog", []),
}


def csv_text(header, *rows):
    return "\n".join((header, *rows)) + "\n"


def clotho():
    captions = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"
    about = "file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license"
    by = "http://creativecommons.org/licenses/by/3.0/"
    link = "https://freesound.org/people/someone/sounds/7/"
    texts, wavs = {}, []
    for part in ("development", "validation", "evaluation"):
        texts[f"clotho_captions_{part}.csv"] = csv_text(
            captions, f'{part} é.wav,"A dog, barking.",Two.,Three.,Four.,Five.'
        )
        texts[f"clotho_metadata_{part}.csv"] = csv_text(
            about, f'{part} é.wav,dog;bark,7,{link},"[0, 9]",someone,{by}'
        ).encode("latin-1")
        wavs.append(f"{part}/{part} é.wav")
    sentences = ("A dog, barking.", "Two.", "Three.", "Four.", "Five.")
    return (
        texts,
        wavs,
        {
            wavs[0]: ("train", sentences, (), by, "https://freesound.org/s/7/"),
            wavs[1]: ("validation", sentences, (), by, "https://freesound.org/s/7/"),
            wavs[2]: ("test", sentences, (), by, "https://freesound.org/s/7/"),
        },
    )


def audiocaps():
    header = "audiocap_id,youtube_id,start_time,caption"
    texts = {
        "train.csv": csv_text(header, "1,aaaaaaaaaaa,30,Rain falls", "2,lost_lost_1,0,Gone"),
        "val.csv": csv_text(header, '3,bbbbbbbbbbb,0,"A man speaks, then laughs"'),
        "test.csv": csv_text(header, *(f"{i},-ccccccccc_,10,Caption {i}" for i in range(5))),
    }
    wavs = ["audio/aaaaaaaaaaa.wav", "audio/val/Ybbbbbbbbbbb.flac", "audio/test/-ccccccccc_.wav"]
    terms, watch = "captions: academic use", "https://www.youtube.com/watch?v="
    five = tuple(f"Caption {i}" for i in range(5))
    return (
        texts,
        wavs,
        {
            "aaaaaaaaaaa": ("train", ("Rain falls",), (), terms, f"{watch}aaaaaaaaaaa&t=30s"),
            "bbbbbbbbbbb": (
                "validation",
                ("A man speaks, then laughs",),
                (),
                terms,
                f"{watch}bbbbbbbbbbb&t=0s",
            ),
            "-ccccccccc_": ("test", five, (), terms, f"{watch}-ccccccccc_&t=10s"),
        },
    )


def macs():
    names = ["airport-lisbon-1000-40000-a", "airport-lisbon-1000-40001-a", "park-paris-1-2-a"]
    annotations = (
        "  annotations:\n"
        "  - annotator_id: 12\n    sentence: people talk\n    tags: [adults_talking]\n"
        "  - annotator_id: 15\n    sentence: a bird sings\n"
        "    tags: [birds_singing, adults_talking]\n"
    )
    files = "".join(f"- filename: {name}.wav\n{annotations}" for name in names)
    text = ("people talk", "a bird sings"), ("adults talking", "birds singing"), "non-commercial"
    return (
        {"MACS.yaml": "files:\n" + files},
        [f"{TAU}/{name}.wav" for name in names],
        {
            name: (group_split("-".join(name.split("-")[:3])), *text, f"{name}.wav")
            for name in names
        },
    )


def wavtext5k():
    table = csv_text(
        "view_link,download_link,title,description,fname,tags",
        "https://a.site/1,https://a.site/1.wav,Horse,A horse gallops.,1.wav,\"['horse', 'run']\"",
        "https://a.site/2,https://a.site/2.wav,Door closes,,2.wav,",
        "https://a.site/3,https://a.site/3.wav,Gone,Lost.,3.wav,",
    )
    return (
        {"WavText5K.csv": table},
        [f"WavText5K/download/{i}.wav" for i in (1, 2)],
        {
            "1.wav": (None, ("A horse gallops.",), ("horse", "run"), "MIT", "https://a.site/1"),
            "2.wav": (None, ("Door closes",), (), "MIT", "https://a.site/2"),
        },
    )


def bbc_sound_effects():
    table = csv_text(
        "location,description,secs,category,CDNumber,CDName,tracknum",
        '07076051.wav,"Two-stroke petrol engine, running",194,Engines: Petrol,EC1,Engines,1',
        "07076051.wav,Again,194,,EC1,Engines,1",
        "07076052.wav,Rain,10,,EC2,Weather,1",
        "07076053.wav,Not fetched,10,,EC2,Weather,2",
    )
    source = "https://sound-effects-media.bbcrewind.co.uk/zip/0707605{}.wav.zip"
    engine = ("Two-stroke petrol engine, running",), ("Engines: Petrol",)
    return (
        {"BBCSoundEffects.csv": table},
        ["audio/x/07076051.wav", "audio/07076052.wav"],
        {
            "07076051": (None, *engine, "RemArc", source.format(1)),
            "07076052": (None, ("Rain",), (), "RemArc", source.format(2)),
        },
    )


def audiostock():
    table = csv_text("id,title,tags", '1150592,Bubble 02,"foam, water sound"', "7,Not bought,")
    source = "https://audiostock.net/audio/1150592"
    row = (None, ("Bubble 02",), ("foam", "water sound"), "Audiostock", source)
    return {"audiostock.csv": table}, ["audio/1150592.wav"], {"1150592": row}


def audioset():
    man, dog = "/m/09x0r,/m/05zppz", "/m/0bt9lr,/m/09x0r"
    texts = {
        "ontology.json": json.dumps(
            [{"id": i, "name": n, "child_ids": below} for i, (n, below) in ONTOLOGY.items()]
        ),
        "balanced_train_segments.csv": SEGMENTS + f'speech_only, 0.000, 10.000, "{man}"\n',
        "unbalanced_train_segments.csv": SEGMENTS
        + f'dog_and_man, 30.000, 40.000, "{dog}"\n'
        + 'guitar_only, 0.000, 10.000, "/m/0342h"\n'
        + 'speech_song, 0.000, 10.000, "/m/0342h,/m/05zppz"\n'
        + 'lost_on_you, 0.000, 10.000, "/m/0bt9lr"\n',
        "eval_segments.csv": SEGMENTS + '-a_singer_1, 5.000, 15.000, "/m/015lz1"\n',
    }
    clips = ("speech_only", "dog_and_man", "guitar_only", "speech_song", "-a_singer_1")
    watch = "https://www.youtube.com/watch?v="
    return (
        texts,
        [f"audio/Y{clip}.wav" for clip in clips],
        {
            "dog_and_man": (
                "train",
                (),
                ("Dog", "Speech"),
                "CC-BY-4.0",
                f"{watch}dog_and_man&t=30s",
            ),
            "-a_singer_1": ("test", (), ("Singing",), "CC-BY-4.0", f"{watch}-a_singer_1&t=5s"),
        },
    )


def esc50():
    rows = {  # id: (fold, category, esc10, recording)
        "1-100032-A-0": (1, "dog", True, 100032),
        "3-1-A-8": (3, "sea_waves", False, 1),
        "4-2-A-8": (4, "sea_waves", False, 2),
        "5-3-A-0": (5, "dog", True, 3),
    }
    table = csv_text(
        "filename,fold,target,category,esc10,src_file,take",
        *(f"{i}.wav,{fold},0,{c},{ten},{s},A" for i, (fold, c, ten, s) in rows.items()),
    )
    splits = {1: "train", 3: "train", 4: "validation", 5: "test"}
    root = "ESC-50-master"
    return (
        {f"{root}/meta/esc50.csv": table},
        [f"{root}/audio/{i}.wav" for i in rows],
        {
            i: (
                splits[fold],
                (),
                (category.replace("_", " "),),
                "CC-BY-3.0" if ten else "CC-BY-NC-3.0",
                f"https://freesound.org/s/{source}/",
            )
            for i, (fold, category, ten, source) in rows.items()
        },
    )


def fsd50k():
    zero = "http://creativecommons.org/publicdomain/zero/1.0/"
    by = "http://creativecommons.org/licenses/by/3.0/"
    info = {"title": "t", "description": "d", "tags": [], "uploader": "u"}
    texts = {
        "FSD50K.ground_truth/dev.csv": csv_text(
            "fname,labels,mids,split",
            '64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train',
            "16399,Rain,/m/06mb1,val",
        ),
        "FSD50K.ground_truth/eval.csv": csv_text("fname,labels,mids", "37199,Rain,/m/06mb1"),
        "FSD50K.metadata/dev_clips_info_FSD50K.json": json.dumps(
            {"64760": {**info, "license": zero}, "16399": {**info, "license": by}}
        ),
        "FSD50K.metadata/eval_clips_info_FSD50K.json": json.dumps(
            {"37199": {**info, "license": by}}
        ),
    }
    wavs = [f"FSD50K.{name}.wav" for name in ("dev_audio/64760", "dev_audio/16399")]
    source = "https://freesound.org/s/{}/"
    return (
        texts,
        [*wavs, "FSD50K.eval_audio/37199.wav"],
        {
            "64760": ("train", (), ("Electric guitar", "Guitar"), zero, source.format(64760)),
            "16399": ("validation", (), ("Rain",), by, source.format(16399)),
            "37199": ("test", (), ("Rain",), by, source.format(37199)),
        },
    )


def sonniss():
    part = "Sonniss.com - GDC 2017 - Game Audio Bundle Part 2of9"
    sea = f"{part}/Chris Skyes - The Black Sea/SFX Large Wave Splash on Rocks 21.wav"
    robot = f"{part}/BluezoneCorp - Demolisher - Robot/Bluezone_BC0290_metal_impact_002.wav"
    labels = {
        sea: ("sfx large wave splash on rocks", "the black sea"),
        robot: ("bluezone bc metal impact", "robot"),
    }
    row = {name: (None, (), labels[name], "royalty-free", name) for name in labels}
    return {}, [sea, robot], row


def wesoundeffects():
    name = "We Sound Effects Bundle 2020/Glass/WSE_GlassBreak_Big-03.wav"
    labels = ("wse glass break big", "glass")
    return {}, [name], {name: (None, (), labels, "royalty-free", name)}


def epidemic_sound():
    horn, beep = "Cars/ES_Car Horn 12 - SFX Producer.wav", "ES_ATM Beep - SFX Producer.wav"
    terms = "subscription"
    return (
        {},
        [horn, beep],
        {
            horn: (None, (), ("car horn", "cars"), terms, horn),
            beep: (None, (), ("atm beep",), terms, beep),
        },
    )


def urbansound8k():
    rows = {
        "100032-3-0-0": (5, "dog_bark"),
        "7-5-0-0": (9, "engine_idling"),
        "8-3-1-0": (10, "siren"),
    }
    table = csv_text(
        "slice_file_name,fsID,start,end,salience,fold,classID,class",
        *(f"{i}.wav,{i.split('-')[0]},0.0,0.3,1,{f},3,{c}" for i, (f, c) in rows.items()),
    )
    root = "UrbanSound8K"
    wavs = [f"{root}/audio/fold{fold}/{i}.wav" for i, (fold, _) in rows.items()]
    license, source = "CC-BY-NC-3.0", "https://freesound.org/s/{}/"
    return (
        {f"{root}/metadata/UrbanSound8K.csv": table},
        wavs,
        {
            "100032-3-0-0": ("train", (), ("dog bark",), license, source.format(100032)),
            "7-5-0-0": ("validation", (), ("engine idling",), license, source.format(7)),
            "8-3-1-0": ("test", (), ("siren",), license, source.format(8)),
        },
    )


def libritts():
    texts, wavs, rows = {}, [], {}
    parts = {"train-clean-100": "train", "dev-other": "validation", "test-clean": "test"}
    for speaker, (part, split) in enumerate(parts.items()):
        name = f"{speaker}_1240_000000_000001"
        path = f"LibriTTS/{part}/{speaker}/1240/{name}"
        texts[f"{path}.normalized.txt"] = texts[f"{path}.original.txt"] = "Chapter one."
        wavs.append(f"{path}.wav")
        rows[name] = (split, (), (), "CC-BY-4.0", f"{path}.wav")
    return texts, wavs, rows


def medley_solos_db():
    kinds = {"training": "train", "validation": "validation", "test": "test"}
    ids = {part: f"{i}e4371ac-1c6a-51ab-fdb7-f8abd5fbf1a3" for i, part in enumerate(kinds)}
    table = csv_text(
        "subset,instrument,instrument_id,song_id,uuid4",
        *(f"{part},distorted electric guitar,1,000,{ids[part]}" for part in kinds),
    )
    names = {part: f"Medley-solos-DB_{part}-1_{ids[part]}" for part in kinds}
    wavs = [f"audio/{name}.wav" for name in names.values()]
    return (
        {"Medley-solos-DB_metadata.csv": table},
        wavs,
        {
            ids[part]: (split, (), ("distorted electric guitar",), "CC-BY-4.0", names[part])
            for part, split in kinds.items()
        },
    )


def write(folder, texts, wavs):
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    for i, name in enumerate(wavs):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        wav = 0.5 * np.sin(2 * np.pi * (100 + 10 * i) * np.arange(2000) / 16000)
        soundfile.write(folder / name, wav, 16000)


def recordings_of(name, root):
    """The builder's recordings, by TFDS's own download manager."""
    builder = builder_class(name)(data_dir=str(root))
    manager = tfds.download.DownloadManager(
        download_dir=root / "downloads",
        manual_dir=root / "downloads/manual",
        manual_dir_instructions=builder.MANUAL_DOWNLOAD_INSTRUCTIONS,
    )
    return builder.recordings(manager)


@pytest.mark.parametrize("name", PUBLISHED)
def test_layout(name, tmp_path):
    texts, wavs, expected = globals()[name]()
    write(tmp_path / "downloads/manual" / name, texts, wavs)
    recordings = recordings_of(name, tmp_path)
    assert {r.id for r in recordings} == set(expected) and len(recordings) == len(expected)
    for recording in recordings:
        split, captions, labels, terms, source = expected[recording.id]
        assert (recording.split, recording.captions) == (split, captions)
        assert recording.labels == labels
        assert terms in recording.license
        assert recording.source == source
        assert recording.audio.exists()


@pytest.mark.parametrize("name", PUBLISHED)
def test_missing_files_are_named_before_any_work(name, tmp_path):
    builder = builder_class(name)
    assert builder.name == name
    with pytest.raises(FileNotFoundError, match=name):  # Nothing at all is there.
        recordings_of(name, tmp_path)
    texts, wavs, _ = globals()[name]()
    folder = tmp_path / "downloads/manual" / name
    write(folder, texts, wavs)
    (folder.parent / "another").mkdir()
    for file in builder.FILES:
        (folder / file).rename(tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError) as error:
            recordings_of(name, tmp_path)
        assert str(error.value).startswith(f"{folder / file} is missing; ")
        assert builder.MANUAL_DOWNLOAD_INSTRUCTIONS in str(error.value)
        (tmp_path / "elsewhere").rename(folder / file)


@pytest.mark.parametrize("name", ["audiocaps", "wavtext5k", "sonniss"])
def test_tables_without_any_sound_are_an_error(name, tmp_path):
    texts, wavs, _ = globals()[name]()
    folder = tmp_path / "downloads/manual" / name
    write(folder, texts, wavs)
    for wav in wavs:
        (folder / wav).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} holds no sound file"):
        recordings_of(name, tmp_path)


@pytest.mark.parametrize("name", ["clotho", "audioset", "libritts"])
def test_built_by_tfds(name, tmp_path):
    texts, wavs, expected = globals()[name]()
    write(tmp_path / "downloads/manual" / name, texts, wavs)
    builder = builder_class(name)(data_dir=str(tmp_path))
    builder.download_and_prepare()
    assert set(builder.info.splits) == {split for split, *_ in expected.values()}
    hashes = set()
    for split in builder.info.splits:
        for example in builder.as_data_source(split):
            *_, captions, labels, terms, source = expected[example["id"].decode()]
            assert tuple(c.decode() for c in example["captions"]) == captions
            assert tuple(label.decode() for label in example["labels"]) == labels
            assert terms in example["license"].decode()
            assert example["source"].decode() == source
            assert example["seconds"] == pytest.approx(0.125)
            hashes.add(example["audio_hash"])
    assert len(hashes) == len(expected)


def test_a_table_of_another_kind_is_named(tmp_path):
    texts, wavs, _ = esc50()
    texts = {key: text.replace("category", "label") for key, text in texts.items()}
    write(tmp_path / "downloads/manual/esc50", texts, wavs)
    with pytest.raises(ValueError, match=r"esc50.csv has no column 'category' but .*'label'"):
        recordings_of("esc50", tmp_path)


def test_labels_from_names():
    assert name_labels("a/Vendor - Big Doors/Door_Slam 03 (Wood).wav") == (
        "door slam wood",
        "big doors",
    )
    assert name_labels("Rain/rain-2.flac") == ("rain",)
    assert name_labels("Birds/001.wav") == ("birds",)


def test_a_group_is_in_one_split():
    splits = [group_split(str(i)) for i in range(1000)]
    assert 750 < splits.count("train") < 850
    assert splits.count("validation") > 70 < splits.count("test")
