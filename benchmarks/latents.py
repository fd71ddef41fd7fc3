r"""Training of the diffusion model from sound and from stored latents: examples a second.

    python -m benchmarks.latents [--steps=5] [--small]

One process, one run: the step of `t2a:bundled`, with its batch of 32 clips of 4.1 s, and that of
the full-size U-Net, a clip of 10 s at a time and in float32, each with the frozen autoencoder and
from latents as maa_jax.embed stores them. The autoencoder of the full size has random weights; the
text encoder is the small one in the package in both, so that it does not count.
"""

import tempfile
import time
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import app, flags
from flax import nnx

from maa_jax.audio.mel import MelConfig
from maa_jax.configs import t2a
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_index
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.models.rngs import InitRngs
from maa_jax.stages import make_stage

_SMALL = flags.DEFINE_boolean("small", False, "Tiny networks, to check that it runs.")
_STEPS = flags.DEFINE_integer("steps", 5, "Steps that are timed.")


def settings(arg: str | None, folder: str) -> ml_collections.ConfigDict:
    """Returns the config of a size, whose networks need no training before."""
    config = t2a.get_config(arg)
    config.autoencoder = config.text_encoder = "bundled"
    config.dtype = "float32"
    if arg is None:
        config.autoencoder = folder
        config.unet.cross_attention_dim = 128
        config.batch_size = 1
    return config


def write_autoencoder(folder: str) -> None:
    """Writes the paper's autoencoder with random weights."""
    sizes = AutoencoderConfig()
    state = nnx.state(jax.jit(lambda: nnx.state(Autoencoder(sizes, rngs=InitRngs(0))))())
    networks.save_network(folder, "vae", sizes, nnx.to_pure_dict(state))
    save_index(folder, mel=vars(MelConfig()), sample_rate=16_000)


def rate(config: ml_collections.ConfigDict, kind: str) -> float:
    """Returns examples a second.

    Args:
      config: config of the diffusion stage.
      kind: "audio" or "moments", what a batch holds.
    """
    stage: Any = make_stage(config)
    frozen = jax.device_put(stage.load_frozen())
    state = jax.jit(stage.init)(jax.random.key(0))
    rng, size = np.random.default_rng(0), config.batch_size
    height, width, channels = stage.codec.shape(config.data.samples)
    shapes = {"audio": (config.data.samples,), "moments": (height, width, 2 * channels)}
    batch = {
        kind: rng.normal(0, 0.1, (size, *shapes[kind])).astype(np.float32),
        "text": stage.prepare_text(["a crow caws"] * size),
    }
    step = jax.jit(stage.train_step, donate_argnums=0)
    for warm_up in (2, _STEPS.value):  # the second call compiles again, for donated arrays
        begin = time.perf_counter()
        for i in range(warm_up):
            state, scalars = step(state, frozen, batch, jax.random.key(i))
        jax.block_until_ready(scalars)
    return size * _STEPS.value / (time.perf_counter() - begin)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    print("| t2a | from sound | from latents | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        sizes: dict[str, str | None] = {"`bundled`": "bundled", "full size": None}
        if _SMALL.value:
            sizes = {"`runlocal`": "runlocal"}
        else:
            write_autoencoder(folder)
        for name, arg in sizes.items():
            config = settings(arg, folder)
            sound, latents = (rate(config, kind) for kind in ("audio", "moments"))
            print(
                f"| {name} | {sound:.3g} /s | {latents:.3g} /s | {latents / sound:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    app.run(main)
