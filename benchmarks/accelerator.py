r"""The full-size networks on an accelerator: agreement, speed and memory.

    python -m benchmarks.accelerator [--small] [--part=training --part=...] [--peak_tflops=990] \
        [--out=accelerator.json]

Needs jax, flax, optax, numpy and safetensors alone, so that it runs on a bare machine. For speed
beside PyTorch on the same card, benchmarks/networks.py has the peers. Every row is printed as a
line of JSON as soon as it is known, and the table last; after --seconds no further part begins.

Agreement is the largest difference from the stored arrays of the authors' networks (tests/parity),
as a share of the largest value. A training step is a forward pass, a backward pass and AdamW's
update; the denoiser's are on latents, without the encoder. The share of peak takes the
arithmetic of each network as FlopCounterMode counts it in PyTorch.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from maa_jax.convert import clap as clap_names
from maa_jax.convert import released, vocoders
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.model_folder import torch_layout
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.models.cnn14 import Cnn14, Cnn14Config
from maa_jax.models.hifigan import HifiGan, HifiGanConfig
from maa_jax.models.rngs import InitRngs
from maa_jax.models.unet import UNet, UNetConfig
from tests.parity.named_weights import reference, state_dict

FRAMES, HEIGHT, WIDTH = 624, 10, 78  # a recording of 10 s, and its latents
SEGMENT = 32  # mel frames of HiFi-GAN's training segment
# Operations of a forward pass for 10 s of sound, in 1e9; three times as many for a training step.
GFLOP = {"unet": 88, "autoencoder": 548, "hifigan": 383}

_SMALL = flags.DEFINE_boolean("small", False, "Tiny networks, to check that it runs.")
_PEAK = flags.DEFINE_float("peak_tflops", 990.0, "Peak of the device in bfloat16; an H100's.")
_ALL = ["agreement", "convolution", "training", "sampling"]
_PARTS = flags.DEFINE_multi_enum("part", _ALL, _ALL, "A part to measure; give it several times.")
_BATCHES = flags.DEFINE_list("batches", ["256", "128", "64", "16"], "Batches tried for the U-Net.")
_OUT = flags.DEFINE_string("out", None, "JSON file for the rows.")
_SECONDS = flags.DEFINE_float("seconds", 420.0, "Time after which no further part begins.")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network with stored inputs and outputs of its reference.

    Attributes:
      network: class of the network.
      config: its configuration.
      rename: function from the reference's tensors to this package's names.
      inputs: names of the stored inputs, with channels second where they are images.
      outputs: function (module, inputs) -> arrays in the reference's layout, by name.
    """

    network: type
    config: Any
    rename: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    inputs: tuple[str, ...]
    outputs: Callable[..., dict[str, jax.Array]]


def _autoencoder(module: Autoencoder, mel: jax.Array) -> dict[str, jax.Array]:
    mean, logvar = module.encode(mel.transpose(0, 2, 3, 1))
    first = lambda x: x.transpose(0, 3, 1, 2)
    moments = jnp.concatenate([mean, logvar], -1)
    return {"moments": first(moments), "reconstruction": first(module.decode(mean))}


def _hifigan_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {vocoders.hifigan_name(name): value for name, value in tensors.items()}


def _hifigan(module: HifiGan, mel: jax.Array) -> dict[str, jax.Array]:
    return {"wav": module(mel.transpose(0, 2, 1))[:, None]}


def _unet(module: UNet, x: jax.Array, t: jax.Array, context: jax.Array) -> dict[str, jax.Array]:
    return {"eps": module(x.transpose(0, 2, 3, 1), t, context).transpose(0, 3, 1, 2)}


FULL = {
    "unet_paper": Case(UNet, UNetConfig(), released.unet_from_ldm, ("x", "t", "context"), _unet),
    "autoencoder_paper": Case(
        Autoencoder, AutoencoderConfig(), released.autoencoder_from_ldm, ("mel",), _autoencoder
    ),
    "hifigan_v1": Case(HifiGan, HifiGanConfig(), _hifigan_tensors, ("mel",), _hifigan),
    "panns_cnn14_16k": Case(
        Cnn14, Cnn14Config(), clap_names.from_panns, ("wav",), lambda module, wav: module(wav)
    ),
}
TINY = {
    "unet_small": dataclasses.replace(
        FULL["unet_paper"], config=UNetConfig(block_out_channels=(32, 64), cross_attention_dim=48)
    ),
    "hifigan_small": dataclasses.replace(
        FULL["hifigan_v1"], config=HifiGanConfig(upsample_initial_channel=64)
    ),
}
# Sizes of the networks that are timed.
SIZES = {
    False: {"unet": UNetConfig(), "autoencoder": AutoencoderConfig(), "hifigan": HifiGanConfig()},
    True: {
        "unet": UNetConfig(block_out_channels=(32,), layers_per_block=1),
        "autoencoder": AutoencoderConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1),
        "hifigan": HifiGanConfig(
            upsample_initial_channel=16,
            resblock_kernel_sizes=(3,),
            resblock_dilation_sizes=((1, 3),),
        ),
    },
}
NETWORKS = {"unet": UNet, "autoencoder": Autoencoder, "hifigan": HifiGan}


class Rows:
    """The rows measured so far; each is printed at once."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def add(self, what: str, **values: Any) -> None:
        """Adds a row."""
        self.all.append({"what": what, **values})
        print(json.dumps(self.all[-1]), flush=True)

    def attempt(self, what: str, measure: Callable[[], dict[str, Any]], **values: Any) -> bool:
        """Adds a row of what `measure` returns, or of its error, such as that memory is full."""
        try:
            self.add(what, **values, **measure())
        except Exception as error:
            self.add(what, **values, error=str(error).splitlines()[0][:160])
            return False
        return True


def agreement(name: str, case: Case, dtype: Any, precision: str | None) -> dict[str, Any]:
    """Returns the largest difference from a case's stored outputs, as a share of their largest."""
    arrays = reference(name)
    options = {"weight_norm": True} if case.network is HifiGan else {}
    make = functools.partial(case.network, case.config, dtype=dtype, rngs=InitRngs(0), **options)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    params = torch_layout.from_torch(state, case.rename(state_dict(name)))
    run = jax.jit(lambda p, *inputs: case.outputs(nnx.merge(graphdef, p), *inputs))
    with jax.default_matmul_precision(precision):
        got = run(params, *(arrays[key] for key in case.inputs))
    errors = [
        np.abs(np.asarray(x, np.float32) - arrays[key]).max() / np.abs(arrays[key]).max()
        for key, x in got.items()
        if key in arrays
    ]
    return {"error": float(f"{max(errors):.2e}")}


def convolution(stride: int, dilation: int, kernel: int) -> dict[str, Any]:
    """Compares a 1-D convolution in bfloat16 with float32 (on CUDA broken in jax issue 37922)."""
    x, weights = jnp.ones((2, 4096, 64)), jnp.ones((kernel, 64, 64)) / (64 * kernel)

    def convolve(x: jax.Array, weights: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            weights,
            (stride,),
            "SAME",
            rhs_dilation=(dilation,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )

    wanted = convolve(x, weights)
    got = jax.jit(convolve)(x.astype(jnp.bfloat16), weights.astype(jnp.bfloat16))
    error = jnp.abs(got.astype(jnp.float32) - wanted).max() / jnp.abs(wanted).max()
    return {"error": float(f"{error:.2e}")}


def network(name: str, config: Any, dtype: Any) -> tuple[nnx.GraphDef, Any]:
    """Returns a network's graph and random weights."""
    make = functools.partial(NETWORKS[name], config, dtype=dtype, rngs=InitRngs(0))
    graphdef, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def draw(x: jax.ShapeDtypeStruct) -> jax.Array:
        fan_in = np.prod(x.shape[:-1]) or 1
        return jnp.asarray(rng.standard_normal(x.shape, np.float32) / np.sqrt(fan_in))

    return graphdef, jax.tree.map(draw, nnx.to_pure_dict(state))


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of the first call, with compilation, and the median of further ones."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    first, times = time.perf_counter() - begin, []
    while len(times) < 3 or (len(times) < 10 and sum(times) < 5):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return first, statistics.median(times)


def training(name: str, config: Any, dtype: Any, batch: int) -> dict[str, Any]:
    """Times training steps of a network on 10 s a sample (HiFi-GAN: one of its segments)."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    share = 1.0  # of the operations for 10 s
    if name == "unet":
        width = config.cross_attention_dim
        inputs = (draw(batch, HEIGHT, WIDTH, 4), jnp.arange(batch), draw(batch, 77, width))
        loss = lambda module, z, t, c: jnp.square(module(z, t, c) - z).mean()
    elif name == "autoencoder":
        inputs = (draw(batch, 80, FRAMES, 1),)
        loss = lambda module, mel: jnp.abs(module.decode(module.encode(mel)[0]) - mel).mean()
    else:
        share = SEGMENT / FRAMES
        inputs = (draw(batch, SEGMENT, 80), draw(batch, SEGMENT * 256))
        loss = lambda module, mel, wav: jnp.abs(module(mel) - wav).mean()
    graphdef, params = network(name, config, dtype)
    tx = optax.adamw(1e-4)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, opt: Any) -> tuple[Any, Any, jax.Array]:
        value, grads = jax.value_and_grad(lambda p: loss(nnx.merge(graphdef, p), *inputs))(params)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, value

    state = [params, jax.jit(tx.init)(params)]
    del params

    def run() -> jax.Array:
        state[0], state[1], value = step(*state)
        return value

    first, seconds = timed(run)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    operations = 3e9 * GFLOP[name] * share * batch
    return {
        "compile_s": round(first, 1),
        "ms": round(1e3 * seconds, 2),
        "samples_s": round(batch / seconds, 1),
        "of_peak": round(operations / seconds / (1e12 * _PEAK.value), 3),
        "peak_gib": round(memory / 2**30, 1),
    }


def sampling(sizes: dict[str, Any], steps: int, batch: int) -> dict[str, Any]:
    """Times sounds of 10 s from context to 16 bits: guided DDIM, decoder, vocoder in float32."""
    unet = network("unet", sizes["unet"], jnp.bfloat16)
    vae = network("autoencoder", sizes["autoencoder"], jnp.bfloat16)
    vocoder = network("hifigan", sizes["hifigan"], jnp.float32)
    table = samplers.coefficients("ddim", Schedule(), steps, guidance_scale=3.0)
    context = jnp.ones((batch, 77, sizes["unet"].cross_attention_dim))
    noise = jax.random.normal(jax.random.key(0), (batch, HEIGHT, WIDTH, 4))

    @jax.jit
    def sounds(u: Any, a: Any, v: Any) -> jax.Array:
        predict = samplers.guided(nnx.merge(unet[0], u), context, 0 * context)
        latents = samplers.sample(predict, noise, table)
        mel = nnx.merge(vae[0], a).decode(latents)[..., 0].swapaxes(1, 2).astype(jnp.float32)
        with jax.default_matmul_precision("highest"):
            wav = nnx.merge(vocoder[0], v)(mel)
        return (jnp.clip(wav, -1, 1) * 32767).astype(jnp.int16)

    first, seconds = timed(lambda: sounds(unet[1], vae[1], vocoder[1]))
    real_time = batch * FRAMES * 256 / 16_000 / seconds
    return {
        "compile_s": round(first, 1),
        "ms": round(1e3 * seconds, 1),
        "times_real_time": round(real_time, 1),
    }


def parts(rows: Rows, small: bool) -> Iterator[Callable[[], Any]]:
    """Yields the parts of the benchmark, the most telling first."""
    sizes, chosen = SIZES[small], _PARTS.value
    # A small run, which shows that everything runs, takes the last of the types and shapes.
    kinds = ((jnp.float32, "highest"), (jnp.float32, None), (jnp.bfloat16, None))
    for dtype, precision in kinds[2 * small :] if "agreement" in chosen else ():
        for name, case in (TINY if small else FULL).items():
            values = {"network": name, "dtype": jnp.dtype(dtype).name, "precision": precision}
            measure = functools.partial(agreement, name, case, dtype, precision)
            yield functools.partial(rows.attempt, "agreement", measure, **values)
    shapes = ((1, 1, 7), (1, 5, 11), (2, 1, 4), (2, 2, 3), (8, 1, 16))
    for stride, dilation, kernel in shapes[3 * small :] if "convolution" in chosen else ():
        values = {"stride": stride, "dilation": dilation, "kernel": kernel}
        measure = functools.partial(convolution, **values)
        yield functools.partial(rows.attempt, "conv1d bfloat16", measure, **values)
    batches = {
        "unet": (2,) if small else tuple(map(int, _BATCHES.value)),
        "autoencoder": (1,) if small else (32, 16, 4),
        "hifigan": (1,) if small else (64, 16),
    }
    for name, tried in batches.items() if "training" in chosen else ():
        dtype = jnp.float32 if name == "hifigan" else jnp.bfloat16
        yield functools.partial(_largest, rows, name, sizes[name], dtype, tried)
    for steps in ((2,) if small else (100, 25, 8)) if "sampling" in chosen else ():
        for batch in (1,) if small else (1, 32):
            measure = functools.partial(sampling, sizes, steps, batch)
            yield functools.partial(rows.attempt, "sampling", measure, steps=steps, batch=batch)


def _largest(rows: Rows, name: str, config: Any, dtype: Any, batches: tuple[int, ...]) -> None:
    """Times training at the largest batch that fits."""
    for batch in batches:
        measure = functools.partial(training, name, config, dtype, batch)
        values = {"network": name, "dtype": jnp.dtype(dtype).name, "batch": batch}
        if rows.attempt("training", measure, **values):
            return


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows as Markdown, a table for each kind."""
    lines = []
    for what in dict.fromkeys(row["what"] for row in rows):
        some = [
            {k: v for k, v in row.items() if k != "what"} for row in rows if row["what"] == what
        ]
        columns = list(dict.fromkeys(key for row in some for key in row))
        lines += ["", f"{what}:", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(str(row.get(c, '')) for c in columns)} |" for row in some]
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures part after part, and prints the table."""
    del argv
    begin, rows = time.monotonic(), Rows()
    device = jax.devices()[0]
    rows.add("device", kind=device.device_kind, platform=device.platform, jax=jax.__version__)
    for part in parts(rows, _SMALL.value):
        if time.monotonic() - begin > _SECONDS.value:
            rows.add("left out", reason=f"{_SECONDS.value:.0f} s have passed")
            break
        part()
    if _OUT.value:
        pathlib.Path(_OUT.value).write_text(json.dumps(rows.all, indent=1) + "\n")
    print(table(rows.all))


if __name__ == "__main__":
    app.run(main)
