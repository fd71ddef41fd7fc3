import json
import shutil

import jax
import numpy as np
import pytest

from maa_jax.data import datasets
from maa_jax.embed import Embedding, embed
from maa_jax.encoders.text import TextConditioner
from maa_jax.encoders.visual import GlobalConditioner, open_conditioner
from maa_jax.files import FolderError
from maa_jax.model_folder import networks
from maa_jax.models import clip
from maa_jax.stages import make_stage
from tests.tiny_encoders import write_encoder

pytest.importorskip("PIL", reason="pictures need Pillow")
RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (h, w, 3), "u1") for h, w in ((9, 30), (1, 1), (40, 20), (16, 16))]
SENTENCES = ["a crow caws", "", "a dog"]


@pytest.fixture(scope="module")
def folder(tiny_clip):
    return tiny_clip


@pytest.fixture(scope="module")
def conditioners(folder):
    return {
        norm: GlobalConditioner.from_folder(folder, norm=norm) for norm in ("normalized", "none")
    }


def encode(conditioner, condition):
    return np.asarray(jax.jit(conditioner.encode)(conditioner.params, condition))


def test_sentences_and_pictures_are_what_transformers_embeds(folder, conditioners):
    torch = pytest.importorskip("torch", reason="parity needs torch and transformers")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CLIPModel.from_pretrained(folder).eval()
    ours = conditioners["none"]
    ids, seen = ours.prepare(SENTENCES), ours.prepare_images([[p] for p in PICTURES])
    pixels = np.moveaxis(clip.preprocess(PICTURES, ours.image_size), -1, 1)
    with torch.no_grad():
        text = theirs.get_text_features(torch.tensor(ids).long()).pooler_output.numpy()
        given = torch.tensor(pixels.copy())
        pictures = theirs.get_image_features(given).pooler_output.numpy()
    for condition, wanted in ((ids, text), (seen, pictures)):
        for norm, conditioner in conditioners.items():
            lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
            expected = wanted / lengths if norm == "normalized" else wanted
            found = encode(conditioner, condition)
            assert found.shape == (len(wanted), 1, conditioner.width) and found.dtype == np.float32
            np.testing.assert_allclose(found[:, 0], expected, atol=1e-4 * np.abs(expected).max())


def test_a_video_is_the_mean_of_its_pictures_embeddings_of_unit_length(conditioners):
    for norm, conditioner in conditioners.items():
        single = encode(conditioner, conditioner.prepare_images([[p] for p in PICTURES]))[:, 0]
        video = encode(conditioner, conditioner.prepare_images([PICTURES]))[0, 0]
        wanted = single.mean(0)
        wanted = wanted / np.linalg.norm(wanted) if norm == "normalized" else wanted
        np.testing.assert_allclose(video, wanted, atol=1e-5 * np.abs(wanted).max())


def test_an_input_does_not_depend_on_its_batch(conditioners):
    conditioner = conditioners["normalized"]
    inputs = [PICTURES[:1], PICTURES[:3], PICTURES[2:]]
    together = encode(conditioner, conditioner.prepare_images(inputs))
    for i, pictures in enumerate(inputs):
        alone = encode(conditioner, conditioner.prepare_images([pictures]))
        np.testing.assert_allclose(alone[0], together[i], atol=1e-6)


def test_no_input_is_the_empty_sentence(conditioners):
    conditioner = conditioners["normalized"]
    np.testing.assert_array_equal(conditioner.unconditional(), conditioner.prepare([""]))


def test_inputs_that_cannot_be_seen_are_named(conditioners):
    with pytest.raises(ValueError, match="input 1 has no picture"):
        conditioners["none"].prepare_images([PICTURES, []])
    with pytest.raises(ValueError, match=r"300 x 1 pixels.*crop it"):
        conditioners["none"].prepare_images([[np.zeros((1, 300, 3), "u1")]])


def test_a_model_folder_keeps_both_towers_and_states_how_they_are_used(
    folder, conditioners, tmp_path
):
    conditioners["none"].save(tmp_path)
    index = {"conditioning": "global"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    copy = open_conditioner(tmp_path)
    assert isinstance(copy, GlobalConditioner) and copy.norm == "none"
    jax.tree.map(np.testing.assert_array_equal, copy.params, conditioners["none"].params)
    np.testing.assert_array_equal(copy.prepare(SENTENCES), conditioners["none"].prepare(SENTENCES))
    assert open_conditioner(tmp_path, "norm_global").norm == "normalized"
    for index in ({}, {"conditioning": "tokens"}):
        (tmp_path / "model_index.json").write_text(json.dumps(index))
        assert isinstance(open_conditioner(tmp_path), TextConditioner)
    (tmp_path / "model_index.json").write_text('{"conditioning": "pooled"}')
    with pytest.raises(
        FolderError, match=r"conditioning='pooled': expected one of tokens, norm_gl"
    ):
        open_conditioner(tmp_path)


def test_an_encoder_without_an_image_side_or_with_another_tokenizer_is_refused(folder, tmp_path):
    write_encoder("clip", tmp_path / "text")
    with pytest.raises(
        FolderError, match="'CLIPTextModel' does not see pictures; give a whole CLIP"
    ):
        GlobalConditioner.from_folder(tmp_path / "text")
    copy = shutil.copytree(folder, tmp_path / "copy")
    content = json.loads((copy / "config.json").read_text())
    content["text_config"]["eos_token_id"] = 5
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(FolderError, match="never ends a text with the CLIP's eos_token_id=5"):
        GlobalConditioner.from_folder(copy)
    with pytest.raises(ValueError, match="norm='normal': did you mean 'normalized'"):
        GlobalConditioner.from_folder(folder, norm="normal")
    assert networks.load_config(folder, ".").projection_dim == 24


def test_a_run_reads_stored_embeddings_and_its_model_takes_pictures(make_config, tmp_path):
    config = make_config("v2a")
    config.conditioning = "global"
    embed(config, Embedding(out=tmp_path / "contexts"))
    computing = make_stage(config)
    config.text_embeddings = str(tmp_path / "contexts")
    stage = make_stage(config)
    captions = datasets.captions(config.data, "validation")[:2]
    given, computed = (
        s.conditioner.encode(s.conditioner.params, s.prepare_text(captions))
        for s in (stage, computing)
    )
    assert given.shape == (2, 1, 24)
    np.testing.assert_allclose(given, computed, atol=1e-5)

    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    params, extra = jax.tree.map(
        lambda x: np.zeros(x.shape, x.dtype), (shapes.params, shapes.extra)
    )
    extra["latents"]["scale"] = np.float32(1)
    stage.export(params, extra, tmp_path / "model")
    ours = open_conditioner(tmp_path / "model")
    assert isinstance(ours, GlobalConditioner) and ours.norm == "none"
    assert encode(ours, ours.prepare_images([PICTURES[:1]])).shape == (1, 1, 24)

    config.conditioning = "norm_global"  # other embeddings than those that are stored
    with pytest.raises(ValueError, match="holds the contexts of another text encoder"):
        make_stage(config)
