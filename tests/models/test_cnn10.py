import json

import jax
import numpy as np
import pytest
from flax import nnx

from maa_jax.model_folder import networks
from maa_jax.model_folder.torch_layout import to_torch
from maa_jax.models.cnn10 import Cnn10, Cnn10Config
from maa_jax.models.cnn14 import decibel_mel
from maa_jax.models.rngs import InitRngs
from tests.conftest import random_network

SMALL = Cnn10Config(n_mels=8, channels=(4, 6))


def test_with_pannss_classifier_it_has_the_published_size():
    encoder = nnx.eval_shape(lambda: Cnn10(Cnn10Config(), rngs=InitRngs(0)))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(encoder, nnx.Param)))
    classifier = 512 * 512 + 512 + 512 * 527 + 527  # fc1 and fc_audioset
    assert count + classifier == 5_219_279  # as PANNs counts it (Kong et al. 2020)


def test_it_agrees_with_plain_pytorch_layers():
    torch = pytest.importorskip("torch", reason="the parity check of Cnn10 needs torch")
    from torch.nn import functional as F

    params = random_network(lambda rngs: Cnn10(SMALL, rngs=rngs), 0)
    p = {k: torch.tensor(np.asarray(v)) for k, v in to_torch(params).items()}
    wav = np.random.default_rng(0).normal(0, 0.3, (2, 3000)).astype("f")

    def norm(x, name):
        stats = (p[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *stats)

    x = torch.tensor(np.asarray(decibel_mel(wav, SMALL)))[:, None]
    x = norm(x.transpose(1, 3), "bn0").transpose(1, 3)
    for i in (1, 2):
        for j in (1, 2):
            x = F.conv2d(x, p[f"conv_block{i}.conv{j}.weight"], padding=1)
            x = F.relu(norm(x, f"conv_block{i}.bn{j}"))
        x = F.avg_pool2d(x, 2)
    expected = x.mean(3).transpose(1, 2).numpy()
    graphdef = nnx.graphdef(networks.abstract(SMALL))
    frames = jax.jit(lambda params, wav: nnx.merge(graphdef, params).frames(wav))(params, wav)
    assert frames.shape == (2, SMALL.frames(3000), 6)
    np.testing.assert_allclose(frames, expected, atol=1e-4 * np.abs(expected).max())


def test_config_is_read_back_from_json():
    assert Cnn10Config.from_hf(json.loads(json.dumps(SMALL.to_hf()))) == SMALL
    with pytest.raises(ValueError, match="model_type='cnn14'"):
        Cnn10Config.from_hf({"model_type": "cnn14"})
