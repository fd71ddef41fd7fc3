import json

import jax
import numpy as np
import pytest

from maa_jax.audio import io
from maa_jax.evaluators import base, protocols, sources
from maa_jax.evaluators.sources import choose_prompts


def read(sounds):
    """{number: waveform}."""
    return {
        int(number): wav
        for numbers, wavs in sounds._batches()
        for number, wav in zip(numbers, wavs, strict=True)
    }


def generate(captions, first):
    return np.stack([np.full(4, (first + i) / 8, np.float32) for i in range(len(captions))])


def test_sounds_are_numbered_whatever_the_batches_and_can_be_kept():
    captions, kept = [f"caption {i}" for i in range(7)], {}
    sounds = sources.generated(
        generate, captions, 16000, 4, batch_size=3, keep=lambda i, wav: kept.update({i: wav})
    )
    found = read(sounds)
    assert list(found) == list(kept) == list(range(7))
    np.testing.assert_array_equal([wav[0] for wav in kept.values()], np.arange(7) / 8)
    for number, wav in found.items():  # heard as from its file
        np.testing.assert_array_equal(wav, io.as_read(kept[number]))
    assert sounds.captions[3] == ["caption 3"]


def test_processes_share_the_captions(monkeypatch):
    sounds = sources.generated(generate, [f"caption {i}" for i in range(7)], 16000, 4, batch_size=3)
    whole, parts = read(sounds), []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(read(sounds))
    assert [len(part) for part in parts] == [4, 3]
    assert all(np.array_equal(whole[i], wav) for part in parts for i, wav in part.items())


def test_prompts_are_chosen_evenly():
    captions = [[f"{i}a", f"{i}b"] for i in range(5)]
    assert choose_prompts(captions, 1, 0) == [(i, f"{i}a") for i in range(5)]
    assert len(choose_prompts(captions, 0, 0)) == 10
    assert choose_prompts(captions, 1, 2) == [(0, "0a"), (2, "2a")]
    assert choose_prompts(captions, 1, 99) == choose_prompts(captions, 1, 0)


def test_processes_share_the_recordings_of_a_split(data_dir, monkeypatch):
    data = {"data_dir": data_dir, "split": "validation"}
    sounds = sources.recordings(data, 4000, batch_size=4)
    whole = read(sounds)
    assert len(sounds) == 13 and sorted(whole) == list(range(13))
    assert all(wav.shape == (4000,) for wav in whole.values())
    assert all(sounds.captions) and all(sounds.labels)
    inputs = base.Inputs(sounds=sounds, references=sources.references("", data, 4000))
    np.testing.assert_array_equal(protocols.paired(inputs), np.arange(13))  # with themselves
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(read(sounds))
    assert sorted([*parts[0], *parts[1]]) == list(range(13))
    assert all(np.array_equal(whole[i], wav) for part in parts for i, wav in part.items())


@pytest.fixture
def folder(tmp_path, tones):
    io.write_wav(tmp_path / "a.wav", tones[0, :8000], 16000)
    io.write_wav(tmp_path / "b.wav", tones[1], 16000)
    return tmp_path


def test_a_folder_of_wavs_has_the_captions_of_its_table(folder, tones):
    sounds = sources.folder(folder)
    assert sounds.samples == len(tones[1]) and sounds.lengths.tolist() == [8000, len(tones[1])]
    found = read(sounds)
    assert found[0].shape == found[1].shape == (sounds.samples,) and not found[0][8000:].any()
    assert list(sounds.captions) == [[], []]
    rows = [{"file": "a.wav", "prompt": "a sine", "labels": ["sine"]}]
    rows += [{"file": "b.wav", "prompt": "a chirp"}]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    sounds = sources.folder(folder)
    assert list(sounds.captions) == [["a sine"], ["a chirp"]]
    assert list(sounds.labels) == [["sine"], []]

    table = folder / "table.csv"
    table.write_text('file,caption,label\na.wav,"a low, steady tone",sine\nb.wav,up,chirp;tone\n')
    sounds = sources.folder(folder, table)
    assert list(sounds.captions) == [["a low, steady tone"], ["up"]]
    assert list(sounds.labels) == [["sine"], ["chirp", "tone"]]


def test_a_table_that_lacks_something_is_refused(folder):
    table = folder / "table.csv"
    table.write_text("file,caption\na.wav,a sine\n")
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 wav files, such as b\.wav"):
        sources.folder(folder, table)
    table.write_text("name,caption\na.wav,a sine\n")
    with pytest.raises(ValueError, match="lacks file"):
        sources.folder(folder, table)
    table.write_text("file,caption\na.wav,a sine, then a chirp\nb.wav,x\n")
    with pytest.raises(ValueError, match=r"table\.csv, line 2: 3 cells.*in quotes"):
        sources.folder(folder, table)
    (folder / "samples.jsonl").write_text('{"file": ["a.wav"], "prompt": "x"}\n')
    with pytest.raises(ValueError, match=r"samples\.jsonl, line 1: 'file' is"):
        sources.folder(folder)
    with pytest.raises(ValueError, match="holds no wav file"):
        sources.folder(folder / "none")


def test_sounds_keep_their_sample_rate_of_which_there_is_one(folder, tones):
    for name in ("a.wav", "b.wav"):
        io.write_wav(folder / name, tones[0, :8000], 44100)
    sounds = sources.folder(folder)
    assert sounds.sample_rate == 44100 and sounds.samples == 8000
    io.write_wav(folder / "b.wav", tones[1], 16000)
    with pytest.raises(ValueError, match=r"44100 Hz, such as a\.wav, and of 16000 Hz"):
        sources.folder(folder)
    (folder / "b.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match=r"b\.wav: cannot be decoded"):
        sources.folder(folder)


def test_a_sound_names_the_recording_that_it_was_made_after(folder):
    assert list(sources.folder(folder).recordings) == ["a.wav", "b.wav"]
    rows = [{"file": "a.wav", "prompt": "a sine", "recording": "one"}]
    rows += [{"file": "b.wav", "prompt": "a chirp"}]
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert list(sources.folder(folder).recordings) == ["one", "b.wav"]
