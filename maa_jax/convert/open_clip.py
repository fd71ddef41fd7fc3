"""OpenCLIP's names and layout of a CLIP to transformers', which ours has.

The layout is that of mlfoundations/open_clip (src/open_clip/model.py and transformer.py) and of
OpenAI's first release: query, key and value in one matrix, projections for multiplication from the
right. Names of no CLIP are passed on unchanged, so that the strict loader reports them.
"""

import math
import re
from collections.abc import Mapping

import numpy as np

from maa_jax.convert.torch_files import Tensors, shapes_of
from maa_jax.models.clip import ClipConfig, ClipTextConfig, ClipVisionConfig

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_IN_PROJ = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_IN_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OTHERS = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TRANSPOSED = ("text_projection", "visual.proj")
# Constants: the causal mask, and the sizes that OpenAI's files state.
_UNUSED = ("attn_mask", "input_resolution", "context_length", "vocab_size")


def clip_from_open_clip(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns a CLIP's tensors under transformers' names."""
    renamed: Tensors = {}
    for name, value in tensors.items():
        if name in _UNUSED:
            continue
        found = _IN_PROJ.fullmatch(name)
        if found and value.ndim and len(value) % 3 == 0:
            layer = f"{_tower(found[1])}.encoder.layers.{found[2]}.self_attn"
            for part, piece in zip("qkv", np.split(value, 3), strict=True):
                renamed[f"{layer}.{part}_proj.{found[3]}"] = piece
        elif (found := _BLOCK.fullmatch(name)) and found[3] in _IN_BLOCK:
            layer = f"{_tower(found[1])}.encoder.layers.{found[2]}"
            renamed[f"{layer}.{_IN_BLOCK[found[3]]}.{found[4]}"] = value
        else:
            value = value.T if name in _TRANSPOSED else value
            renamed[_OTHERS.get(name, name)] = value
    return renamed


def _tower(visual: str | None) -> str:
    return "vision_model" if visual else "text_model"


def clip_sizes(tensors: Mapping[str, np.ndarray], quick_gelu: bool = False) -> ClipConfig:
    """Returns the configuration of a CLIP from its tensors in OpenCLIP's layout.

    What no tensor shows is as in OpenCLIP's published models: heads of 64 channels, but 16 heads in
    a vision tower of 1024 channels or more, and a text that ends with the last entry of the
    vocabulary.

    Args:
      tensors: tensors by their names there.
      quick_gelu: whether the activation is OpenAI's.

    Raises:
      ValueError: tensors that tell the sizes are missing or of another shape.
    """
    first, second = "transformer.resblocks.0.mlp.c_fc.bias", "visual.conv1.weight"
    shapes = shapes_of(
        tensors,
        {
            "token_embedding.weight": 2,
            "positional_embedding": 2,
            "text_projection": 2,
            first: 1,
            "visual.positional_embedding": 2,
            f"visual.{first}": 1,
            second: 4,
        },
    )
    words, width = shapes["token_embedding.weight"]
    seen, channels, patch, _ = shapes[second]
    activation = "quick_gelu" if quick_gelu else "gelu"
    text = ClipTextConfig(
        hidden_size=width,
        intermediate_size=shapes[first][0],
        num_hidden_layers=_layers("", tensors),
        num_attention_heads=max(1, width // 64),
        vocab_size=words,
        max_position_embeddings=shapes["positional_embedding"][0],
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        hidden_act=activation,
    )
    vision = ClipVisionConfig(
        hidden_size=seen,
        intermediate_size=shapes[f"visual.{first}"][0],
        num_hidden_layers=_layers("visual.", tensors),
        num_attention_heads=min(16, max(1, seen // 64)),
        num_channels=channels,
        image_size=math.isqrt(max(0, shapes["visual.positional_embedding"][0] - 1)) * patch,
        patch_size=patch,
        hidden_act=activation,
    )
    return ClipConfig(text, vision, shapes["text_projection"][1])


def _layers(tower: str, tensors: Mapping[str, np.ndarray]) -> int:
    return sum(f"{tower}transformer.resblocks.{i}.ln_1.weight" in tensors for i in range(101))
