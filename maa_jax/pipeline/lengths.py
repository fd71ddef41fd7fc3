"""How long sounds are: seconds, samples, and the latents and windows that they take."""

import dataclasses

from maa_jax.latents import LatentCodec
from maa_jax.model_folder.model import Model
from maa_jax.pipeline import windows
from maa_jax.pipeline.windows import Section, Windows

# Latent widths are rounded up to a multiple of this (1.02 s at 16 kHz and hop 256), so that all
# programs are compiled per second of duration and not per frame.
_WIDTH_MULTIPLE = 8
# Sounds longer than this many times those of training are made section by section.
_LONGEST_SECTION = 6


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The lengths of a model's sounds.

    Attributes:
      model: description of the model.
      codec: its codec.
    """

    model: Model
    codec: LatentCodec

    def samples(self, seconds: float) -> int:
        """Returns the number of samples, at least one."""
        return max(1, round(seconds * self.model.sample_rate))

    def shape(self, samples: int, loop: bool = False) -> tuple[int, int, int]:
        """Returns (height, width, channels) of the latents of a sound."""
        multiple = self.model.unet.downscale
        if loop:  # whose latents end where it does
            return self.codec.shape(samples, multiple)
        shape = self.codec.shape(samples, max(_WIDTH_MULTIPLE, multiple))
        longest = self.samples(self.model.max_duration)
        return shape if samples > longest else min(shape, self.codec.shape(longest, multiple))

    def windows(
        self, shape: tuple[int, int, int], loop: bool = False, shortest: float | None = None
    ) -> Windows | None:
        """Returns the windows of sounds that need them, None for others.

        Args:
          shape: shape of their latents.
          loop: whether they are loops.
          shortest: seconds of the shortest part with a caption of its own, if there are such.
        """
        width = self._width
        if not loop and shortest is None and shape[1] <= width:
            return None
        if shortest is not None:  # a window sees about one part
            multiple = self.model.unet.downscale
            columns = shortest * self.model.sample_rate / self.codec.samples(multiple)
            width = min(width, max(2, int(columns)) * multiple)
        return windows.plan(shape[1], min(width, shape[1]), loop=loop)

    def sections(self, plan: Windows | None) -> list[Section]:
        """Returns the sections of very long sounds; none of others, and of loops."""
        longest = _LONGEST_SECTION * self._width
        if plan is None or plan.loop or plan.total <= longest:
            return []
        return windows.sections(plan.total, plan.width, longest)

    @property
    def _width(self) -> int:
        """Latent columns of the sounds of training."""
        longest = self.samples(self.model.max_duration)
        return self.codec.shape(longest, self.model.unet.downscale)[1]
