"""Reprogramming: sounds are in the order that the caption states."""

import dataclasses
import itertools

import numpy as np
import pytest

from maa_jax.data import datasets, reprogram, stored, text_embeddings
from maa_jax.data.config import DataConfig
from maa_jax.data.input_pipeline import train_iterator
from maa_jax.data.reprogram import Reprogram, ReprogramConfig, join_sounds, trim

RATE = 16000
LOW, HIGH = 500, 3000  # Hz of the pair and of events

# Each of Appendix F's templates, and which sound comes first.
SENTENCES = {
    "before hearing the clear sound of bell, a crow caws": "crow",
    "a crow caws before hearing the clear sound of bell": "crow",
    "in front of hearing the clear sound of bell, a crow caws": "crow",
    "first is a crow caws second is the clear sound of bell": "crow",
    "after a crow caws, hearing the clear sound of bell": "crow",
    "after hearing the clear sound of bell, a crow caws": "bell",
    "behind hearing the clear sound of bell, a crow caws": "bell",
    "hearing the clear sound of bell, then a crow caws": "bell",
    "hearing the clear sound of bell, following a crow caws": "crow",
    "hearing the clear sound of bell, later a crow caws": "bell",
    "a crow caws after hearing the clear sound of bell": "bell",
    "before a crow caws, hearing the clear sound of bell": "bell",
}


def tone(frequency, samples, amplitude=0.4):
    t = np.arange(samples) / RATE
    return (amplitude * np.sin(2 * np.pi * frequency * t)).astype(np.float32)


def power(wav, frequency):
    """Amplitude of a tone in a sound."""
    return 2 * abs(np.mean(wav * np.exp(-2j * np.pi * frequency * np.arange(len(wav)) / RATE)))


def pair(samples=8000):
    return {
        "audio": np.pad(tone(LOW, 3000), (0, samples - 3000)),
        "caption": "a crow caws",
        "id": 7,
    }


def transform(samples=8000, event=None, **config):
    event = tone(HIGH, 3000) if event is None else event
    return Reprogram(ReprogramConfig("some", **config), lambda rng: ("bell", event), samples)


def set_words(monkeypatch, templates):
    monkeypatch.setattr(reprogram, "TEMPLATES", templates)
    words = {"v": ("hearing",), "q": ("the",), "a": ("clear",), "n": ("sound",)}
    monkeypatch.setattr(reprogram, "WORDS", words)


@pytest.mark.parametrize("number", range(12))
def test_sounds_are_in_the_order_of_the_sentence(number, monkeypatch):
    set_words(monkeypatch, reprogram.TEMPLATES[number : number + 1])
    made = transform(n_events=(0, 1, 0), crossfade=0)(pair(), np.random.default_rng(number))
    assert made["caption"] == list(SENTENCES)[number] and made["id"] == 7
    halves = made["audio"][:3000], made["audio"][3000:6000]
    crow, bell = ([power(half, f) > 0.05 for half in halves] for f in (LOW, HIGH))
    first = SENTENCES[made["caption"]] == "crow"
    assert crow == [first, not first] and bell == [not first, first]
    assert not made["audio"][6001:].any()


def test_templates_and_words_are_those_of_appendix_f():
    assert len(reprogram.TEMPLATES) == len(set(reprogram.TEMPLATES)) == 12
    assert {key: len(words) for key, words in reprogram.WORDS.items()} == dict(v=4, a=5, n=3, q=3)
    rng = np.random.default_rng(0)
    sentences = {reprogram.join_captions("a crow caws", "bell", rng)[0] for _ in range(4000)}
    # 11 templates with verbs of 4 * 5 * 3 * 3 sentences, one without.
    assert len(sentences) > 1400 and set(SENTENCES) & sentences
    assert not any(s.endswith(",") or "{" in s or "  " in s for s in sentences)
    words = set(" ".join(sentences).replace(",", "").split()) - {"crow", "caws", "bell"}
    assert words <= set(" ".join(reprogram.vocabulary()).replace(",", "").split())


def test_a_second_event_joins_the_result_of_the_first(monkeypatch):
    # "x before e" and "e, then x": the order of the words is that of the sounds, for every event.
    set_words(monkeypatch, (reprogram.TEMPLATES[1], reprogram.TEMPLATES[7]))
    tones = {"crow": tone(LOW, 3000), "bell": tone(HIGH, 2000), "horn": tone(1500, 2000)}
    config, orders = ReprogramConfig("some", n_events=(0, 0, 1), crossfade=0), set()
    for seed in range(12):
        events = iter([("bell", tones["bell"]), ("horn", tones["horn"])])
        change = Reprogram(config, lambda rng, events=events: next(events), 8000)
        made = change(pair(), np.random.default_rng(seed))
        order = sorted(tones, key=made["caption"].index)
        begin = 0
        for name in order:
            part = made["audio"][begin : begin + len(tones[name])]
            match = {
                other: power(part, f) for other, f in zip(tones, (LOW, HIGH, 1500), strict=True)
            }
            assert max(match, key=match.get) == name
            begin += len(part)
        orders.add(tuple(order))
    assert len(orders) == 4


def test_numbers_of_events_are_drawn_by_their_weights():
    counts = np.zeros(3)
    change = transform(n_events=(1, 2, 1))
    for seed in range(600):
        caption = change(pair(), np.random.default_rng(seed))["caption"]
        counts[caption.count("bell")] += 1
    np.testing.assert_allclose(counts / 600, [0.25, 0.5, 0.25], atol=0.06)


def test_loudness_is_relative_to_the_pair(monkeypatch):
    set_words(monkeypatch, reprogram.TEMPLATES[:1])
    for amplitude in (0.9, 0.01):
        change = transform(
            event=tone(HIGH, 3000, amplitude), n_events=(0, 1, 0), gain_db=(-12, -12), crossfade=0
        )
        audio = change(pair(), np.random.default_rng(0))["audio"]
        np.testing.assert_allclose(power(audio[:3000], LOW), 0.4, rtol=0.02)
        np.testing.assert_allclose(power(audio[3000:6000], HIGH), 0.4 * 10 ** (-12 / 20), rtol=0.02)
    loud = transform(n_events=(0, 1, 0), gain_db=(30, 30))(pair(), np.random.default_rng(0))
    assert np.abs(loud["audio"]).max() <= 1


def test_a_crossfade_keeps_the_power():
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, 8000).astype(np.float32) for _ in range(2)]
    clip = join_sounds(sounds, 16000, 2000)
    assert clip.dtype == np.float32 and not clip[14000:].any()
    spread = clip[:14000].reshape(14, 1000).std(axis=1)
    np.testing.assert_allclose(spread, 0.1, atol=0.01)
    np.testing.assert_array_equal(clip[:6000], sounds[0][:6000])


def test_all_sounds_are_heard_in_a_clip_that_is_too_short_for_them():
    # The short one is whole, the long ones share what it leaves.
    sounds = [tone(LOW, 9000), tone(HIGH, 1000), tone(1500, 9000)]
    clip = join_sounds(sounds, 8000, 0)
    for frequency, begin, end in ((LOW, 0, 3500), (HIGH, 3500, 4500), (1500, 4500, 8000)):
        assert power(clip[begin:end], frequency) > 0.35
    for count, crossfade in itertools.product((2, 3), (0, 7, 800, 10**6)):
        assert join_sounds(sounds[:count], 5000, crossfade).shape == (5000,)
    # A long one is cut to where it sounds.
    click = np.pad(tone(HIGH, 500), (7000, 1000))
    clip = join_sounds([tone(LOW, 9000), click], 4000, 0)
    assert power(clip[2000:], HIGH) > 0.05


def test_silence_at_the_ends_is_no_part_of_a_sound():
    sound = tone(LOW, 1000)
    np.testing.assert_allclose(len(trim(np.pad(sound, (300, 500)))), 1000, atol=2)
    assert len(trim(np.zeros(10, np.float32))) == 0


def test_pairs_that_cannot_be_joined_stay_as_they_are():
    rng = np.random.default_rng
    same = [
        (transform(n_events=(1, 0, 0)), pair()),
        (transform(n_events=(0, 0, 1)), {**pair(), "caption": ""}),
        (transform(n_events=(0, 0, 1)), {**pair(), "audio": np.zeros(8000, np.float32)}),
        (transform(n_events=(0, 0, 1), event=np.zeros(3000, np.float32)), pair()),
    ]
    for change, example in same:
        made = change(example, rng(0))
        assert made["caption"] == example["caption"]
        np.testing.assert_array_equal(made["audio"], example["audio"])


def test_bad_settings_are_named():
    for change, fault in (
        ({"n_events": (1, 1)}, "n_events="),
        ({"n_events": (0, 0, 0)}, "n_events="),
        ({"gain_db": (3, -3)}, "gain_db="),
        ({"crossfade": -1}, "crossfade=-1: give a number from 0"),
    ):
        with pytest.raises(ValueError, match=rf"data\.reprogram.*{fault}"):
            DataConfig.of({"reprogram": change})
    with pytest.raises(ValueError, match=r"data\.reprogram\.event is not a key.*mean 'events'"):
        DataConfig.of({"reprogram": {"event": "x"}})


# --- in the input pipeline, on the bundled recordings


class Sentences:
    """Returns the captions themselves in place of a tokenizer's ids."""

    def __call__(self, captions):
        return np.array(captions)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    config = {
        "data_dir": str(tmp_path_factory.mktemp("tensorflow_datasets")),
        "samples": 16000,
        "reprogram": {"events": "sonic_sounds", "n_events": (1, 1, 1)},
    }
    datasets.prepare(config)
    return config


def batches(data, n=3, **settings):
    iterator = train_iterator(data, batch_size=8, seed=2, prepare_text=Sentences(), **settings)
    return list(itertools.islice(iterator, n))


def assert_same(found, expected):
    for batch, other in zip(found, expected, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


def test_neither_processes_nor_workers_change_a_batch(data):
    expected = batches(data)
    assert_same(batches({**data, "workers": 1}), expected)
    halves = [batches(data, process_index=i, process_count=2) for i in (0, 1)]
    joined = [
        {key: np.concatenate([half[key] for half in step]) for key in step[0]}
        for step in zip(*halves, strict=True)
    ]
    assert_same(joined, expected)


def test_pairs_without_events_are_those_without_reprogramming(data):
    plain, mixed = batches({**data, "reprogram": {}}), batches(data)
    same = np.concatenate([a["text"] == b["text"] for a, b in zip(plain, mixed, strict=True)])
    assert 0 < same.sum() < len(same)
    for a, b in zip(plain, mixed, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
        kept = a["text"] == b["text"]
        np.testing.assert_array_equal(a["audio"][kept], b["audio"][kept])
        assert (a["audio"][~kept] != b["audio"][~kept]).any(axis=1).all()


def test_captions_hold_every_word_that_training_will_see(data):
    known = set(" ".join(datasets.captions(data)).replace(",", " ").split())
    for batch in batches(data, 6):
        assert set(" ".join(batch["text"]).replace(",", " ").split()) <= known
    assert "noticing" not in " ".join(datasets.captions({**data, "reprogram": {}}))


def test_stored_contexts_cannot_hold_new_captions(data, tmp_path):
    contexts = np.zeros((1, 77, 4), np.float16)
    encoder = {"text_encoder": "t", "text_encoder_sha256": "0"}
    text_embeddings.write(tmp_path, ["x"], lambda batch: contexts, **encoder)
    with pytest.raises(ValueError, match=r"data\.reprogram\.events makes captions"):
        kept = text_embeddings.Contexts(tmp_path)
        train_iterator(data, batch_size=8, seed=0, prepare_text=kept)


def test_events_need_single_labels(data, monkeypatch):
    index_of = stored.index_of

    def doubled(*arguments):
        index = index_of(*arguments)
        return dataclasses.replace(index, labels=index.labels * 2)

    monkeypatch.setattr(stored, "index_of", doubled)
    with pytest.raises(ValueError, match=r"events: no recording of part 'sonic_sounds:train'"):
        train_iterator(data, batch_size=8, seed=0)
