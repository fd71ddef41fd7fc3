"""The classifier of events, and the score that it gives, on a dataset of a tiny soundfont."""

import importlib
import json

import jax
import numpy as np
import pytest

from maa_jax.configs import common
from maa_jax.data import datasets, input_pipeline, truth
from maa_jax.data.builders.general_midi import GeneralMidi
from maa_jax.data.builders.general_midi.instruments import FAMILIES
from maa_jax.evaluate.evaluation import Evaluation, evaluate
from maa_jax.evaluators import base, make
from maa_jax.evaluators.features import Networks
from maa_jax.stages import make_stage
from maa_jax.training.config import check
from tests.data.builders.tiny_soundfont import write_soundfont


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("midi")
    font = write_soundfont(folder / "tiny.sf2")
    GeneralMidi(
        soundfont=font, config="200x4.1", processes=0, data_dir=folder / "data"
    ).download_and_prepare()
    config = importlib.import_module("maa_jax.configs.event_classifier").get_config("runlocal")
    config.data.data_dir = str(folder / "data")
    return config


@pytest.fixture(scope="module")
def model(config, tmp_path_factory):
    """The folder of a classifier after two steps."""
    check(config)
    stage = make_stage(config)
    state = jax.jit(stage.init)(jax.random.key(0))
    frozen = stage.load_frozen()
    step = jax.jit(stage.train_step)
    stream = input_pipeline.train_iterator(config.data, batch_size=2, seed=0)
    for i in range(2):
        state, scores = step(state, frozen, next(stream), jax.random.key(i))
        assert all(np.isfinite(x) for x in scores.values())
    batch = next(iter(input_pipeline.eval_batches(config.data, batch_size=4)))
    found = jax.jit(stage.eval_step)(state, frozen, batch, jax.random.key(0))
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(
        ("loss", "count_accuracy", "family_accuracy"), (4,)
    )
    folder = tmp_path_factory.mktemp("classifier")
    stage.export(state.params, state.extra, folder)
    return folder


def test_targets_are_the_truth(config):
    found = truth.truths(config.data, "train")
    described = datasets.metadata(config.data, "train")
    table = truth.targets(found, FAMILIES, ("low", "middle", "high"), 3)
    for row, (of, example) in enumerate(zip(found, described, strict=True)):
        events = of["events"]
        assert {event["instrument"] for event in events} == set(example["labels"])
        families = [FAMILIES[i] for i in table["family"][row] if i >= 0]
        assert sorted(families) == sorted(event["family"] for event in events)
        if not of["together"]:
            assert families == [event["family"] for event in events]
        assert table["count"][row] == len(events)
        assert (table["register"][row] >= 0).sum() == len(events)
    assert len({tuple(row) for row in table["family"]}) > 50


def test_a_dataset_without_truth_is_refused(data_dir):
    with pytest.raises(ValueError, match="has no truth"):
        truth.truths({"data_dir": data_dir}, "train")


def test_right_sounds_score_one_and_wrong_ones_what_they_should(config, model):
    """Logits stand in for sounds: what they say is known."""
    truths = truth.truths(config.data, "train")
    (evaluator,) = make(["events"], Networks(classifier=model))
    table = truth.targets(truths, FAMILIES, ("low", "middle", "high"), 3)
    rows = np.zeros((len(truths), 3 * (1 + len(FAMILIES) + 3)), np.float32)
    logits = evaluator._classifier.unpack(rows)
    for i in range(len(truths)):
        logits["count"][i, table["count"][i] - 1] = 1
        for place in range(table["count"][i]):
            logits["family"][i, place, table["family"][i, place]] = 1
            logits["register"][i, place, table["register"][i, place]] = 1
    # Views of the rows: `unpack` copies nothing.
    captions = [x["captions"] for x in datasets.metadata(config.data, "train")]
    sounds = base.Sounds(
        lambda: (), 16_000, 65_536, names=captions, captions=captions, labels=captions,
        truths=truths,
    )  # fmt: skip

    def score(rows):
        sounds._features = {evaluator.networks[0].digest: rows}
        return base.values(evaluator.run(base.Inputs(sounds)))

    right = score(rows)
    names = ("family", "count", "order", "register")
    assert [right[f"events/{name}"] for name in names] == [1] * 4
    assert right["events/family_chance"] == pytest.approx(1 / len(FAMILIES))
    swapped = rows.copy()
    logits = evaluator._classifier.unpack(swapped)
    logits["family"][:, :2] = logits["family"][:, 1::-1].copy()
    assert score(swapped)["events/order"] == 0
    assert score(-rows)["events/count"] < 0.5
    # Each recording has three captions; one that states the register suffices.
    high = [sum("high" in text.split() for text in texts) for texts in captions]
    some = [i for i in range(len(truths)) if table["count"][i] == 1 and high[i] in (1, 2)]
    unheard = rows.copy()
    logits = evaluator._classifier.unpack(unheard)
    logits["register"][some, 0] *= -1
    assert some and 0 < score(unheard)["events/register"] < 1


def test_recordings_are_scored_by_the_program(config, model, tmp_path):
    scores = evaluate(
        Evaluation(
            out=tmp_path,
            recordings=True,
            classifier=str(model),
            evaluators=("events", "waveform"),
            dataset="general_midi/200x4.1",
            data_dir=config.data.data_dir,
            split="test",
        )
    )
    assert 0 <= scores["events/count"] <= 1 and scores["waveform/loudness"] == 1
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["recordings"] is True and "events" in written["networks"]
    with pytest.raises(ValueError, match="train one with"):
        make(["events"], Networks())


def test_short_clips_are_refused(config):
    other = config.copy_and_resolve_references()
    other.data.samples = 2_560
    with pytest.raises(ValueError, match="fewer than the classifier's segments=6"):
        make_stage(other)


def test_demo_and_full_are_of_one_kind():
    get_config = importlib.import_module("maa_jax.configs.event_classifier").get_config
    for arg in (None, "demo", "bundled"):
        assert check(get_config(arg)).stage == "event_classifier"
    assert common.small_run(get_config(), 5).total_steps == 5
