"""Cnn10, the smaller network of PANNs (Kong et al. 2020, Table 1): ten layers, features over time.

The paper's captioner (Appendix E.2) has one as its encoder; PANNs' classifier is left out.
"""

import dataclasses
import re

from maa_jax import schema
from maa_jax.models.cnn14 import Cnn14, Cnn14Frames, CnnConfig


@dataclasses.dataclass(frozen=True)
class Cnn10Config(CnnConfig):
    """Front end and widths; the defaults are PANNs' Cnn10, its front end at 16 kHz.

    Every block halves time and mels.
    """

    NAME = "Cnn10"

    channels: tuple[int, ...] = schema.size((64, 128, 256, 512), length=(1, 12))


class Cnn10(Cnn14Frames):
    """Waveform to features over time."""

    UNUSED = re.compile(rf"{Cnn14.UNUSED.pattern}|(fc1|fc_audioset)\..*")
