import dataclasses
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from maa_jax.encoders.clap import ClapScore, check_folder
from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.models.bert import RobertaConfig
from maa_jax.models.clap import LaionClap, LaionClapConfig
from maa_jax.models.cnn14 import Cnn14
from maa_jax.models.htsat import HtsatConfig
from tests.conftest import random_network
from tests.tiny_encoders import t5_tokenizer

FEATURES = {
    "feature_size": 16, "sampling_rate": 8000, "hop_length": 800, "max_length_s": 1,
    "fft_window_size": 256, "frequency_max": 4000, "truncation": "rand_trunc",
}  # fmt: skip


@pytest.fixture(scope="module")
def laion(tmp_path_factory):
    """A tiny LAION CLAP as its folder on the hub."""
    folder = tmp_path_factory.mktemp("hub") / "laion"
    tokenizer, settings = t5_tokenizer()
    text = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=32, pad_token_id=0,
    )  # fmt: skip
    audio = HtsatConfig(
        num_mel_bins=16, spec_size=16, window_size=2, patch_size=4, patch_embeds_hidden_size=8,
        hidden_size=8, depths=(1,), num_attention_heads=(2,),
    )  # fmt: skip
    config = LaionClapConfig(text, audio, 12)
    params = random_network(lambda rngs: LaionClap(config, rngs=rngs), 0)
    networks.save_network(folder.parent, folder.name, config, params)
    weights = load_file(folder / "model.safetensors")  # temperatures are scalars in LAION's files
    weights |= {k: x.reshape(()) for k, x in weights.items() if k.startswith("logit_scale")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(FEATURES))
    return folder


def test_a_laion_clap_scores_from_its_own_folder_and_inside_a_model(laion, tiny_model, tones):
    score = ClapScore(laion)
    assert score.sample_rate == 8000
    captions = ["a crow caws", "rain falls on a tin roof"]
    words = score.text_embeddings(captions)
    sounds = score.audio_embeddings(tones, 16000)
    np.testing.assert_allclose(np.linalg.norm([*words, *sounds], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        score(captions, tones, 16000), np.sum(words * sounds, axis=1), atol=1e-6
    )
    # A short sound is repeated, regardless of the silence after it.
    short = np.pad(tones[:, :4000], ((0, 0), (0, 4000)))
    np.testing.assert_allclose(
        score.audio_embeddings(short[:, ::2], 8000),
        score.audio_embeddings(short[:, :4000:2], 8000),
        atol=1e-5,
    )
    model = tiny_model.parent / "with_laion"
    model.mkdir()
    (model / "text_encoder").symlink_to(tiny_model / "text_encoder")
    with pytest.raises(FolderError, match=r"lacks CLAP's text_projection/.*as clap/"):
        check_folder(model)
    (model / "clap").symlink_to(laion)
    assert ClapScore(model).sample_rate == 8000


@pytest.mark.parametrize("rate", [44100, 16000])
def test_the_released_clap_hears_short_sounds_repeated_to_five_seconds(tiny_model, tmp_path, rate):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = networks.load_config(model, "audio_encoder")
    config = dataclasses.replace(config, sample_rate=rate, hop_length=1024, n_fft=2048)
    params = random_network(lambda rngs: Cnn14(config, rngs=rngs), 0)
    networks.save_network(model, "audio_encoder", config, params)
    t = np.arange(6 * rate) / rate
    long = np.sin(2 * np.pi * 300 * t + 5 * t**2)[None].astype("f")
    heard = lambda wavs: ClapScore(model).audio_embeddings(wavs, rate)
    cut = np.pad(long[:, : 2 * rate], ((0, 0), (0, rate)))  # 2 s, and a second of digital silence
    repeated = np.concatenate([long[:, : 2 * rate]] * 3, axis=1)[:, : 5 * rate]
    difference = np.abs(heard(cut) - heard(repeated)).max()
    assert (difference < 1e-6) == (rate == 44100)
    assert np.abs(heard(long) - heard(long[:, : 5 * rate])).max() > 1e-3  # no cropping
    assert np.isfinite(heard(np.zeros((1, 10), "f"))).all()


def test_a_laion_clap_without_its_front_end_is_refused(laion, tmp_path):
    (tmp_path / "config.json").write_text((laion / "config.json").read_text())
    with pytest.raises(FolderError, match=r"lacks tokenizer.json and preprocessor_config"):
        check_folder(tmp_path)
