import numpy as np
import pytest

from maa_jax.enhancement import distill
from maa_jax.enhancement.distill import Candidate, Labels


class Toy:
    """An expert with a word for each recording, some of them twice."""

    def __init__(self, name, *answers):
        self.name, self.answers = name, answers

    def propose(self, audio, labels):
        return [list(answer) for answer in self.answers]


class Letters:
    """A CLAP of one-hot letters: a caption is its first one, a sound the largest sample's."""

    def text_embeddings(self, sentences):
        return np.eye(26, dtype="f")[[ord((s or "a")[0]) - ord("a") for s in sentences]]

    def audio_embeddings(self, wavs, sample_rate):
        assert sample_rate == 16000
        return np.asarray(wavs)[:, :26]


def sound(**letters):
    wav = np.zeros(30, "f")
    for letter, value in letters.items():
        wav[ord(letter) - ord("a")] = value
    return wav


def test_every_candidate_is_scored_and_kept_and_the_best_is_chosen():
    experts = [
        Toy("one", ["birds  sing", "birds sing"], [], ["rain 2"]),
        Toy("two", ["birds sing", "crows caw"], ["", " "], ["wind"]),
    ]
    audio = np.stack([sound(b=0.2, c=0.7), sound(), sound(r=0.5, w=0.5)])
    found = distill.distill(audio, [[]] * 3, experts, Letters())
    assert found == [
        [
            Candidate("birds sing", "one", 0.2),
            Candidate("birds sing", "two", 0.2),
            Candidate("crows caw", "two", 0.7),
        ],
        [],
        [Candidate("rain two", "one", 0.5), Candidate("wind", "two", 0.5)],
    ]
    assert distill.best(found[0], 0.7).caption == "crows caw"
    assert distill.best(found[0], 0.71) is None
    assert distill.best(found[1], -1) is None
    assert distill.best(found[2], 0.5).expert == "one"  # the first of equals


def test_captions_of_many_recordings_get_their_own_scores():
    """More captions than are encoded at a time."""
    count = 130
    answers = [[f"{chr(97 + i % 26)} {i}"] for i in range(count)]
    audio = np.stack([sound(**{chr(97 + i % 26): 0.5}) for i in range(count)])
    found = distill.distill(audio, [[]] * count, [Toy("toy", *answers)], Letters())
    assert [c.score for (c,) in found] == [0.5] * count


def test_labels_become_a_caption_where_there_are_any():
    audio = np.zeros((2, 10), "f")
    assert Labels().propose(audio, [["dog", "door"], []]) == [["the sound of dog and door"], []]


def test_experts_are_found_by_name_or_path():
    assert distill.find_expert("labels") is Labels
    path = f"{__name__}:Toy"
    with pytest.raises(ValueError, match="lacks name"):
        distill.find_expert(path)
    with pytest.raises(ValueError, match="'captionig' is not known; nearest: 'captioning'"):
        distill.find_expert("captionig")
    with pytest.raises(ValueError, match=r"cannot be imported.*None2"):
        distill.find_expert(f"{__name__}:None2")
    with pytest.raises(ValueError, match="the same name"):
        distill.find_experts(["labels", "labels"])
    with pytest.raises(ValueError, match="none is given"):
        distill.find_experts([])


def test_an_expert_that_skips_recordings_is_named():
    with pytest.raises(ValueError, match="expert 'toy' answered for 1 of 2"):
        distill.distill(np.zeros((2, 30), "f"), [[], []], [Toy("toy", ["a"])], Letters())
