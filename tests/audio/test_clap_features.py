import numpy as np
import pytest

from maa_jax.audio.clap_features import ClapFeatures

# A clip of one second: the rules are those of ten.
SHORT = dict(max_length_s=1, sampling_rate=8000, hop_length=80, fft_window_size=256,
             frequency_max=4000, feature_size=64)  # fmt: skip


def recording(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype("f")


def theirs(monkeypatch, wav, seed=0, **settings):
    """Returns transformers' features with its random choices made by our generator."""
    pytest.importorskip("torch", reason="transformers' ClapFeatureExtractor needs torch")
    transformers = pytest.importorskip("transformers")
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(np.random, "choice", rng.choice)
    monkeypatch.setattr(np.random, "randint", rng.integers)
    out = transformers.ClapFeatureExtractor(**settings)(
        [wav], sampling_rate=settings["sampling_rate"], return_tensors="np"
    )
    return out["input_features"][0], out["is_longer"][0, 0]


@pytest.mark.parametrize("truncation", ["fusion", "rand_trunc"])
@pytest.mark.parametrize("samples", [1, 2700, 8000, 8030, 8700, 30001])
def test_agrees_with_transformers_at_every_length(monkeypatch, truncation, samples):
    settings = SHORT | {"truncation": truncation}
    wav = recording(samples)
    ours, longer = ClapFeatures(**settings)(wav, seed=3)
    expected, expected_longer = theirs(monkeypatch, wav, 3, **settings)
    assert ours.shape == (4 if truncation == "fusion" else 1, 101, 64)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    if truncation == "rand_trunc" or longer:  # else transformers calls one of the batch longer
        assert longer == expected_longer


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_short_recordings_are_filled_as_transformers_does(monkeypatch, padding):
    settings = SHORT | {"truncation": "rand_trunc", "padding": padding}
    wav = recording(3000)
    ours, _ = ClapFeatures(**settings)(wav)
    np.testing.assert_allclose(ours, theirs(monkeypatch, wav, **settings)[0], atol=1e-3)


def test_full_size_agrees_with_transformers(monkeypatch):
    wav = recording(48000 * 3)
    settings = {"frequency_min": 50, "sampling_rate": 48000}  # clap-htsat-fused's file
    ours, longer = ClapFeatures.from_hf(settings)(wav)
    assert ours.shape == (4, 1001, 64) and not longer
    np.testing.assert_allclose(ours, theirs(monkeypatch, wav, **settings)[0], atol=1e-3)


def test_crops_depend_on_the_seed_alone():
    for truncation in ("fusion", "rand_trunc"):
        features = ClapFeatures(**SHORT, truncation=truncation)
        wav = recording(40000)
        one, again, other = (features(wav, seed=s)[0] for s in (1, 1, 2))
        np.testing.assert_array_equal(one, again)
        assert np.abs(one - other).max() > 1


def test_wrong_settings_and_recordings_are_refused():
    with pytest.raises(ValueError, match="truncation='cut': give one of 'fusion'"):
        ClapFeatures(truncation="cut")
    with pytest.raises(ValueError, match=r"shape \(2, 100\): give mono"):
        ClapFeatures(**SHORT)(np.zeros((2, 100)))
    with pytest.raises(ValueError, match=r"shape \(0,\)"):
        ClapFeatures(**SHORT)(np.zeros(0))
