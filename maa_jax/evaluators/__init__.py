"""Scores of sounds, found by name.

A program or a training loop scores sounds like this:

    from maa_jax import evaluators
    from maa_jax.evaluators import base, sources
    from maa_jax.evaluators.features import Networks

    scores = evaluators.make(("label_accuracy", "clap_score"), Networks(clap="bundled"))
    references = sources.recordings(data, samples)                # once a run
    ...
    sounds = sources.generated(generate, prompts, rate, samples)  # again for other weights
    for score in base.run(scores, base.Inputs(sounds, references)):
        print(score.name, score.value)                                # clap_score 0.31

`generate(captions, first)` returns the waveforms of a few captions, the first of which has index
`first` among all; it is called only when sounds are needed. Every process of a run makes and
embeds its own share of the sounds, and all get the same scores, so all must take part.
"""

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from maa_jax.checks import check_name

if TYPE_CHECKING:
    from maa_jax.evaluators.base import Evaluator
    from maa_jax.evaluators.features import Networks

EVALUATORS = {
    "label_accuracy": "maa_jax.evaluators.label_accuracy:LabelAccuracy",
    "clap_score": "maa_jax.evaluators.clap_score:ClapSimilarity",
    "recall": "maa_jax.evaluators.recall:Recall",
    "events": "maa_jax.evaluators.events:Events",
    "waveform": "maa_jax.evaluators.waveform:Waveform",
    "vocoder": "maa_jax.evaluators.vocoder:VocoderDistance",
    "similarity": "maa_jax.evaluators.similarity:Similarity",
}
# Sets of scores as published tools compute them.
PROTOCOLS = {
    "specvqgan": "maa_jax.evaluators.protocols:SpecVqgan",
    "audioldm_eval-cnn14": "maa_jax.evaluators.protocols:AudioldmEval",
    "vggish-fad": "maa_jax.evaluators.protocols:VggishFad",
    "fadtk": "maa_jax.evaluators.protocols:Fadtk",
    "kadtk-paper": "maa_jax.evaluators.protocols:KadtkPaper",
    "kadtk-code": "maa_jax.evaluators.protocols:KadtkCode",
    "clap-laion": "maa_jax.evaluators.protocols:ClapLaion",
    "clap-ms": "maa_jax.evaluators.protocols:ClapMs",
    "clap-release": "maa_jax.evaluators.protocols:ClapRelease",
    "make-an-audio": "maa_jax.evaluators.protocols:MakeAnAudio",
}


def find(name: str) -> "type[Evaluator]":
    """Returns the class of an evaluator or a protocol.

    Raises:
      ValueError: there is none of that name; the error names the nearest.
    """
    known = EVALUATORS | PROTOCOLS
    check_name("evaluators", name, known)
    module, _, attribute = known[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(names: Iterable[str], networks: "Networks") -> list["Evaluator"]:
    """Returns evaluators by their names; they share the networks that embed sounds."""
    return [find(name)(networks) for name in names]
