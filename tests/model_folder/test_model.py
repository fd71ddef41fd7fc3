"""Tests of maa_jax.model_folder.model."""

import dataclasses
import json
import shutil

import pytest

from maa_jax.audio.mel import MelConfig
from maa_jax.files import FolderError
from maa_jax.model_folder.index import save_index
from maa_jax.model_folder.model import read_model


@pytest.fixture
def change(tiny_model, tmp_path):
    """Returns a function that changes a JSON file of a copy of the tiny model, and reads it."""
    model = shutil.copytree(tiny_model, tmp_path / "model")

    def change(file, **values):
        path = model / file
        content = json.loads(path.read_text()) | values
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))
        return read_model(model)

    return change


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_duration", -4),
        ("max_duration", 0),
        ("max_duration", 1e12),
        ("max_duration", "10"),
        ("max_duration", None),
        ("sample_rate", None),
        ("sample_rate", 16000.5),
        ("sample_rate", True),
        ("sample_rate", [16000]),
        ("sample_rate", 10**9),
        ("mel", None),
        ("mel", []),
        ("mel", {}),
        ("mel", {"n_mels": 80}),
    ],
)
def test_a_wrong_value_in_the_index_is_named(change, key, value):
    with pytest.raises(FolderError, match=rf"model_index\.json.*{key}"):
        change("model_index.json", **{key: value})


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(MelConfig)])
def test_each_setting_of_the_front_end_is_stated_and_valid(change, field):
    mel = dataclasses.asdict(MelConfig())
    for value in (None, "8", -1, 10**12, [mel[field]]):
        with pytest.raises(FolderError, match=rf"model_index\.json: mel\.{field}="):
            change("model_index.json", mel=mel | {field: value})
    del mel[field]
    with pytest.raises(FolderError, match=rf"mel\.{field} is missing"):
        change("model_index.json", mel=mel)


@pytest.mark.parametrize(
    ("setting", "value"), [("fmax", 7600.0), ("fmin", 50.0), ("n_fft", 2048), ("floor", 1e-6)]
)
def test_a_vocoder_of_another_front_end_is_refused(change, setting, value):
    own = dataclasses.asdict(MelConfig())
    change("vocoder/config.json", mel=own)
    with pytest.raises(FolderError, match=rf"vocoder: mel\.{setting}={value!r} but mel: {setting}"):
        change("vocoder/config.json", mel=own | {setting: value})


def test_a_vocoder_agrees_with_the_front_end_that_it_states(change):
    with pytest.raises(FolderError, match=r"vocoder.config\.json: .*model_in_dim.*mel\.n_mels"):
        change("vocoder/config.json", mel=dataclasses.asdict(MelConfig(n_mels=40)))


def test_networks_of_two_front_ends_are_not_written_into_one_folder(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    save_index(model, mel=dataclasses.asdict(MelConfig()))
    with pytest.raises(FolderError, match=r"model_index\.json: mel=.*another folder"):
        save_index(model, mel=dataclasses.asdict(MelConfig(fmax=7600.0)))


def test_a_mel_that_the_networks_cannot_halve_is_refused(change):
    with pytest.raises(FolderError, match="model_in_dim"):
        change("vocoder/config.json", model_in_dim=72)
    with pytest.raises(FolderError, match=r"n_mels=72.*halved"):
        change("model_index.json", mel=dataclasses.asdict(MelConfig(n_mels=72)))


@pytest.mark.parametrize("name", ["../unet", "/etc", "..", "a/b", "x" * 999, ""])
def test_names_of_parts_are_folders_of_the_model(change, name):
    with pytest.raises(FolderError, match="no name of a part"):
        change("model_index.json", **{name: ["diffusers", "UNet2DConditionModel"]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_start", -1e-4),
        ("beta_end", -1),
        ("beta_end", 2),
        ("num_train_timesteps", 10**10),
        ("num_train_timesteps", "1000"),
    ],
)
def test_a_scheduler_that_gives_no_sound_is_refused(change, key, value):
    with pytest.raises(FolderError, match=rf"scheduler_config\.json: {key}="):
        change("scheduler/scheduler_config.json", **{key: value})
