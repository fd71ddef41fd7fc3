import os
import shutil

import pytest

from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import content_hash, copy_folder, load_index, save_index
from maa_jax.model_folder.model import read_model


def test_index_lists_the_parts_and_keeps_other_entries(model):
    index = load_index(model, parts=("unet",), meta=("sample_rate",))
    assert index["_class_name"] == "MaaPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vocoder"] == ["transformers", "SpeechT5HifiGan"]
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    shutil.rmtree(model / "audio_encoder")
    save_index(model, max_duration=1.0)
    index = load_index(model)
    assert (index["max_duration"], index["sample_rate"]) == (1.0, 16000)
    assert "audio_encoder" not in index


def test_a_cache_of_links_to_blobs_is_read_and_copied_as_files(model, tmp_path):
    snapshot = tmp_path / "hub" / "models--someone--sounds" / "snapshots" / "abc"
    blobs = snapshot.parents[1] / "blobs"
    blobs.mkdir(parents=True)
    for i, path in enumerate(sorted(p for p in model.rglob("*") if p.is_file())):
        link = snapshot / path.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(path, blobs / str(i))
        link.symlink_to(os.path.relpath(blobs / str(i), link.parent))
    read_model(snapshot)
    networks.load_network(snapshot, "vocoder")
    copy_folder(snapshot, tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    assert content_hash(tmp_path / "copy") == content_hash(snapshot)


def test_links_out_of_a_folder_are_not_copied(model, tmp_path):
    (tmp_path / "secret").write_text("mine")
    (model / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(FolderError, match=r"LICENSE.*outside"):
        copy_folder(model, tmp_path / "copy")
    assert not (tmp_path / "copy" / "LICENSE").exists()


def test_content_hash_sees_parts_that_are_links(model, tmp_path):
    before = content_hash(model)
    part = next(path.parent for path in model.glob("*/config.json"))
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    assert content_hash(model) == before
    (tmp_path / "elsewhere" / "config.json").write_text("{}")
    assert content_hash(model) != before


def test_content_hash_sees_every_byte(model):
    before = content_hash(model)
    assert before == content_hash(model)
    path = model / "vocoder" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert content_hash(model) != before
