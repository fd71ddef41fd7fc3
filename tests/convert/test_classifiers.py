"""Files in the layouts of the published classifiers, small, become model folders."""

import dataclasses
import hashlib

import numpy as np
import pytest

from maa_jax.audio.mel import mel_filters
from maa_jax.convert import classifiers, folders
from maa_jax.model_folder import networks, torch_layout
from maa_jax.model_folder.index import load_index
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.models.inception import MelceptionConfig
from maa_jax.models.vggish import VGGishConfig
from tests.conftest import random_network

torch = pytest.importorskip("torch")

SMALL = {
    "melception": MelceptionConfig(width=1, num_classes=7),
    "cnn14_16k": Cnn14Config(channels=(2, 3, 4), num_classes=7),
    "cnn14_32k": dataclasses.replace(Cnn14Config.panns_32k(), channels=(2, 3, 4), num_classes=7),
    "vggish": VGGishConfig(width=1, hidden_size=8, embedding_size=4),
}


BINS = np.stack([np.linspace(0.1, 0.4, 80), np.linspace(0.01, 0.02, 80)], axis=1)


@pytest.fixture(scope="module")
def weights():
    """{name: the tensors of a small network, as PyTorch names them}."""
    return {
        name: torch_layout.to_torch(random_network(lambda _, c=c: networks.abstract(c), 0))
        for name, c in SMALL.items()
    }


def write(folder, name, tensors):
    """Writes a file as it is published, with all that it holds beside the weights."""
    state = {k: v for k, v in tensors.items() if not k.startswith("mel_norm")}
    if name.startswith("cnn14"):
        state |= {
            "spectrogram_extractor.stft.conv_real.weight": np.zeros((3, 1, 4), "f"),
            "logmel_extractor.melW": mel_filters(SMALL[name].mel()),
            "bn0.num_batches_tracked": np.array(7),
        }
    if name == "melception":
        state |= {"AuxLogits.fc.weight": np.zeros((7, 3), "f")}
        np.savetxt(folder / "statistics.txt", BINS, fmt="%0.8f")
    state = {k: torch.from_numpy(np.array(v)) for k, v in state.items()}
    beside = {"metrics": {"mAP": np.float64(0.4)}, "epoch": 3, "sampler": [np.arange(4)]}
    content = state if name == "vggish" else {"model": state, **beside}
    # PANNs' files are older than PyTorch's archives.
    archive = not name.startswith("cnn14")
    torch.save(content, folder / f"{name}.pth", _use_new_zipfile_serialization=archive)


def convert(folder, name, **more):
    statistics = str(folder / "statistics.txt") if name == "melception" else ""
    how = dict(checkpoint=str(folder / f"{name}.pth"), mel_statistics=statistics) | more
    found = folders.classifier_to_folder(str(folder / "model"), **how)
    load_index(found, parts=("audio_classifier",))
    return found


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_of_a_published_file_is_kept(name, weights, tmp_path):
    write(tmp_path, name, weights[name])
    folder = convert(tmp_path, name)
    assert networks.load_config(folder, "audio_classifier") == SMALL[name]
    found = torch_layout.to_torch(networks.load_network(folder, "audio_classifier")[1])
    expected = dict(weights[name])
    if name == "melception":
        mean, deviation = BINS.T
        expected["mel_norm.running_mean"] = mean.astype("f")
        expected["mel_norm.running_var"] = (deviation**2).astype("f")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SMALL)
def test_only_the_published_files_have_a_published_name(name, weights, tmp_path, monkeypatch):
    def published(**more):
        return networks.load_config(convert(tmp_path, name, **more), "audio_classifier").published

    write(tmp_path, name, weights[name])
    kind = "sha256" if name == "vggish" else "md5"
    digest = lambda path: hashlib.new(kind, path.read_bytes()).hexdigest()
    monkeypatch.setattr(classifiers, "PUBLISHED", {digest(tmp_path / f"{name}.pth"): name})
    if name == "melception":
        assert published() is None  # with other statistics
        monkeypatch.setattr(classifiers, "STATISTICS", digest(tmp_path / "statistics.txt"))
    assert published() == name
    assert published(dtype="float16") is None
    write(tmp_path, name, {k: v + 1e-3 for k, v in weights[name].items()})
    assert published() is None


def test_mistakes_are_named(weights, tmp_path):
    for name in SMALL:
        write(tmp_path, name, weights[name])
    with pytest.raises(ValueError, match="--mel_statistics is missing: a Melception needs"):
        convert(tmp_path, "melception", mel_statistics="")
    with pytest.raises(ValueError, match="only a Melception has some; leave it out"):
        convert(tmp_path, "vggish", mel_statistics=str(tmp_path / "statistics.txt"))
    for text, what in (("a b", "cannot be read"), ("1 2 3", "a row for each mel bin")):
        (tmp_path / "statistics.txt").write_text(text)
        with pytest.raises(ValueError, match=f"statistics.txt: .*{what}"):
            convert(tmp_path, "melception")
    (tmp_path / "statistics.txt").write_text("0.5 0.1\n" * 64)
    with pytest.raises(ValueError, match=r"shape of mel_norm.running_mean: \(64,\)"):
        convert(tmp_path, "melception")

    spoilt = {k: v for k, v in weights["vggish"].items() if k != "features.3.bias"}
    write(tmp_path, "vggish", spoilt | {"features.4.bias": np.zeros(3, "f")})
    with pytest.raises(ValueError, match=r"missing: features\.3\.bias, no place for: features\.4"):
        convert(tmp_path, "vggish")
    write(tmp_path, "vggish", {"w": np.zeros(3, "f")})
    with pytest.raises(ValueError, match=r"vggish\.pth: no classifier that is known"):
        convert(tmp_path, "vggish")
    assert not (tmp_path / "model").exists()


def test_a_cnn14_of_another_front_end_is_refused(weights, tmp_path, monkeypatch):
    other = Cnn14Config.clap_2022()
    monkeypatch.setitem(SMALL, "cnn14_32k", other)
    write(tmp_path, "cnn14_32k", weights["cnn14_32k"])
    with pytest.raises(ValueError, match="not the mel filters of PANNs at 16 or 32 kHz"):
        convert(tmp_path, "cnn14_32k")
