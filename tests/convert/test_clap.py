import numpy as np
import pytest
from flax import nnx

from maa_jax.convert import clap as names
from maa_jax.model_folder.torch_layout import from_torch, to_torch
from maa_jax.models.clap import Clap
from maa_jax.models.rngs import InitRngs
from tests.models.test_clap import TINY


@pytest.fixture(scope="module")
def clap():
    return Clap(TINY, rngs=InitRngs(0))


def released(clap):
    """The clap's weights under the released file's names, with the file's other entries."""
    tensors = {}
    for folder, start in names.PREFIXES.items():
        part = to_torch(nnx.to_pure_dict(nnx.state(getattr(clap, folder))))
        tensors |= {start + k: v for k, v in part.items()}
    return tensors | {
        "logit_scale": np.asarray(clap.logit_scale[...]),
        "caption_encoder.base.pooler.dense.weight": np.zeros((48, 48)),
        "caption_encoder.base.pooler.dense.bias": np.zeros(48),
        "caption_encoder.base.embeddings.position_ids": np.arange(100)[None],
        "audio_encoder.base.spectrogram_extractor.stft.conv_real.weight": np.zeros((3, 1, 4)),
        "audio_encoder.base.logmel_extractor.melW": np.zeros((3, 2)),
        "audio_encoder.base.bn0.num_batches_tracked": np.array(7),
    }


def test_released_weights_fill_the_networks_and_come_back(clap):
    given = released(clap)
    networks = names.from_released(given)
    assert set(networks) == {*names.PREFIXES, "logit_scale"}
    for folder in names.PREFIXES:
        params = from_torch(getattr(clap, folder), networks[folder])  # strict
        assert set(to_torch(params)) == set(networks[folder])
    back = names.to_released(networks)
    unused = ("pooler", "position_ids", "extractor", "num_batches_tracked")
    assert set(given) - set(back) == {k for k in given if any(u in k for u in unused)}
    for name, value in back.items():
        np.testing.assert_array_equal(value, given[name])


def test_the_denoiser_checkpoints_part_is_its_text_tower(clap):
    prefix = "cond_stage_model."
    part = {prefix + k: v for k, v in released(clap).items() if k.startswith("caption_encoder.")}
    networks = names.from_released(part, prefix=prefix)
    assert set(networks) == {"text_encoder", "text_projection"}
    from_torch(clap.text_encoder, networks["text_encoder"])


def test_unknown_names_are_listed(clap):
    with pytest.raises(ValueError, match=r"image_encoder\.a, image_encoder\.b"):
        names.from_released({**released(clap), "image_encoder.b": 0, "image_encoder.a": 0})


def test_bert_checkpoints_of_the_hub_fit(clap):
    old = {}
    for name, value in to_torch(nnx.to_pure_dict(nnx.state(clap.text_encoder))).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old["bert." + name.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    old["cls.predictions.bias"] = np.zeros(120)
    old["bert.pooler.dense.bias"] = np.zeros(48)
    from_torch(clap.text_encoder, names.from_bert(old))
