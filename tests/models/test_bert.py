import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import clap as names
from maa_jax.model_folder.torch_layout import from_torch
from maa_jax.models.bert import Bert, BertConfig
from maa_jax.models.rngs import InitRngs
from tests.models import parity

SMALL = BertConfig(
    vocab_size=120,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=100,
)


def load(config, tensors):
    abstract = nnx.eval_shape(lambda: Bert(config, rngs=InitRngs(0)))
    graphdef, state = nnx.split(abstract)
    return nnx.merge(graphdef, from_torch(state, names.from_bert(tensors)))


OTHER = dataclasses.replace(SMALL, hidden_size=24, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize("config", [SMALL, OTHER])
def test_agrees_with_transformers_also_where_tokens_are_masked(config):
    torch = pytest.importorskip("torch", reason="parity with transformers' BertModel needs torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.BertModel(transformers.BertConfig(**config.to_hf())).eval()
    ours = load(config, {k: v.numpy() for k, v in theirs.state_dict().items()})
    for n in (5, 20):
        ids, mask = parity.ids_and_masks(120, (n, n // 2, 1), n)
        for m in (None, mask):
            with torch.no_grad():
                expected = theirs(
                    torch.tensor(ids), attention_mask=None if m is None else torch.tensor(m)
                ).last_hidden_state.numpy()
            np.testing.assert_allclose(ours(ids, m), expected, atol=1e-5)


def test_config_is_read_back_from_json():
    assert BertConfig.from_hf(json.loads(json.dumps(SMALL.to_hf()))) == SMALL


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("is_decoder", True)])
def test_config_refuses_what_the_network_lacks(key, value):
    with pytest.raises(ValueError, match=f"{key}={value!r}"):
        BertConfig.from_hf({**SMALL.to_hf(), key: value})


def test_config_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(ValueError, match="num_attention_heads=5"):
        BertConfig(hidden_size=48, num_attention_heads=5)


def test_too_many_tokens_are_refused():
    bert = Bert(SMALL, rngs=InitRngs(0))
    with pytest.raises(ValueError, match="101 tokens"):
        bert(np.zeros((1, 101), np.int32))


def test_dropout_acts_only_when_given_a_key():
    bert = Bert(SMALL, rngs=InitRngs(0))
    ids = np.arange(10)[None]
    np.testing.assert_array_equal(bert(ids), bert(ids))
    assert np.abs(bert(ids) - bert(ids, rngs=nnx.Rngs(dropout=1))).max() > 1e-3


def test_bfloat16_stays_close_and_keeps_float32_parameters():
    exact = Bert(SMALL, rngs=InitRngs(0))
    fast = Bert(SMALL, dtype=jnp.bfloat16, rngs=InitRngs(0))
    ids = np.arange(10)[None]
    assert fast(ids).dtype == jnp.bfloat16
    assert fast.encoder.layer[0].intermediate.dense.kernel.dtype == jnp.float32
    np.testing.assert_allclose(fast(ids).astype(jnp.float32), exact(ids), atol=0.1)
