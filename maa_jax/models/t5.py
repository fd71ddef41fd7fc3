"""The encoder of T5 (Raffel et al. 2020), with the names of transformers' `T5EncoderModel`.

It covers T5, and v1.1 and FLAN, which have a gated feed-forward network.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.kernels import attention
from maa_jax.models.layers import key_bias

# Keys of config.json that change the network's result, with the only value implemented here.
_FIXED = {"model_type": "t5", "is_decoder": False}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder, named as in transformers; the defaults are T5-Small's.

    `feed_forward_proj` is "relu" (T5) or "gated-gelu" (v1.1 and FLAN). Tokens that are
    `relative_attention_max_distance` or more apart are taken to be that far apart.
    """

    vocab_size: int = schema.size(32128, most=2**24)
    d_model: int = schema.size(512)
    d_kv: int = schema.size(64)
    d_ff: int = schema.size(2048)
    num_layers: int = schema.size(6, most=100)
    num_heads: int = schema.size(8)
    relative_attention_num_buckets: int = schema.field(32, least=4, most=65_536)
    relative_attention_max_distance: int = schema.field(128, least=2, most=2**24)
    layer_norm_epsilon: float = schema.epsilon(1e-6)
    feed_forward_proj: str = schema.field("relu", choices=("relu", "gated-gelu"))
    pad_token_id: int = schema.field(0, least=0, most=2**24)

    def __post_init__(self):
        schema.check(self)
        # Half of the buckets are of one token each, in either direction; the rest grow.
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise ValueError(
                f"relative_attention_max_distance={self.relative_attention_max_distance}: give "
                "more than a quarter of relative_attention_num_buckets="
                f"{self.relative_attention_num_buckets}"
            )

    @classmethod
    def large(cls) -> Self:
        """T5-Large."""
        return cls(d_model=1024, d_ff=4096, num_layers=24, num_heads=16)

    @classmethod
    def flan_large(cls) -> Self:
        """FLAN-T5-Large, of the same sizes as T5 v1.1 Large."""
        return cls(
            d_model=1024, d_ff=2816, num_layers=24, num_heads=16, feed_forward_proj="gated-gelu"
        )

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.d_model

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json, which transformers' T5EncoderModel opens."""
        return {
            **_FIXED,
            "architectures": ["T5EncoderModel"],
            "is_encoder_decoder": False,
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json, of an encoder or of a whole T5.

        Raises:
          ValueError: settings are invalid, or not supported by this encoder; all are named.
        """
        return hf_config.build(cls, d, fixed=_FIXED, ignored=None)


class SelfAttention(nnx.Module):
    """Multi-head attention without scaling of scores. One layer holds the position bias."""

    def __init__(self, config: T5Config, has_bias: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        inner = config.num_heads * config.d_kv
        self.config = config
        self.q, self.k, self.v = (_linear(config.d_model, inner, dtype, rngs) for _ in range(3))
        self.o = _linear(inner, config.d_model, dtype, rngs)
        if has_bias:
            self.relative_attention_bias = nnx.Embed(
                config.relative_attention_num_buckets, config.num_heads, rngs=rngs
            )

    def position_bias(self, n: int) -> jax.Array:
        """Returns the bias of relative positions, float32 [1, heads, n, n]."""
        buckets = relative_buckets(
            n,
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
        )
        return self.relative_attention_bias(buckets).transpose(2, 0, 1)[None]

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Maps [b, n, d_model] to the same shape; `bias` combines positions and mask."""
        split = lambda f: f(x).reshape(*x.shape[:2], self.config.num_heads, -1)
        out = attention(split(self.q), split(self.k), split(self.v), bias, scale=1.0)
        return self.o(out.reshape(*x.shape[:2], -1))


class FeedForward(nnx.Module):
    """Feed-forward network; `DenseReluDense` is its name whatever it computes."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.gated = config.feed_forward_proj == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            setattr(self, name, _linear(config.d_model, config.d_ff, dtype, rngs))
        self.wo = _linear(config.d_ff, config.d_model, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, n, d_model] to the same shape."""
        if self.gated:
            return self.wo(nnx.gelu(self.wi_0(x), approximate=True) * self.wi_1(x))
        return self.wo(nnx.relu(self.wi(x)))


class AttentionLayer(nnx.Module):
    """The first half of a block: norm, attention, residual sum."""

    def __init__(self, config: T5Config, has_bias: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.SelfAttention = SelfAttention(config, has_bias, dtype=dtype, rngs=rngs)
        self.layer_norm = _norm(config, dtype, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Maps [b, n, d_model] to the same shape."""
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nnx.Module):
    """The second half of a block: norm, feed-forward network, residual sum."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.DenseReluDense = FeedForward(config, dtype=dtype, rngs=rngs)
        self.layer_norm = _norm(config, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, n, d_model] to the same shape."""
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """One transformer block."""

    def __init__(self, config: T5Config, has_bias: bool, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer = nnx.List(
            [
                AttentionLayer(config, has_bias, dtype=dtype, rngs=rngs),
                FeedForwardLayer(config, dtype=dtype, rngs=rngs),
            ]
        )

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Maps [b, n, d_model] to the same shape."""
        return self.layer[1](self.layer[0](x, bias))


class Stack(nnx.Module):
    """The blocks and the last norm."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.block = nnx.List(
            [Block(config, i == 0, dtype=dtype, rngs=rngs) for i in range(config.num_layers)]
        )
        self.final_layer_norm = _norm(config, dtype, rngs)

    def __call__(self, x: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        """Maps [b, n, d_model] to the same shape."""
        bias = self.block[0].layer[0].SelfAttention.position_bias(x.shape[1])
        if attention_mask is not None:
            bias = bias + key_bias(attention_mask)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class T5Encoder(nnx.Module):
    """Token ids to hidden states, without dropout: the encoder is used frozen."""

    def __init__(self, config: T5Config, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.shared = nnx.Embed(config.vocab_size, config.d_model, dtype=dtype, rngs=rngs)
        self.encoder = Stack(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def from_file(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the encoder's tensors from a file, which may hold a whole T5.

        The shared embedding has up to three names there, one for each module that uses it.
        """
        tied = "encoder.embed_tokens.weight"
        mine = {
            name: value
            for name, value in tensors.items()
            if name != tied and not name.startswith(("decoder.", "lm_head."))
        }
        if tied in tensors:
            mine.setdefault("shared.weight", tensors[tied])
        return mine

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Returns the last hidden states [b, n, d_model] of token ids [b, n].

        Args:
          input_ids: token ids, int32 [b, n], n of any size.
          attention_mask: mask [b, n], non-zero where a token may be attended to; None for all.
        """
        return self.encoder(self.shared(input_ids), attention_mask)


def relative_buckets(n: int, count: int, max_distance: int) -> np.ndarray:
    """Returns the bucket of each query's distance to each key, int32 [n, n].

    Half of the buckets are for keys after the query. In each half, one half of the buckets hold one
    distance each, and the others grow logarithmically.
    """
    distance = np.arange(n)[None, :] - np.arange(n)[:, None]
    count //= 2
    after = np.where(distance > 0, count, 0)
    distance = np.abs(distance)
    exact = count // 2
    # In float32, as T5 was trained: at the edges of buckets rounding decides.
    scale = np.float32(np.log(max_distance / exact))
    log = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / scale
    large = exact + (log * np.float32(count - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(large, count - 1))
    return (after + bucket).astype(np.int32)


def _linear(in_size: int, out_size: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(in_size, out_size, use_bias=False, dtype=dtype, rngs=rngs)


def _norm(config: T5Config, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(config.d_model, epsilon=config.layer_norm_epsilon, dtype=dtype, rngs=rngs)
