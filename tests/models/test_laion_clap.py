import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.models import htsat
from maa_jax.models.bert import Roberta, RobertaConfig
from maa_jax.models.clap import LaionClap, LaionClapConfig
from tests.models import parity

TEXT = RobertaConfig(
    vocab_size=90, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=48, max_position_embeddings=24,
)  # fmt: skip
AUDIO = htsat.HtsatConfig(
    num_mel_bins=16, spec_size=32, window_size=4, patch_size=4, patch_embeds_hidden_size=8,
    hidden_size=16, depths=(2, 2), num_attention_heads=(2, 4),
)  # fmt: skip
UNFUSED = LaionClapConfig(TEXT, AUDIO, 12)
FUSED = LaionClapConfig(
    dataclasses.replace(TEXT, hidden_size=24, num_hidden_layers=1),
    dataclasses.replace(
        AUDIO, spec_size=64, window_size=2, patch_size=6, hidden_size=48,
        patch_embeds_hidden_size=12, depths=(2, 1, 1), num_attention_heads=(2, 2, 4),
        enable_fusion=True, aff_block_r=3,
    ),
    8,
)  # fmt: skip


def reference(config):
    pytest.importorskip("torch", reason="parity with transformers' ClapModel needs torch")
    transformers = pytest.importorskip("transformers")
    return parity.randomise(transformers.ClapModel(transformers.ClapConfig(**config.to_hf())))


@pytest.mark.parametrize(
    "config",
    [pytest.param(UNFUSED, marks=pytest.mark.slow), FUSED],
    ids=["unfused", "fused"],
)
def test_agrees_with_transformers(config):
    theirs = reference(config)
    import torch

    ours = parity.load(LaionClap, config, parity.arrays(theirs))
    fast = parity.load(LaionClap, config, parity.arrays(theirs), dtype=jnp.bfloat16)
    for n in (6, 22):
        ids, mask = parity.ids_and_masks(90, (n, n // 2, 2), n)
        ids[mask == 0] = 1
        given = (torch.tensor(ids), torch.tensor(mask))
        with torch.no_grad():
            hidden = theirs.text_model(*given).last_hidden_state.numpy()
            embedding = theirs.get_text_features(*given).pooler_output.numpy()
        parity.assert_close(ours.text_model(ids, mask), hidden)
        parity.assert_close(ours.text_embedding(ids, mask), embedding)
    parity.assert_close(fast.text_embedding(ids, mask), embedding, 0.05)

    rng, audio = np.random.default_rng(0), config.audio_config
    for frames in (audio.frames - 9, audio.frames):  # the former is stretched
        mels = rng.normal(-40, 20, (3, audio.channels, frames, audio.num_mel_bins)).astype("f")
        longer = np.array([True, False, True]) if audio.enable_fusion else None
        with torch.no_grad():
            embedding = theirs.get_audio_features(
                torch.tensor(mels), is_longer=None if longer is None else torch.tensor(longer)
            ).pooler_output.numpy()
        parity.assert_close(ours.audio_embedding(mels, longer), embedding)
    parity.assert_close(fast.audio_embedding(mels, longer), embedding, 0.1)


def test_published_sizes():
    state = parity.abstract(LaionClap, LaionClapConfig())[1]
    text = parity.abstract(Roberta, RobertaConfig())[1]
    assert parity.count(text) == 124_645_632  # roberta-base with its pooler
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    with torch.device("meta"):
        theirs = transformers.ClapModel(transformers.ClapConfig())
    shapes = {k: tuple(v.shape) for k, v in theirs.state_dict().items()}
    floats = {k: s for k, s in shapes.items() if not LaionClap.UNUSED.fullmatch(k)}
    floats = {k: s for k, s in floats.items() if not k.endswith("position_ids")}
    assert parity.count(state) == sum(int(np.prod(s)) for s in floats.values())


def test_config_is_read_back_from_json():
    for config in (UNFUSED, FUSED):
        assert LaionClapConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    transformers = pytest.importorskip("transformers")
    assert LaionClapConfig.from_hf(transformers.ClapConfig().to_dict()) == LaionClapConfig()


def test_config_refuses_what_the_network_lacks():
    wrong = (
        (LaionClapConfig, {"model_type": "clip"}, "model_type='clip'"),
        (LaionClapConfig, {"model_type": "clap", "projection_hidden_act": "gelu"}, "hidden_act"),
        (htsat.HtsatConfig, {"qkv_bias": False}, "qkv_bias=False"),
        (htsat.HtsatConfig, {"fusion_type": "channel_map"}, "channel_map"),
        (htsat.HtsatConfig, {"spec_size": 200}, "a multiple of 256"),
        (htsat.HtsatConfig, {"hidden_size": 512}, "hidden_size=512: 768"),
    )
    for config, content, message in wrong:
        with pytest.raises(ValueError, match=message):
            config.from_hf(content)


def test_wrong_spectrograms_are_refused():
    network = nnx.merge(*parity.abstract(htsat.Htsat, FUSED.audio_config))
    with pytest.raises(ValueError, match=r"need \[b, 4, frames, 16\]"):
        network(np.zeros((1, 1, 100, 16)))
    with pytest.raises(ValueError, match="257 frames exceed the 256"):
        network(np.zeros((1, 4, 257, 16)))
    with pytest.raises(ValueError, match="is_longer is missing"):
        network(np.zeros((1, 4, 100, 16)))


def test_prompts_longer_than_the_positions_are_refused():
    network = nnx.merge(*parity.abstract(Roberta, TEXT))
    with pytest.raises(ValueError, match="23 tokens exceed the 22"):
        network(np.zeros((1, 23), int))
