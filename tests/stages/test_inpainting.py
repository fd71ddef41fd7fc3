import jax
import numpy as np
import pytest

import maa_jax
from maa_jax.configs import inpainting
from maa_jax.data import input_pipeline
from maa_jax.data.masks import MASKS
from maa_jax.model_folder import networks
from maa_jax.stages import make_stage
from maa_jax.train import loop


@pytest.fixture(scope="module")
def config(tiny_model, data_dir):
    config = inpainting.get_config("runlocal")
    config.autoencoder = config.text_encoder = config.vocoder = config.init_from = str(tiny_model)
    config.unet.cross_attention_dim = 24
    config.unet.block_out_channels = (16, 32)
    config.unet.num_heads = 2
    config.data.samples = 8192
    config.data.data_dir = data_dir
    return config


def test_a_text_to_audio_model_is_widened_with_zeros(config, tiny_model):
    """At first what surrounds a gap changes nothing."""
    stage = make_stage(config)
    start = stage.start_weights()["unet"]
    assert start["conv_in"]["kernel"].shape[2] == 17
    extra = jax.eval_shape(stage.init, jax.random.key(0)).extra["unet"]
    wide = stage.merge({"unet": start}, {"unet": extra})
    narrow = networks.build(*networks.load_network(tiny_model, "unet"))
    latents = jax.random.normal(jax.random.key(0), (2, 10, 8, 17))
    context = jax.random.normal(jax.random.key(1), (2, 5, 24))
    times = np.array([3, 900])
    want = jax.jit(lambda *a: narrow(*a))(latents[..., :8], times, context)
    got = jax.jit(lambda *a: wide(*a))(latents, times, context)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_it_learns_from_masked_recordings_and_opens_in_diffusers(config, tmp_path):
    stage = make_stage(config)
    batches = input_pipeline.train_iterator(
        config.data,
        batch_size=2,
        seed=0,
        prepare_text=stage.prepare_text,
        draw_mask=stage.draw_mask,
    )
    batch = next(batches)
    assert batch["mask"].shape == (2, 80, 32) and batch["mask"].any()
    state = jax.jit(stage.init)(jax.random.key(0))
    state = state.replace(params=stage.start_weights())
    loss = jax.jit(lambda *args: stage.loss(*args)[0])
    args = state.params, state.extra, stage.load_frozen()
    assert np.isfinite(loss(*args, batch, jax.random.key(1)))

    stage.export(state.params, state.extra, tmp_path / "model")
    pipe = maa_jax.Pipeline.from_pretrained(tmp_path / "model")
    wav = 0.1 * np.random.default_rng(0).normal(size=6000).astype("f")
    out = pipe("rain", audio=wav, mask="0.1-0.2", steps=2)[0]
    np.testing.assert_array_equal(out[:1000], wav[:1000])
    diffusers = pytest.importorskip("diffusers", reason="opens the U-Net with diffusers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model", subfolder="unet")
    assert unet.config.in_channels == 17


def test_masks_depend_on_the_seed_and_the_place_alone(config):
    stage = make_stage(config)
    mask = stage.draw_mask
    first, again, other = (mask(np.random.default_rng((0, place))) for place in (3, 3, 4))
    assert first.shape == (80, 32) and first.dtype == bool
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("masks.names", ("thik",), "thick"),
        ("masks.everything", 1.5, "everything"),
        ("latents", "stored", "config.latents='stored': masks are drawn on recordings"),
        ("unet.in_channels", 8, "has 8 latent channels: set it to 17"),
    ],
)
def test_mistakes_are_named(config, tmp_path, key, value, error):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=error):
        loop.train(config, str(tmp_path))


def test_every_row_of_table_2_has_its_masks():
    for name in MASKS:
        assert inpainting.get_config(name).masks.names == (name,)
