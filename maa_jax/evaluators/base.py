"""The evaluators' protocol, and their inputs: sounds with captions and labels."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from maa_jax.checks import nearest
from maa_jax.encoders.batching import gather

if TYPE_CHECKING:
    from maa_jax.evaluators.features import Network, Networks


class Sounds:
    """Sounds that are produced in batches, with their captions, labels and features.

    Attributes:
      sample_rate: sample rate in Hz.
      samples: length of each sound.
      names: name of each sound in errors, such as its file or a recording's id.
      captions: captions of each sound, empty where unknown.
      labels: labels of each sound, empty where unknown.
      truths: what should truly be heard in each sound, empty where unknown; see `data.truth`.
      recordings: name of the recording that each sound was made after, "" where unknown.
      lengths: length of each sound before zeros were appended, int [n].
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
        sample_rate: int,
        samples: int,
        *,
        names: Sequence[str],
        captions: Sequence[Sequence[str]],
        labels: Sequence[Collection[str]],
        truths: Sequence[Mapping[str, Any]] = (),
        recordings: Sequence[str] = (),
        lengths: Sequence[int] = (),
    ):
        """Describes the sounds; they are produced when their features are first needed.

        Args:
          batches: function that yields this process's share of the sounds in batches: their indices
            among the sounds of all processes, int [b], and waveforms, float32 [b, samples].
          sample_rate: sample rate in Hz.
          samples: length of each sound.
          names: name of each sound of all processes.
          captions: captions of each sound, empty where unknown.
          labels: labels of each sound, empty where unknown.
          truths: what should truly be heard in each sound; () if unknown.
          recordings: name of the recording that each sound was made after; () if unknown.
          lengths: length of each sound without appended zeros; () if all have `samples`.
        """
        self.sample_rate, self.samples = sample_rate, samples
        self.names, self.captions, self.labels = names, captions, labels
        self.truths = truths or [{}] * len(names)
        self.recordings = recordings or [""] * len(names)
        self.lengths = np.asarray(lengths or [samples] * len(names))
        self._batches = batches
        self._features: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Returns the number of sounds of all processes."""
        return len(self.names)

    def features(self, networks: Sequence["Network"]) -> list[np.ndarray]:
        """Returns features [n, width] of all processes' sounds, one array per network.

        One pass over the sounds computes the features of all networks that are not cached yet.
        """
        new = [network for network in networks if network.digest not in self._features]
        new = list({network.digest: network for network in new}.values())
        if new:
            places: list[np.ndarray] = [np.zeros(0, int)]
            rows: list[list[np.ndarray]] = [[] for _ in new]
            for numbers, wavs in self._batches():
                places.append(np.asarray(numbers))
                for network, found in zip(new, rows, strict=True):
                    found.append(network(wavs, self.sample_rate))
            order = np.argsort(gather(np.concatenate(places)))
            for network, found in zip(new, rows, strict=True):
                mine = np.concatenate(found) if found else np.zeros((0, 0), np.float32)
                self._features[network.digest] = gather(mine)[order]
        return [self._features[network.digest] for network in networks]


def no_sounds() -> Sounds:
    """Returns an empty `Sounds`."""
    return Sounds(lambda: (), 0, 0, names=(), captions=(), labels=())


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of the evaluators.

    Attributes:
      sounds: sounds to score.
      references: recordings that they are compared with.
    """

    sounds: Sounds = dataclasses.field(default_factory=no_sounds)
    references: Sounds = dataclasses.field(default_factory=no_sounds)


class Score(NamedTuple):
    """A number, and what a reader must know to trust it.

    Attributes:
      name: name of the score, "EVALUATOR/SCORE" or "EVALUATOR".
      value: the number.
      replicates: the number for resampled sounds [resamples]; empty if it was not resampled.
      facts: what it was computed from and how, as JSON values; scores are comparable if theirs are
        equal.
      notes: what a reader should know.
    """

    name: str
    value: float
    replicates: np.ndarray = np.zeros(0)
    facts: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the 95 % interval; None if there are no replicates."""
        if not len(self.replicates):
            return None
        low, high = np.percentile(self.replicates, [2.5, 97.5])
        return float(low), float(high)


def values(scores: Iterable[Score]) -> dict[str, float]:
    """Returns the scores' values by their names."""
    return {score.name: score.value for score in scores}


class Evaluator(Protocol):
    """Scores sounds.

    An evaluator may also have `check(inputs)`, which raises a ValueError for inputs that it cannot
    score, before any sound is made.

    Attributes:
      name: name in the registry.
      needs: inputs that it reads, a subset of "sounds", "references", "captions", "labels" and
        "truths". Labels are needed of both sounds and references, if it reads both; captions and
        truths of the sounds, or of the references where it reads these alone.
      networks: networks whose features of the sounds it reads.
      samples: length of the reference clips at 16 kHz; None for the length of the sounds.
    """

    name: str
    needs: frozenset[str]
    networks: Sequence["Network"]
    samples: int | None

    def __init__(self, networks: "Networks"):
        """Takes the networks that it needs, which are then read."""
        ...

    def run(self, inputs: Inputs) -> Iterator[Score]:
        """Yields scores."""
        ...


def run(evaluators: Sequence[Evaluator], inputs: Inputs) -> Iterator[Score]:
    """Yields the scores of all evaluators; every sound is made or read once for all of them.

    Raises:
      ValueError: an input that an evaluator needs is missing.
    """
    for evaluator in evaluators:
        check(evaluator, inputs)
    for side in ("sounds", "references"):
        hearing = [evaluator for evaluator in evaluators if side in evaluator.needs]
        if hearing:
            networks = [network for evaluator in hearing for network in evaluator.networks]
            getattr(inputs, side).features(networks)
    for evaluator in evaluators:
        yield from evaluator.run(inputs)


def check(evaluator: Evaluator, inputs: Inputs) -> None:
    """Raises a ValueError if the inputs lack something that an evaluator needs.

    Where it compares the labels of sounds and references, each sound must share one with some
    reference: no other could be right.
    """
    getattr(evaluator, "check", lambda _: None)(inputs)
    for side in sorted(evaluator.needs & {"sounds", "references"}):
        sounds = getattr(inputs, side)
        if not len(sounds):
            raise ValueError(f"{evaluator.name} needs {side}, but there are none")
        facts = {"captions", "labels", "truths"}
        if side == "references" and "sounds" in evaluator.needs:
            facts = {"labels"}
        for fact in sorted(evaluator.needs & facts):
            known = getattr(sounds, fact)
            without = [name for name, of in zip(sounds.names, known, strict=True) if not of]
            if without:
                raise ValueError(
                    f"{evaluator.name} needs {fact} of all {side}, but {len(without)} of "
                    f"{len(sounds)} have none, such as {without[0]!r}"
                )
    if evaluator.needs >= {"sounds", "references", "labels"}:
        known = {label for of in inputs.references.labels for label in of}
        sounds = inputs.sounds
        strange = [i for i, of in enumerate(sounds.labels) if known.isdisjoint(of)]
        if strange:
            label = next(iter(sounds.labels[strange[0]]))
            raise ValueError(
                f"{evaluator.name}: {len(strange)} of {len(sounds)} sounds have no label of a "
                f"recording, such as {sounds.names[strange[0]]!r}, whose label is {label!r} (the "
                f"nearest is {nearest(label, known)!r}): use the recordings' labels, or another "
                "dataset"
            )
