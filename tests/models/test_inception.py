import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.models.inception import Melception, MelceptionConfig, melception_mel
from maa_jax.training.state import merge, split
from tests.conftest import random_network
from tests.models.parity import abstract, assert_close, count, load
from tests.parity.named_weights import reference, state_dict

# A second at 16 kHz.
SMALL = MelceptionConfig(
    sample_rate=16_000, samples=16_000, first_frame=0, frames=32, n_mels=24, width=1, num_classes=5
)
STATISTICS = {
    "mel_norm.running_mean": np.linspace(0.2, 0.6, 80, dtype="f"),
    "mel_norm.running_var": np.linspace(0.08, 0.12, 80, dtype="f") ** 2,
}


def small():
    graphdef, _ = abstract(Melception, SMALL)
    params = random_network(lambda r: Melception(SMALL, rngs=r), 0)
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def noise(samples, count=2, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, (count, samples)).astype("f")


@pytest.fixture(scope="module")
def published():
    return load(Melception, MelceptionConfig(), state_dict("melception") | STATISTICS)


@pytest.mark.full
def test_agrees_with_specvqgans_network(published):
    case = reference("melception")
    out = nnx.jit(Melception.classify)(published, case["mel"].swapaxes(1, 2))
    for ours, theirs in (
        ("embedding", "features_2048"),
        ("embedding_768", "features_768"),
        ("logits", "features_logits"),
        ("logits_unbiased", "features_logits_unbiased"),
    ):
        assert_close(out[ours], case[theirs])


def test_has_the_size_of_inception_v3_without_its_auxiliary_head():
    params = split(nnx.merge(*abstract(Melception, MelceptionConfig())))[0]
    learned = {k: v for k, v in state_dict("melception").items() if k.endswith(("weight", "bias"))}
    theirs = sum(v.size for k, v in learned.items() if not k.startswith("AuxLogits"))
    assert count(params) == theirs == 22_418_133


def test_the_mel_is_that_of_librosa_0_8():
    librosa = pytest.importorskip("librosa", reason="the front end is compared with librosa's")
    config, wav = MelceptionConfig(), noise(220_500, 1)
    wav *= np.linspace(0, 1, 220_500, dtype="f") ** 8  # from silence to loud
    spectrum = librosa.stft(wav[0], n_fft=1024, hop_length=256, pad_mode="reflect")
    filters = librosa.filters.mel(sr=22_050, n_fft=1024, n_mels=80, fmin=125, fmax=7600)
    mel = np.log10(np.maximum(filters @ np.abs(spectrum), 1e-5))
    mel = np.clip((mel * 20 - 20 + 100) / 100, 0, 1)[:, :860]
    cropped = mel[:, 6:854]  # the middle of 860 frames
    assert cropped.min() == 0 and cropped.max() > 0.7
    np.testing.assert_allclose(melception_mel(wav, config)[0], cropped.T, atol=1e-5)


def test_short_waveforms_are_filled_with_zeros_and_long_ones_cut():
    wav = noise(SMALL.samples)
    whole = melception_mel(wav, SMALL)
    np.testing.assert_array_equal(melception_mel(np.pad(wav, ((0, 0), (0, 9))), SMALL), whole)
    short = np.pad(wav[:, :999], ((0, 0), (0, 15_001)))
    np.testing.assert_array_equal(melception_mel(wav[:, :999], SMALL), melception_mel(short, SMALL))


def test_bins_are_normalised_by_their_own_mean_and_deviation():
    @nnx.jit
    def both(net, wav):
        mean, var = net.mel_norm.mean[...], net.mel_norm.var[...]
        mel = (melception_mel(wav, SMALL) - mean) / jnp.sqrt(var)
        return net(wav)["logits"], net.classify(mel)["logits"]

    np.testing.assert_allclose(*both(small(), noise(16_000)), rtol=1e-3, atol=1e-4)


def test_training_measures_the_bins_and_normalises_by_the_batch():
    net = small()
    graphdef, (params, before) = nnx.graphdef(net), split(net)

    @functools.partial(jax.jit, static_argnums=0)
    def after(training):
        module = merge(graphdef, params, before)
        module(noise(16_000), use_running_average=not training)
        return split(module)[1]

    jax.tree.map(np.testing.assert_array_equal, after(False), before)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after(True), before)
    assert all(jax.tree.leaves(changed))
    mel = melception_mel(noise(16_000), SMALL)
    measured = after(True)["mel_norm"]["mean"]
    expected = 0.9 * before["mel_norm"]["mean"] + 0.1 * mel.mean((0, 1))
    np.testing.assert_allclose(measured, expected, atol=1e-5)


def test_dropout_needs_a_key():
    @nnx.jit
    def run(net, wav, *keys):
        return net(wav, rngs=nnx.Rngs(dropout=keys[0]) if keys else None)["logits"]

    net, wav = small(), noise(16_000)
    np.testing.assert_array_equal(run(net, wav), run(net, wav))
    assert np.any(run(net, wav, jax.random.key(0)) != run(net, wav, jax.random.key(1)))


def test_config_is_read_back_and_mistakes_are_named():
    assert MelceptionConfig.from_hf(json.loads(json.dumps(SMALL.to_hf()))) == SMALL
    with pytest.raises(ValueError, match="frames=100 from first_frame=0: samples=16000 have 63"):
        abstract(Melception, dataclasses.replace(SMALL, frames=100))
    with pytest.raises(ValueError, match="2 names of num_classes=309"):
        MelceptionConfig(labels=("a", "b"))
