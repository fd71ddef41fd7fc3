"""Scores as published tools compute them: each a network, a rate, a window, a pairing, constants.

| protocol | tool |
|---|---|
| specvqgan | v-iashin/SpecVQGAN, evaluation/ (Iashin and Rahtu 2021) |
| audioldm_eval-cnn14, vggish-fad | haoheliu/audioldm_eval, with the backbone cnn14 |
| fadtk | microsoft/fadtk (Gui et al. 2024), on VGGish |
| kadtk-paper, kadtk-code | YoonjinXD/kadtk (Chung et al. 2025), on VGGish, by paper and by code |
| clap-laion, clap-ms | cosine of a sound and its caption; a sound is heard the same way each time |
| clap-release | Text-to-Audio/Make-An-Audio, wav_evaluation/ (Huang et al. 2023) |
| make-an-audio | that paper's FID, KL and CLAP score: specvqgan's and clap-release's |

A score by other weights than the published ones carries the weights' name and hash in place of the
protocol's name. Resampling is soxr's, and not that of each tool.
"""

import dataclasses
import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from maa_jax.audio import io
from maa_jax.evaluators.base import Inputs, Score, Sounds
from maa_jax.evaluators.features import (
    ClapAudio,
    ClapWindow,
    ClassifierAudio,
    Network,
    Networks,
    Peaks,
)
from maa_jax.metrics import classes, frechet, intervals, kernel

_SECONDS = 0.3  # by which lengths may differ
_SPLITS = 10  # of the inception score: as many sounds are needed
_RELEASE_BATCH = 20  # the release scores whole batches only
Features = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sets:
    """Features of both sides.

    Attributes:
      sounds: features of the sounds by name, [n, width] each.
      references: features of the references, [m, width].
      pairs: index of each sound's reference, [n]; empty if they are not paired.
      prompts: what sounds of one prompt have in common, [n].
      resamples: number of resamples of an interval; 0 for none.
    """

    sounds: Features
    references: Features
    pairs: np.ndarray
    prompts: np.ndarray
    resamples: int

    def interval(
        self, statistic: Callable[..., float], *arrays: np.ndarray, **options: Any
    ) -> np.ndarray:
        """Returns the statistic of resampled sounds, [resamples]."""
        if not self.resamples:
            return np.zeros(0)
        groups = self.prompts if len(self.prompts) == len(arrays[0]) else None
        return intervals.replicates(
            statistic, *arrays, groups=groups, resamples=self.resamples, **options
        )[1]


class _Protocol:
    """What protocols share: checks of the sounds, and the facts beside each score.

    Attributes:
      name: name in the registry.
      weights: names of the weights with which scores carry the protocol's name.
      least: number of sounds that it needs.
      pairs: whether each sound must have a recording among the references.
    """

    name: ClassVar[str]
    weights: ClassVar[tuple[str, ...]]
    least: ClassVar[int] = 2
    pairs: ClassVar[bool] = False
    needs: frozenset[str] = frozenset({"sounds", "references"})
    samples: int | None = None
    # What hears the sounds: its name with a hash unless published, its rate, its window.
    _heard: str
    _sample_rate: int
    _seconds: float | None = None

    def __init__(self, networks: Networks):
        self._resamples = networks.resamples
        self._network = self._listen(networks)
        self.networks: Sequence[Network] = (networks.kept(self._network), Peaks())

    def _listen(self, networks: Networks) -> Network:
        """Returns the network, and sets what is said about it."""
        raise NotImplementedError

    def _unpack(self, rows: np.ndarray) -> Features:
        """Returns the network's features by name."""
        raise NotImplementedError

    def _scores(self, sets: Sets) -> Iterator[Score]:
        """Yields the scores, whose facts are their definitions."""
        raise NotImplementedError

    def check(self, inputs: Inputs) -> None:
        """Raises a ValueError for what can be told before sounds are made.

        They are too few, of another length than the network's or than the references, of another
        sample rate than these, or not paired where they must be.
        """
        if len(inputs.sounds) < self.least:
            raise ValueError(
                f"{self.name}: {len(inputs.sounds)} sounds; it needs {self.least} or more"
            )
        if "references" in self.needs:
            self._check_alike(inputs)
            if self.pairs and not len(paired(inputs)):
                raise ValueError(
                    f"{self.name} compares each sound with its own recording, and not every sound "
                    "has one in the reference: give the reference of the prompts, or files of the "
                    "same names, or another protocol"
                )

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields the protocol's scores; see the module's docstring.

        Raises:
          ValueError: sounds are silent or not finite.
        """
        sounds = self._features("sounds", inputs.sounds)
        references = self._features("references", inputs.references)
        prompts = np.array([" | ".join(texts) for texts in inputs.sounds.captions])
        pairs = paired(inputs) if references else np.zeros(0, int)
        groups = pairs if len(pairs) else prompts if all(prompts) else np.arange(len(prompts))
        sets = Sets(sounds, references, pairs, groups, self._resamples)
        own = self._heard in self.weights
        facts = {
            "protocol": self.name if own else None,
            "network": self._heard,
            "network_digest": self._network.digest,
            "sample_rate": self._sample_rate,
            "sounds": len(inputs.sounds),
            "sounds_rate": inputs.sounds.sample_rate,
            "seconds": round(inputs.sounds.samples / inputs.sounds.sample_rate, 2),
            "prompts": _hash(prompts.tolist()),
            "references": len(inputs.references),
            "reference_set": _hash(list(inputs.references.names)),
            "resamples": self._resamples,
        }
        for score in self._scores(sets):
            prefix = self.name if own else self._heard
            yield score._replace(name=f"{prefix}/{score.name}", facts={**facts, **score.facts})

    def _features(self, side: str, sounds: Sounds) -> Features:
        if side not in self.needs:
            return {}
        rows, checks = sounds.features(self.networks)
        heard = checks[:, 0] >= io.SILENCE  # not so if it is NaN
        silent = [name for name, good in zip(sounds.names, heard, strict=True) if not good]
        if silent:
            raise ValueError(
                f"{self.name}: {len(silent)} of {len(sounds)} {side} are silent or broken, "
                f"{', '.join(map(repr, silent[:5]))}: leave them out, or make them anew"
            )
        return self._unpack(rows)

    def _check_alike(self, inputs: Inputs) -> None:
        """Raises a ValueError unless all sounds and references have one length and one rate."""
        rates = inputs.sounds.sample_rate, inputs.references.sample_rate
        if rates[0] != rates[1]:
            raise ValueError(
                f"{self.name}: the sounds have {rates[0]} Hz and the references {rates[1]} Hz, so "
                "that their bandwidths would be compared: resample one side to the other's rate"
            )
        window = self._seconds
        wanted = window or float(np.median(inputs.references.lengths)) / rates[1]
        what = "this network's" if window else "the references'"
        for side, sounds in (("sounds", inputs.sounds), ("references", inputs.references)):
            lengths = sounds.lengths / sounds.sample_rate
            other = np.flatnonzero(np.abs(lengths - wanted) > _SECONDS)
            if len(other):
                raise ValueError(
                    f"{self.name}: {len(other)} of {len(sounds)} {side} are not {wanted:.1f} s "
                    f"long, {what} length, such as {sounds.names[other[0]]!r} of "
                    f"{lengths[other[0]]:.1f} s: cut or fill them"
                )


class _ClassifierProtocol(_Protocol):
    """A protocol of a Melception, a Cnn14 or a VGGish.

    Attributes:
      kind: which of the three.
      keys: features that it reads.
      options: keywords of `ClassifierAudio`.
    """

    kind: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]
    options: ClassVar[dict[str, Any]] = {}

    def _listen(self, networks: Networks) -> Network:
        classifier = networks.sound_classifier(self.kind)
        self._audio = ClassifierAudio(classifier, self.keys, **self.options)
        self._heard, self._sample_rate = classifier.name, classifier.sample_rate
        self._seconds = self._audio.seconds
        return self._audio

    def _unpack(self, rows: np.ndarray) -> Features:
        return self._audio.unpack(rows)


class SpecVqgan(_ClassifierProtocol):
    """FID, KL, inception score and KID by melception, as SpecVQGAN's evaluation prints them."""

    name = "specvqgan"
    weights = ("melception",)
    kind = "melception"
    keys = ("embedding", "logits", "logits_unbiased")
    least, pairs = _SPLITS, True

    def _scores(self, sets: Sets) -> Iterator[Score]:
        yield frechet_score("fid", sets, "embedding")
        yield kl_score("kl", sets, "softmax")
        yield inception(sets, "logits_unbiased")
        yield kid(sets, "embedding")


class AudioldmEval(_ClassifierProtocol):
    """FD, both KLs and inception score by Cnn14, as audioldm_eval prints them with cnn14.

    Sounds lose their mean and get zeros up to 2 s, as there.
    """

    name = "audioldm_eval-cnn14"
    weights = ("cnn14_16k", "cnn14_32k")
    kind = "cnn14"
    keys = ("embedding", "logits")
    least, pairs = _SPLITS, True
    options = {"centred": True, "least_seconds": 2.0}

    def _scores(self, sets: Sets) -> Iterator[Score]:
        yield frechet_score("fd", sets, "embedding")
        yield kl_score("kl_softmax", sets, "softmax")
        yield kl_score("kl_sigmoid", sets, "sigmoid")
        yield inception(sets, "logits")


class _Vggish(_ClassifierProtocol):
    weights = ("vggish",)
    kind = "vggish"
    keys = ("embedding_linear",)
    options = {"least_seconds": 1.0}


class VggishFad(_Vggish):
    """FAD on all frames of VGGish, without its last ReLU and PCA, as audioldm_eval's."""

    name = "vggish-fad"

    def _scores(self, sets: Sets) -> Iterator[Score]:
        yield frechet_score("fad", sets, "embedding_linear")


class Fadtk(_Vggish):
    """FAD, its extrapolation to infinitely many frames, and the mean of single sounds' FAD.

    Embeddings are rounded to float16, as fadtk keeps them.
    """

    name = "fadtk"

    def _scores(self, sets: Sets) -> Iterator[Score]:
        sets = _halved(sets)
        yield frechet_score("fad", sets, "embedding_linear")
        ours, theirs = (_frames(x["embedding_linear"]) for x in (sets.sounds, sets.references))
        least = 500
        if len(ours) > least:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", frechet.FewRows)  # said beside fad
                line = frechet.fad_infinity(theirs, ours, least=least)
            notes = (f"fad_infinity: R^2 of the line is {line.r2:.3f}",)
            what = "FAD at 1/n = 0, from 25 sizes of 500 frames or more"
            yield _score("fad_infinity", what, line.score, notes=notes)
        if sets.sounds["embedding_linear"].shape[1] > 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", frechet.FewRows)
                each = frechet.frechet_distance_each(theirs, list(sets.sounds["embedding_linear"]))
            replicates = sets.interval(np.mean, each)
            yield _score("fad_each", "mean of single sounds' FAD", float(each.mean()), replicates)


class KadtkPaper(_Vggish):
    """KAD with the bandwidth of the reference, as the paper and kadtk's README define it."""

    name = "kadtk-paper"
    bandwidth = "reference"

    def _scores(self, sets: Sets) -> Iterator[Score]:
        sets = _halved(sets)
        ours, theirs = (_frames(x["embedding_linear"]) for x in (sets.sounds, sets.references))
        value = kernel.kernel_audio_distance(theirs, ours, bandwidth=self.bandwidth)
        replicates = np.zeros(0)
        if sets.resamples:
            of_rows = kernel.kernel_audio_distance_of_rows(theirs, ours, bandwidth=self.bandwidth)
            replicates = sets.interval(
                lambda clips: of_rows(_rows(clips, len(ours) // len(sets.prompts))),
                np.arange(len(sets.prompts)),
            )
        yield _score("kad", f"100 MMD^2, bandwidth of the {self.bandwidth} set", value, replicates)


class KadtkCode(KadtkPaper):
    """KAD with the bandwidth of the evaluated set, as kadtk's code computes it."""

    name = "kadtk-code"
    bandwidth = "evaluated"


class _Clap(_Protocol):
    needs = frozenset({"sounds", "captions"})

    def _listen(self, networks: Networks) -> Network:
        self._clap = networks.clap
        self._heard, self._sample_rate = networks.clap.name, networks.clap.sample_rate
        return ClapAudio(networks.clap)

    def _unpack(self, rows: np.ndarray) -> Features:
        return {"embedding": rows}

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """See `_Protocol.run`."""
        self._captions = inputs.sounds.captions
        return super().run(inputs)

    def _scores(self, sets: Sets) -> Iterator[Score]:
        heard = sets.sounds["embedding"]
        pairs = [(i, text) for i, texts in enumerate(self._captions) for text in texts]
        words = self._clap.text_embeddings([text for _, text in pairs])
        rows = np.array([i for i, _ in pairs])
        cosines = np.sum(words.astype(np.float64) * heard[rows], axis=1)
        each = np.bincount(rows, cosines) / np.bincount(rows)  # mean over a sound's captions
        each, notes = self._counted(each)
        replicates = sets.interval(np.mean, each)
        what = "mean cosine of sound and caption"
        yield _score("score", what, float(each.mean()), replicates, notes)

    def _counted(self, each: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns the cosines that count [n], and notes."""
        return each, ()


class ClapLaion(_Clap):
    """CLAP score by LAION's CLAP."""

    name = "clap-laion"
    weights = ("clap-laion",)


class ClapMs(_Clap):
    """CLAP score by Microsoft's CLAP of 2022; a long sound is heard whole."""

    name = "clap-ms"
    weights = ("clap-ms",)


class ClapRelease(_Clap):
    """CLAP score as the authors' code computes it.

    See `ClapWindow` for what it hears of a sound. The last incomplete batch of 20 is left out.
    """

    name = "clap-release"
    weights = ("clap-ms",)
    least = _RELEASE_BATCH

    def _listen(self, networks: Networks) -> Network:
        super()._listen(networks)
        return ClapWindow(networks.clap)

    def _counted(self, each: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        whole = len(each) // _RELEASE_BATCH * _RELEASE_BATCH
        return each[:whole], (f"{self.name}: the first {whole} of {len(each)} sounds count",)


class MakeAnAudio:
    """FID, KL and CLAP score of the paper's Table 1; an `Evaluator`."""

    name = "make-an-audio"
    needs = frozenset({"sounds", "references", "captions"})
    samples: int | None = None
    _NAMES: ClassVar = {"fid": "fid", "kl": "kl", "score": "clap"}

    def __init__(self, networks: Networks):
        self._parts = (SpecVqgan(networks), ClapRelease(networks))
        self.networks: Sequence[Network] = [n for part in self._parts for n in part.networks]

    def check(self, inputs: Inputs) -> None:
        """See `_Protocol.check`."""
        for part in self._parts:
            part.check(inputs)

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields the three scores, under this protocol's name if both networks are published."""
        for score in itertools.chain(*(part.run(inputs) for part in self._parts)):
            prefix, _, name = score.name.rpartition("/")
            if name in self._NAMES:
                prefix = self.name if score.facts["protocol"] else prefix
                yield score._replace(name=f"{prefix}/{self._NAMES[name]}")


def frechet_score(name: str, sets: Sets, key: str) -> Score:
    """Returns a Fréchet distance of the frames, or of the clips, of both sides."""
    ours, theirs = (_frames(side[key]) for side in (sets.sounds, sets.references))
    gaussians = frechet.Gaussian.of(theirs, "references"), frechet.Gaussian.of(ours, "sounds")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", frechet.FewRows)  # written beside the score
        value = frechet.frechet_distance(*gaussians)
    replicates = np.zeros(0)
    if sets.resamples:
        of_rows = frechet.frechet_distance_of_rows(gaussians[0], ours)
        clips = np.arange(len(sets.prompts))
        replicates = sets.interval(
            lambda clips: of_rows(_rows(clips, len(ours) // len(sets.prompts))), clips, centred=True
        )
    notes = tuple(f"{name}: {g.note}" for g in gaussians if g.note)
    return _score(name, f"Fréchet distance of {key}", value, replicates, notes)


def kl_score(name: str, sets: Sets, form: str) -> Score:
    """Returns the mean KL(reference || sound) of paired clips."""
    theirs = sets.references["logits"][sets.pairs]
    each = classes.kl_divergence(theirs, sets.sounds["logits"], form=form)  # type: ignore
    replicates = sets.interval(np.mean, each)
    return _score(name, f"KL(reference || sound) over {form}", float(each.mean()), replicates)


def inception(sets: Sets, key: str) -> Score:
    """Returns the inception score of the sounds, with its deviation over splits in a note."""
    logits = sets.sounds[key]
    found = classes.inception_score(logits, splits=_SPLITS)
    notes = (f"is: standard deviation over {_SPLITS} splits {found.deviation:.4g}",)
    what = f"inception score of {key}, {_SPLITS} splits, seed 2020"
    return _score("is", what, found.mean, notes=notes)


def kid(sets: Sets, key: str) -> Score:
    """Returns KID, with its deviation over subsets in a note."""
    size = min(1000, len(sets.sounds[key]), len(sets.references[key]))
    found = kernel.kernel_inception_distance(sets.references[key], sets.sounds[key])
    notes = (f"kid: standard deviation over subsets of {size} {found.deviation:.4g}",)
    return _score("kid", f"KID, degree 3, subsets of {size}, seed 2020", found.mean, notes=notes)


def paired(inputs: Inputs) -> np.ndarray:
    """Returns the index of each sound's reference, int [n]; [0] if some sound has none.

    A sound names the recording that it was made after; a reference is called by its id or its file.
    """
    place = {name: i for i, name in enumerate(inputs.references.names)}
    found = [place.get(name, -1) for name in inputs.sounds.recordings]
    return np.array(found) if min(found, default=-1) >= 0 else np.zeros(0, int)


def _score(
    name: str,
    definition: str,
    value: float,
    replicates: np.ndarray | None = None,
    notes: tuple[str, ...] = (),
) -> Score:
    none = np.zeros(0)
    found = none if replicates is None else replicates
    return Score(name, value, found, {"definition": definition}, notes)


def _frames(features: np.ndarray) -> np.ndarray:
    """Returns [n, d] as it is, and [n, frames, d] as [n * frames, d]."""
    return features.reshape(-1, features.shape[-1])


def _rows(clips: np.ndarray, frames: int) -> np.ndarray:
    """Returns the rows of clips [n] that have `frames` frames each, [n * frames]."""
    return (clips[:, None] * frames + np.arange(frames)).ravel()


def _halved(sets: Sets) -> Sets:
    """Returns features rounded to float16, as fadtk and kadtk keep them."""
    half = lambda side: {k: v.astype(np.float16).astype(np.float32) for k, v in side.items()}
    return dataclasses.replace(sets, sounds=half(sets.sounds), references=half(sets.references))


def _hash(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
