import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maa_jax.audio.mel import (
    MelConfig,
    log_mel,
    log_spectral_distances,
    mel_filters,
    mel_frequencies,
    spectral_convergences,
    stft_magnitude,
    triangular_filters,
)

PARITY = pathlib.Path(__file__).parent.parent / "parity" / "mel_16k_80.npz"


def test_agrees_with_reference():
    with np.load(PARITY) as case:
        wav, expected = case["wav"], case["mel"]  # [samples], [n_mels, frames]
    mel = np.asarray(jax.jit(log_mel)(wav[None]))[0].T
    assert mel.shape == expected.shape
    assert np.abs(mel - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("htk", [False, True])
@pytest.mark.parametrize("bank", [(16000, 1024, 80, 0, 8000), (48000, 1024, 64, 50, 14000)])
def test_filters_are_those_of_librosa(bank, htk):
    librosa = pytest.importorskip("librosa")
    rate, n_fft, n_mels, fmin, fmax = bank
    wanted = librosa.filters.mel(
        sr=rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax, htk=htk,
        norm=None if htk else "slaney", dtype=np.float64,
    )  # fmt: skip
    np.testing.assert_allclose(triangular_filters(*bank, htk=htk), wanted.T, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(
        mel_frequencies(n_mels, fmin, fmax, htk=htk),
        librosa.mel_frequencies(n_mels, fmin=fmin, fmax=fmax, htk=htk),
    )


@pytest.mark.parametrize("samples", [512, 8192, 8193, 8447])
def test_frames_are_samples_over_hop(samples):
    mel = log_mel(jnp.zeros((2, samples)))
    assert mel.shape == (2, samples // 256, 80)
    np.testing.assert_allclose(mel, -5.0, atol=1e-6)  # Silence lies on the floor.


def test_a_sound_does_not_depend_on_its_batch():
    wav = jax.random.normal(jax.random.key(0), (3, 4096))
    np.testing.assert_allclose(log_mel(wav)[1:2], log_mel(wav[1:2]), atol=1e-5)


def test_natural_logarithm():
    wav = jax.random.normal(jax.random.key(0), (1, 4096))
    natural = log_mel(wav, MelConfig(log="log"))
    np.testing.assert_allclose(natural, log_mel(wav) * np.log(10), rtol=1e-4, atol=1e-4)


def test_a_tone_lights_its_own_filter():
    wav = 0.5 * jnp.sin(2 * jnp.pi * 1000 / 16000 * jnp.arange(16000))[None]
    loudest = int(log_mel(wav)[0, 30].argmax())
    assert loudest == int(mel_filters()[round(1000 * 1024 / 16000)].argmax())


def test_gradient_is_right_and_finite_at_silence():
    def loss(wav):
        return log_mel(wav).sum()

    assert np.isfinite(jax.grad(loss)(jnp.zeros((1, 2048)))).all()
    wav = 0.1 * jax.random.normal(jax.random.key(0), (1, 2048))
    gradient = jax.grad(loss)(wav)
    direction = gradient / jnp.linalg.norm(gradient)
    step = 1e-3
    measured = (loss(wav + step * direction) - loss(wav - step * direction)) / (2 * step)
    np.testing.assert_allclose(jnp.linalg.norm(gradient), measured, rtol=1e-2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\(1, 300\).*pad it"):
        log_mel(jnp.zeros((1, 300)))
    with pytest.raises(ValueError, match=r"\(4000,\)"):
        stft_magnitude(jnp.zeros(4000))
    with pytest.raises(ValueError, match=r"log='log2'"):
        dataclasses.replace(MelConfig(), log="log2")
    with pytest.raises(ValueError, match=r"fmax.*9000"):
        MelConfig(fmax=9000)
    with pytest.raises(ValueError, match="hop_length=0: give a whole number"):
        MelConfig(hop_length=0)


def test_spectral_distances_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    wav = rng.normal(0, 0.1, (2, 8_000)).astype(np.float32)
    # A tenth of the amplitude: a decade everywhere, and nine tenths of the norm.
    np.testing.assert_allclose(log_spectral_distances(0.1 * wav, wav), [1, 1], rtol=1e-3)
    np.testing.assert_allclose(spectral_convergences(0.1 * wav, wav), [0.9, 0.9], rtol=1e-3)
    np.testing.assert_array_equal(log_spectral_distances(wav, wav), [0, 0])
    expected = []
    for n_fft in (512, 1024, 2048):
        hop, window = n_fft // 4, np.hanning(n_fft + 1)[:-1]
        padded = np.pad(wav, ((0, 0), ((n_fft - hop) // 2,) * 2), mode="reflect")
        starts = range(0, padded.shape[1] - n_fft + 1, hop)
        a, b = np.log10(np.maximum(1e-4, [
            [np.abs(np.fft.rfft(x[i : i + n_fft] * window)) for i in starts] for x in padded
        ]))  # fmt: skip
        expected.append(np.abs(a - b).mean())
    found = log_spectral_distances(wav[:1], wav[1:])
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-3)
    # Silence has no norm to divide by, and its gradient is finite.
    loss = lambda x: spectral_convergences(x, jnp.zeros((1, 4_000))).sum()
    value, slope = jax.value_and_grad(loss)(jnp.zeros((1, 4_000)))
    assert value < 0.1 and np.isfinite(slope).all()
