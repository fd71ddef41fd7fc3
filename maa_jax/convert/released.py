"""Names of the released checkpoint's U-Net and autoencoder to diffusers' names, and back.

The released PyTorch checkpoint holds both networks under latent diffusion's names, the U-Net with
the prefix `model.diffusion_model.` and the autoencoder with `first_stage_model.`; the functions
here take names without the prefix. Names of neither network are passed on unchanged, so that the
strict loader (`torch_layout.from_torch`) reports them.
"""

import os
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from maa_jax.convert import clap
from maa_jax.diffusion.schedule import Schedule
from maa_jax.models.autoencoder import AutoencoderConfig
from maa_jax.models.bert import BertConfig
from maa_jax.models.clap import ProjectionConfig
from maa_jax.models.unet import UNetConfig

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
    """Yields the modules with parameters of a U-Net that has transformers at every level."""
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
    """Yields the modules with parameters of an autoencoder that has attention at any level."""
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


# Entries of the released checkpoint that sampling does not need: the schedule's buffers, the losses
# and their networks, and Lightning's moving average of the U-Net.
_BUFFERS = re.compile(
    r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_.*|lvlb_weights|logvar|scale_factor)|first_stage_model\.loss\..*|model_ema\..*"
)
_UNET, _VAE, _TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the content of a PyTorch file, its tensors memory-mapped; needs the extra `torch`.

    Raises:
      ValueError: the file is missing, broken, or holds more than tensors and plain values, which
        could run code when opened.
    """
    import torch

    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such file")
    try:
        with open(path, "rb") as f:
            zipped = f.read(2) == b"PK"  # older files cannot be mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as e:
        found = re.search(r"Unsupported global: GLOBAL (\S+)", str(e))
        reason = found[1] if found else str(e).split("\n")[0]
        raise ValueError(
            f"{path}: refused, it holds more than tensors and plain values ({reason}). If you "
            "trust it, open it with torch.load and save only its state_dict"
        ) from e
    except (RuntimeError, EOFError) as e:
        raise ValueError(f"{path}: broken or truncated ({e})") from e


def numpy_tensors(tensors: Mapping[str, Any]) -> Tensors:
    """Returns PyTorch tensors as numpy arrays that share their memory; halves become float32."""
    return {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in tensors.items()
    }


def from_checkpoint(state_dict: Mapping[str, np.ndarray]) -> dict[str, Tensors]:
    """Splits the state of `maa1_full.ckpt` into a model folder's networks.

    Returns:
      {"unet", "vae", "text_encoder", "text_projection": {name there: array}}.

    Raises:
      ValueError: a network is missing, or names belong to none; all are listed.
    """
    parts: dict[str, Tensors] = {_UNET: {}, _VAE: {}, _TEXT: {}}
    unknown = []
    for name, value in state_dict.items():
        prefix = next((p for p in parts if name.startswith(p)), None)
        if _BUFFERS.fullmatch(name):
            continue
        if prefix is None:
            unknown.append(name)
        else:
            parts[prefix][name.removeprefix(prefix)] = value
    missing = [f"{prefix}*" for prefix, part in parts.items() if not part]
    if missing or unknown:
        raise ValueError(
            f"not a released checkpoint: missing {', '.join(missing) or 'nothing'}; "
            f"unknown {', '.join(unknown) or 'nothing'}"
        )
    text = clap.from_released(parts[_TEXT])
    return {
        "unet": unet_from_ldm(parts[_UNET]),
        "vae": autoencoder_from_ldm(parts[_VAE]),
        "text_encoder": text["text_encoder"],
        "text_projection": text["text_projection"],
    }


def to_checkpoint(networks: Mapping[str, Tensors], schedule: Schedule, scale: float) -> Tensors:
    """Inverts `from_checkpoint`, and adds the schedule's buffers of latent diffusion.

    Raises:
      ValueError: the denoiser does not predict noise, and the layout cannot state anything else.
    """
    if schedule.prediction_type != "epsilon":
        raise ValueError(
            f"scheduler: prediction_type={schedule.prediction_type!r}, but released checkpoints "
            "predict only noise ('epsilon')"
        )
    text = {name: networks[name] for name in ("text_encoder", "text_projection")}
    parts = {
        _UNET: unet_to_ldm(networks["unet"]),
        _VAE: autoencoder_to_ldm(networks["vae"]),
        _TEXT: clap.to_released(text),
    }
    tensors = _schedule_buffers(schedule) | {"scale_factor": np.array(scale, np.float32)}
    return tensors | {p + name: v for p, part in parts.items() for name, v in part.items()}


def _schedule_buffers(schedule: Schedule) -> Tensors:
    betas = schedule.betas
    alphas = np.cumprod(1 - betas)
    before = np.append(1.0, alphas[:-1])
    variance = betas * (1 - before) / (1 - alphas)
    buffers = {
        "betas": betas,
        "alphas_cumprod": alphas,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(alphas),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - alphas),
        "log_one_minus_alphas_cumprod": np.log(1 - alphas),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / alphas),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / alphas - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - alphas),
    }
    return {name: value.astype(np.float32) for name, value in buffers.items()}


def schedule_of(state_dict: Mapping[str, np.ndarray]) -> Schedule:
    """Returns the schedule with a checkpoint's `betas`, or latent diffusion's default.

    Raises:
      ValueError: the betas are not linear in their square root.
    """
    if "betas" not in state_dict:
        return Schedule()
    betas = np.asarray(state_dict["betas"], np.float64)
    ends = [float(f"{x:.6g}") for x in (betas[0], betas[-1])]  # float32 of 0.00085 and 0.0120
    schedule = Schedule(len(betas), ends[0], ends[1])
    if not np.allclose(_schedule_buffers(schedule)["betas"], betas, rtol=1e-4, atol=0):
        raise ValueError("betas: not linear in their square root, the only supported schedule")
    return schedule


def unet_config(tensors: Mapping[str, np.ndarray]) -> UNetConfig:
    """Returns the configuration of a U-Net under diffusers' names, with the paper's 8 heads."""
    levels = len(_numbers(r"down_blocks\.(\d+)\.", tensors))
    first = tensors["conv_in.weight"]
    key = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    return UNetConfig(
        in_channels=first.shape[1],
        out_channels=tensors["conv_out.weight"].shape[0],
        block_out_channels=tuple(
            len(tensors[f"down_blocks.{i}.resnets.0.conv1.bias"]) for i in range(levels)
        ),
        layers_per_block=len(_numbers(r"down_blocks\.0\.resnets\.(\d+)\.", tensors)),
        cross_attention_dim=tensors[key].shape[1],
    )


def autoencoder_config(tensors: Mapping[str, np.ndarray], scale: float) -> AutoencoderConfig:
    """Returns the configuration of an autoencoder under diffusers' names."""
    levels = len(_numbers(r"encoder\.down_blocks\.(\d+)\.", tensors))
    return AutoencoderConfig(
        in_channels=tensors["encoder.conv_in.weight"].shape[1],
        out_channels=tensors["decoder.conv_out.weight"].shape[0],
        latent_channels=tensors["post_quant_conv.weight"].shape[0],
        block_out_channels=tuple(
            len(tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.bias"]) for i in range(levels)
        ),
        layers_per_block=len(_numbers(r"encoder\.down_blocks\.0\.resnets\.(\d+)\.", tensors)),
        scaling_factor=scale,
    )


def text_configs(
    encoder: Mapping[str, np.ndarray], projection: Mapping[str, np.ndarray]
) -> tuple[BertConfig, ProjectionConfig]:
    """Returns the configurations of CLAP's text tower, with BERT's 64 channels per head."""
    words = encoder["embeddings.word_embeddings.weight"]
    config = BertConfig(
        vocab_size=words.shape[0],
        hidden_size=words.shape[1],
        num_hidden_layers=len(_numbers(r"encoder\.layer\.(\d+)\.", encoder)),
        num_attention_heads=max(1, words.shape[1] // 64),
        intermediate_size=len(encoder["encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(encoder["embeddings.position_embeddings.weight"]),
    )
    out_size, in_size = projection["linear1.weight"].shape
    return config, ProjectionConfig(in_size, out_size)
