import itertools
import pathlib
import pickle
import shutil

import jax
import numpy as np
import pytest

from configs import t2a
from maa_jax.data import datasets, input_pipeline
from maa_jax.data.text_embeddings import Contexts, write
from maa_jax.embed import Embedding, embed
from maa_jax.enhancement import bank
from maa_jax.files import lock
from maa_jax.stages import make_stage

T5 = {"text_encoder": "t5", "text_encoder_sha256": "a" * 64}
CAPTIONS = [f"sound {i}" for i in range(11)]


def encode(captions):
    return np.stack([np.full((77, 3), float(c.split()[-1])) for c in captions])


def test_processes_share_the_captions_and_readers_find_them(tmp_path):
    counts = [
        write(tmp_path, CAPTIONS + CAPTIONS[:2], encode, **T5, batch_size=4,
              process_index=i, process_count=2)
        for i in range(2)
    ]  # fmt: skip
    assert counts == [6, 5]
    contexts = Contexts(tmp_path)
    assert (contexts.width, contexts.text_encoder) == (3, "t5")
    got = contexts(["sound 7", "sound 0", "sound 7"])
    assert got.shape == (3, 77, 3) and got.dtype == np.float32
    np.testing.assert_array_equal(got, encode(["sound 7", "sound 0", "sound 7"]))
    data = pickle.dumps(contexts)
    assert len(data) < 1000  # without the contexts: every worker gets a copy
    np.testing.assert_array_equal(pickle.loads(data)(["sound 7"]), got[:1])
    with pytest.raises(ValueError, match="no context for 'a bell', 'a gong': write it again"):
        contexts(["sound 7", "a bell", "a gong"])


def test_what_a_folder_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"index\.json is missing: .*maa_jax\.embed"):
        Contexts(tmp_path)
    write(tmp_path, CAPTIONS, encode, **T5, process_index=0, process_count=3)
    with pytest.raises(ValueError, match=r"lacks \w+-00001-of-00003\.npy, .*00002-of-00003"):
        Contexts(tmp_path)
    with pytest.raises(ValueError, match="1 captions for 2 processes"):
        write(tmp_path, ["one"], encode, **T5, process_index=1, process_count=2)


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
    np.testing.assert_allclose(given, computed, atol=1e-5)
    state = jax.eval_shape(reading.init, jax.random.key(0))
    shapes = jax.eval_shape(reading.train_step, state, frozen[0], batch, jax.random.key(0))
    assert shapes[1]["loss"].shape == ()
    jax.eval_shape(reading.summarize, state, frozen[0], batch, jax.random.key(0))
    reading.export({"unet": computing.init(jax.random.key(0)).params["unet"]},
                   {"latents": {"scale": 1.0}}, tmp_path / "model")  # fmt: skip
    assert (tmp_path / "model" / "text_encoder" / "config.json").exists()

    config.text_encoder = f"{tiny_model}/."
    make_stage(config)  # the same files by another name
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "tokenizer" / "note.json").write_text("{}")
    config.text_encoder = str(other)
    with pytest.raises(ValueError, match="holds the contexts of another text encoder"):
        make_stage(config)


class Killed(BaseException):
    """What no writer catches."""


@pytest.mark.parametrize("last_call", [0, 1, 2, 3])
def test_a_writer_that_is_killed_leaves_the_contexts_that_were_there(
    tmp_path, monkeypatch, last_call
):
    """Killed while it computes, or before any of the three renames that make its files visible."""
    write(tmp_path, CAPTIONS, encode, **T5)
    others = [f"other sound {i}" for i in range(11)]
    renames = itertools.count(1)
    rename = pathlib.Path.replace

    def killed(path, target):
        if next(renames) == last_call:
            raise Killed
        return rename(path, target)

    def other(captions):
        if not last_call:
            raise Killed
        return 100 + encode(captions)

    monkeypatch.setattr(pathlib.Path, "replace", killed)
    with pytest.raises(Killed):
        write(tmp_path, others, other, **T5)
    monkeypatch.undo()
    kept = Contexts(tmp_path)
    np.testing.assert_array_equal(kept(CAPTIONS), encode(CAPTIONS))
    with pytest.raises(ValueError, match="no context for 'other sound 3'"):
        kept(["other sound 3"])
    write(tmp_path, others, lambda captions: 100 + encode(captions), **T5)
    np.testing.assert_array_equal(Contexts(tmp_path)(others), 100 + encode(others))
    assert len(list(tmp_path.iterdir())) == 3  # nothing of the old ones is left


def test_a_process_that_is_done_leaves_alone_what_the_others_still_write(tmp_path):
    def encode_slowly(captions):  # process 0 begins and ends within the second one's writing
        write(tmp_path, CAPTIONS, encode, process_index=0, process_count=2, **T5)
        return encode(captions)

    write(tmp_path, CAPTIONS, encode_slowly, process_index=1, process_count=2, **T5)
    np.testing.assert_array_equal(Contexts(tmp_path)(CAPTIONS), encode(CAPTIONS))


def shorten(path):
    path.write_bytes(path.read_bytes()[:-33])


@pytest.mark.parametrize(
    ("name", "damage", "fault"),
    [
        ("*.txt", shorten, r"have \[11\] rows and \[10\] lines"),
        ("*.npy", shorten, "is broken"),
        ("*.npy", lambda path: path.write_bytes(b""), "is broken"),
        ("index.json", shorten, "is broken, or of an earlier version"),
        ("index.json", lambda path: path.write_text("[]"), "no run"),
        (
            "index.json",
            lambda path: path.write_text('{"text_encoder": "t5", "shards": 1}'),
            "no run",
        ),
    ],
)
def test_a_torn_folder_is_refused_with_what_to_do(tmp_path, name, damage, fault):
    write(tmp_path, CAPTIONS, encode, **T5)
    damage(*tmp_path.glob(name))
    with pytest.raises(ValueError, match=f"{tmp_path}.*{fault}.*maa_jax.embed"):
        Contexts(tmp_path)


def test_a_bank_is_no_folder_of_contexts_and_contexts_are_no_bank(tmp_path):
    write(tmp_path, CAPTIONS, encode, **T5)
    with pytest.raises(ValueError, match="holds no bank of captions"):
        bank.Bank(tmp_path)
    bank.build(tmp_path, CAPTIONS, lambda x: np.eye(11)[: len(x)], retriever="r")
    with pytest.raises(ValueError, match="holds no contexts"):
        Contexts(tmp_path)


def test_contexts_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match="encoding of 'sound 10' is not finite as float16"):
        write(tmp_path, CAPTIONS, lambda x: 1e4 * encode(x), dtype="float16", **T5)
    assert list(tmp_path.glob("*.npy")) == list(tmp_path.glob("index.json")) == []


def test_two_writers_into_one_folder_are_refused(tiny_model, data, tmp_path):
    config = t2a.get_config("runlocal")
    config.data.update(data)
    with lock(tmp_path), pytest.raises(ValueError, match=f"{tmp_path} is in use by process"):
        embed(config, Embedding(out=tmp_path))
    config.text_encoder = "nothing"
    with pytest.raises(ValueError, match="text_encoder='nothing'"):
        embed(config, Embedding(out=tmp_path / "new" / "folder"))
    assert list(tmp_path.iterdir()) == []


def test_training_begins_only_with_contexts_of_all_its_captions(data, tmp_path):
    captions = datasets.captions(data)
    write(tmp_path, captions, lambda x: np.zeros((len(x), 2, 3)), **T5)
    with pytest.raises(ValueError, match=r"has no context for .* and \d+ others: write it again"):
        input_pipeline.train_iterator(data, batch_size=2, seed=0, prepare_text=Contexts(tmp_path))
