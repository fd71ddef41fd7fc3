import dataclasses

import numpy as np
import pytest

from maa_jax.encoders.batching import Batches
from maa_jax.encoders.classifiers import SoundClassifier
from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.models.cnn14 import Cnn14Config
from maa_jax.models.inception import MelceptionConfig
from maa_jax.models.vggish import VGGishConfig
from tests.conftest import random_network

CNN14 = Cnn14Config(n_mels=16, channels=(2, 3, 4), num_classes=3, labels=("a", "b", "c"))
MELCEPTION = MelceptionConfig(width=1, samples=16_000, frames=32, n_mels=24, num_classes=5)
VGGISH = VGGishConfig(width=1, hidden_size=8, embedding_size=4)


def write(folder, config, name="audio_classifier", seed=0):
    params = random_network(lambda _: networks.abstract(config), seed)
    networks.save_network(folder, name, config, params)
    return folder


def noise(count, samples):
    return np.random.default_rng(0).uniform(-0.5, 0.5, (count, samples)).astype("f")


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        (CNN14, {"embedding": (3, 4), "logits": (3, 3), "clipwise": (3, 3)}),
        (VGGISH, {"embedding": (3, 2, 4), "embedding_linear": (3, 2, 4)}),
        (
            MELCEPTION,
            {
                "embedding": (3, 128),
                "embedding_768": (3, 48),
                "logits": (3, 5),
                "logits_unbiased": (3, 5),
            },
        ),
    ],
)
def test_features_of_a_sound_do_not_depend_on_its_batch(config, shapes, tmp_path):
    classifier = SoundClassifier(write(tmp_path, config), Batches(2))
    wavs = noise(3, 40_000)
    found = classifier.features(wavs)
    assert {k: v.shape for k, v in found.items()} == shapes
    assert all(v.dtype == np.float32 for v in found.values())
    for name, value in classifier.features(wavs[2:]).items():
        np.testing.assert_allclose(found[name][2:], value, atol=1e-6)
    assert classifier.sample_rate == config.sample_rate
    assert classifier.samples == getattr(config, "samples", None)
    assert classifier.labels == (config.labels or ())


def test_only_published_weights_have_their_name_and_others_their_hash(tmp_path):
    open_ = lambda folder: SoundClassifier(folder, Batches(1))
    own = open_(write(tmp_path / "own", CNN14) / "audio_classifier")
    other = open_(write(tmp_path / "other", CNN14, seed=1))
    published = open_(
        write(tmp_path / "published", dataclasses.replace(CNN14, published="cnn14_16k"))
    )
    assert published.name == "cnn14_16k"
    assert own.name.startswith("cnn14_") and len(own.name) == 14 and own.name != other.name
    assert len({own.digest, other.digest, published.digest}) == 3
    assert own.digest == open_(tmp_path / "own").digest  # the folder, or the part alone


def test_a_folder_without_a_classifier_is_refused(tiny_model, tmp_path):
    with pytest.raises(FolderError, match=r"'BigVGAN'|'SpeechT5HifiGan' is no classifier of"):
        SoundClassifier(tiny_model / "vocoder", Batches(1))
    with pytest.raises(FolderError, match="absent"):
        SoundClassifier(tmp_path / "absent", Batches(1))
    with pytest.raises(FolderError, match=r"config\.json"):
        SoundClassifier(tmp_path, Batches(1))
