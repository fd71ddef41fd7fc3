"""The options of a pipeline's call, declared once.

The fields of `Request` define the keywords of `Pipeline.__call__`, the flags of maa_jax.sample, the
checks of both, and the record in samples.jsonl. Nothing here imports JAX until a model is loaded,
so that --help and mistakes in a program's flags are answered at once.

Not fields: the prompts, which are the input; arrays (initial latents), which neither a flag nor a
line of JSON can hold; and the callback, which does not change the sounds.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maa_jax import schema
from maa_jax.diffusion import SAMPLERS, SPACINGS
from maa_jax.options import FINE, Options, option

if TYPE_CHECKING:
    from maa_jax.diffusion.samplers import Table
    from maa_jax.diffusion.schedule import Schedule
    from maa_jax.model_folder.model import Model

Guidance = float | Sequence[float] | Callable[[float], float]

# {output of a pipeline: networks after the denoiser that it needs}.
OUTPUTS = {"latents": (), "mel": ("vae",), "wav": ("vae", "vocoder")}
# {way in which a recording is edited: strength by default}.
EDITS = {"style": 0.5, "variation": 0.3, "inversion": 0.5}
_MAX_UINT32 = 2**32 - 1
LONGEST = 3600.0  # seconds


def is_list(value: Any) -> bool:
    """Whether a value is a sequence of values, and not a string."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def _check_guidance(value: Any, request: Any) -> str:
    scales = _by_step(value, request.steps)
    # The sampler computes in float32, which ends at 3e38.
    if len(scales) == request.steps and all(schema.is_finite(x) and abs(x) <= 1e38 for x in scales):
        return FINE
    return (
        f"a finite number, such as 3.0, or {request.steps} of them, one per step, or a function of "
        "the progress from 0 to 1"
    )


def _by_step(scale: Any, steps: int) -> Sequence[float]:
    if callable(scale):
        return [scale(step / max(1, steps - 1)) for step in range(steps)]
    return scale if is_list(scale) else [scale] * steps


def _check_duration(value: Any, request: Any) -> str:
    values = value if is_list(value) else [] if value is None else [value]
    fine = all(schema.is_finite(x) and 0 < x <= LONGEST for x in values)
    return FINE if fine else f"seconds above 0 and up to {LONGEST:g}"


def _check_source(value: Any, request: Any) -> str:
    read = isinstance(value, str) and (not value or request.edit == "inversion")
    return FINE if read else "a sentence, and edit='inversion', which alone reads it"


def _check_candidates(value: Any, request: Any) -> str:
    enough = value is None or schema.fits(value, int, schema.Limits(least=request.num_samples))
    return FINE if enough else f"num_samples={request.num_samples} or more"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request(Options):
    """Options of generating sounds.

    Raises:
      ValueError: a field is invalid; the error names it, its value and the remedy.
    """

    steps: int = option(
        100,
        "Number of sampler steps, up to the length of the model's schedule (1000).",
        least=1,
        most=100_000,
    )
    sampler: str = option(
        "ddim",
        "Sampler: ddim, plms (one more evaluation of the U-Net than steps) or dpmpp_2m.",
        choices=SAMPLERS,
    )
    spacing: str = option(
        "ldm",
        "How the timesteps are spread: ldm (the release's), or diffusers' leading, trailing or "
        "linspace.",
        choices=SPACINGS,
    )
    eta: float = option(0.0, "Amount of noise that ddim adds per step, 0 to 1.", least=0, most=1)
    guidance_scale: Guidance = option(
        3.0,
        "Classifier-free guidance; 1 is none, larger follows the prompt more closely. In Python "
        "also one number per step, or a function of the progress, 0 at the first step and 1 at the "
        "last.",
        flag=float,
        check=_check_guidance,
    )
    negative_prompt: str = option("", 'Prompt that guidance leads away from; "" is any sound.')
    seed: int = option(
        0, "Seed of the noise; the same seed makes the same sounds.", least=0, most=_MAX_UINT32
    )
    duration: float | Sequence[float] | None = option(
        None,
        "Length in seconds, that of the model's training by default, up to an hour. In Python also "
        "a list, one for each prompt.",
        flag=float,
        check=_check_duration,
    )
    loop: bool = option(
        False, "Whether a sound goes on at its beginning when it ends, without a seam."
    )
    edit: str = option(
        "style",
        "How a recording is edited: style, noised and denoised under the prompt; variation, the "
        "same with less noise; or inversion, which starts from the noise that DDIM finds for it "
        "and keeps more.",
        choices=EDITS,
    )
    strength: float | None = option(
        None,
        "Share of the steps that a recording is noised by, 0 (given back through the autoencoder) "
        "to 1 (all made anew). By default 0.5 for style, 0.3 for variation, 0.5 for inversion, and "
        "1 within a mask.",
        least=0,
        most=1,
    )
    source_prompt: str = option(
        "",
        "What a recording sounds like, for inversion.",
        check=_check_source,
    )
    num_samples: int = option(1, "Number of sounds for each prompt.", least=1, most=_MAX_UINT32)
    num_candidates: int | None = option(
        None,
        "Candidates made for each prompt; those that score best under the folder's CLAP are "
        "kept. By default nothing is ranked.",
        check=_check_candidates,
    )
    output: str = option(
        "wav",
        "Output: wav, mel (log mels [frames, n_mels]) or latents (as `decode` takes them). "
        "Networks that it does not need are not read.",
        choices=OUTPUTS,
        flag=False,
        recorded=False,
    )
    batch_size: int = option(
        8,
        "Sounds made at a time; determines the memory needed.",
        least=1,
        most=_MAX_UINT32,
        recorded=False,
    )
    start_index: int = option(
        0, "Index of the first sound.", least=0, most=_MAX_UINT32, flag=False, recorded=False
    )

    def keywords(self) -> dict[str, Any]:
        """Returns the keywords of `Pipeline.__call__`, without the fields of subclasses."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Request)}

    @property
    def ranks(self) -> bool:
        """Whether sounds are chosen among candidates."""
        return self.num_candidates is not None

    @property
    def tries(self) -> int:
        """Number of sounds made for each prompt."""
        return self.num_samples if self.num_candidates is None else self.num_candidates

    def check_unedited(self, **others: Any) -> None:
        """Raises a ValueError if an option of editing is given where there is no recording.

        Args:
          **others: options that are no fields, falsy unless they are given.
        """
        given = {
            **others,
            "strength": self.strength is not None,
            "edit": self.edit != "style",
        }
        for name, there in given.items():
            if there:
                raise ValueError(
                    f"{name}: it edits a recording: give one (audio, or for evaluation start_from),"
                    " or leave it out"
                )

    def check_masked(self) -> None:
        """Raises a ValueError if an option is given that nothing reads where there is a mask."""
        if self.edit == "variation":
            raise ValueError(
                f"edit={self.edit!r}: it is for whole recordings, while a mask is made anew: leave "
                "out edit (strength says how much is kept), or the mask"
            )

    def skipped(self, audio: Any, mask: Any) -> int:
        """Returns the number of steps that are skipped for a recording, 0 without one."""
        if audio is None:
            return 0
        strength = self.strength
        if strength is None:
            strength = EDITS[self.edit] if mask is None else 1.0
        return self.steps - round(strength * self.steps)

    def coefficients(self, schedule: "Schedule", start: int = 0) -> "Table":
        """Returns the sampler's table for a model's noise schedule, after `start` of its steps.

        Raises:
          ValueError: the schedule has fewer steps, or the sampler lacks an option.
        """
        from maa_jax.diffusion import samplers

        table = samplers.coefficients(
            self.sampler,
            schedule,
            self.steps,
            spacing=self.spacing,
            eta=self.eta,
            start=min(start, self.steps - 1),
            guidance_scale=np.asarray(_by_step(self.guidance_scale, self.steps), np.float32),
        )
        return table if start < self.steps else table[:0]

    def durations(self, max_duration: float, prompts: int) -> list[float]:
        """Returns the duration of each prompt's sounds, in seconds.

        Args:
          max_duration: length of the sounds that the model was trained on, in seconds.
          prompts: number of prompts.

        Raises:
          ValueError: their number is not that of the prompts.
        """
        given: Any = max_duration if self.duration is None else self.duration
        seconds = [float(x) for x in given] if is_list(given) else [float(given)] * prompts
        if len(seconds) != prompts:
            raise ValueError(
                f"duration={given!r}: give one, or one for each of the {prompts} prompts"
            )
        return seconds

    def check_loop(self, lengths: Sequence[int], model: "Model") -> None:
        """Raises a ValueError for a loop that does not end where a latent does.

        Args:
          lengths: samples of each sound.
          model: model that makes them.
        """
        whole, rate = model.latent_samples, model.sample_rate
        for length in lengths if self.loop else ():
            if length % whole:
                near = max(1, round(length / whole)) * whole / rate
                raise ValueError(
                    f"loop=True: a sound of {length / rate:g} s does not end where a latent does: "
                    f"give a multiple of {whole / rate:g} s, such as {near:g}"
                )
