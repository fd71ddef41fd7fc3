import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert.vocoders import mpd_tensors, released_mpd_tensors
from maa_jax.model_folder.torch_layout import from_torch
from maa_jax.models import kernels
from maa_jax.models import mel_discriminators as images
from maa_jax.models import waveform_discriminators as waveforms
from maa_jax.models.rngs import InitRngs
from maa_jax.training.state import define, merge, split
from tests.parity.named_weights import reference, state_dict

PERIOD = waveforms.MultiPeriodConfig(periods=(2, 3), channels=(4, 8))
SCALE = waveforms.MultiScaleConfig(
    scales=2, channels=(4, 8, 8), kernel_sizes=(5, 9, 3), strides=(1, 2, 1), groups=(1, 2, 1)
)
RESOLUTION = waveforms.MultiResolutionConfig(resolutions=((64, 16, 32), (32, 8, 16)), channels=4)
WINDOW = images.MultiWindowConfig(windows=(8, 16), channels=4, layers=2)
PATCH = images.PatchConfig(channels=4, layers=2)

WAVEFORM = {
    "period": lambda rngs: waveforms.MultiPeriodDiscriminator(PERIOD, rngs=rngs),
    "scale": lambda rngs: waveforms.MultiScaleDiscriminator(SCALE, rngs=rngs),
    "resolution": lambda rngs: waveforms.MultiResolutionDiscriminator(RESOLUTION, rngs=rngs),
}
IMAGE = {
    "window": lambda rngs: images.MultiWindowDiscriminator(WINDOW, rngs=rngs),
    "patch": lambda rngs: images.PatchDiscriminator(PATCH, rngs=rngs),
}


def test_multi_period_agrees_with_the_reference():
    released, arrays = state_dict("hifigan_mpd"), reference("hifigan_mpd")
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: waveforms.MultiPeriodDiscriminator(rngs=InitRngs(0)))
    )
    params = from_torch(state, mpd_tensors(released))
    discriminate = jax.jit(lambda params, wav: nnx.merge(graphdef, params)(wav))
    for name in ("real", "fake"):
        for i, (logits, features) in enumerate(discriminate(params, arrays[name][:, 0])):
            expected = arrays[f"{name}_{i}"]
            assert logits.shape == expected.shape
            assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
            assert len(features) == 6
    assert released_mpd_tensors(mpd_tensors(released)).keys() == released.keys()


@pytest.mark.parametrize("name", [*WAVEFORM, *IMAGE])
def test_every_discriminator_gives_logits_features_and_gradients(name):
    shape = (2, 300) if name in WAVEFORM else (2, 16, 24, 1)
    make = (WAVEFORM | IMAGE)[name]
    graphdef, (params, extra) = define(make), split(make(InitRngs(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)

    def loss(params, x):
        outputs = merge(graphdef, params, extra)(x, rngs=nnx.Rngs(dropout=1))
        return sum(jnp.mean((logits - 1) ** 2) for logits, _ in outputs), outputs

    (grads, grad_x), outputs = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    for logits, features in outputs:
        assert logits.shape[0] == 2 and features
    for path, grad in jax.tree.leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, path
    assert np.isfinite(grad_x).all() and np.abs(grad_x).max() > 0


def test_silence_has_finite_gradients():
    total = lambda wav: jnp.sum(waveforms.magnitudes(wav, 64, 16, 32))
    assert np.isfinite(jax.jit(jax.grad(total))(jnp.zeros((1, 300)))).all()


def test_spectral_norm_finds_the_largest_singular_value():
    conv = waveforms.SpectralConv1d(3, 4, 5, rngs=InitRngs(0))
    conv.bias[...] = jnp.zeros(4)
    x = jax.random.normal(jax.random.key(0), (1, 9, 3))
    for _ in range(200):
        y = conv(x)
    largest = np.linalg.norm(np.asarray(conv.kernel[...]).reshape(15, 4), 2)
    plain = kernels.conv1d(x, conv.kernel[...]) / largest
    np.testing.assert_allclose(y, plain, rtol=1e-3, atol=1e-4)


def test_magnitudes_are_torchs():
    torch = pytest.importorskip("torch", reason="compares with torch.stft")
    wav = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    padded = np.pad(wav, ((0, 0), (24, 24)), mode="reflect")
    window = torch.ones(40)
    expected = torch.stft(
        torch.from_numpy(padded), 64, 16, 40, window, center=False, return_complex=True
    )
    ours = waveforms.magnitudes(jnp.asarray(wav), 64, 16, 40)
    np.testing.assert_allclose(ours, expected.abs().numpy().transpose(0, 2, 1), atol=1e-3)


def test_windows_depend_on_the_key_and_are_central_without_one():
    discriminate = IMAGE["window"](InitRngs(0))
    mel = jax.random.normal(jax.random.key(0), (1, 16, 64, 1))
    logits = lambda seed: discriminate(mel, rngs=nnx.Rngs(dropout=seed))[0][0]
    np.testing.assert_array_equal(logits(1), logits(1))
    assert np.abs(logits(1) - logits(2)).max() > 0
    np.testing.assert_array_equal(discriminate(mel)[0][0], discriminate(mel)[0][0])


def test_a_window_longer_than_the_image_sees_all_of_it():
    discriminate = IMAGE["window"](InitRngs(0))
    assert len(discriminate(jnp.zeros((1, 16, 10, 1)), rngs=nnx.Rngs(dropout=0))) == 2


def test_multi_scale_refuses_lists_of_different_lengths():
    with pytest.raises(ValueError, match="kernel_sizes"):
        waveforms.MultiScaleConfig(channels=(4, 4))
