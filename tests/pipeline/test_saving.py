import pathlib
import re
import shutil

import pytest

import maa_jax
from maa_jax.files import FolderError
from maa_jax.model_folder.index import content_hash, networks_in, save_index


def test_saving_writes_the_folder_and_a_card(tiny_model, tmp_path):
    source = shutil.copytree(tiny_model, tmp_path / "source")
    save_index(
        source,
        license="cc0-1.0",
        data="130 recordings.",
        scores={"top 1": 0.5},
        training={"steps": 3, "unet": {"width": 16}},
    )
    lazy = maa_jax.Pipeline.from_pretrained(source)
    lazy.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "README.md").is_file()
    files = lambda root: {p.relative_to(root) for p in root.rglob("*")}
    assert {str(p) for p in files(tmp_path / "saved") - files(source)} == {"README.md"}
    card = (tmp_path / "saved" / "README.md").read_text()
    for line in (
        "license: cc0-1.0", "pipeline_tag: text-to-audio", "130 recordings.", "| top 1 | 0.5 |",
        '    "width": 16', "sounds of up to 2.048 s at 16000 Hz.",
    ):  # fmt: skip
        assert line in card.splitlines()
    assert re.search(r"\| unet \| UNet2DConditionModel \| [\d,]{5,} \|", card)
    maa_jax.Pipeline.from_pretrained(tmp_path / "saved").save_pretrained(tmp_path / "saved2")
    assert content_hash(tmp_path / "saved") == content_hash(tmp_path / "saved2")

    with pytest.raises(ValueError, match=r"is the model's own"):
        lazy.save_pretrained(source)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").touch()
    with pytest.raises(ValueError, match=r"home.*holds something other than a model"):
        lazy.save_pretrained(tmp_path / "home")
    assert (tmp_path / "home" / "thesis").exists()


# What a user may keep in a model folder, in the folders of its networks too.
KEPT = (".git/config", "notes.txt", "notes/heard.json", "vae/why.md", "README.md")


KEPT += ("unet/my_notes.json", "vocoder/config_v1.json", "vocoder/w.safetensors")


def test_saving_over_a_model_keeps_what_is_not_the_model_s(tiny_model, tmp_path):
    model = maa_jax.Pipeline.from_pretrained(tiny_model)
    model.save_pretrained(tmp_path / "disk" / "saved")
    saved = tmp_path / "saved"
    saved.symlink_to(tmp_path / "disk" / "saved")
    (tmp_path / "disk" / "unet").mkdir()
    shutil.rmtree(saved / "unet")
    (saved / "unet").symlink_to(tmp_path / "disk" / "unet")
    for note in KEPT:
        (saved / note).parent.mkdir(exist_ok=True)
        (saved / note).write_text("mine")
    (saved / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    shutil.copytree(saved / "vocoder", saved / "clap")  # a part that the new model lacks
    save_index(saved)

    model.save_pretrained(saved)
    for note in KEPT:
        assert (saved / note).read_text() == "mine"
    assert saved.is_symlink() and (saved / "unet").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "saved"]
    assert sorted(p.name for p in (tmp_path / "disk").iterdir()) == ["saved", "unet"]
    assert networks_in(saved) == networks_in(tiny_model)
    for path in tiny_model.rglob("*.*"):
        assert (saved / path.relative_to(tiny_model)).read_bytes() == path.read_bytes()
    # A stale index of shards would be read by diffusers.
    assert not (saved / "vae" / "diffusion_pytorch_model.safetensors.index.json").exists()


def test_an_interrupted_copy_is_no_model_and_can_be_repeated(tiny_model, tmp_path, monkeypatch):
    model, saved = maa_jax.Pipeline.from_pretrained(tiny_model), tmp_path / "saved"
    with monkeypatch.context() as patch:
        copy = shutil.copyfile

        def full_disk(source, *args, **kwargs):
            if source.parent.name == "vocoder":
                raise OSError(28, "No space left on device")
            return copy(source, *args, **kwargs)

        patch.setattr(shutil, "copyfile", full_disk)
        with pytest.raises(OSError, match="No space"):
            model.save_pretrained(saved)
    with pytest.raises(FolderError, match=r"model_index\.json is missing"):
        maa_jax.Pipeline.from_pretrained(saved)
    model.save_pretrained(saved)
    maa_jax.Pipeline.from_pretrained(saved)


def test_upload(tiny_model, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, repo_id, **settings):
            calls.append((repo_id, settings))

        def upload_folder(self, *, repo_id, folder_path):
            calls.append((repo_id, {p.name for p in pathlib.Path(folder_path).iterdir()}))
            return "https://huggingface.co/someone/sounds"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = maa_jax.Pipeline.from_pretrained(tiny_model).push_to_hub("someone/sounds")
    assert address == "https://huggingface.co/someone/sounds"
    (repo, settings), (_, names) = calls
    assert (repo, settings["private"]) == ("someone/sounds", False)
    assert {"README.md", "model_index.json", "unet", "vocoder"} <= names
