import itertools

import jax
import numpy as np
import pytest

from maa_jax.data import datasets, input_pipeline
from maa_jax.data.config import DataConfig
from maa_jax.evaluators import label_accuracy
from maa_jax.evaluators.label_accuracy import chance, choose_prompts, run, top

LABELS = [["drum"], ["drum"], ["bell"], ["bell", "metal"], ["voice"], ["voice"]]
RATE = 16000


def sound(kind, rng):
    t = np.arange(RATE // 2) / RATE
    wav = {
        "drum": np.sin(2 * np.pi * 60 * t) * np.exp(-20 * t),
        "bell": np.sin(2 * np.pi * 3000 * t) * np.exp(-3 * t),
        "voice": np.sign(np.sin(2 * np.pi * 300 * t)) * 0.3,
    }[kind]
    return (wav + rng.normal(0, 0.003, t.size)).astype(np.float32)


class EchoPipeline:
    """Makes the sound of the class that `heard` gives for a prompt."""

    sample_rate = RATE
    max_duration = 0.5

    def __init__(self, heard=lambda prompt: prompt):
        self.heard, self.calls = heard, []

    def __call__(self, prompts, *, start_index, **settings):
        self.calls.append((list(prompts), start_index, settings))
        return np.stack(
            [
                sound(self.heard(prompt).split()[-1], np.random.default_rng(start_index + i))
                for i, prompt in enumerate(prompts)
            ]
        )


@pytest.fixture
def dataset(monkeypatch):
    """Six recordings of three kinds, in place of the input pipeline."""
    rng = np.random.default_rng(7)
    wavs = np.stack([sound(labels[0], rng) for labels in LABELS])
    meta = [
        {"id": str(i), "labels": labels, "captions": [f"a {labels[0]}", f"the {labels[0]}"]}
        for i, labels in enumerate(LABELS)
    ]

    def batches(config, *, batch_size):
        assert config["samples"] == RATE // 2 and config["eval_split"] == "train"
        filled = np.concatenate([wavs, wavs[-1:].repeat(batch_size - len(wavs), 0)])
        yield {"audio": filled, "valid": np.arange(batch_size) < len(wavs)}

    monkeypatch.setattr(datasets, "metadata", lambda config: meta)
    monkeypatch.setattr(input_pipeline, "eval_batches", batches)
    return DataConfig()


def test_sounds_of_the_right_class_score_one(dataset, tiny_model):
    pipe = EchoPipeline()
    scores = dict(run(pipe, dataset, clap=str(tiny_model), steps=7, guidance_scale=2.0, seed=3))
    assert scores["prompts"] == 6
    for name in ("clap", "log_mel"):
        assert scores[f"{name}/top_1"] == scores[f"{name}/top_5"] == 1
        assert scores[f"{name}/top_1_recordings"] == 1
    np.testing.assert_allclose(scores["top_1_chance"], 2 / 6)
    assert pipe.calls[0][1:] == (0, {"steps": 7, "guidance_scale": 2.0, "seed": 3})


def test_sounds_of_a_wrong_class_score_nothing(dataset, tiny_model):
    wrong = {"a drum": "bell", "a bell": "voice", "a voice": "drum"}
    scores = dict(run(EchoPipeline(wrong.get), dataset, clap=str(tiny_model)))
    assert scores["log_mel/top_1"] == scores["clap/top_1"] == 0


def test_prompts_are_numbered_and_kept(dataset, tiny_model):
    pipe, kept = EchoPipeline(), {}
    settings = dict(captions_per_recording=0, clap=str(tiny_model))
    list(run(pipe, dataset, keep=lambda i, p, wav: kept.update({i: (p, wav)}), **settings))
    assert [start for _, start, _ in pipe.calls] == [0, 8]  # 12 prompts, eight at a time
    assert list(kept) == list(range(12))
    assert kept[1][0] == "the drum" and kept[11][1].shape == (RATE // 2,)


def test_processes_share_the_prompts_and_gather_in_order(monkeypatch):
    prompts = [f"{i} {kind}" for i, kind in enumerate(["drum", "bell", "voice"] * 7)]
    generate = lambda: np.concatenate(
        list(label_accuracy._generate(EchoPipeline(), prompts, keep=None))
    )
    whole = generate()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parts = []
    for index in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        parts.append(generate())
    assert [len(part) for part in parts] == [11, 10]

    def allgather(x):  # as process 1 sees it, with process 0's counterpart
        if x.shape == (2,):
            return np.array([part.shape for part in parts])
        assert x.shape == (11, RATE // 2)
        first = parts[0]
        return np.stack([first, x])

    monkeypatch.setattr(label_accuracy.multihost_utils, "process_allgather", allgather)
    np.testing.assert_array_equal(label_accuracy._gather(parts[1]), whole)


def test_chance_is_that_of_every_draw():
    right = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 0, 0]], bool)
    for k in (1, 2, 5, 9):
        draws = [list(d) for d in itertools.combinations(range(6), min(k, 6))]
        expected = np.mean([[row[d].any() for d in draws] for row in right])
        np.testing.assert_allclose(chance(right, k), expected)


def test_top_looks_at_the_nearest():
    distances = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
    right = np.array([[0, 0, 1], [1, 0, 0]], bool)
    assert top(distances, right, 1) == 0.5
    assert top(distances, right, 2) == 1.0


def test_prompts_are_chosen_evenly():
    meta = [{"captions": [f"{i}a", f"{i}b"]} for i in range(5)]
    assert choose_prompts(meta, 1, 0) == [(i, f"{i}a") for i in range(5)]
    assert len(choose_prompts(meta, 0, 0)) == 10
    assert choose_prompts(meta, 1, 2) == [(0, "0a"), (2, "2a")]
    assert choose_prompts(meta, 1, 99) == choose_prompts(meta, 1, 0)


def test_recordings_without_labels_are_refused(dataset, tiny_model, monkeypatch):
    meta = [{"id": "x1", "labels": [], "captions": ["a"]}]
    monkeypatch.setattr(datasets, "metadata", lambda config: meta)
    with pytest.raises(ValueError, match="'x1'"):
        next(run(EchoPipeline(), dataset, clap=str(tiny_model)))


def test_a_clap_of_another_rate_is_refused(tiny_model):
    with pytest.raises(ValueError, match="16000 Hz"):
        label_accuracy.clap_features(str(tiny_model), 44100)


def test_numbers_below_zero_are_refused(dataset):
    with pytest.raises(ValueError, match="num_prompts=-1"):
        next(run(EchoPipeline(), dataset, num_prompts=-1))
