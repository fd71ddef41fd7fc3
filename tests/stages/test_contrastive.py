import jax
import numpy as np

from maa_jax.stages.contrastive import augment


def test_augmentation_keeps_the_sound_and_follows_its_key():
    wav = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    out = augment(wav, jax.random.key(0), gain_db=6.0, shift=0.1)
    np.testing.assert_array_equal(out, augment(wav, jax.random.key(0), gain_db=6.0, shift=0.1))
    gains = np.linalg.norm(out, axis=1) / np.linalg.norm(wav, axis=1)
    assert np.all((gains > 0.5) & (gains < 2.0)) and len(set(gains.round(3))) == 3
    for x, y, gain in zip(wav, np.asarray(out), gains, strict=True):
        shifts = [s for s in range(-100, 101) if np.allclose(np.roll(gain * x, s), y, atol=1e-4)]
        assert len(shifts) == 1
    np.testing.assert_allclose(augment(wav, jax.random.key(0), gain_db=0.0, shift=0.0), wav)
