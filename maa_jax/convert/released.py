"""Names of the released checkpoint's U-Net and autoencoder to diffusers' names, and back.

The released PyTorch checkpoint holds both networks under latent diffusion's names, the U-Net with
the prefix `model.diffusion_model.` and the autoencoder with `first_stage_model.`; the functions
here take names without the prefix. Names of neither network are passed on unchanged, so that the
strict loader (`torch_layout.from_torch`) reports them.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from maa_jax.checks import differences
from maa_jax.convert import clap, torch_files
from maa_jax.convert.open_clip import clip_from_open_clip, clip_sizes
from maa_jax.convert.torch_files import Tensors
from maa_jax.diffusion import BETA_SCHEDULES
from maa_jax.diffusion.schedule import Schedule
from maa_jax.model_folder import networks, torch_layout
from maa_jax.models.autoencoder import AutoencoderConfig
from maa_jax.models.bert import Bert, BertConfig
from maa_jax.models.clap import ProjectionConfig
from maa_jax.models.unet import UNetConfig

Network = tuple[Any, Tensors]  # configuration, and tensors under PyTorch's names
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


# Entries of a released checkpoint that sampling does not need: the schedule's buffers, the losses
# and their networks, Lightning's moving average of the U-Net, and the rest of CLAP.
_UNUSED = re.compile(
    r"(betas|(sqrt_|log_)?(one_minus_)?alphas_cumprod(_prev)?|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_.*|lvlb_weights|logvar|scale_factor)|first_stage_model\.loss\..*|model_ema\..*"
    rf"|cond_stage_model\.(logit_scale|caption_encoder\.base\.({Bert.UNUSED.pattern}))"
)
_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": f"cond_stage_model.{clap.PREFIXES['text_encoder']}",
    "text_projection": f"cond_stage_model.{clap.PREFIXES['text_projection']}",
}
# The authors' image model has an OpenCLIP in CLAP's place, and heads of 32 channels
# (AIGC-Audio/AudioGPT, text_to_audio/Make_An_Audio/configs/img_to_audio/img2audio_args.yaml).
_OPEN_CLIP = "cond_stage_model.model."
_HEAD_CHANNELS = 32


def from_checkpoint(state_dict: Mapping[str, np.ndarray]) -> dict[str, Network]:
    """Splits the state of `maa1_full.ckpt`, or of the image model, into a model folder's networks.

    Returns:
      {"unet", "vae", "text_encoder", "text_projection": (configuration, {name there: array})}. Of
      the image model the text encoder is a whole CLIP, and there is no projection.

    Raises:
      ValueError: tensors are missing, belong to no network, or have other types or shapes; all are
        listed under their names in the file.
    """
    factor = np.asarray(state_dict.get("scale_factor", 1.0), np.float32).ravel()
    if len(factor) != 1 or not 0 < float(factor[0]) < np.inf:
        raise ValueError(f"scale_factor={factor[:9].tolist()}: expected one number above 0")
    visual = any(name.startswith(_OPEN_CLIP) for name in state_dict)
    prefixes, kinds = _PREFIXES, _NETWORKS
    if visual:
        prefixes = {name: _PREFIXES[name] for name in ("unet", "vae")} | {
            "text_encoder": _OPEN_CLIP
        }
        kinds = _NETWORKS | _VISUAL_NETWORKS
    given: dict[str, Tensors] = {prefix: {} for prefix in prefixes.values()}
    problems = []
    for name, value in state_dict.items():
        prefix = next((p for p in given if name.startswith(p)), None)
        if _UNUSED.fullmatch(name):
            continue
        if prefix is None:
            problems.append(f"no place for: {name}")
        else:
            given[prefix][name.removeprefix(prefix)] = value
    problems += [f"missing: all of {prefix}*" for prefix, part in given.items() if not part]
    parts = {}
    for network, prefix in prefixes.items():
        tensors = given[prefix]
        if not tensors:
            continue
        sizes, rename, back = kinds[network]
        try:
            config = sizes(tensors)
            parts[network] = config, rename(tensors)
            problems += misfits(
                config, tensors if back else parts[network][1], prefix, back or dict
            )
        except ValueError as error:
            problems += [f"{prefix}*: {error}"]
    if problems:
        raise ValueError(
            f"not a released checkpoint, {len(problems)} faults: {torch_files.listed(problems)}"
        )
    vae, tensors = parts["vae"]
    vae = dataclasses.replace(vae, scaling_factor=float(factor[0]))
    return parts | {"vae": (vae, tensors)}


def misfits(
    config: Any,
    tensors: Mapping[str, np.ndarray],
    prefix: str = "",
    back: Callable[[Tensors], Tensors] = dict,
) -> list[str]:
    """Returns in words how tensors differ from those of a network.

    Args:
      config: configuration of the network.
      tensors: its tensors under their names in a released file, without the prefix.
      prefix: prefix of the names there.
      back: function from tensors under PyTorch's names of our network to those names.
    """
    shapes = torch_layout.shapes(networks.define(config)[1])
    expected = back({name: np.broadcast_to(np.float32(0), s) for name, s in shapes.items()})
    problems = [f"missing: {prefix}{name}" for name in expected if name not in tensors]
    for name, value in tensors.items():
        if name not in expected:
            if not torch_layout.is_ignored(name):
                problems.append(f"no place for: {prefix}{name}")
        elif value.shape != expected[name].shape:
            problems.append(
                f"shape of {prefix}{name}: {value.shape}, expected {expected[name].shape}"
            )
        elif value.dtype.kind != "f":
            problems.append(f"type of {prefix}{name}: {value.dtype}, expected numbers with a point")
        elif not np.isfinite(value.astype(np.float32, copy=False)).all():
            problems.append(f"not finite: {prefix}{name}")
    return problems


def to_checkpoint(parts: Mapping[str, Tensors], schedule: Schedule, scale: float) -> Tensors:
    """Inverts `from_checkpoint`, and adds the schedule's buffers of latent diffusion.

    Raises:
      ValueError: the layout cannot hold the schedule, which is read back otherwise.
    """
    tensors: Tensors = {"scale_factor": np.array(scale, np.float32)}
    if not schedule.rescale_betas_zero_snr:  # whose buffers are not finite
        tensors |= _schedule_buffers(schedule)
    check_same("scheduler", schedule, schedule_of(tensors))
    for network, prefix in _PREFIXES.items():
        back = _NETWORKS[network][2]
        tensors |= {prefix + name: value for name, value in back(dict(parts[network])).items()}
    return tensors


def check_same(what: str, config: Any, read: Any) -> None:
    """Raises a ValueError unless a released layout gives back the configuration that it was given.

    Sizes that no tensor shows, such as the number of heads, are not in a released file: its readers
    take the release's.

    Args:
      what: what is configured, for the error.
      config: the configuration.
      read: what is read back.
    """
    hidden = [
        line
        for line in differences(vars(config), vars(read))
        if "dropout" not in line and not line.startswith("scaling_factor")
    ]
    if hidden:
        raise ValueError(
            f"{what}: the released layout cannot hold {torch_files.listed(hidden)}: 'there' is "
            "this model, 'here' what every reader of the file would take"
        )


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

    The betas may be rounded to half precision: of the schedules that agree with all of them, it is
    the one whose ends have the fewest digits.

    Raises:
      ValueError: the betas belong to no schedule that is supported here.
    """
    if "betas" not in state_dict:
        return Schedule()
    betas = np.asarray(state_dict["betas"], np.float64)
    if betas.ndim != 1 or not 2 <= len(betas) <= 100_000 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError("betas: expected 2 to 100000 numbers between 0 and 1 in a row")
    # float32's own error is smaller, but betas are computed in several steps.
    error = 1e-5
    for kind in (jnp.float16, jnp.bfloat16):
        if (betas.astype(kind) == betas).all():
            error = float(jnp.finfo(kind).eps)
    for digits in range(1, 8):
        first, last = (float(f"{x:.{digits}g}") for x in (betas[0], betas[-1]))
        for kind in BETA_SCHEDULES:
            with contextlib.suppress(ValueError):  # ends in an order that is not supported
                schedule = Schedule(len(betas), first, last, kind)
                if np.allclose(schedule.betas, betas, rtol=error, atol=0):
                    return schedule
    raise ValueError(
        "betas: linear neither themselves nor in their square root, the schedules supported here"
    )


def _unet_sizes(tensors: Mapping[str, np.ndarray], head_channels: int = 0) -> UNetConfig:
    """Returns the configuration of latent diffusion's U-Net, with the paper's 8 heads.

    With `head_channels`, each head has as many channels instead.
    """
    blocks = len(_numbers(r"input_blocks\.(\d+)\.", tensors))
    levels = 1 + len(_numbers(r"input_blocks\.(\d+)\.0\.op\.", tensors))
    if blocks % levels or blocks < 2 * levels:
        raise ValueError(f"{blocks} input_blocks cannot be divided into {levels} equal levels")
    layers = blocks // levels - 1
    first = {i: f"input_blocks.{1 + i * (layers + 1)}" for i in range(levels)}
    key = f"{first[0]}.1.transformer_blocks.0.attn2.to_k.weight"
    widths = [f"{block}.0.in_layers.2.bias" for block in first.values()]
    axes = {"input_blocks.0.0.weight": 4, "out.2.weight": 4, key: 2} | dict.fromkeys(widths, 1)
    shapes = torch_files.shapes_of(tensors, axes)
    channels = tuple(shapes[name][0] for name in widths)
    return UNetConfig(
        in_channels=shapes["input_blocks.0.0.weight"][1],
        out_channels=shapes["out.2.weight"][0],
        block_out_channels=channels,
        num_heads=tuple(max(1, n // head_channels) for n in channels) if head_channels else 8,
        layers_per_block=layers,
        cross_attention_dim=shapes[key][1],
    )


def _autoencoder_sizes(tensors: Mapping[str, np.ndarray]) -> AutoencoderConfig:
    """Returns the configuration of latent diffusion's autoencoder."""
    levels = len(_numbers(r"encoder\.down\.(\d+)\.", tensors))
    widths = [f"encoder.down.{i}.block.0.conv1.bias" for i in range(levels)]
    ends = ("encoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight")
    shapes = torch_files.shapes_of(tensors, dict.fromkeys(ends, 4) | dict.fromkeys(widths, 1))
    return AutoencoderConfig(
        in_channels=shapes[ends[0]][1],
        out_channels=shapes[ends[1]][0],
        latent_channels=shapes[ends[2]][0],
        block_out_channels=tuple(shapes[name][0] for name in widths),
        layers_per_block=len(_numbers(r"encoder\.down\.0\.block\.(\d+)\.", tensors)),
    )


def _text_sizes(tensors: Mapping[str, np.ndarray]) -> BertConfig:
    """Returns the configuration of CLAP's BERT, with 64 channels per head."""
    words = "embeddings.word_embeddings.weight"
    places = "embeddings.position_embeddings.weight"
    inner = "encoder.layer.0.intermediate.dense.bias"
    shapes = torch_files.shapes_of(tensors, {words: 2, places: 2, inner: 1})
    return BertConfig(
        vocab_size=shapes[words][0],
        hidden_size=shapes[words][1],
        num_hidden_layers=len(_numbers(r"encoder\.layer\.(\d+)\.", tensors)),
        num_attention_heads=max(1, shapes[words][1] // 64),
        intermediate_size=shapes[inner][0],
        max_position_embeddings=shapes[places][0],
    )


def _projection_sizes(tensors: Mapping[str, np.ndarray]) -> ProjectionConfig:
    """Returns the configuration of CLAP's projection."""
    out_size, in_size = torch_files.shapes_of(tensors, {"linear1.weight": 2})["linear1.weight"]
    return ProjectionConfig(in_size, out_size)


# {network: (its configuration from its tensors there, names there to ours, and back)}; where there
# is no way back, faults are listed under our names.
_NETWORKS: dict[str, Any] = {
    "unet": (_unet_sizes, unet_from_ldm, unet_to_ldm),
    "vae": (_autoencoder_sizes, autoencoder_from_ldm, autoencoder_to_ldm),
    "text_encoder": (_text_sizes, dict, dict),
    "text_projection": (_projection_sizes, dict, dict),
}
_VISUAL_NETWORKS: dict[str, Any] = {
    "unet": (
        functools.partial(_unet_sizes, head_channels=_HEAD_CHANNELS),
        unet_from_ldm,
        unet_to_ldm,
    ),
    "text_encoder": (clip_sizes, clip_from_open_clip, None),
}


def sizes_of(network: str, tensors: Mapping[str, np.ndarray]) -> Any:
    """Returns the configuration that a reader of a released file gives to one of its networks.

    Args:
      network: name of the network, such as "unet".
      tensors: its tensors under PyTorch's names of our network.
    """
    sizes, _, back = _NETWORKS[network]
    return sizes(back(dict(tensors)))
