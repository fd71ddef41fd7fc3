import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import clap as names
from maa_jax.model_folder.torch_layout import from_torch, to_torch
from maa_jax.models.cnn14 import Cnn14, Cnn14Config, decibel_mel
from maa_jax.models.rngs import InitRngs
from maa_jax.training.state import merge, split
from tests.parity.named_weights import named_weight, reference, state_dict

SMALL = Cnn14Config(n_mels=16, channels=(4, 8, 12), num_classes=5)


def load(config, tensors):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Cnn14(config, rngs=InitRngs(0))))
    return nnx.merge(graphdef, from_torch(state, names.from_panns(tensors)))


def small():
    abstract = nnx.eval_shape(lambda: Cnn14(SMALL, rngs=InitRngs(0)))
    shapes = to_torch(
        jax.tree.map(lambda x: np.zeros(x.shape), nnx.to_pure_dict(nnx.state(abstract)))
    )
    return load(SMALL, {k: named_weight(k, v.shape) for k, v in shapes.items()})


def waves(samples=8000, count=2):
    t = np.arange(samples) / 16000
    rng = np.random.default_rng(0)
    tones = [0.3 * np.sin(2 * np.pi * f * t) for f in (440, 3000)[:count]]
    return np.stack(tones).astype(np.float32) + rng.normal(0, 0.01, (count, samples)).astype("f")


@pytest.mark.full
def test_agrees_with_panns_at_16_khz():
    case = reference("panns_cnn14_16k")
    out = load(Cnn14Config(), state_dict("panns_cnn14_16k"))(case["wav"])
    for name in ("embedding", "clipwise"):
        np.testing.assert_allclose(out[name], case[name], atol=1e-4 * np.abs(case[name]).max())


def test_agrees_with_plain_pytorch_layers():
    torch = pytest.importorskip("torch", reason="the small parity check of Cnn14 needs torch")
    from torch.nn import functional as F

    ours = small()
    p = {k: torch.tensor(v) for k, v in to_torch(nnx.to_pure_dict(nnx.state(ours))).items()}
    wav = waves()

    def norm(x, name):
        stats = (p[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats)

    x = torch.tensor(np.asarray(decibel_mel(wav, SMALL)))[:, None]
    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    for i in (1, 2, 3):
        for j in (1, 2):
            x = F.conv2d(x, p[f"conv_block{i}.conv{j}.weight"], padding=1)
            x = F.relu(norm(x, f"conv_block{i}.bn{j}"))
        x = F.avg_pool2d(x, 2 if i < 3 else 1)
    x = x.mean(3)
    x = x.max(2).values + x.mean(2)
    x = F.relu(F.linear(x, p["fc1.weight"], p["fc1.bias"]))
    y = torch.sigmoid(F.linear(x, p["fc_audioset.weight"], p["fc_audioset.bias"]))
    out = ours(wav)
    np.testing.assert_allclose(out["embedding"], x.numpy(), atol=1e-5)
    np.testing.assert_allclose(out["clipwise"], y.numpy(), atol=1e-5)
    np.testing.assert_allclose(out["logits"], torch.logit(y).numpy(), atol=1e-4)


def test_the_front_end_at_32_khz_is_librosas():
    librosa = pytest.importorskip("librosa", reason="the front end is compared with librosa's")
    config = Cnn14Config.panns_32k()
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, 32_000).astype("f")
    mel = librosa.feature.melspectrogram(
        y=wav, sr=32_000, n_fft=1024, hop_length=320, n_mels=64, fmin=50, fmax=14_000,
        pad_mode="reflect",
    )  # fmt: skip
    theirs = librosa.power_to_db(mel, amin=1e-10, top_db=None).T
    np.testing.assert_allclose(decibel_mel(wav[None], config)[0], theirs, atol=1e-3)


def test_decibels_follow_the_wave():
    wav = waves(count=1)
    mel = decibel_mel(wav, SMALL)
    assert mel.shape == (1, 1 + 8000 // 160, 16)
    np.testing.assert_allclose(decibel_mel(0.1 * wav, SMALL), mel - 20, atol=1e-3)
    assert np.allclose(decibel_mel(np.zeros((1, 8000), "f"), SMALL), -100)


def test_only_training_updates_the_running_statistics():
    net = Cnn14(SMALL, rngs=InitRngs(0))
    graphdef, (params, before) = nnx.graphdef(net), split(net)

    @functools.partial(jax.jit, static_argnums=0)
    def after(training):
        module = merge(graphdef, params, before)
        module(waves(), use_running_average=not training)
        return split(module)[1]

    jax.tree.map(np.testing.assert_array_equal, after(False), before)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), after(True), before)
    assert all(jax.tree.leaves(changed))
    assert set(changed["bn0"]) == {"mean", "var"}


def test_dropout_and_spec_augment_need_a_key():
    net = small()
    np.testing.assert_array_equal(net(waves())["embedding"], net(waves())["embedding"])
    a, b = (net(waves(), rngs=nnx.Rngs(dropout=k))["embedding"] for k in (0, 1))
    assert np.any(a != b)


def test_config_is_read_back_from_json():
    named = dataclasses.replace(SMALL, labels=("a", "b", "c", "d", "e"))
    for config in (SMALL, named):
        assert Cnn14Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    with pytest.raises(ValueError, match="5 names of num_classes=6"):
        dataclasses.replace(named, num_classes=6)
    with pytest.raises(ValueError, match="model_type='bert'"):
        Cnn14Config.from_hf({"model_type": "bert"})


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"fmax": 9000.0}, "fmax=9000.0"), ({"n_mels": 16}, "n_mels=16")],
)
def test_config_refuses_what_cannot_work(setting, message):
    with pytest.raises(ValueError, match=message):
        Cnn14Config(**setting)


def test_short_clips_are_refused_with_the_length_wanted():
    net, least = small(), SMALL.min_samples
    assert np.all(np.isfinite(net(waves(least))["embedding"]))
    with pytest.raises(ValueError, match=f"pad it to {least}"):
        net(waves(least - 1))
