import numpy as np
import pytest

from maa_jax.audio.mel import MelConfig
from maa_jax.stages.images import matrix_image, spectrogram_image


@pytest.mark.parametrize("log", ["log10", "log"])
def test_a_spectrograms_image_is_the_same_whatever_the_logarithms_base(log):
    magnitudes = np.array([[[1e-5, 10**-1.75, 10**1.5, 100.0]]], "f")  # [1, 1 frame, 4 mels]
    image = spectrogram_image(getattr(np, log)(magnitudes), MelConfig(log=log))
    assert image.shape == (1, 4, 1, 1)
    np.testing.assert_allclose(image[0, :, 0, 0], [1, 1, 0.5, 0], atol=1e-6)  # low notes down


def test_a_matrix_is_shown_in_cells():
    image = matrix_image(np.array([[[0.0, 0.5], [1.0, 2.0]]], "f"))
    assert image.shape == (1, 16, 16, 1)
    np.testing.assert_array_equal(image[0, ::8, ::8, 0], [[0, 0.5], [1, 1]])
