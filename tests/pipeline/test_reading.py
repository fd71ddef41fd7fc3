import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import maa_jax
from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.model_folder.model import read_model
from maa_jax.models.unet import UNet
from tests.conftest import random_network


def test_folders_that_do_not_fit_together_are_refused(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(model / "vocoder")
    with pytest.raises(FolderError, match=r"missing.*vocoder/config\.json"):
        maa_jax.Pipeline.from_pretrained(model)

    model = shutil.copytree(tiny_model, tmp_path / "rates")
    index = json.loads((model / "model_index.json").read_text())
    index["mel"]["hop_length"] = 200
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(FolderError, match=r"vocoder: hop_length=256.*mel: hop_length=200"):
        maa_jax.Pipeline.from_pretrained(model)


def test_models_that_need_other_inputs_are_refused(tiny_model, tmp_path):
    """The folder is complete, but not for this pipeline."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = networks.load_config(model, "unet")
    config = dataclasses.replace(config, in_channels=7)
    params = random_network(lambda rngs: UNet(config, rngs=rngs), 0)
    networks.save_network(model, "unet", config, params)
    assert read_model(model).unet.in_channels == 7
    with pytest.raises(
        FolderError, match=r"in_channels=7, .*latent_channels=8: give a U-Net that takes"
    ):
        maa_jax.Pipeline.from_pretrained(model)
    config = dataclasses.replace(config, in_channels=8, out_channels=4)
    params = random_network(lambda rngs: UNet(config, rngs=rngs), 0)
    networks.save_network(model, "unet", config, params)
    with pytest.raises(FolderError, match=r"unet: out_channels=4 but vae: latent_channels=8"):
        maa_jax.Pipeline.from_pretrained(model)


def test_parts_that_are_not_used_are_not_read(tiny_model, monkeypatch):
    read, load = [], networks.load_network

    def spy(folder, name, **settings):
        read.append(name)
        return load(folder, name, **settings)

    monkeypatch.setattr(networks, "load_network", spy)
    lazy = maa_jax.Pipeline.from_pretrained(tiny_model)
    assert read == ["text_encoder", "text_projection"]
    for output, name in (("latents", "unet"), ("mel", "vae"), ("wav", "vocoder")):
        read.clear()
        lazy.load(output)
        assert read == [name]
    read.clear()
    lazy.load()
    assert read == []
    maa_jax.Pipeline.from_pretrained(tiny_model).decode(np.zeros((1, 10, 8, 8)), "mel")
    assert read == ["text_encoder", "text_projection", "vae"]


def test_ranking_needs_a_clap(tiny_model, tmp_path, monkeypatch):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(model / "audio_encoder")
    index = json.loads((model / "model_index.json").read_text())
    del index["audio_encoder"]
    (model / "model_index.json").write_text(json.dumps(index))
    deaf = maa_jax.Pipeline.from_pretrained(model)
    monkeypatch.setattr(networks, "load_network", lambda *a, **k: pytest.fail("read weights"))
    with pytest.raises(FolderError, match=r"cannot rank.*audio_encoder/ \(Cnn14\)"):
        deaf("rain", num_candidates=2)


def test_folders_of_other_classes_are_refused(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(
        json.dumps(index | {"_class_name": "StableDiffusionPipeline"})
    )
    with pytest.raises(FolderError, match=r"'StableDiffusionPipeline'.*'MaaPipeline'"):
        maa_jax.Pipeline.from_pretrained(model)
    for dtype in (jnp.int32, "int3", "float8_e4m3fn", 3, "half precision"):
        with pytest.raises(ValueError, match=r"dtype=.*float32 or jnp\.bfloat16"):
            maa_jax.Pipeline.from_pretrained(tiny_model, dtype=dtype)


def test_a_vocoder_of_another_logarithm_is_refused(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "vocoder" / "config.json").read_text())
    (model / "vocoder" / "config.json").write_text(json.dumps(config | {"log": "log"}))
    with pytest.raises(FolderError, match=r"vocoder: log='log' but mel: log='log10'"):
        maa_jax.Pipeline.from_pretrained(model)
