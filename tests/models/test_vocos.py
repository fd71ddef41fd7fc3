import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.audio.mel import MelConfig, stft_magnitude
from maa_jax.model_folder import networks
from maa_jax.model_folder.torch_layout import from_torch
from maa_jax.models.rngs import InitRngs
from maa_jax.models.vocos import Vocos, VocosConfig, inverse_stft
from tests.parity.named_weights import reference, state_dict

SMALL = VocosConfig(dim=32, intermediate_dim=64, num_layers=3)


def test_agrees_with_the_reference():
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Vocos(SMALL, rngs=InitRngs(0))))
    params = from_torch(state, state_dict("vocos_small"))
    arrays = reference("vocos_small")
    wav = jax.jit(lambda p, mel: nnx.merge(graphdef, p)(mel))(params, arrays["mel"].swapaxes(1, 2))
    assert np.abs(wav - arrays["wav"]).max() < 1e-5 * np.abs(arrays["wav"]).max()


def test_the_inverse_transform_returns_the_sound_of_a_spectrum():
    rng = np.random.default_rng(0)
    wav = rng.normal(0, 0.1, (2, 16 * 64)).astype(np.float32)
    padded = np.pad(wav, ((0, 0), (96, 96)))
    window = np.hanning(257)[:-1]
    starts = range(0, wav.shape[1], 64)
    spectrum = np.stack([np.fft.rfft(padded[:, i : i + 256] * window) for i in starts], axis=1)
    # The frames of the front end, but for what lies beyond the ends.
    seen = stft_magnitude(wav, 256, 64)
    np.testing.assert_allclose(np.abs(spectrum[:, 2:-2]), seen[:, 2:-2], atol=1e-4)
    back = inverse_stft(spectrum.astype(np.complex64), 256, 64)
    np.testing.assert_allclose(back, wav, atol=1e-6)


def test_a_saved_vocoder_opens_again(tmp_path):
    config = VocosConfig(dim=16, intermediate_dim=32, num_layers=2, mel=MelConfig())
    graphdef, state = nnx.split(Vocos(config, rngs=InitRngs(0)))
    networks.save_network(tmp_path, "vocoder", config, nnx.to_pure_dict(state))
    assert networks.load_config(tmp_path, "vocoder") == config
    loaded = networks.build(*networks.load_network(tmp_path, "vocoder"))
    mel = np.full((1, 9, 80), -2.0, np.float32)
    np.testing.assert_array_equal(loaded(mel), nnx.merge(graphdef, state)(mel))


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"n_fft": 1000}, "multiple of hop_length = 256"),
        ({"n_fft": 256}, "at least twice as long"),
        ({"mel": MelConfig(n_mels=64)}, "mel.n_mels = 64"),
    ],
)
def test_sizes_that_do_not_fit_are_named(sizes, words):
    with pytest.raises(ValueError, match=words):
        VocosConfig(**sizes)
