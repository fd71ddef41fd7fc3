import shutil

import pytest

from maa_jax.files import FolderError
from maa_jax.model_folder import hub
from maa_jax.model_folder.index import load_index


def test_resolve(tiny_model, monkeypatch):
    monkeypatch.setattr(hub, "BUNDLED", tiny_model)
    assert hub.resolve("bundled") == tiny_model
    assert hub.resolve(str(tiny_model)) == tiny_model
    with pytest.raises(ValueError, match=r"model='nowhere'.*no folder.*bundled"):
        hub.resolve("nowhere")


def test_a_model_of_the_hub_is_fetched_or_its_files_are_named(model, tmp_path, monkeypatch):
    library = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, **patterns):
        asked.update(patterns, name=name)
        return str(model / "text_encoder")

    monkeypatch.setattr(library, "snapshot_download", download)
    assert hub.fetch("someone/bert") == model / "text_encoder"
    assert asked["name"] == "someone/bert" and "*.safetensors" in asked["allow_patterns"]
    assert hub.fetch(model) == model
    with pytest.raises(FolderError, match=r"lacks tokenizer\.json\. .*hf download someone"):
        hub.fetch("someone/bert", ("tokenizer.json",))
    with pytest.raises(FolderError, match=r"model='nowhere'.*no folder"):
        hub.fetch("nowhere")

    def offline(name, **patterns):
        raise library.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(library, "snapshot_download", offline)
    with pytest.raises(FolderError) as e:
        hub.fetch("someone/bert", ("tokenizer.json",))
    for part in ("cannot be reached", "config.json, model.safetensors, tokenizer.json", "copy DIR"):
        assert part in str(e.value)


def test_a_model_that_the_hub_lacks_is_named(monkeypatch):
    library = pytest.importorskip("huggingface_hub")
    error = library.errors.RepositoryNotFoundError.__new__(library.errors.RepositoryNotFoundError)

    def download(name, **patterns):
        raise error

    monkeypatch.setattr(library, "snapshot_download", download)
    with pytest.raises(FolderError, match=r"someone/brt.*mistake in the name"):
        hub.fetch("someone/brt")


def test_a_whole_model_of_the_hub(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FolderError, match=r"cannot be reached.*hf download someone/sounds"):
        hub.fetch_model("someone/sounds")
    # The hub's cache as a download leaves it.
    repository = tmp_path / "models--someone--sounds"
    shutil.copytree(tiny_model, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert load_index(hub.fetch_model("someone/sounds"))["sample_rate"] == 16000
    assert hub.fetch_model("bundled") == hub.resolve("bundled")
    shutil.copytree(repository, tmp_path / "models--models--mine")
    for fetch in (hub.fetch, hub.fetch_model):
        with pytest.raises(FolderError, match=r"no folder \S*models/mine"):
            fetch("models/mine")
