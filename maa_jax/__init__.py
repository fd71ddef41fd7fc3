"""maa_jax: latent-diffusion text-to-audio in JAX.

import maa_jax
pipe = maa_jax.Pipeline.from_pretrained("bundled")
wavs = pipe(["a crow caws"], seed=0)  # float32 [n, samples] at pipe.sample_rate
"""

from typing import Any

from maa_jax.version import __version__

__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: a training process or a tool that only asks for the version should
    # not wait for the pipeline and its networks.
    if name == "Pipeline":
        from maa_jax.pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
