import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from maa_jax.models.t5 import T5Config, T5Encoder, relative_buckets
from tests.models import parity

TINY = T5Config(
    vocab_size=90, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=20,
    feed_forward_proj="gated-gelu",
)  # fmt: skip
# Heads that are wider than the model, and the first T5's feed-forward network.
OTHER = dataclasses.replace(TINY, d_model=24, d_kv=16, num_layers=3, feed_forward_proj="relu")


def reference(config):
    pytest.importorskip("torch", reason="parity with transformers' T5EncoderModel needs torch")
    transformers = pytest.importorskip("transformers")
    return parity.randomise(transformers.T5EncoderModel(transformers.T5Config(**config.to_hf())))


@pytest.mark.parametrize("config", [TINY, OTHER], ids=["gated", "relu"])
def test_agrees_with_transformers_at_several_lengths_and_masks(config):
    theirs = reference(config)
    import torch

    ours = parity.load(T5Encoder, config, parity.arrays(theirs))
    exact = {}
    for n in (5, 41):  # shorter and longer than the largest distance
        ids, mask = parity.ids_and_masks(config.vocab_size, (n, n // 2, 1), n)
        for m in (None, mask):
            with torch.no_grad():
                expected = theirs(
                    torch.tensor(ids), attention_mask=None if m is None else torch.tensor(m)
                ).last_hidden_state.numpy()
            parity.assert_close(ours(ids, m), expected)
        exact[n] = (ids, mask, expected)
    fast = parity.load(T5Encoder, config, parity.arrays(theirs), dtype=jnp.bfloat16)
    ids, mask, expected = exact[5]
    assert fast(ids, mask).dtype == jnp.bfloat16
    parity.assert_close(fast(ids, mask).astype(jnp.float32), expected, 0.05)


def test_padding_does_not_reach_the_prompt():
    pytest.importorskip("torch")
    ours = parity.load(T5Encoder, TINY, parity.arrays(reference(TINY)))
    ids, mask = parity.ids_and_masks(90, (4,), 9)
    padded = np.where(mask, ids, 0)
    np.testing.assert_allclose(ours(padded, mask)[:, :4], ours(ids[:, :4]), atol=1e-5)


def test_buckets_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    distance = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    for count, longest in ((32, 128), (8, 20)):
        theirs = attention._relative_position_bucket(distance, True, count, longest)
        np.testing.assert_array_equal(relative_buckets(300, count, longest), theirs)


def test_a_whole_t5_gives_its_encoder():
    tensors = {"shared.weight": 1, "encoder.final_layer_norm.weight": 2}
    whole = tensors | {
        "encoder.embed_tokens.weight": 1,
        "decoder.embed_tokens.weight": 1,
        "decoder.block.0.layer.0.SelfAttention.q.weight": 3,
        "lm_head.weight": 4,
    }
    assert T5Encoder.from_file(whole) == tensors
    del whole["shared.weight"]
    assert T5Encoder.from_file(whole) == tensors


def test_published_sizes():
    transformers = pytest.importorskip("transformers")
    for config, count in ((T5Config.large(), 334_939_648), (T5Config.flan_large(), 341_231_104)):
        state = parity.abstract(T5Encoder, config)[1]
        assert parity.count(state) == count
    assert T5Config.from_hf(transformers.T5Config().to_dict()) == T5Config()


def test_config_is_read_back_from_json():
    assert T5Config.from_hf(json.loads(json.dumps(TINY.to_hf()))) == TINY


@pytest.mark.parametrize(
    ("key", "value"), [("model_type", "umt5"), ("feed_forward_proj", "gated-silu")]
)
def test_config_refuses_what_the_network_lacks(key, value):
    with pytest.raises(ValueError, match=f"{key}='{value}': "):
        T5Config.from_hf({**TINY.to_hf(), key: value})
