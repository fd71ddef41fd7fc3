r"""Time and quality of every sampler by its number of steps, with any model.

    python -m benchmarks.samplers [--model=bundled] [--steps=10,20,50,100] [--reference_steps=200]

For every sampler and number of steps: seconds per sound (after compilation), the distance of the
log-mels from those of many DDIM steps from the same noise (mean absolute difference, in the model's
own logarithm), and how well the sounds match their prompts (cosine similarity of the embeddings of
the folder's CLAP).
"""

import time

import jax
import numpy as np
from absl import app, flags

from maa_jax.audio.io import as_read
from maa_jax.diffusion import SAMPLERS, SPACINGS
from maa_jax.diffusion.samplers import coefficients
from maa_jax.encoders.clap import ClapScore
from maa_jax.pipeline.denoising import segments
from maa_jax.pipeline.pipeline import Pipeline

PROMPTS = (
    "a crow caws",
    "a guitar chord",
    "a deep kick drum",
    "vinyl crackle and hiss",
    "a snare drum",
    "a bell rings",
    "a low bass note",
    "a door slams",
)

_MODEL = flags.DEFINE_string("model", "bundled", 'Path of a model folder, or "bundled".')
_PROMPT = flags.DEFINE_multi_string("prompt", list(PROMPTS), "Prompt; may be repeated.")
_SAMPLERS = flags.DEFINE_list("samplers", list(SAMPLERS), "Samplers, by name.")
_SPACINGS = flags.DEFINE_list("spacings", list(SPACINGS[:1]), "Spacings of the timesteps, by name.")
_STEPS = flags.DEFINE_list("steps", ["10", "20", "50", "100"], "Numbers of steps.")
_REFERENCE = flags.DEFINE_integer("reference_steps", 200, "DDIM steps of the reference.")
_DURATION = flags.DEFINE_float("duration", None, "Seconds; the model's limit by default.")
_GUIDANCE = flags.DEFINE_float("guidance_scale", 3.0, "Scale of classifier-free guidance.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the noise.")


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    pipe = Pipeline.from_pretrained(_MODEL.value)
    score, prompts = ClapScore(pipe.path), _PROMPT.value
    settings = dict(guidance_scale=_GUIDANCE.value, seed=_SEED.value, duration=_DURATION.value)
    settings |= dict(output="latents", batch_size=len(prompts))

    def run(**how) -> tuple[float, np.ndarray, float]:
        """Returns seconds per sound, mels and the mean score."""
        begin = time.perf_counter()
        latents = pipe(prompts, **settings, **how)
        wavs = pipe.decode(latents)
        seconds = (time.perf_counter() - begin) / len(prompts)
        fit = score(prompts, as_read(wavs), pipe.sample_rate).mean()
        return seconds, pipe.decode(latents, "mel"), float(fit)

    compiled = set()

    def warm_up(name: str, steps: int) -> None:
        """Compiles the scan lengths that a sampler needs; all samplers share their programs."""
        for length in set(segments(len(coefficients(name, pipe.model.schedule, steps)))) - compiled:
            run(steps=length)
            compiled.add(length)

    warm_up("ddim", _REFERENCE.value)
    seconds, reference, fit = run(steps=_REFERENCE.value)
    print(f"{jax.devices()[0].device_kind}, {len(prompts)} sounds at a time, {pipe.path}")
    head = ("sampler", "spacing", "steps", "seconds a sound", "log-mel L1", "CLAP")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    print(f"| ddim | ldm | {_REFERENCE.value} | {seconds:.2f} | 0 | {fit:.3f} |", flush=True)
    for sampler in _SAMPLERS.value:
        for spacing in _SPACINGS.value:
            for steps in map(int, _STEPS.value):
                warm_up(sampler, steps)
                seconds, mels, fit = run(sampler=sampler, spacing=spacing, steps=steps)
                far = np.abs(mels - reference).mean()
                print(
                    f"| {sampler} | {spacing} | {steps} | {seconds:.2f} | {far:.3f} | {fit:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    app.run(main)
