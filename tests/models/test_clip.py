import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from maa_jax.models import clip
from tests.models import parity

TEXT = clip.ClipTextConfig(
    vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=20, eos_token_id=89, bos_token_id=88,
)  # fmt: skip
VISION = clip.ClipVisionConfig(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
    image_size=16, patch_size=8,
)  # fmt: skip
TINY = clip.ClipConfig(TEXT, VISION, 12)
OTHER = clip.ClipConfig(
    dataclasses.replace(TEXT, hidden_size=24, num_hidden_layers=3, hidden_act="gelu"),
    dataclasses.replace(VISION, num_hidden_layers=1, hidden_act="gelu", patch_size=4),
    8,
)


def reference(config):
    pytest.importorskip("torch", reason="parity with transformers' CLIPModel needs torch")
    transformers = pytest.importorskip("transformers")
    return parity.randomise(transformers.CLIPModel(transformers.CLIPConfig(**config.to_hf())))


def prompts(lengths, n):
    ids, mask = parity.ids_and_masks(88, lengths, n)
    ids[mask == 0] = 89  # CLIP pads with the token that ends the text
    ids[np.arange(len(lengths)), np.array(lengths) - 1] = 89
    return ids, mask


@pytest.mark.parametrize("config", [TINY, OTHER], ids=["quick_gelu", "gelu"])
def test_agrees_with_transformers(config):
    theirs = reference(config)
    import torch

    tensors = parity.arrays(theirs)
    ours = parity.load(clip.ClipModel, config, tensors)
    text = parity.load(clip.ClipTextModel, config.text_config, tensors)
    vision = parity.load(clip.ClipVisionModel, config.vision_config, tensors)
    fast = parity.load(clip.ClipModel, config, tensors, dtype=jnp.bfloat16)
    for n in (6, 20):
        ids, mask = prompts((n, n // 2, 2), n)
        for m in (None, mask):
            given = (torch.tensor(ids), None if m is None else torch.tensor(m))
            with torch.no_grad():
                hidden = theirs.text_model(*given).last_hidden_state.numpy()
                features = theirs.get_text_features(*given).pooler_output.numpy()
            parity.assert_close(text(ids, m), hidden)
            parity.assert_close(ours.text_features(ids, m), features)
    parity.assert_close(fast.text_features(ids, m).astype(jnp.float32), features, 0.05)

    pixels = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype("f")
    with torch.no_grad():
        given = torch.tensor(pixels.transpose(0, 3, 1, 2))
        seen = theirs.vision_model(given)
        features = theirs.get_image_features(given).pooler_output.numpy()
    parity.assert_close(vision(pixels)[0], seen.last_hidden_state.numpy())
    parity.assert_close(vision(pixels)[1], seen.pooler_output.numpy())
    parity.assert_close(ours.image_features(pixels), features)
    parity.assert_close(fast.image_features(pixels).astype(jnp.float32), features, 0.05)


def test_a_tower_opens_by_itself_with_either_kind_of_name():
    theirs = reference(TINY)
    tower = parity.arrays(theirs.text_model)  # names without `text_model.`
    ids, _ = prompts((5,), 6)
    whole = parity.load(clip.ClipTextModel, TEXT, parity.arrays(theirs))
    alone = parity.load(clip.ClipTextModel, TEXT, tower)
    np.testing.assert_array_equal(alone(ids), whole(ids))


def test_the_end_of_text_of_the_first_files_is_the_largest_id():
    old = dataclasses.replace(TINY, text_config=dataclasses.replace(TEXT, eos_token_id=2))
    theirs = reference(old)
    import torch

    ours = parity.load(clip.ClipModel, old, parity.arrays(theirs))
    ids, _ = prompts((6, 3), 6)
    with torch.no_grad():
        features = theirs.get_text_features(torch.tensor(ids)).pooler_output.numpy()
    parity.assert_close(ours.text_features(ids), features)


def test_images_are_preprocessed_as_by_transformers():
    pil = pytest.importorskip("PIL.Image")
    path = "transformers.models.clip.image_processing_pil_clip"
    processor = pytest.importorskip(path).CLIPImageProcessorPil()
    rng = np.random.default_rng(0)
    images = [
        pil.fromarray(rng.integers(0, 256, shape, np.uint8))
        for shape in ((300, 401, 3), (250, 100, 3), (224, 224), (90, 91, 4))
    ]
    theirs = processor(images=images, return_tensors="np")["pixel_values"]
    ours = clip.preprocess(images)
    assert ours.shape == (4, 224, 224, 3) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), atol=1e-5)


def test_published_sizes():
    sizes = (
        (clip.ClipModel, clip.ClipConfig(), 151_277_313),
        (clip.ClipModel, clip.ClipConfig.large(), 427_616_513),
        (clip.ClipTextModel, clip.ClipTextConfig.large(), 123_060_480),
    )
    for network, config, count in sizes:
        assert parity.count(parity.abstract(network, config)[1]) == count


def test_configs_are_read_back_from_json():
    for config in (TINY, TEXT, VISION):
        assert type(config).from_hf(json.loads(json.dumps(config.to_hf()))) == config
    # A tower's sizes out of a whole CLIP's file; the first files held them twice.
    assert clip.ClipTextConfig.from_hf(TINY.to_hf()) == TEXT
    old = TINY.to_hf() | {"text_config": {}, "text_config_dict": TEXT.to_hf()}
    assert clip.ClipConfig.from_hf(old) == TINY


def test_config_refuses_what_the_network_lacks():
    with pytest.raises(ValueError, match="hidden_act='relu': give one of"):
        clip.ClipTextConfig.from_hf(TEXT.to_hf() | {"hidden_act": "relu"})
    with pytest.raises(ValueError, match="model_type='siglip'"):
        clip.ClipTextConfig.from_hf({"model_type": "siglip"})
    with pytest.raises(ValueError, match="num_attention_heads=5"):
        clip.ClipVisionConfig(num_attention_heads=5)


def test_inputs_of_another_size_are_refused():
    text = parity.abstract(clip.ClipTextModel, TEXT)
    vision = parity.abstract(clip.ClipVisionModel, VISION)
    with pytest.raises(ValueError, match="21 tokens exceed"):
        nnx.merge(*text)(np.zeros((1, 21), int))
    with pytest.raises(ValueError, match=r"image_size=16: need \(16, 16, 3\)"):
        nnx.merge(*vision)(np.zeros((1, 8, 16, 3)))
