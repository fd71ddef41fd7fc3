import dataclasses

import numpy as np
import pytest

from maa_jax.evaluators import PROTOCOLS, base, find
from maa_jax.evaluators.base import Inputs, Sounds
from maa_jax.evaluators.features import Networks
from maa_jax.metrics import classes, frechet
from maa_jax.model_folder import networks
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.inception import Melception, MelceptionConfig
from maa_jax.models.vggish import VGGish, VGGishConfig
from tests.conftest import random_network

RATE, SECONDS = 16_000, 2
MELCEPTION = MelceptionConfig(
    sample_rate=RATE, n_fft=512, hop_length=512, n_mels=24, samples=SECONDS * RATE,
    first_frame=2, frames=48, width=1, num_classes=7,
)  # fmt: skip
NETWORKS = {
    "melception": (Melception, MELCEPTION),
    "cnn14": (Cnn14, Cnn14Config(n_mels=16, channels=(4, 8, 16), num_classes=5)),
    "vggish": (VGGish, VGGishConfig(width=2, hidden_size=8, embedding_size=6)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Networks whose weights are nobody's, and the same with the names of published ones."""
    folder = tmp_path_factory.mktemp("classifiers")
    names = {"melception": "melception", "cnn14": "cnn14_16k", "vggish": "vggish"}
    for name, (network, config) in NETWORKS.items():
        weights = random_network(lambda rngs, n=network, c=config: n(c, rngs=rngs), 0)
        networks.save_network(folder / name, "audio_classifier", config, weights)
        known = dataclasses.replace(config, published=names[name])
        networks.save_network(folder / f"published_{name}", "audio_classifier", known, weights)
    return folder


def make(name, folders, published=True, resamples=0, **more):
    prefix = "published_" if published else ""
    given = {kind: str(folders / f"{prefix}{kind}") for kind in NETWORKS}
    return find(name)(Networks(**given | more, resamples=resamples, batch_size=16))


def sounds(wavs, names=None, rate=RATE, captions=None, **more):
    names = names or [f"{i}.wav" for i in range(len(wavs))]
    return Sounds(
        lambda: [(np.arange(len(wavs)), wavs)], rate, wavs.shape[1], names=names,
        captions=captions or [()] * len(wavs), labels=[()] * len(wavs), **more,
    )  # fmt: skip


def tones(count, seed=0, noise=0.0, seconds=SECONDS):
    """Decaying tones of different pitch, [count, samples], with noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    pitch = 150 * 2 ** (4 * np.random.default_rng(7).random((count, 1)))
    wavs = 0.5 * np.sin(2 * np.pi * pitch * t) * np.exp(-t)
    return (wavs + noise * rng.standard_normal(wavs.shape)).astype(np.float32)


def run(evaluator, ours, theirs=None):
    theirs = sounds(tones(24)) if theirs is None else theirs
    return {score.name: score for score in base.run([evaluator], Inputs(ours, theirs))}


def test_every_protocol_is_in_the_registry_under_its_own_name():
    for name in PROTOCOLS:
        assert find(name).name == name


@pytest.mark.parametrize("name", ["specvqgan", "audioldm_eval-cnn14"])
def test_scores_rise_with_the_distance_from_the_recordings(name, folders):
    evaluator = make(name, folders)
    found = [
        base.values(run(evaluator, sounds(tones(24, noise=level), recordings=NAMES)).values())
        for level in (1e-4, 0.02, 0.5)
    ]
    for score in found[0]:
        if score.rpartition("/")[2] in ("fid", "fd", "kl", "kl_softmax", "kl_sigmoid"):
            assert found[0][score] < found[1][score] < found[2][score]
    assert f"{name}/is" in found[0]


NAMES = [f"{i}.wav" for i in range(24)]


def test_the_scores_are_those_of_the_metrics_on_the_networks_features(folders):
    evaluator = make("audioldm_eval-cnn14", folders)
    ours, theirs = tones(24, noise=0.1), tones(24)
    order = np.random.default_rng(3).permutation(24)  # pairs go by name, and not by order
    got = run(
        evaluator,
        sounds(ours, recordings=NAMES),
        sounds(theirs[order], names=[NAMES[i] for i in order]),
    )
    classifier = Networks(cnn14=str(folders / "cnn14")).sound_classifier("cnn14")
    a, b = (classifier.features(x - x.mean(1, keepdims=True)) for x in (ours, theirs))
    expected = {
        "fd": frechet.frechet_distance(b["embedding"], a["embedding"]),
        "kl_softmax": classes.kl_divergence(b["logits"], a["logits"]).mean(),
        "kl_sigmoid": classes.kl_divergence(b["logits"], a["logits"], form="sigmoid").mean(),
        "is": classes.inception_score(a["logits"]).mean,
    }
    for score, value in expected.items():
        assert got[f"audioldm_eval-cnn14/{score}"].value == pytest.approx(value, rel=1e-4)


def test_frames_of_all_sounds_are_pooled_and_two_ways_to_choose_a_bandwidth_differ(folders):
    ours = sounds(tones(24, noise=0.3))
    fad = run(make("vggish-fad", folders), ours)["vggish-fad/fad"]
    assert (
        fad.value
        > run(make("vggish-fad", folders), sounds(tones(24, noise=1e-4)))["vggish-fad/fad"].value
    )
    kit = run(make("fadtk", folders), ours)
    assert kit["fadtk/fad"].value == pytest.approx(fad.value, rel=0.02)  # float16
    assert kit["fadtk/fad_each"].value > 0
    paper = run(make("kadtk-paper", folders), ours)["kadtk-paper/kad"]
    code = run(make("kadtk-code", folders), ours)["kadtk-code/kad"]
    assert paper.value != code.value
    assert "reference" in paper.facts["definition"] and "evaluated" in code.facts["definition"]


def test_other_weights_never_carry_the_protocols_name(folders):
    ours = sounds(tones(24, noise=0.1), recordings=NAMES)
    scores = run(make("specvqgan", folders, published=False), ours)
    assert all(name.startswith("melception_") for name in scores)
    assert {score.facts["protocol"] for score in scores.values()} == {None}
    known = run(make("specvqgan", folders), ours)
    assert all(name.startswith("specvqgan/") for name in known)
    facts = known["specvqgan/kl"].facts
    assert facts["network"] == "melception" and facts["sounds"] == facts["references"] == 24


def test_intervals_hold_the_score_and_repeat(folders):
    ours = sounds(tones(24, noise=0.1), recordings=NAMES)
    first = run(make("audioldm_eval-cnn14", folders, resamples=100), ours)
    again = run(make("audioldm_eval-cnn14", folders, resamples=100), ours)
    for score in ("fd", "kl_softmax", "kl_sigmoid"):
        name = f"audioldm_eval-cnn14/{score}"
        low, high = first[name].interval
        assert low < first[name].value < high
        np.testing.assert_array_equal(first[name].replicates, again[name].replicates)


def test_what_would_mislead_is_refused(folders):
    evaluator = make("specvqgan", folders)
    good = tones(24, noise=0.1)
    with pytest.raises(ValueError, match="not every sound has one"):
        run(evaluator, sounds(good))
    silent = good.copy()
    silent[3], silent[5, 7] = 1e-5, np.nan
    with pytest.raises(ValueError, match=r"2 of 24 sounds are silent or broken, '3\.wav', '5\.w"):
        run(evaluator, sounds(silent, recordings=NAMES))
    with pytest.raises(ValueError, match=r"24 of 24 sounds are not 2\.0 s long.*3\.0 s"):
        run(evaluator, sounds(tones(24, seconds=3), recordings=NAMES))
    with pytest.raises(ValueError, match="22050 Hz and the references 16000 Hz"):
        run(evaluator, sounds(good, rate=22050, recordings=NAMES))
    few = sounds(good[:5], recordings=NAMES[:5])
    with pytest.raises(ValueError, match="5 sounds; it needs 10 or more"):
        run(evaluator, few)
    with pytest.raises(ValueError, match=r"melception='': give the model folder"):
        find("specvqgan")(Networks())
    with pytest.raises(ValueError, match="holds cnn14_16k: give a melception's folder"):
        make("specvqgan", folders, melception=str(folders / "published_cnn14"))


def test_few_sounds_for_the_networks_width_are_said_beside_the_score(folders):
    names = NAMES[:12]
    ours = sounds(tones(12, noise=0.1), recordings=names)
    scores = run(make("audioldm_eval-cnn14", folders), ours, sounds(tones(12)))
    (note,) = {n for n in scores["audioldm_eval-cnn14/fd"].notes}
    assert "n=12" in note and "d=16" in note


def test_clap_scores_are_the_mean_cosine_and_the_authors_way_hears_a_window(tiny_model):
    captions = [("a low tone",), ("a high tone", "a whistle")] * 12
    ours = sounds(tones(24), captions=captions)
    networks = Networks(clap=str(tiny_model), resamples=100)
    ((name, value, *_),) = base.run([find("clap-ms")(networks)], Inputs(ours))
    assert name == f"clap_{networks.clap.digest[:8]}/score"  # no published CLAP
    heard = networks.clap.audio_embeddings(tones(24), RATE)
    rows = []
    for texts, embedding in zip(captions, heard, strict=True):
        rows.append(np.mean(networks.clap.text_embeddings(list(texts)) @ embedding))
    assert value == pytest.approx(np.mean(rows), rel=1e-5)
    (score,) = base.run([find("clap-release")(networks)], Inputs(ours))
    assert "the first 20 of 24 sounds count" in score.notes[0]
    with pytest.raises(ValueError, match="5 sounds; it needs 20 or more"):
        list(
            base.run(
                [find("clap-release")(networks)], Inputs(sounds(tones(5), captions=captions[:5]))
            )
        )


def test_the_papers_set_is_fid_kl_and_clap(folders, tiny_model):
    evaluator = make("make-an-audio", folders, clap=str(tiny_model))
    ours = sounds(tones(24, noise=0.1), recordings=NAMES, captions=[("a tone",)] * 24)
    assert {name.rpartition("/")[2] for name in run(evaluator, ours)} == {"fid", "kl", "clap"}
