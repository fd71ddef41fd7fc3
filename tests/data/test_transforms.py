import numpy as np
import pytest

from maa_jax.audio.io import encode_flac
from maa_jax.data.transforms import all_captions, clip_audio, pick_caption

RAMP = (np.arange(1, 101) / 128).astype(np.float32)


def clip(samples, seed=0):
    example = {"audio": encode_flac(RAMP), "id": "ramp"}
    return clip_audio(example, np.random.default_rng(seed), samples)


def test_a_long_recording_is_cropped_at_a_random_place():
    starts = set()
    for seed in range(20):
        audio = clip(60, seed)["audio"]
        start = int(np.abs(RAMP - audio[0]).argmin())
        np.testing.assert_allclose(audio, RAMP[start : start + 60], atol=1e-4)
        starts.add(start)
    assert len(starts) > 5 and max(starts) <= 40


def test_the_same_random_state_gives_the_same_clip():
    np.testing.assert_array_equal(clip(60, seed=3)["audio"], clip(60, seed=3)["audio"])


def test_a_short_recording_is_followed_by_silence():
    audio = clip(150)["audio"]
    np.testing.assert_allclose(audio[:100], RAMP, atol=1e-4)
    assert audio.dtype == np.float32 and audio.shape == (150,)
    assert not audio[100:].any()


def test_other_features_of_the_example_are_kept():
    assert clip(10)["id"] == "ramp"


@pytest.mark.parametrize(
    ("captions", "labels", "expected"),
    [
        ([b"a crow caws", "a bird"], [b"crow"], ["a crow caws", "a bird"]),
        ([], [b"crow"], ["the sound of crow"]),
        ([], ["crow", b"wind"], ["the sound of crow and wind"]),
        ([], [], [""]),
    ],
)
def test_an_example_without_captions_gets_one_from_its_labels(captions, labels, expected):
    assert all_captions({"captions": captions, "labels": labels}) == expected


def test_every_caption_is_drawn():
    example = {"captions": ["one", "two", "three"], "labels": []}
    rng = np.random.default_rng(0)
    drawn = {pick_caption(example, rng)["caption"] for _ in range(50)}
    assert drawn == {"one", "two", "three"}
