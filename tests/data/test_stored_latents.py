import pickle

import jax
import numpy as np
import pytest

from configs import t2a
from maa_jax.data import datasets, input_pipeline, stored_latents
from maa_jax.data.config import DataConfig
from maa_jax.data.stored_latents import Latents
from maa_jax.embed import Embedding, embed
from maa_jax.stages import make_stage
from maa_jax.train.loop import train

FACTS = {"autoencoder": "a" * 64, "seed": 0}


@pytest.fixture(scope="module")
def config(tiny_model, data):
    config = t2a.get_config("runlocal")
    config.autoencoder = config.text_encoder = str(tiny_model)
    config.unet.cross_attention_dim = 24
    config.data.update(data)
    config.data.reprogram.events = "sonic_sounds"
    config.optimizer.warmup_steps = 0
    return config


@pytest.fixture(scope="module")
def stored(config, tmp_path_factory):
    """The contexts and latents of two epochs."""
    folder = tmp_path_factory.mktemp("stored")
    embed(config, Embedding(out=folder, epochs=2))
    return folder


def test_losses_from_latents_are_those_from_sound(config, stored):
    reading, hearing = config.copy_and_resolve_references(), make_stage(config)
    reading.latents = str(stored)
    reading = make_stage(reading)
    data = datasets.contents(config.data)
    reading.latents.check(stored_latents.facts(DataConfig.of(config.data), data, config.seed))
    read = input_pipeline.training_examples(config.data, seed=config.seed)
    stream = list(read(range(2 * datasets.num_examples(config.data, "train"))))
    assert len(reading.latents) == 2 * datasets.num_examples(config.data, "train")
    workers = {**config.data, "workers": 1}
    (other,) = input_pipeline.training_examples(workers, seed=config.seed)([4])
    np.testing.assert_array_equal(other["audio"], stream[4]["audio"])
    text = hearing.prepare_text(["a low tone", "a noise"])
    frozen = jax.device_get(hearing.load_frozen())
    state = jax.jit(hearing.init)(jax.random.key(0))
    state = state.replace(extra=state.extra | {"latents": {"scale": np.float32(0.7)}})
    pairs = ((hearing, "audio", stream), (reading, "moments", reading.latents))
    losses = []
    for stage, key, examples in pairs:
        batch = {key: np.stack([examples[i][key] for i in (3, 4)]), "text": text}
        loss = jax.jit(stage.loss)(state.params, state.extra, frozen, batch, jax.random.key(1))[0]
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for i in range(len(reading.latents)):
        assert reading.latents[i]["captions"] == stream[i]["captions"]
        assert reading.latents[i]["index"] == stream[i]["index"]
    composed = [len(reading.latents[i]["captions"]) for i in range(len(reading.latents))]
    assert 1 in composed and max(composed) > 1  # of events, and a record's own


def test_a_run_trains_on_latents_and_contexts(config, stored, tmp_path):
    config = config.copy_and_resolve_references()
    config.latents = config.text_embeddings = str(stored)
    config.total_steps, config.checkpoint_every = 2, 1
    assert np.isfinite(train(config, str(tmp_path / "run"))["train/loss"])
    for key, value, words in (
        ("seed", 5, r"seed=0 there, 5 here"),
        ("data.samples", 16_384, r"samples=8192 there, 16384 here"),
        ("data.reprogram.events", "", "reprogram="),
    ):
        other = config.copy_and_resolve_references()
        other.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match=words):
            train(other, str(tmp_path / "other"))
    other = config.copy_and_resolve_references()
    other.autoencoder = "bundled"
    with pytest.raises(ValueError, match="autoencoder="):
        make_stage(other)


def test_latents_are_stored_without_contexts(config, tmp_path):
    assert embed(
        config, Embedding(out=tmp_path, epochs=0.1, contexts=False, batch_size=4)
    ) == round(0.1 * datasets.num_examples(config.data, "train"))
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["latents"]
    with pytest.raises(ValueError, match="contexts=False: there is nothing else to store"):
        Embedding(out=tmp_path, contexts=False)
    with pytest.raises(ValueError, match="a bank holds captions alone"):
        Embedding(out=tmp_path, retriever="models/retriever", epochs=1)


def test_each_pass_over_the_latents_has_every_one_once(config, stored):
    latents = Latents(stored / "latents")
    batches = input_pipeline.train_iterator(config.data, batch_size=2, seed=0, latents=latents)
    seen = [row for _ in range(len(latents) // 2) for row in next(batches)["moments"]]
    known = {latents[i]["moments"].tobytes() for i in range(len(latents))}
    assert {row.tobytes() for row in seen} == known
    later = input_pipeline.train_iterator(
        config.data, batch_size=2, seed=0, latents=latents, start=3
    )
    np.testing.assert_array_equal(next(later)["moments"], seen[6:8])


def examples(count):
    rng = np.random.default_rng(0)
    return [
        {"audio": rng.normal(size=8).astype("f"), "index": i, "captions": [f"sound {i}"]}
        for i in range(count)
    ]


def write(folder, every, encode=None, facts=FACTS, **sharing):
    read = lambda places: (every[place] for place in places)
    return stored_latents.write(folder, len(every), read, encode or identity, facts, **sharing)


def identity(clips):
    return clips.reshape(len(clips), 2, 2, 2)


def test_processes_share_the_examples_and_go_on_where_they_stopped(tmp_path):
    every = examples(2_100)
    calls = []

    def stops(clips):
        calls.append(len(clips))
        if len(calls) > 40:  # in the second file
            raise KeyboardInterrupt
        return identity(clips)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, every, stops)
    with pytest.raises(ValueError, match="is missing"):
        Latents(tmp_path)
    sharing = dict(batch_size=100, process_count=2)
    done = [write(tmp_path, every, process_index=i, **sharing) for i in (0, 1)]
    assert done == [1_024, 52]  # without the first file
    latents = pickle.loads(pickle.dumps(Latents(tmp_path)))
    for i in (0, 1_023, 1_024, 2_099):
        np.testing.assert_array_equal(latents[i]["moments"], identity(every[i]["audio"][None])[0])
        assert latents[i]["captions"] == [f"sound {i}"]
    assert write(tmp_path, examples(2_200)) == 152
    assert write(tmp_path, every[:9], facts={**FACTS, "seed": 1}) == 9
    assert len(Latents(tmp_path)) == 9 and len(list(tmp_path.iterdir())) == 3


def test_a_broken_folder_is_named(tmp_path):
    write(tmp_path, examples(5))
    (rows,) = tmp_path.glob("*.npy")
    rows.write_bytes(rows.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"is broken .*maa_jax\.embed"):
        Latents(tmp_path)
    rows.unlink()
    with pytest.raises(ValueError, match=r"lacks \w+-00000\.npy: give the same command"):
        Latents(tmp_path)
    with pytest.raises(ValueError, match="latent of 'sound 0' is not finite"):
        write(tmp_path, examples(2), lambda x: identity(x) * np.nan)
