"""Images of spectrograms and matrices for TensorBoard: [n, h, w, 1] in 0..1."""

import math

import jax
import jax.numpy as jnp

from maa_jax.audio.mel import MelConfig

# Base-10 logarithm of the magnitude that is white.
_WHITE = 1.5
_PIXELS = 8  # height and width of a matrix's cell


def spectrogram_image(mel: jax.Array, config: MelConfig) -> jax.Array:
    """Returns log mels [n, frames, n_mels] as images [n, n_mels, frames, 1], low bands below.

    The front end's floor is black; magnitudes of 10 ** 1.5 and more are white.
    """
    to_decimal = 1.0 if config.log == "log10" else 1 / math.log(10)
    floor = math.log10(config.floor)
    image = (to_decimal * mel.astype(jnp.float32) - floor) / (_WHITE - floor)
    return jnp.clip(image, 0.0, 1.0).swapaxes(1, 2)[:, ::-1, :, None]


def matrix_image(matrices: jax.Array) -> jax.Array:
    """Returns matrices [n, rows, columns] with values in 0..1 as images, cells of 8 x 8 pixels."""
    image = jnp.repeat(jnp.repeat(matrices, _PIXELS, axis=1), _PIXELS, axis=2)
    return jnp.clip(image, 0, 1)[..., None]
