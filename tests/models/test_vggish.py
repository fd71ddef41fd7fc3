import json

import numpy as np
import pytest
from flax import nnx

from maa_jax.models.vggish import MIN_SAMPLES, VGGish, VGGishConfig, vggish_examples
from tests.conftest import random_network
from tests.models.parity import abstract, assert_close, load
from tests.parity.named_weights import reference, state_dict

SMALL = VGGishConfig(width=2, hidden_size=8, embedding_size=4)


def small():
    graphdef, _ = abstract(VGGish, SMALL)
    return nnx.merge(graphdef, random_network(lambda r: VGGish(SMALL, rngs=r), 0))


@pytest.mark.full
def test_agrees_with_torchvggish():
    case = reference("vggish")
    out = load(VGGish, VGGishConfig(), state_dict("vggish"))(case["wav"][None])
    for name in ("embedding_linear", "embedding"):
        assert_close(out[name][0], case[name])


def test_examples_are_torchvggishs():
    case = reference("vggish")
    assert_close(vggish_examples(case["wav"][None])[0], case["examples"], 1e-5)


def test_each_example_is_embedded_on_its_own():
    wav = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 49_234)).astype("f")
    net = small()
    whole = net(wav)["embedding_linear"]
    assert whole.shape == (2, 3, 4)
    second = net(wav[:, 96 * 160 : 96 * 160 + MIN_SAMPLES])["embedding_linear"]
    np.testing.assert_allclose(second[:, 0], whole[:, 1], atol=1e-5)


def test_short_clips_are_refused_with_the_length_wanted():
    wav = np.zeros((1, MIN_SAMPLES), "f")
    assert vggish_examples(wav).shape == (1, 1, 96, 64)
    with pytest.raises(ValueError, match=f"pad it to {MIN_SAMPLES}"):
        vggish_examples(wav[:, 1:])


def test_config_is_read_back_from_json():
    assert VGGishConfig.from_hf(json.loads(json.dumps(SMALL.to_hf()))) == SMALL
