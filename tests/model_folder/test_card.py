import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import yaml

from maa_jax.model_folder.card import model_card


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model; returns (folder, its index)."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    return folder, json.loads((folder / "model_index.json").read_text())


def write_card(folder, index, **more):
    (folder / "model_index.json").write_text(json.dumps(index | more))
    return model_card(folder)


def front_matter(card):
    _, facts, _ = card.split("---\n", 2)
    return yaml.safe_load(facts)


def test_the_front_matter_is_the_hubs(folder):
    facts = front_matter(write_card(*folder, license="apache-2.0"))
    assert facts["pipeline_tag"] == "text-to-audio"
    assert facts["library_name"] == "maa_jax"
    assert facts["license"] == "apache-2.0"


def test_the_calls_are_those_that_the_model_was_trained_for(folder):
    path = folder[0] / "unet" / "config.json"
    assert "audio=" not in write_card(*folder) and "image=" not in write_card(*folder)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 9}))
    assert 'audio="crow.wav", mask="0.2-0.3"' in write_card(*folder)
    assert 'pipe(image="crow.png"' in write_card(*folder, conditioning="norm_global")


def test_each_network_is_listed_with_its_number_of_parameters(folder):
    card = write_card(*folder)
    tensors = safetensors.numpy.load_file(folder[0] / "text_projection" / "model.safetensors")
    count = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    assert f"| text_projection | Projection | {count:,} |" in card
    for part in ("unet", "vae", "vocoder", "text_encoder", "audio_encoder"):
        assert f"| {part} | " in card


def test_a_table_of_scores_becomes_a_section(folder):
    card = write_card(*folder, scores={"CLAP": 0.31}, training="Two days on one GPU.")
    assert "## Scores\n\n| | |\n|---|---|\n| CLAP | 0.31 |" in card
    assert "## Training\n\nTwo days on one GPU." in card
    assert "## Data" not in card


def test_nested_content_is_shown_as_json(folder):
    card = write_card(*folder, data={"splits": {"train": 104}})
    block = card.split("```json\n")[1].split("```")[0]
    assert json.loads(block) == {"splits": {"train": 104}}


def test_a_missing_licence_is_stated(folder):
    card = write_card(*folder)
    assert "license" not in front_matter(card)
    assert card.rstrip().endswith("Not stated by the model's makers.")
