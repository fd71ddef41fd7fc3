import numpy as np

from maa_jax.encoders.clap import ClapScore
from maa_jax.evaluators import base, make
from maa_jax.evaluators.base import Inputs, Sounds
from maa_jax.evaluators.features import Networks


def test_the_score_is_the_mean_cosine_of_sounds_and_their_captions(tiny_model, tones):
    captions = [["a crow caws"], ["rain falls", "a dog barks"]]
    sounds = Sounds(
        lambda: [(np.array([1]), tones[1:]), (np.array([0]), tones[:1])],  # in any order
        16000,
        16000,
        names=["a", "b"],
        captions=captions,
        labels=[(), ()],
    )
    evaluators = make(["clap_score"], Networks(clap=tiny_model, batch_size=3))
    clap = ClapScore(tiny_model)
    pairs = [("a crow caws", 0), ("rain falls", 1), ("a dog barks", 1)]
    expected = np.mean([clap([text], tones[i : i + 1], 16000) for text, i in pairs])
    assert [score.name for score in base.run(evaluators, Inputs(sounds))] == ["clap_score"]
    ((_, value, *_),) = base.run(evaluators, Inputs(sounds))
    np.testing.assert_allclose(value, expected, atol=1e-6)
