"""BERT (Devlin et al. 2018) and RoBERTa (Liu et al. 2019), text encoders.

Parameters have the names of transformers' `BertModel` and of LAION CLAP's text tower.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.kernels import attention
from maa_jax.models.layers import key_bias

# Keys of config.json that change the network's result, with the only value implemented here.
_FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder, named as in transformers; the defaults are bert-base-uncased."""

    vocab_size: int = schema.size(30522, most=2**24)
    hidden_size: int = schema.size(768)
    num_hidden_layers: int = schema.size(12, most=100)
    num_attention_heads: int = schema.size(12)
    intermediate_size: int = schema.size(3072)
    max_position_embeddings: int = schema.size(512)
    type_vocab_size: int = schema.size(2)
    layer_norm_eps: float = schema.epsilon(1e-12)
    hidden_dropout_prob: float = schema.rate(0.1)
    attention_probs_dropout_prob: float = schema.rate(0.1)
    pad_token_id: int = schema.field(0, least=0, most=2**24)

    CLASS: ClassVar[str] = "BertModel"
    FIXED: ClassVar[Mapping[str, Any]] = {"model_type": "bert", **_FIXED}

    @classmethod
    def large(cls) -> Self:
        """bert-large-uncased."""
        return cls(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
        )

    def __post_init__(self):
        schema.check(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}: choose a multiple."
            )

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens, one per position embedding."""
        return self.max_position_embeddings

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json, which transformers' class opens."""
        return {**self.FIXED, "architectures": [self.CLASS], **dataclasses.asdict(self)}

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: settings are invalid, or not supported by this encoder; all are named.
        """
        return hf_config.build(cls, d, fixed=cls.FIXED, ignored=None)


@dataclasses.dataclass(frozen=True)
class RobertaConfig(BertConfig):
    """Sizes of the RoBERTa that is LAION CLAP's text tower."""

    vocab_size: int = schema.size(50265, most=2**24)
    max_position_embeddings: int = schema.size(514)
    type_vocab_size: int = schema.size(1)
    pad_token_id: int = schema.field(1, least=0, most=2**24)

    CLASS = "ClapTextModel"
    FIXED = {"model_type": "clap_text_model", **_FIXED}

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens; the first positions are reserved."""
        return self.max_position_embeddings - self.pad_token_id - 1


class Embeddings(nnx.Module):
    """Word, position and segment embeddings, summed and normalised."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        embed = lambda n: nnx.Embed(
            n,
            config.hidden_size,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.word_embeddings = embed(config.vocab_size)
        self.position_embeddings = embed(config.max_position_embeddings)
        self.token_type_embeddings = embed(config.type_vocab_size)
        self.LayerNorm = _layer_norm(config, dtype, rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)

    def positions(self, input_ids: jax.Array) -> jax.Array:
        """Returns the positions of ids [b, n], broadcastable to them."""
        return jnp.arange(input_ids.shape[1])

    def __call__(self, input_ids: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Embeds ids [b, n] as [b, n, hidden_size]; every token is in segment 0."""
        x = self.word_embeddings(input_ids)
        x = x + self.position_embeddings(self.positions(input_ids))
        x = x + self.token_type_embeddings(jnp.zeros(1, jnp.int32))
        return self.dropout(self.LayerNorm(x), deterministic=rngs is None, rngs=rngs)


class RobertaEmbeddings(Embeddings):
    """Embeddings whose positions begin after `pad_token_id`, the position of padding."""

    def __init__(self, config: RobertaConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.pad_id = config.pad_token_id

    def positions(self, input_ids: jax.Array) -> jax.Array:
        """Returns the positions of ids [b, n]."""
        real = (jnp.asarray(input_ids) != self.pad_id).astype(jnp.int32)
        return self.pad_id + real * jnp.cumsum(real, axis=1)


class SelfAttention(nnx.Module):
    """Multi-head attention over the tokens, without its output projection."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = _linear(size, size, dtype, rngs)
        self.key = _linear(size, size, dtype, rngs)
        self.value = _linear(size, size, dtype, rngs)
        self.dropout = nnx.Dropout(config.attention_probs_dropout_prob)

    def __call__(
        self, x: jax.Array, bias: jax.Array | None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps [b, n, size] to the same shape; `bias` is added to the scores."""
        split = lambda f: f(x).reshape(*x.shape[:2], self.num_heads, -1)
        dropout = None if rngs is None else functools.partial(self.dropout, rngs=rngs)
        out = attention(
            split(self.query), split(self.key), split(self.value), bias, dropout=dropout
        )
        return out.reshape(x.shape)


class ResidualOutput(nnx.Module):
    """Linear layer, dropout, residual sum and layer norm: the end of either half of a block."""

    def __init__(self, in_size: int, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dense = _linear(in_size, config.hidden_size, dtype, rngs)
        self.LayerNorm = _layer_norm(config, dtype, rngs)
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)

    def __call__(
        self, x: jax.Array, residual: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Returns LayerNorm(residual + dropout(dense(x)))."""
        x = self.dropout(self.dense(x), deterministic=rngs is None, rngs=rngs)
        return self.LayerNorm(residual + x)


class Attention(nnx.Module):
    """Self-attention with its output projection; `self` is transformers' name for the former."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.self = SelfAttention(config, dtype=dtype, rngs=rngs)
        self.output = ResidualOutput(config.hidden_size, config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, bias: jax.Array | None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps [b, n, size] to the same shape."""
        return self.output(self.self(x, bias, rngs=rngs), x, rngs=rngs)


class Intermediate(nnx.Module):
    """First half of the feed-forward network."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dense = _linear(config.hidden_size, config.intermediate_size, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, n, hidden_size] to [b, n, intermediate_size]."""
        return nnx.gelu(self.dense(x), approximate=False)


class Layer(nnx.Module):
    """One transformer block, normalised after each residual sum."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.intermediate = Intermediate(config, dtype=dtype, rngs=rngs)
        self.output = ResidualOutput(config.intermediate_size, config, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, bias: jax.Array | None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps [b, n, size] to the same shape."""
        x = self.attention(x, bias, rngs=rngs)
        return self.output(self.intermediate(x), x, rngs=rngs)


class Encoder(nnx.Module):
    """The stack of blocks."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layer = nnx.List(
            [Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(
        self, x: jax.Array, bias: jax.Array | None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps [b, n, size] to the same shape."""
        for layer in self.layer:
            x = layer(x, bias, rngs=rngs)
        return x


class Bert(nnx.Module):
    """BERT without its pooler, which neither CLAP nor the denoiser uses."""

    # The pooler serves BERT's own pre-training; position ids are 0, 1, 2, ...
    UNUSED = re.compile(r"pooler\.dense\.(weight|bias)|embeddings\.position_ids")
    EMBEDDINGS: ClassVar[type[Embeddings]] = Embeddings

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = self.EMBEDDINGS(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def from_file(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the encoder's tensors from a file, which may be that of BERT's pre-training.

        bert-base-uncased was saved with its pre-training heads (`cls.`), under `bert.`, and with
        the layer norms' old names gamma and beta.
        """
        mine = {}
        for name, value in tensors.items():
            if name.startswith("cls."):
                continue
            new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name.removeprefix("bert."))
            new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
            if new in mine:
                raise ValueError(f"twice: {new}, once as {name}")
            mine[new] = value
        return mine

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns the last hidden states [b, n, hidden_size] of token ids [b, n].

        Args:
          input_ids: token ids, int32 [b, n], n up to `config.max_tokens`.
          attention_mask: mask [b, n], non-zero where a token may be attended to; None for all.
          rngs: random streams; dropout is active if given, with the stream `dropout`.
        """
        if input_ids.shape[1] > self.config.max_tokens:
            raise ValueError(
                f"{input_ids.shape[1]} tokens exceed the {self.config.max_tokens} of "
                f"max_position_embeddings={self.config.max_position_embeddings}: cut the prompt."
            )
        bias = key_bias(attention_mask)
        return self.encoder(self.embeddings(input_ids, rngs=rngs), bias, rngs=rngs)


class Pooler(nnx.Module):
    """The first token's state, through a linear layer and tanh."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dense = _linear(config.hidden_size, config.hidden_size, dtype, rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Maps hidden states [b, n, hidden_size] to [b, hidden_size]."""
        return jnp.tanh(self.dense(hidden[:, 0]))


class Roberta(Bert):
    """RoBERTa with its pooler, as LAION CLAP has it."""

    UNUSED = re.compile(r"embeddings\.(position_ids|token_type_ids)")
    EMBEDDINGS = RobertaEmbeddings

    def __init__(self, config: RobertaConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        self.pooler = Pooler(config, dtype=dtype, rngs=rngs)


def _linear(in_size: int, out_size: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(0.02)  # BERT's initializer_range
    return nnx.Linear(in_size, out_size, dtype=dtype, kernel_init=init, rngs=rngs)


def _layer_norm(config: BertConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )
