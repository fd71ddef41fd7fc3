"""What an evaluator is, and what it is given: sounds, and what is known of them."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from maa_jax.encoders.batching import gather

if TYPE_CHECKING:
    from maa_jax.evaluators.features import Network, Networks


class Sounds:
    """Sounds that come batch by batch, what is known of each, and features of them.

    Attributes:
      sample_rate: rate in Hz.
      samples: length of each.
      names: a name for each sound in errors, such as its file or a recording's id.
      captions: each sound's captions, none where they are unknown.
      labels: each sound's labels, none where they are unknown.
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
    ):
        """Keeps what is given, and asks for no sound yet.

        Args:
          batches: returns this process's share of the sounds, batch by batch: their numbers among
            the sounds of all processes, int [b], and waveforms, float32 [b, samples].
          sample_rate: rate in Hz.
          samples: length of each sound.
          names: a name for each sound of all processes.
          captions: captions of each sound, empty where they are unknown.
          labels: labels of each sound, empty where they are unknown.
        """
        self.sample_rate, self.samples = sample_rate, samples
        self.names, self.captions, self.labels = names, captions, labels
        self._batches = batches
        self._features: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        """Returns the number of sounds of all processes."""
        return len(self.names)

    def features(self, networks: Sequence["Network"]) -> list[np.ndarray]:
        """Returns features [n, width] of all processes' sounds, one array a network.

        One pass over the sounds computes those of all networks that have not heard them yet.
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
    """What evaluators are given.

    Attributes:
      sounds: the sounds to be scored.
      references: recordings that they are compared with.
    """

    sounds: Sounds = dataclasses.field(default_factory=no_sounds)
    references: Sounds = dataclasses.field(default_factory=no_sounds)


class Evaluator(Protocol):
    """Scores sounds.

    Attributes:
      name: its name in the registry.
      needs: what it reads, of "sounds", "references", "captions" and "labels"; the latter two
        of each side that it reads.
      networks: the networks that must hear the sounds.
      samples: length at 16 kHz of the clips that its references should be, None for that of the
        sounds.
    """

    name: str
    needs: frozenset[str]
    networks: Sequence["Network"]
    samples: int | None

    def __init__(self, networks: "Networks"):
        """Asks for the networks that it needs, which are then read."""
        ...

    def run(self, inputs: Inputs) -> Iterator[tuple[str, float]]:
        """Yields names of scores and their values."""
        ...


def run(evaluators: Sequence[Evaluator], inputs: Inputs) -> Iterator[tuple[str, float]]:
    """Yields the scores of all evaluators; every sound is made or read once for all of them.

    Raises:
      ValueError: something that an evaluator needs is missing.
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
    """Raises a ValueError unless the inputs hold all that an evaluator needs."""
    for side in sorted(evaluator.needs & {"sounds", "references"}):
        sounds = getattr(inputs, side)
        if not len(sounds):
            raise ValueError(f"{evaluator.name} needs {side}, and there are none")
        for fact in sorted(evaluator.needs & {"captions", "labels"}):
            known = getattr(sounds, fact)
            without = [name for name, of in zip(sounds.names, known, strict=True) if not of]
            if without:
                raise ValueError(
                    f"{evaluator.name} needs {fact} of all {side}, and {len(without)} of "
                    f"{len(sounds)} have none, such as {without[0]!r}"
                )
