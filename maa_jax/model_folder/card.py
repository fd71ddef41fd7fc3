"""The model card of a model folder, README.md, made from its index."""

import json
import math
import pathlib
from typing import Any

from maa_jax.files import read_json
from maa_jax.model_folder import hub, networks
from maa_jax.model_folder.index import networks_in
from maa_jax.model_folder.registry import NETWORKS

# Optional keys of model_index.json for which a card has a section.
SECTIONS = {"training": "Training", "data": "Data", "scores": "Scores"}


def model_card(folder: pathlib.Path) -> str:
    """Returns a model card in the Hugging Face hub's format.

    Training, data, scores and licence come from `training`, `data`, `scores` (text or JSON) and
    `license` (an identifier such as "apache-2.0") in model_index.json.
    """
    index = read_json(folder / hub.INDEX)
    facts = {"library_name": "maa_jax", "pipeline_tag": "text-to-audio"}
    if "license" in index:
        facts["license"] = index["license"]
    lines = ["---", *(f"{key}: {value}" for key, value in facts.items())]
    lines += ["tags:", "- text-to-audio", "- latent-diffusion", "- jax", "---", ""]
    lines += ["# Text to sound", ""]
    lines += [
        "A latent diffusion model after Make-An-Audio (Huang et al., ICML 2023), for maa_jax:"
    ]
    lines += [f"sounds of up to {index['max_duration']:g} s at {index['sample_rate']} Hz.", ""]
    lines += ["```python", "import maa_jax", "", 'pipe = maa_jax.Pipeline.from_pretrained("PATH")']
    lines += [*_uses(folder, index), "```", "", "## Parts", ""]
    lines += ["| part | class | parameters |", "|---|---|---|"]
    for name, kind in networks_in(folder).items():
        weights = networks.open_weights(folder / name, NETWORKS[kind][0]).values()
        count = sum(math.prod(tensor.shape) for tensor in weights)
        lines.append(f"| {name} | {kind} | {count:,} |")
    for key, title in SECTIONS.items():
        if key in index:
            lines += ["", f"## {title}", "", *_section(index[key])]
    lines += ["", "## Licence", "", str(index.get("license", "Not stated by the model's makers."))]
    return "\n".join(lines) + "\n"


def _uses(folder: pathlib.Path, index: dict[str, Any]) -> list[str]:
    """Returns the calls of a pipeline that the model was trained for."""
    calls = ['wavs = pipe(["a crow caws"], seed=0)']
    if index.get("conditioning", "tokens") != "tokens":  # a CLIP, which also sees
        calls.append('wavs = pipe(image="crow.png", seed=0)')
    taken, latent = (
        read_json(folder / part / "config.json")[key]
        for part, key in (("unet", "in_channels"), ("vae", "latent_channels"))
    )
    if taken != latent:  # trained to fill gaps: the masked recording and the mask are beside
        calls.append('wavs = pipe(["a crow caws"], audio="crow.wav", mask="0.2-0.3", seed=0)')
    return calls


def _section(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    if isinstance(content, dict) and not any(isinstance(v, dict | list) for v in content.values()):
        return ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in content.items())]
    return ["```json", json.dumps(content, indent=2), "```"]
