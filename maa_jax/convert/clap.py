"""Names of Microsoft's `CLAP_weights_2022.pth`, PANNs and BERT checkpoints, to and from ours.

Everything here maps {name: array} to {name: array} in PyTorch's layouts, which `torch_layout`
converts. A network's `UNUSED` matches the entries of a released file that are not weights or that
nothing uses; any other unknown name is an error.
"""

from collections.abc import Mapping

import numpy as np

from maa_jax.models.bert import Bert
from maa_jax.models.cnn14 import Cnn14

# {network of a model folder: its prefix in CLAP_weights_2022.pth}.
PREFIXES = {
    "text_encoder": "caption_encoder.base.",
    "text_projection": "caption_encoder.projection.",
    "audio_encoder": "audio_encoder.base.",
    "audio_projection": "audio_encoder.projection.",
}

_UNUSED = {"text_encoder": Bert.UNUSED, "audio_encoder": Cnn14.UNUSED}


def without_unused(network: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a network's tensors without those that ours does not use."""
    unused = _UNUSED.get(network)
    return {k: v for k, v in tensors.items() if not (unused and unused.fullmatch(k))}


def from_released(
    tensors: Mapping[str, np.ndarray], *, prefix: str = ""
) -> dict[str, dict[str, np.ndarray]]:
    """Splits a released CLAP into networks.

    Args:
      tensors: `model` of CLAP_weights_2022.pth, or the part of maa1_full.ckpt that begins with
        `cond_stage_model.` (only the text tower).
      prefix: prefix of every name, which is removed.

    Returns:
      {folder: {name: array}} for the folders that the file holds, and, if it holds the logarithm of
      the temperature, {"logit_scale": {"": scalar}}.

    Raises:
      ValueError: names are unknown; all are listed.
    """
    networks: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, value in tensors.items():
        short = name.removeprefix(prefix)
        if short == "logit_scale":
            networks["logit_scale"] = {"": value}
            continue
        for network, start in PREFIXES.items():
            if short.startswith(start) and name.startswith(prefix):
                networks.setdefault(network, {})[short.removeprefix(start)] = value
                break
        else:
            unknown.append(name)
    if unknown or not networks:
        raise ValueError(
            f"not a CLAP of 2022: unknown names {', '.join(sorted(unknown)) or '(none)'} among "
            f"{len(tensors)}; expected {', '.join(prefix + p for p in PREFIXES.values())}"
        )
    return {network: without_unused(network, part) for network, part in networks.items()}


def to_released(networks: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Inverts `from_released`, without what that left out (load it with `strict=False`)."""
    released: dict[str, np.ndarray] = {}
    for network, tensors in networks.items():
        start = network if network == "logit_scale" else PREFIXES[network]
        released |= {start + name: value for name, value in tensors.items()}
    return released


def from_bert(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a text encoder's tensors from any BERT checkpoint of the Hugging Face hub."""
    return without_unused("text_encoder", Bert.from_file(tensors))


def from_panns(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns an audio encoder's tensors from the `model` of a PANNs Cnn14 checkpoint."""
    return without_unused("audio_encoder", tensors)
