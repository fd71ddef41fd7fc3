import pickle

import jax
import numpy as np
import pytest

from configs import t2a
from maa_jax.data import datasets, input_pipeline
from maa_jax.data.text_embeddings import Contexts, write
from maa_jax.embed import Embedding, embed
from maa_jax.stages import make_stage

CAPTIONS = [f"sound {i}" for i in range(11)]


def encode(captions):
    return np.stack([np.full((77, 3), float(c.split()[-1])) for c in captions])


def test_processes_share_the_captions_and_readers_find_them(tmp_path):
    counts = [
        write(tmp_path, CAPTIONS + CAPTIONS[:2], encode, text_encoder="t5", batch_size=4,
              process_index=i, process_count=2)
        for i in range(2)
    ]  # fmt: skip
    assert counts == [6, 5]
    contexts = Contexts(tmp_path)
    assert (contexts.width, contexts.text_encoder) == (3, "t5")
    got = contexts(["sound 7", "sound 0", "sound 7"])
    assert got.shape == (3, 77, 3) and got.dtype == np.float16
    np.testing.assert_array_equal(got, encode(["sound 7", "sound 0", "sound 7"]))
    data = pickle.dumps(contexts)
    assert len(data) < 1000  # without the contexts: every worker gets a copy
    np.testing.assert_array_equal(pickle.loads(data)(["sound 7"]), got[:1])
    with pytest.raises(ValueError, match="no context for 'a bell', 'a gong': write it again"):
        contexts(["sound 7", "a bell", "a gong"])


def test_what_a_folder_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"index\.json is missing; .*maa_jax\.embed"):
        Contexts(tmp_path)
    write(tmp_path, CAPTIONS, encode, text_encoder="t5", process_index=0, process_count=3)
    with pytest.raises(ValueError, match=r"lacks contexts-00001-of-00003\.npy, .*00002-of-00003"):
        Contexts(tmp_path)
    with pytest.raises(ValueError, match="fewer captions"):
        write(tmp_path, ["one"], encode, text_encoder="t5", process_index=1, process_count=2)


def test_a_run_reads_the_contexts_that_it_would_compute(tiny_model, data, tmp_path):
    config = t2a.get_config("runlocal")
    config.autoencoder = config.text_encoder = str(tiny_model)
    config.unet.cross_attention_dim = 24
    config.data.update(data)
    captions = {c for split in ("train", "validation") for c in datasets.captions(data, split)}
    count = embed(config, Embedding(out=tmp_path / "contexts"))
    assert count == len(captions | {"", *config.summary.prompts})

    computing = make_stage(config)
    config.text_embeddings = str(tmp_path / "contexts")
    reading = make_stage(config)
    batch = next(
        input_pipeline.train_iterator(data, batch_size=2, seed=0, prepare_text=reading.prepare_text)
    )
    captions = sorted(captions)[:3]
    frozen = [stage.load_frozen() for stage in (reading, computing)]
    assert frozen[0]["text"] == {}
    given, computed = (
        stage.conditioner.encode(f["text"], stage.prepare_text(captions))
        for stage, f in zip((reading, computing), frozen, strict=True)
    )
    np.testing.assert_allclose(given, computed, atol=2e-3)
    state = jax.eval_shape(reading.init, jax.random.key(0))
    shapes = jax.eval_shape(reading.train_step, state, frozen[0], batch, jax.random.key(0))
    assert shapes[1]["loss"].shape == ()
    jax.eval_shape(reading.summarize, state, frozen[0], batch, jax.random.key(0))
    reading.export({"unet": computing.init(jax.random.key(0)).params["unet"]},
                   {"latents": {"scale": 1.0}}, tmp_path / "model")  # fmt: skip
    assert (tmp_path / "model" / "text_encoder" / "config.json").exists()

    config.text_encoder = f"{tiny_model}/."
    with pytest.raises(ValueError, match="holds the contexts of"):
        make_stage(config)
