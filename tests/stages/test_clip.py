import jax
import numpy as np
import PIL.Image
import pytest

from maa_jax.encoders.visual import GlobalConditioner
from maa_jax.model_folder.index import load_index
from maa_jax.models import clip
from maa_jax.stages.clip import ClipStage, view
from maa_jax.text.tokenizer import build_tokenizer
from maa_jax.training import config as run_config

COLOURS = ("red", "green", "blue", "white")
CAPTIONS = [f"a {colour} picture" for colour in COLOURS]


@pytest.fixture(scope="module")
def config(make_config, tmp_path_factory):
    config = make_config("clip")
    folder = tmp_path_factory.mktemp("tokenizer")
    config.tokenizer = str(folder)
    config.clip.text_config.vocab_size = build_tokenizer(CAPTIONS, folder, 128).vocab_size
    config.clip.text_config.update(hidden_size=16, intermediate_size=32)
    config.clip.vision_config.update(hidden_size=16, intermediate_size=32)
    config.batch_size, config.optimizer.base_lr, config.optimizer.warmup_steps = 4, 1e-2, 0
    return config


@pytest.fixture(scope="module")
def trained(config):
    """A stage, its state after a few steps on one batch, the batch, and the losses."""
    run_config.check(config)
    stage = ClipStage(config)
    squares = [np.array(PIL.Image.new("RGB", (256, 256), colour)) for colour in COLOURS]
    batch = {
        "image": np.stack(squares),
        "index": np.arange(4),
        "text": stage.prepare_text(CAPTIONS),
    }
    train, step = jax.jit(stage.init)(jax.random.key(0)), jax.jit(stage.train_step)
    losses = []
    for i in range(30):
        train, scalars = step(train, {}, batch, jax.random.key(i))
        losses.append(float(scalars["loss"]))
    return stage, train, batch, losses


def test_captions_find_their_pictures_after_a_few_steps(trained):
    stage, train, batch, losses = trained
    assert losses[-1] < 0.3 * losses[0]
    scores = jax.jit(stage.eval_step)(train, {}, batch, jax.random.key(0))
    assert scores["loss"].shape == (4,) and np.all(scores["recall_at_1"] == 1)
    image = jax.jit(stage.summarize)(train, {}, batch, jax.random.key(0))["image/similarity"]
    assert image.shape == (1, 32, 32, 1) and 0 <= image.min() < image.max() <= 1


def test_the_exported_folder_embeds_pictures_near_their_captions(trained, tmp_path):
    stage, train, batch, _ = trained
    stage.export(jax.device_get(train.params), jax.device_get(train.extra), tmp_path)
    load_index(tmp_path, parts=("text_encoder", "tokenizer"))
    ours = GlobalConditioner.from_folder(tmp_path)
    seen = ours.prepare_images([[picture] for picture in batch["image"]])
    words, pictures = (
        np.asarray(ours.encode(ours.params, condition))[:, 0]
        for condition in (ours.prepare(CAPTIONS), seen)
    )
    np.testing.assert_array_equal((words @ pictures.T).argmax(1), np.arange(4))


def test_whole_pictures_are_seen_as_in_use():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (2, 32, 32, 3), "u1")
    pictures = [
        PIL.Image.fromarray(p).resize((256, 256), PIL.Image.Resampling.BICUBIC) for p in small
    ]
    ours = view(np.stack([np.array(p) for p in pictures]), 64)
    # Pillow rounds after each of the two axes.
    np.testing.assert_allclose(ours, clip.preprocess(pictures, 64), atol=2.01 / 255 / 0.26)


def test_crops_lie_inside_the_picture_and_differ():
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None, None], (256, 256, 3))
    pictures = np.stack([ramp] * 8)
    seen = view(pictures, 16, jax.random.key(0), 0.5)
    colours = np.asarray(seen[..., 0]) * 0.26862954 + 0.48145466
    rows = 255 * colours.mean(axis=2)
    assert rows.min() >= 0 and rows.max() <= 255
    parts = (rows[:, -1] - rows[:, 0]) / 240  # of the picture's height
    assert np.all((parts > 0.45) & (parts < 1.02)) and np.ptp(parts) > 0.1


def test_settings_that_do_not_fit_are_named(config):
    changed = config.copy_and_resolve_references()
    changed.clip.vision_config.image_size = 512
    with pytest.raises(ValueError, match=r"image_size=512: .* 256 pixels"):
        ClipStage(changed)
    changed = config.copy_and_resolve_references()
    changed.clip.text_config.vocab_size = 9
    with pytest.raises(ValueError, match=r"vocab_size=9, but the tokenizer in"):
        ClipStage(changed)
    with changed.unlocked():
        changed.clip.text_config.eos_token_id = 3
    with pytest.raises(ValueError, match=r"eos_token_id follows from the tokenizer: leave it out"):
        run_config.check(changed)
