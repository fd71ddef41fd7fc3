"""Sounds to what is heard in them: how many events, which instruments, in which register.

It judges the sounds of models and is a part of none. It learns from the truth of `general_midi`.
"""

import dataclasses
import functools
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from maa_jax import schema
from maa_jax.models import hf_config
from maa_jax.models.cnn10 import Cnn10, Cnn10Config


@dataclasses.dataclass(frozen=True)
class EventClassifierConfig:
    """Sizes and classes of the classifier.

    Attributes:
      encoder: the network whose features over time are classified.
      families: names of the families of instruments.
      registers: names of the registers.
      events: largest number of events, which are told apart by their order.
      segments: number of equal stretches of time whose features are averaged.
      hidden_size: width of the hidden layer.
      dropout: rate of dropout before either layer.
    """

    encoder: Cnn10Config = dataclasses.field(default_factory=Cnn10Config)
    families: tuple[str, ...] = schema.field((), length=(1, 1000))
    registers: tuple[str, ...] = schema.field(("low", "middle", "high"), length=(1, 100))
    events: int = schema.size(3, most=100)
    segments: int = schema.size(6, most=1000)
    hidden_size: int = schema.size(256)
    dropout: float = schema.rate(0.2)

    def __post_init__(self):
        schema.check(self)

    def check_clip(self, samples: int) -> None:
        """Raises a ValueError if a clip of `samples` is too short to be classified."""
        if self.encoder.frames(samples) < self.segments:
            raise ValueError(
                f"a clip of {samples} samples has {self.encoder.frames(samples)} frames, fewer than"
                f" the classifier's segments={self.segments}: give longer clips"
            )

    def to_hf(self) -> dict[str, Any]:
        """Returns the content of config.json; the layout is this project's own."""
        return {
            "architectures": ["EventClassifier"],
            "model_type": "event_classifier",
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "encoder": self.encoder.to_hf(),
            "families": list(self.families),
            "registers": list(self.registers),
        }

    @classmethod
    def from_hf(cls, d: dict[str, Any]) -> Self:
        """Reads config.json.

        Raises:
          ValueError: the file is not a classifier's.
        """
        fixed = {"architectures": ["EventClassifier"], "model_type": "event_classifier"}
        return hf_config.build(cls, d, fixed=fixed, parts={"encoder": Cnn10Config})


class EventClassifier(nnx.Module):
    """A Cnn10, whose features over a few stretches of time go through two layers."""

    def __init__(
        self, config: EventClassifierConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.config = config
        self.encoder = Cnn10(config.encoder, dtype=dtype, rngs=rngs)
        width = config.encoder.channels[-1] * config.segments
        classes = len(config.families) + len(config.registers)
        self.hidden = nnx.Linear(width, config.hidden_size, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(
            config.hidden_size, config.events * (1 + classes), dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        wav: jax.Array,
        *,
        use_running_average: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> dict[str, jax.Array]:
        """Classifies waveforms [b, samples]; for the other arguments see `Cnn14Frames.frames`.

        Returns:
          Logits, float32: `count` [b, events], of one, two, ... events; `family` [b, events,
          families] and `register` [b, events, registers], of the first event, the second, ...
        """
        c = self.config
        c.check_clip(wav.shape[1])
        x = self.encoder.frames(wav, use_running_average=use_running_average, rngs=rngs)
        length = x.shape[1] // c.segments
        x = x[:, : length * c.segments].reshape(len(x), c.segments, length, -1).mean(axis=2)
        drop = functools.partial(self.dropout, deterministic=rngs is None, rngs=rngs)
        x = nnx.relu(self.hidden(drop(x.reshape(len(x), -1))))
        x = self.out(drop(x)).astype(jnp.float32)
        count, x = jnp.split(x, [c.events], axis=1)
        family, register = jnp.split(x.reshape(len(x), c.events, -1), [len(c.families)], axis=-1)
        return {"count": count, "family": family, "register": register}
