"""The retriever: a joint space of recordings and captions, to find captions for recordings.

Make-An-Audio (section 3.2.1, Appendix E.2) takes its second expert from Koepke et al. 2022, "Audio
retrieval with natural language queries": the multi-modal transformer (MMT) of Gabeur et al. 2020
with audio as its only modality. There the features are VGGish's, frozen, one per second. Here they
are Cnn14's before pooling, one per 0.32 s: it is trained with the rest, its published weights
(PANNs) were trained on all of AudioSet, and no other network is needed.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.bert import Bert, BertConfig, Encoder
from maa_jax.models.clap import unit_length
from maa_jax.models.cnn14 import Cnn14Config, Cnn14Frames


@dataclasses.dataclass(frozen=True)
class AudioTransformerConfig:
    """Sizes of the transformer over frames, named as BERT's; the defaults are MMT's.

    `max_frames` is the number of position embeddings, by default that of a 10 s clip's frames.
    """

    hidden_size: int = schema.size(512)
    num_hidden_layers: int = schema.size(4, most=100)
    num_attention_heads: int = schema.size(4)
    intermediate_size: int = schema.size(3072)
    max_frames: int = schema.size(31)
    layer_norm_eps: float = schema.epsilon(1e-12)
    hidden_dropout_prob: float = schema.rate(0.1)
    attention_probs_dropout_prob: float = schema.rate(0.1)

    def __post_init__(self):
        schema.check(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}: choose a multiple."
            )


@dataclasses.dataclass(frozen=True)
class RetrieverConfig:
    """Sizes of both sides; the defaults are the full size."""

    text_encoder: BertConfig = dataclasses.field(default_factory=BertConfig)
    audio_encoder: Cnn14Config = dataclasses.field(default_factory=Cnn14Config)
    audio_transformer: AudioTransformerConfig = dataclasses.field(
        default_factory=AudioTransformerConfig
    )

    def __post_init__(self):
        schema.check(self)

    @property
    def embedding_size(self) -> int:
        """Width of the shared space."""
        return self.audio_transformer.hidden_size

    @property
    def max_samples(self) -> int:
        """Samples of the longest clip with a position embedding for every frame."""
        audio = self.audio_encoder
        mel_frames = (self.audio_transformer.max_frames + 1) * audio.reduction - 1
        return mel_frames * audio.hop_length - 1

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": ["Retriever"],
            "model_type": "retriever",
            "text_encoder": self.text_encoder.to_hf(),
            "audio_encoder": self.audio_encoder.to_hf(),
            "audio_transformer": dataclasses.asdict(self.audio_transformer),
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file is not a retriever's.
        """
        fixed = {"architectures": ["Retriever"], "model_type": "retriever"}
        encoders = {"text_encoder": BertConfig, "audio_encoder": Cnn14Config}
        return hf_config.build(cls, d, fixed=fixed, parts=encoders)


class GatedEmbedding(nnx.Module):
    """A linear layer whose outputs gate themselves (Miech et al. 2018)."""

    def __init__(self, in_size: int, out_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.linear = nnx.Linear(in_size, out_size, dtype=dtype, rngs=rngs)
        self.gate = nnx.Linear(out_size, out_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, in_size] to [b, out_size]."""
        x = self.linear(x)
        return x * nnx.sigmoid(self.gate(x))


class AudioTransformer(nnx.Module):
    """MMT for one modality: self-attention over the frames' features and their aggregate.

    As in Gabeur et al. 2020, the aggregate starts as the maximum over time of the projected
    features; it and every frame get a position embedding.
    """

    def __init__(
        self,
        in_size: int,
        config: AudioTransformerConfig,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        size = config.hidden_size
        self.projection = nnx.Linear(in_size, size, dtype=dtype, rngs=rngs)
        self.position_embeddings = nnx.Embed(
            1 + config.max_frames,  # the first is the aggregate's
            size,
            dtype=dtype,
            embedding_init=nnx.initializers.normal(0.02),
            rngs=rngs,
        )
        self.LayerNorm = nnx.LayerNorm(
            size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(config.hidden_dropout_prob)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)

    def __call__(self, frames: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps features [b, frames, in_size] to the aggregate's last state [b, hidden_size]."""
        x = self.projection(frames)
        x = jnp.concatenate([jnp.max(x, axis=1, keepdims=True), x], axis=1)
        x = self.LayerNorm(x + self.position_embeddings(jnp.arange(x.shape[1])))
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        return self.encoder(x, None, rngs=rngs)[:, 0]


class Retriever(nnx.Module):
    """Text side and audio side."""

    def __init__(self, config: RetrieverConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.text_encoder = Bert(config.text_encoder, dtype=dtype, rngs=rngs)
        self.text_projection = GatedEmbedding(
            config.text_encoder.hidden_size, config.embedding_size, dtype=dtype, rngs=rngs
        )
        self.audio_encoder = Cnn14Frames(config.audio_encoder, dtype=dtype, rngs=rngs)
        self.audio_transformer = AudioTransformer(
            config.audio_encoder.channels[-1], config.audio_transformer, dtype=dtype, rngs=rngs
        )

    def text_embedding(
        self, input_ids: jax.Array, attention_mask: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Returns captions' embeddings [b, embedding_size] of unit length, of ids [b, n].

        Args:
          input_ids: token ids, int32 [b, n]; the first token's state represents the caption.
          attention_mask: mask [b, n], non-zero where a token may be attended to.
          rngs: random streams; dropout is active if given, with the stream `dropout`.
        """
        hidden = self.text_encoder(input_ids, attention_mask, rngs=rngs)
        return unit_length(self.text_projection(hidden[:, 0]))

    def audio_embedding(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns recordings' embeddings [b, embedding_size] of unit length.

        Args:
          wav: waveforms [b, samples] in [-1, 1] at the audio encoder's sample rate, up to
            `config.max_samples`.
          use_running_average: whether to use running statistics; see `Cnn14Frames.frames`.
          rngs: random streams; dropout is active if given, with the stream `dropout`.
        """
        if wav.shape[1] > self.config.max_samples:
            raise ValueError(
                f"a clip of {wav.shape[1]} samples is too long for this retriever: cut it to "
                f"{self.config.max_samples} samples or fewer."
            )
        frames = self.audio_encoder.frames(wav, use_running_average=use_running_average, rngs=rngs)
        return unit_length(self.audio_transformer(frames, rngs=rngs))
