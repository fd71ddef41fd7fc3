"""Names of the released checkpoint's U-Net and autoencoder to diffusers' names, and back.

The released PyTorch checkpoint holds both networks under latent diffusion's names, the U-Net
below `model.diffusion_model.` and the autoencoder below `first_stage_model.`; the names here are
those without that prefix. Names that belong to neither network are passed on unchanged, so that
the strict loader (`torch_layout.from_torch`) lists them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

Tensors = dict[str, np.ndarray]
Pairs = Iterator[tuple[str, str]]  # (module in latent diffusion, module in diffusers)


def unet_from_ldm(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the U-Net's tensors under diffusers' names."""
    downs = sorted(int(k) for k in _numbers(r"input_blocks\.(\d+)\.0\.op\.", tensors))
    blocks = len(_numbers(r"input_blocks\.(\d+)\.", tensors))
    layers = (downs[0] if downs else blocks) - 1
    return _rename(tensors, dict(_unet(len(downs) + 1, layers)))


def unet_to_ldm(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the U-Net's tensors under latent diffusion's names."""
    levels = len(_numbers(r"down_blocks\.(\d+)\.", tensors))
    layers = len(_numbers(r"down_blocks\.0\.resnets\.(\d+)\.", tensors))
    return _rename(tensors, {theirs: ldm for ldm, theirs in _unet(levels, layers)})


def autoencoder_from_ldm(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the autoencoder's tensors under diffusers' names.

    Attention is a 1 x 1 convolution in latent diffusion and a dense layer in diffusers.
    """
    levels = len(_numbers(r"encoder\.down\.(\d+)\.", tensors))
    layers = len(_numbers(r"encoder\.down\.0\.block\.(\d+)\.", tensors))
    renamed = _rename(tensors, dict(_autoencoder(levels, layers)))
    for name, value in renamed.items():
        if _is_dense(name) and value.ndim == 4:
            renamed[name] = value[:, :, 0, 0]
    return renamed


def autoencoder_to_ldm(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the autoencoder's tensors under latent diffusion's names."""
    levels = len(_numbers(r"encoder\.down_blocks\.(\d+)\.", tensors))
    layers = len(_numbers(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", tensors))
    tensors = {
        name: value[:, :, None, None] if _is_dense(name) else value
        for name, value in tensors.items()
    }
    return _rename(tensors, {theirs: ldm for ldm, theirs in _autoencoder(levels, layers)})


def _is_dense(name: str) -> bool:
    return bool(re.search(r"\.attentions\.\d+\.to_\w+(\.0)?\.weight$", name))


def _numbers(pattern: str, names: Iterable[str]) -> set[str]:
    return {found[1] for name in names if (found := re.match(pattern, name))}


def _rename(tensors: Mapping[str, np.ndarray], modules: Mapping[str, str]) -> Tensors:
    renamed = {}
    for name, value in tensors.items():
        module, _, leaf = name.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else name] = value
    return renamed


def _unet(levels: int, layers: int) -> Pairs:
    """Yields the modules that hold parameters of a U-Net with transformers at every level."""
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    for level in range(levels):
        # Latent diffusion counts blocks through all levels, a downsampling among them.
        first = 1 + level * (layers + 1)
        for i in range(layers):
            yield from _resnet(f"input_blocks.{first + i}.0", f"down_blocks.{level}.resnets.{i}")
            yield from _transformer(
                f"input_blocks.{first + i}.1", f"down_blocks.{level}.attentions.{i}"
            )
        yield f"input_blocks.{first + layers}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        first = level * (layers + 1)
        for i in range(layers + 1):
            yield from _resnet(f"output_blocks.{first + i}.0", f"up_blocks.{level}.resnets.{i}")
            yield from _transformer(
                f"output_blocks.{first + i}.1", f"up_blocks.{level}.attentions.{i}"
            )
        yield f"output_blocks.{first + layers}.2.conv", f"up_blocks.{level}.upsamplers.0.conv"
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield from _transformer("middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.2", "mid_block.resnets.1")


def _resnet(ldm: str, theirs: str) -> Pairs:
    yield f"{ldm}.in_layers.0", f"{theirs}.norm1"
    yield f"{ldm}.in_layers.2", f"{theirs}.conv1"
    yield f"{ldm}.emb_layers.1", f"{theirs}.time_emb_proj"
    yield f"{ldm}.out_layers.0", f"{theirs}.norm2"
    yield f"{ldm}.out_layers.3", f"{theirs}.conv2"
    yield f"{ldm}.skip_connection", f"{theirs}.conv_shortcut"


def _transformer(ldm: str, theirs: str) -> Pairs:
    for name in ("norm", "proj_in", "proj_out"):
        yield f"{ldm}.{name}", f"{theirs}.{name}"
    inner = [f"attn{i}.{name}" for i in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
    for name in [*inner, "norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"]:
        yield f"{ldm}.transformer_blocks.0.{name}", f"{theirs}.transformer_blocks.0.{name}"


def _autoencoder(levels: int, layers: int) -> Pairs:
    """Yields the modules that hold parameters of an autoencoder, attention at any level."""
    for name in ("quant_conv", "post_quant_conv"):
        yield name, name
    for half in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            yield f"{half}.{name}", f"{half}.{name}"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        for i in range(2):
            yield from _plain_resnet(f"{half}.mid.block_{i + 1}", f"{half}.mid_block.resnets.{i}")
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
    for level in range(levels):
        # On the way up latent diffusion counts levels from the widest map, diffusers in order.
        down, up = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        down_block, up_block = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{level}"
        for ldm, theirs, count in ((down, down_block, layers), (up, up_block, layers + 1)):
            for i in range(count):
                yield from _plain_resnet(f"{ldm}.block.{i}", f"{theirs}.resnets.{i}")
                yield from _attention(f"{ldm}.attn.{i}", f"{theirs}.attentions.{i}")
        yield f"{down}.downsample.conv", f"{down_block}.downsamplers.0.conv"
        yield f"{up}.upsample.conv", f"{up_block}.upsamplers.0.conv"


def _plain_resnet(ldm: str, theirs: str) -> Pairs:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ldm}.{name}", f"{theirs}.{name}"
    yield f"{ldm}.nin_shortcut", f"{theirs}.conv_shortcut"


def _attention(ldm: str, theirs: str) -> Pairs:
    yield f"{ldm}.norm", f"{theirs}.group_norm"
    for name in ("q", "k", "v"):
        yield f"{ldm}.{name}", f"{theirs}.to_{name}"
    yield f"{ldm}.proj_out", f"{theirs}.to_out.0"
