"""CLAP: a joint embedding space of sounds and sentences.

Both families of that name: Microsoft's (Elizalde et al. 2022, "CLAP: Learning audio concepts"; BERT
and Cnn14) as `Clap`, and LAION's (Wu et al. 2023; RoBERTa and HTSAT) as `LaionClap`.

The text tower of the former conditions the denoiser: Make-An-Audio (section 3.3) gives the U-Net
the projected hidden state of every token.
"""

import dataclasses
import re
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.bert import Bert, BertConfig, Roberta, RobertaConfig
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.htsat import Htsat, HtsatConfig


@dataclasses.dataclass(frozen=True)
class ProjectionConfig:
    """Sizes of a projection head."""

    in_size: int = schema.size(768)
    out_size: int = schema.size(1024)
    dropout: float = schema.rate(0.5)

    def __post_init__(self):
        schema.check(self)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": ["Projection"],
            "model_type": "clap_projection",
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file is not a projection's.
        """
        fixed = {"architectures": ["Projection"], "model_type": "clap_projection"}
        return hf_config.build(cls, d, fixed=fixed)


@dataclasses.dataclass(frozen=True)
class ClapConfig:
    """Both towers and the width of their joint space; the defaults are the full size."""

    text_encoder: BertConfig = dataclasses.field(default_factory=BertConfig)
    audio_encoder: Cnn14Config = dataclasses.field(default_factory=Cnn14Config)
    embedding_size: int = schema.size(1024)
    dropout: float = schema.rate(0.5)

    def __post_init__(self):
        schema.check(self)

    @classmethod
    def microsoft_2022(cls) -> Self:
        """The CLAP whose text tower conditions the paper's denoiser."""
        return cls(audio_encoder=Cnn14Config.clap_2022())

    @property
    def text_projection(self) -> ProjectionConfig:
        """The head of the text tower."""
        return ProjectionConfig(self.text_encoder.hidden_size, self.embedding_size, self.dropout)

    @property
    def audio_projection(self) -> ProjectionConfig:
        """The head of the audio tower."""
        return ProjectionConfig(self.audio_encoder.channels[-1], self.embedding_size, self.dropout)


class Projection(nnx.Module):
    """Two linear layers with a residual sum and a layer norm."""

    def __init__(self, config: ProjectionConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        linear = lambda n: nnx.Linear(n, config.out_size, use_bias=False, dtype=dtype, rngs=rngs)
        self.linear1 = linear(config.in_size)
        self.linear2 = linear(config.out_size)
        self.layer_norm = nnx.LayerNorm(
            config.out_size, epsilon=1e-5, use_fast_variance=False, dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps [..., in_size] to [..., out_size]; `rngs` turns dropout on."""
        x = self.linear1(x)
        y = self.linear2(nnx.gelu(x, approximate=False))
        return self.layer_norm(x + self.dropout(y, deterministic=rngs is None, rngs=rngs))


class Clap(nnx.Module):
    """The two towers, their projections and the learned temperature."""

    def __init__(self, config: ClapConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.text_encoder = Bert(config.text_encoder, dtype=dtype, rngs=rngs)
        self.text_projection = Projection(config.text_projection, dtype=dtype, rngs=rngs)
        self.audio_encoder = Cnn14(config.audio_encoder, dtype=dtype, rngs=rngs)
        self.audio_projection = Projection(config.audio_projection, dtype=dtype, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))

    def token_condition(self, input_ids: jax.Array) -> jax.Array:
        """Returns the denoiser's context [b, n, embedding_size] of token ids [b, n].

        Padding is attended to: the released sampler passes no attention mask.
        """
        return self.text_projection(self.text_encoder(input_ids))

    def text_embedding(
        self, input_ids: jax.Array, attention_mask: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Returns sentence embeddings [b, embedding_size] of unit length, from the first token."""
        hidden = self.text_encoder(input_ids, attention_mask, rngs=rngs)
        return unit_length(self.text_projection(hidden[:, 0], rngs=rngs))

    def audio_embedding(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns embeddings [b, embedding_size] of unit length of recordings [b, samples]."""
        embedding = self.audio_encoder(wav, use_running_average=use_running_average, rngs=rngs)
        return unit_length(self.audio_projection(embedding["embedding"], rngs=rngs))


@dataclasses.dataclass(frozen=True)
class LaionClapConfig:
    """Both towers and the width of their joint space.

    The defaults are clap-htsat-unfused's; clap-htsat-fused has `audio_config.enable_fusion`.
    """

    text_config: RobertaConfig = dataclasses.field(default_factory=RobertaConfig)
    audio_config: HtsatConfig = dataclasses.field(default_factory=HtsatConfig)
    projection_dim: int = schema.size(512)

    def __post_init__(self):
        schema.check(self)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json, which transformers' ClapModel opens."""
        return {
            "architectures": ["ClapModel"],
            "model_type": "clap",
            "text_config": self.text_config.to_hf(),
            "audio_config": self.audio_config.to_hf(),
            "projection_dim": self.projection_dim,
            "projection_hidden_act": "relu",
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file is not a LAION CLAP's, or has an unsupported setting.
        """
        towers = {"text_config": RobertaConfig, "audio_config": HtsatConfig}
        fixed = {"model_type": "clap", "projection_hidden_act": "relu"}
        return hf_config.build(cls, d, fixed=fixed, ignored=None, parts=towers)


class LaionProjection(nnx.Module):
    """Two linear layers."""

    def __init__(self, in_size: int, out_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear1 = nnx.Linear(in_size, out_size, dtype=dtype, rngs=rngs)
        self.linear2 = nnx.Linear(out_size, out_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in_size] to [..., out_size]."""
        return self.linear2(nnx.relu(self.linear1(x)))


class LaionClap(nnx.Module):
    """The towers, their projections and a temperature for each: transformers' ClapModel."""

    UNUSED = re.compile(
        rf"text_model\.({Roberta.UNUSED.pattern})|audio_model\.({Htsat.UNUSED.pattern})"
    )

    def __init__(self, config: LaionClapConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        project = lambda n: LaionProjection(n, config.projection_dim, dtype=dtype, rngs=rngs)
        self.text_model = Roberta(config.text_config, dtype=dtype, rngs=rngs)
        self.text_projection = project(config.text_config.hidden_size)
        self.audio_model = Htsat(config.audio_config, dtype=dtype, rngs=rngs)
        self.audio_projection = project(config.audio_config.hidden_size)
        # One for the scores of sounds given a sentence, one for those of sentences given a sound.
        self.logit_scale_a, self.logit_scale_t = (
            nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32)) for _ in range(2)
        )

    def text_embedding(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Returns sentence embeddings [b, projection_dim] of unit length of ids [b, n]."""
        hidden = self.text_model(input_ids, attention_mask)
        return unit_length(self.text_projection(self.text_model.pooler(hidden)))

    def audio_embedding(self, mels: jax.Array, is_longer: jax.Array | None = None) -> jax.Array:
        """Returns embeddings [b, projection_dim] of unit length of log-mels; see `Htsat`."""
        return unit_length(self.audio_projection(self.audio_model(mels, is_longer)))


def unit_length(x: jax.Array) -> jax.Array:
    """Scales the last axis to length 1, in float32."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
