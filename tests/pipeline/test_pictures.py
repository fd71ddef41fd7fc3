import dataclasses
import fractions
import json
import shutil

import numpy as np
import pytest
import soundfile
from PIL import Image

import maa_jax
from maa_jax import sample
from maa_jax.audio.mel import MelConfig
from maa_jax.encoders.visual import GlobalConditioner
from maa_jax.model_folder.index import save_index
from maa_jax.pipeline import denoising
from maa_jax.visual import videos
from tests.conftest import write_tiny_model
from tests.visual.test_videos import write

FAST = dict(steps=2, guidance_scale=1.5)


@pytest.fixture(scope="module")
def model(tiny_clip, tmp_path_factory):
    """A model under one CLIP embedding, with tiny random networks."""
    folder = write_tiny_model(tmp_path_factory.mktemp("v2a"))
    for part in ("text_encoder", "text_projection", "tokenizer"):
        shutil.rmtree(folder / part)
    GlobalConditioner.from_folder(tiny_clip).save(folder)
    save_index(
        folder,
        mel=dataclasses.asdict(MelConfig()),
        sample_rate=16000,
        max_duration=2.048,
        conditioning="norm_global",
    )
    return folder


@pytest.fixture(scope="module")
def pipe(model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "MAX_SEGMENT", 2)
        yield maa_jax.Pipeline.from_pretrained(model)


def test_a_picture_makes_a_sound_from_its_file_or_its_pixels(pipe, tmp_path):
    red, blue = (np.full((40, 30, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    Image.fromarray(red).save(tmp_path / "red.png")
    args = FAST | dict(duration=0.5)
    first = pipe(image=tmp_path / "red.png", **args)
    assert first.shape == (1, 8000)
    np.testing.assert_allclose(pipe(image=red, **args), first, atol=1e-5)
    both = pipe(image=[red, blue], **args)
    np.testing.assert_allclose(both[0], first[0], atol=1e-4)
    assert np.abs(pipe(image=blue, **args) - first).max() > 1e-3 * np.abs(first).max()
    assert pipe("rain", **args).shape == (1, 8000)  # it was trained on sentences


def test_a_video_s_sound_is_as_long_as_it_is(pipe, tmp_path):
    write(tmp_path / "short.mp4", "mpeg4", range(30), fractions.Fraction(30000, 1001))
    write(tmp_path / "long.mp4", "mpeg4", range(30), 10)
    paths = [tmp_path / "short.mp4", tmp_path / "long.mp4"]
    short, long = pipe(video=paths, **FAST)
    for wav, path in ((short, paths[0]), (long, paths[1])):
        assert len(wav) == round(videos.load(path).seconds * 16000)
    assert len(long) == 48000  # two windows, of which each sees the pictures of its own time
    np.testing.assert_allclose(pipe(video=paths[0], **FAST)[0], short, atol=1e-4)


def test_files_of_pictures_and_copies_of_videos_are_written(model, tmp_path):
    write(tmp_path / "clip.mp4", "mpeg4", range(20), 25)
    how = dict(model=str(model), steps=1)
    made = sample.sample(
        [],
        sample.Sampling(
            out=str(tmp_path / "out"), video=(str(tmp_path / "clip.mp4"),), mux=True, **how
        ),
    )
    wav, rate = soundfile.read(made[0])
    assert made[0].name == "000_clip.wav" and len(wav) == 12800 and rate == 16000
    assert videos.load(made[0].with_suffix(".mp4")).seconds == pytest.approx(0.8, abs=1e-3)
    (row,) = map(json.loads, (tmp_path / "out" / "samples.jsonl").read_text().splitlines())
    assert row["video"].endswith("clip.mp4") and row["prompt"] == "" and row["duration"] == 0.8
    assert len(row["video_sha256"]) == 64


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (dict(), "prompts=None: give one sentence or more"),
        (dict(prompts="rain", image="a.png"), "prompts and image: give one of"),
        (dict(image=[]), "give at least one file"),
        (dict(image=np.zeros((4, 4), np.uint8)), "give a path, or uint8"),
        (dict(image="none.png"), "none.png"),
        (dict(video="none.mp4"), "none.mp4"),
        (dict(image=np.zeros((4, 4, 3), np.uint8), num_candidates=2), "ranked by a prompt"),
    ],
)
def test_mistakes_are_answered_in_one_line(pipe, given, error):
    with pytest.raises(ValueError, match=error) as caught:
        pipe(**FAST | given)
    assert "\n" not in str(caught.value)


def test_a_model_of_text_alone_takes_no_pictures(tiny_model):
    with pytest.raises(ValueError, match=r"knows only text: give .* configs/v2a.py"):
        maa_jax.Pipeline.from_pretrained(tiny_model)(image=np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="mux=True: there is no video"):
        sample.Sampling(out="out", mux=True)
    with pytest.raises(ValueError, match="prompt and image: give one"):
        sample.Sampling(out="out", prompt=("rain",), image=("a.png",))
