"""CLIP (Radford et al. 2021), with the names of transformers' classes, and its preprocessing.

The text tower's token states can condition the denoiser (the paper's Table 1); projected, both
towers' embeddings share one space.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.kernels import attention
from maa_jax.models.layers import MASK_VALUE, Conv, key_bias

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nnx.sigmoid(1.702 * x),  # OpenAI's models
    "gelu": lambda x: nnx.gelu(x, approximate=False),  # OpenCLIP's
}


@dataclasses.dataclass(frozen=True)
class _TowerConfig:
    """Base of both towers' configurations."""

    hidden_size: int = schema.size()
    intermediate_size: int = schema.size()
    num_hidden_layers: int = schema.size(12, most=100)
    num_attention_heads: int = schema.size(8)
    hidden_act: str = schema.field("quick_gelu", choices=tuple(_ACTIVATIONS))
    layer_norm_eps: float = schema.epsilon(1e-5)

    CLASS: ClassVar[str]
    PART: ClassVar[str]  # this tower's key in the config.json of a whole CLIP

    def __post_init__(self):
        schema.check(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not divisible by num_attention_heads="
                f"{self.num_attention_heads}: choose a multiple."
            )

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json, which transformers' class opens."""
        return {
            "architectures": [self.CLASS],
            "model_type": f"clip_{self.PART.removesuffix('_config')}_model",
            **dataclasses.asdict(self),
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json, of this tower or of a whole CLIP.

        Raises:
          ValueError: the file is not a CLIP's, or settings are invalid or not supported.
        """
        own = f"clip_{cls.PART.removesuffix('_config')}_model"
        if d.get("model_type") not in ("clip", own):
            raise ValueError(
                f"model_type={d.get('model_type')!r} is not supported by {cls.CLASS}: "
                f"use 'clip' or {own!r}."
            )
        if d["model_type"] == "clip":
            # The first files held the sizes twice; the second takes precedence, as in transformers.
            d = d.get(f"{cls.PART}_dict") or d.get(cls.PART) or {}
        return hf_config.build(cls, d, fixed={}, ignored=None)


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(_TowerConfig):
    """Sizes of the text tower, named as in transformers; the defaults are ViT-B/32's."""

    hidden_size: int = schema.size(512)
    intermediate_size: int = schema.size(2048)
    vocab_size: int = schema.size(49408, most=2**24)
    max_position_embeddings: int = schema.size(77)
    pad_token_id: int = schema.field(1, least=0, most=2**24)
    bos_token_id: int = schema.field(49406, least=0, most=2**24)
    eos_token_id: int = schema.field(49407, least=0, most=2**24)

    CLASS = "CLIPTextModel"
    PART = "text_config"

    @classmethod
    def large(cls) -> Self:
        """The text tower of ViT-L/14."""
        return cls(hidden_size=768, intermediate_size=3072, num_attention_heads=12)

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens, one per position embedding."""
        return self.max_position_embeddings


@dataclasses.dataclass(frozen=True)
class ClipVisionConfig(_TowerConfig):
    """Sizes of the vision tower, named as in transformers; the defaults are ViT-B/32's.

    `image_size` and `patch_size` are in pixels.
    """

    hidden_size: int = schema.size(768)
    intermediate_size: int = schema.size(3072)
    num_attention_heads: int = schema.size(12)
    num_channels: int = schema.size(3)
    image_size: int = schema.size(224, most=4096)
    patch_size: int = schema.size(32, most=4096)

    CLASS = "CLIPVisionModel"
    PART = "vision_config"

    @classmethod
    def large(cls) -> Self:
        """The vision tower of ViT-L/14."""
        return cls(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            patch_size=14,
        )


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Both towers and the width of their joint space; the defaults are ViT-B/32's."""

    text_config: ClipTextConfig = dataclasses.field(default_factory=ClipTextConfig)
    vision_config: ClipVisionConfig = dataclasses.field(default_factory=ClipVisionConfig)
    projection_dim: int = schema.size(512)

    def __post_init__(self):
        schema.check(self)

    @classmethod
    def large(cls) -> Self:
        """ViT-L/14."""
        return cls(ClipTextConfig.large(), ClipVisionConfig.large(), 768)

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json, which transformers' CLIPModel opens."""
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "text_config": self.text_config.to_hf(),
            "vision_config": self.vision_config.to_hf(),
            "projection_dim": self.projection_dim,
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file is not a CLIP's, or has a setting that the towers do not support.
        """
        if d.get("model_type") != "clip":
            raise ValueError(f"model_type={d.get('model_type')!r} is not a CLIP: use 'clip'.")
        return cls(
            ClipTextConfig.from_hf(d), ClipVisionConfig.from_hf(d), d.get("projection_dim", 512)
        )


class Attention(nnx.Module):
    """Multi-head self-attention."""

    def __init__(self, config: _TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        linear = lambda: nnx.Linear(size, size, dtype=dtype, rngs=rngs)
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (linear() for _ in range(4))

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Maps [b, n, size] to the same shape; `bias` is added to the scores."""
        split = lambda f: f(x).reshape(*x.shape[:2], self.num_heads, -1)
        query, key, value = split(self.q_proj), split(self.k_proj), split(self.v_proj)
        return self.out_proj(attention(query, key, value, bias).reshape(x.shape))


class Mlp(nnx.Module):
    """Feed-forward network of a block."""

    def __init__(self, config: _TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, inner = config.hidden_size, config.intermediate_size
        self.activation = _ACTIVATIONS[config.hidden_act]
        self.fc1 = nnx.Linear(size, inner, dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(inner, size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [b, n, size] to the same shape."""
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nnx.Module):
    """One transformer block, normalised before each half."""

    def __init__(self, config: _TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.self_attn = Attention(config, dtype=dtype, rngs=rngs)
        self.layer_norm1 = _layer_norm(config, dtype, rngs)
        self.mlp = Mlp(config, dtype=dtype, rngs=rngs)
        self.layer_norm2 = _layer_norm(config, dtype, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """Maps [b, n, size] to the same shape."""
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The stack of blocks."""

    def __init__(self, config: _TowerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.layers = nnx.List(
            [Layer(config, dtype=dtype, rngs=rngs) for _ in range(config.num_hidden_layers)]
        )

    def __call__(self, x: jax.Array, bias: jax.Array | None = None) -> jax.Array:
        """Maps [b, n, size] to the same shape."""
        for layer in self.layers:
            x = layer(x, bias)
        return x


class TextEmbeddings(nnx.Module):
    """Token and position embeddings, summed."""

    def __init__(self, config: ClipTextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        embed = lambda n: nnx.Embed(n, config.hidden_size, dtype=dtype, rngs=rngs)
        self.token_embedding = embed(config.vocab_size)
        self.position_embedding = embed(config.max_position_embeddings)

    def __call__(self, input_ids: jax.Array) -> jax.Array:
        """Embeds ids [b, n] as [b, n, size]."""
        return self.token_embedding(input_ids) + self.position_embedding(
            jnp.arange(input_ids.shape[1])
        )


class TextTransformer(nnx.Module):
    """The text tower, with causal attention, so padding after the text has no effect on it."""

    def __init__(self, config: ClipTextConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = TextEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.final_layer_norm = _layer_norm(config, dtype, rngs)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Returns the last hidden states [b, n, size] of ids [b, n], normalised."""
        n = input_ids.shape[1]
        if n > self.config.max_position_embeddings:
            raise ValueError(
                f"{n} tokens exceed max_position_embeddings="
                f"{self.config.max_position_embeddings}: cut the prompt."
            )
        bias = jnp.where(jnp.tri(n, dtype=bool), 0.0, MASK_VALUE)[None, None]
        padding = key_bias(attention_mask)
        if padding is not None:
            bias = bias + padding
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids), bias))

    def pooled(self, hidden: jax.Array, input_ids: jax.Array) -> jax.Array:
        """Returns the states [b, size] at the first end-of-text token of ids [b, n]."""
        # In transformers' first files, 2 stands for the largest id.
        by_size = self.config.eos_token_id == 2
        end = input_ids if by_size else input_ids == self.config.eos_token_id
        return hidden[jnp.arange(len(hidden)), jnp.argmax(end, axis=1)]


class VisionEmbeddings(nnx.Module):
    """A class embedding and linear patch embeddings, with positions."""

    def __init__(self, config: ClipVisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size, patch = config.hidden_size, config.patch_size
        self.config, self.dtype = config, dtype
        self.class_embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (size,)))
        self.patch_embedding = Conv(
            config.num_channels, size, patch, stride=patch, use_bias=False, dtype=dtype, rngs=rngs
        )
        positions = (config.image_size // patch) ** 2 + 1
        self.position_embedding = nnx.Embed(positions, size, dtype=dtype, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Embeds images [b, h, w, channels] as [b, 1 + patches, size]."""
        expected = (self.config.image_size, self.config.image_size, self.config.num_channels)
        if pixels.shape[1:] != expected:
            raise ValueError(
                f"images of shape {pixels.shape[1:]} do not fit image_size="
                f"{self.config.image_size}: need {expected}; see `preprocess`."
            )
        x = self.patch_embedding(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_embedding[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first.astype(self.dtype), x], axis=1)
        return x + self.position_embedding(jnp.arange(x.shape[1]))


class VisionTransformer(nnx.Module):
    """The vision tower; `pre_layrnorm` is spelt so in every file."""

    def __init__(self, config: ClipVisionConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embeddings = VisionEmbeddings(config, dtype=dtype, rngs=rngs)
        self.pre_layrnorm = _layer_norm(config, dtype, rngs)
        self.encoder = Encoder(config, dtype=dtype, rngs=rngs)
        self.post_layernorm = _layer_norm(config, dtype, rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Returns the last hidden states [b, 1 + patches, size] of images [b, h, w, channels]."""
        return self.encoder(self.pre_layrnorm(self.embeddings(pixels)))

    def pooled(self, hidden: jax.Array) -> jax.Array:
        """Returns the class token's state [b, size], normalised."""
        return self.post_layernorm(hidden[:, 0])


class ClipTextModel(nnx.Module):
    """The text tower by itself."""

    def __init__(self, config: ClipTextConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.text_model = TextTransformer(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def from_file(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the tower's tensors out of a file, which may hold a whole CLIP."""
        return _tower(tensors, "text_model.")

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Returns the last hidden states [b, n, hidden_size] of token ids [b, n].

        Args:
          input_ids: token ids, int32 [b, n], n up to `max_position_embeddings`.
          attention_mask: mask [b, n], non-zero where a token may be attended to, in addition to the
            causal mask; None for all.
        """
        return self.text_model(input_ids, attention_mask)


class ClipVisionModel(nnx.Module):
    """The vision tower by itself."""

    def __init__(self, config: ClipVisionConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        self.vision_model = VisionTransformer(config, dtype=dtype, rngs=rngs)

    @staticmethod
    def from_file(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the tower's tensors out of a file, which may hold a whole CLIP."""
        return _tower(tensors, "vision_model.")

    def __call__(self, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the last hidden states [b, 1 + patches, size] and the class token's [b, size].

        Args:
          pixels: images [b, image_size, image_size, channels] from `preprocess`.
        """
        hidden = self.vision_model(pixels)
        return hidden, self.vision_model.pooled(hidden)


class ClipModel(nnx.Module):
    """Both towers, their projections and the learned temperature."""

    def __init__(self, config: ClipConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.config = config
        linear = lambda n: nnx.Linear(
            n, config.projection_dim, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.text_model = TextTransformer(config.text_config, dtype=dtype, rngs=rngs)
        self.text_projection = linear(config.text_config.hidden_size)
        self.vision_model = VisionTransformer(config.vision_config, dtype=dtype, rngs=rngs)
        self.visual_projection = linear(config.vision_config.hidden_size)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32))

    def text_features(
        self, input_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """Returns embeddings [b, projection_dim] of ids [b, n]; not of unit length."""
        hidden = self.text_model(input_ids, attention_mask)
        return self.text_projection(self.text_model.pooled(hidden, input_ids))

    def image_features(self, pixels: jax.Array) -> jax.Array:
        """Returns embeddings [b, projection_dim] of images [b, h, w, c]; not of unit length."""
        return self.visual_projection(self.vision_model.pooled(self.vision_model(pixels)))


# Mean and deviation of red, green and blue in CLIP's training images, as OpenAI published them.
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def preprocess(images: Sequence[Any], image_size: int = 224) -> np.ndarray:
    """Returns images for the vision tower, float32 [n, image_size, image_size, 3].

    As in transformers' CLIPImageProcessor, transparency becomes white, the shortest side is resized
    to `image_size` (bicubic), the centre is cropped, and each colour is normalised.

    Args:
      images: images, as `PIL.Image` of any mode or uint8 arrays [h, w, 3].
      image_size: side of the result in pixels.

    Raises:
      ValueError: an image is too large, or too long for its width.
    """
    import PIL.Image

    from maa_jax.visual.images import check_size

    views = []
    for image in images:
        if not isinstance(image, PIL.Image.Image):
            image = PIL.Image.fromarray(np.asarray(image))
        check_size(*image.size)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image)
        image = image.convert("RGB")
        short, long = sorted(image.size)
        longest = int(image_size * long / short)
        size = (image_size, longest) if image.width <= image.height else (longest, image_size)
        image = np.asarray(image.resize(size, PIL.Image.Resampling.BICUBIC), np.float32)
        top, left = ((side - image_size) // 2 for side in image.shape[:2])
        view = image[top : top + image_size, left : left + image_size]
        views.append(normalize(view))
    return np.stack(views).astype(np.float32)


def normalize(colours: Any) -> Any:
    """Returns colours [..., 3] of 0 to 255, an array of numpy or JAX, as the tower sees them."""
    return (colours / 255 - _MEAN) / _DEVIATION


def _tower(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the tensors under a prefix, which a file of only the tower may omit."""
    if not any(name.startswith(prefix) for name in tensors):
        return {prefix + name: value for name, value in tensors.items()}
    others = ("text_model.", "vision_model.", "text_projection.", "visual_projection.")
    other = tuple(o for o in others if o != prefix)
    return {k: v for k, v in tensors.items() if not k.startswith(other) and k != "logit_scale"}


def _layer_norm(config: _TowerConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        config.hidden_size,
        epsilon=config.layer_norm_eps,
        use_fast_variance=False,
        dtype=dtype,
        rngs=rngs,
    )
