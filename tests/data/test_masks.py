import numpy as np
import pytest

from maa_jax.data import masks

N_MELS, FRAMES = 80, 624


@pytest.mark.parametrize(
    ("name", "area", "cells", "frames"),
    [
        ("thin", 0.315, 0.503, 0.007),
        ("medium", 0.247, 0.305, 0.048),
        ("thick", 0.391, 0.430, 0.169),
    ],
)
def test_irregular_masks_cover_what_lamas_generator_covers(name, area, cells, frames):
    # Means of 400 masks that LaMa's own generator drew on such a mel, before the rule of half the
    # area: masked area, cells of 8 x 8 that are touched, whole frames.
    drawn = [
        masks.irregular(masks.IRREGULAR[name], N_MELS, FRAMES, np.random.default_rng(seed))
        for seed in range(400)
    ]
    touched = [mask.reshape(10, 8, 78, 8).any((1, 3)).mean() for mask in drawn]
    whole = [mask.all(axis=0).mean() for mask in drawn]
    assert np.mean([mask.mean() for mask in drawn]) == pytest.approx(area, abs=0.04)
    assert np.mean(touched) == pytest.approx(cells, abs=0.04)
    assert np.mean(whole) == pytest.approx(frames, abs=0.02)


@pytest.mark.parametrize(
    ("name", "share"), [("frames30", 0.264), ("frames50", 0.403), ("frames70", 0.518)]
)
def test_spans_mask_whole_frames_and_fewer_than_their_name_says(name, share):
    drawn = [masks.draw(name, N_MELS, FRAMES, np.random.default_rng(seed)) for seed in range(200)]
    assert all((mask == mask[:1]).all() for mask in drawn)
    assert np.mean([mask.mean() for mask in drawn]) == pytest.approx(share, abs=0.01)
    runs = np.diff(np.flatnonzero(np.diff(np.pad(drawn[0][0].astype(int), 1))))[::2]
    assert runs.min() >= 10


@pytest.mark.parametrize("name", masks.MASKS)
def test_a_mask_repeats_and_leaves_something_to_keep_and_to_make(name):
    for seed in range(20):
        first, again = (
            masks.draw(name, N_MELS, 128, np.random.default_rng(seed)) for _ in range(2)
        )
        np.testing.assert_array_equal(first, again)
        assert 0 < first.mean() < 1
