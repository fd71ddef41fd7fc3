r"""Speed of the full-size networks here and in PyTorch, with the same weights in one run.

    python -m benchmarks.networks [--networks=unet,autoencoder] [--batch=1] [--repeats=4] \
        [--dtype=float32] [--compile]

Needs the extra `torch`, and on a CPU an otherwise idle machine. The peers are diffusers'
UNet2DConditionModel and AutoencoderKL and transformers' SpeechT5HifiGan; BigVGAN has no such class,
so its peer is the plain PyTorch module in this file. Programs are compiled with a compilation cache
set, as in every command. Blocks of runs alternate, and medians are compared. A training step is a
forward pass, a backward pass and AdamW's update; vocoders train with weight norm and without
discriminators.

The last column is the arithmetic rate (multiplications and additions of the forward pass as PyTorch
counts them, three times as many for training) as a share of that of the best matrix product in the
same run, here or in PyTorch. Winograd convolutions take fewer multiplications than are counted.
"""

import dataclasses
import gc
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from absl import app, flags
from flax import nnx
from torch.utils.flop_counter import FlopCounterMode

from maa_jax.devices import enable_compilation_cache
from maa_jax.diffusion import samplers
from maa_jax.diffusion.schedule import Schedule
from maa_jax.model_folder import torch_layout
from maa_jax.models import bigvgan
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.models.bigvgan import BigVGAN, BigVGANConfig
from maa_jax.models.hifigan import HifiGan, HifiGanConfig
from maa_jax.models.unet import UNet, UNetConfig

F = torch.nn.functional
TENSOR_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEARNING_RATE, SCALE, STEPS = 1e-5, 3.0, 100
# A recording of 10 s, and HiFi-GAN's training segment.
FRAMES, SEGMENT = 624, 32
_BLOCK = 2  # timed runs of one side before those of the other


@dataclasses.dataclass
class Pair:
    """One network on both sides.

    Attributes:
      here: constructor of our network, from rngs.
      there: constructor of the PyTorch network.
      run_here: function (module, *inputs) -> outputs in PyTorch's layout.
      run_there: function (module, *inputs) -> outputs, for PyTorch.
      loss_here: function (module, *inputs) -> scalar.
      loss_there: function (module, *inputs) -> scalar, for PyTorch.
      inputs: arrays for `run_here` and, with channels first where it matters, for `run_there`.
    """

    here: Callable[..., nnx.Module]
    there: Callable[[], torch.nn.Module]
    run_here: Callable[..., Any]
    run_there: Callable[..., Any]
    loss_here: Callable[..., Any]
    loss_there: Callable[..., Any]
    inputs: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]

    def load(self, device: str) -> tuple[nnx.GraphDef, Any, torch.nn.Module]:
        """Returns our graph and weights, and the PyTorch module that they come from."""
        torch.manual_seed(0)
        module = self.there()
        graphdef, state = nnx.split(nnx.eval_shape(lambda: self.here(nnx.Rngs(0))))
        tensors = {
            name: value.detach().numpy()
            for name, value in module.state_dict().items()
            if not HifiGan.UNUSED.fullmatch(name)
        }
        params = torch_layout.from_torch(state, tensors, rename=_weight_norm_name)
        module = module.to(device)
        if _COMPILE.value:
            module.compile()
        return graphdef, jax.device_put(params), module


def _weight_norm_name(name: str) -> str:
    for index, ours in enumerate(("weight_g", "weight_v")):
        name = name.replace(f"parametrizations.weight.original{index}", ours)
    return name


def first(x: np.ndarray) -> np.ndarray:
    """Returns an array with its channels moved from last to second."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def last(x: jax.Array) -> jax.Array:
    """Returns an array with its channels moved from last to second, for comparison."""
    return jnp.moveaxis(x, -1, 1)


def unet_pair(batch: int, dtype: Any, training: bool) -> Pair:
    """The denoiser on latents of a 10 s recording."""
    import diffusers

    del training
    config, rng = UNetConfig(), np.random.default_rng(0)
    x, noise = (rng.standard_normal((batch, 10, 78, 4)).astype("f") for _ in range(2))
    timesteps = rng.integers(0, 1000, batch)
    context = rng.standard_normal((batch, 77, 1024)).astype("f")
    run_here = lambda m, x, t, c, *_: last(m(x, t, c))
    run_there = lambda m, x, t, c, *_: m(x, t, c).sample
    return Pair(
        here=lambda rngs: UNet(config, dtype=dtype, rngs=rngs),
        there=lambda: diffusers.UNet2DConditionModel.from_config(config.to_hf()),
        run_here=run_here,
        run_there=run_there,
        loss_here=lambda m, *a: jnp.mean((run_here(m, *a) - last(a[3])) ** 2),
        loss_there=lambda m, *a: F.mse_loss(run_there(m, *a), a[3]),
        inputs=((x, timesteps, context, noise), (first(x), timesteps, context, first(noise))),
    )


def autoencoder_pair(batch: int, dtype: Any, training: bool) -> Pair:
    """Encoding and decoding a mel image of 10 s; in training L1 and the KL penalty."""
    import diffusers

    del training
    config, rng = AutoencoderConfig(), np.random.default_rng(0)
    mel = rng.standard_normal((batch, 80, FRAMES, 1)).astype("f")

    def run_here(m, mel):
        mean, logvar = m.encode(mel)
        return last(m.decode(mean)), last(mean), last(logvar)

    def run_there(m, mel):
        latents = m.encode(mel).latent_dist
        return m.decode(latents.mean).sample, latents.mean, latents.logvar

    def loss(library, outputs, mel):
        fake, mean, logvar = outputs
        kl = 0.5 * (mean**2 + library.exp(logvar) - 1 - logvar).mean()
        return library.abs(fake - mel).mean() + 1e-6 * kl

    return Pair(
        here=lambda rngs: Autoencoder(config, dtype=dtype, rngs=rngs),
        there=lambda: diffusers.AutoencoderKL.from_config(config.to_hf()),
        run_here=run_here,
        run_there=run_there,
        loss_here=lambda m, mel: loss(jnp, run_here(m, mel), last(mel)),
        loss_there=lambda m, mel: loss(torch, run_there(m, mel), mel),
        inputs=((mel,), (first(mel),)),
    )


def vocoder_pair(batch: int, segments: int, here, there, channels_first: bool) -> Pair:
    """A vocoder on 10 s, or in training on `segments` of HiFi-GAN's segments an example."""
    frames, batch = (SEGMENT, segments * batch) if segments else (FRAMES, batch)
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((batch, frames, 80)).astype("f")
    wav = 0.1 * rng.standard_normal((batch, frames * 256)).astype("f")
    run_there = lambda m, mel, *_: m(mel)
    return Pair(
        here=here,
        there=there,
        run_here=lambda m, mel, *_: m(mel),
        run_there=run_there,
        loss_here=lambda m, mel, wav: jnp.abs(m(mel) - wav).mean(),
        loss_there=lambda m, mel, wav: (m(mel) - wav).abs().mean(),
        inputs=((mel, wav), (first(mel) if channels_first else mel, wav)),
    )


def hifigan_pair(batch: int, dtype: Any, training: bool) -> Pair:
    """HiFi-GAN V1."""
    import transformers

    config = HifiGanConfig()

    def there():
        sizes = transformers.SpeechT5HifiGanConfig(**config.to_hf())
        module = transformers.SpeechT5HifiGan(sizes)
        if training:
            module.apply_weight_norm()
        return module

    here = lambda rngs: HifiGan(config, weight_norm=training, dtype=dtype, rngs=rngs)
    return vocoder_pair(batch, 16 if training else 0, here, there, channels_first=False)


def bigvgan_pair(batch: int, dtype: Any, training: bool) -> Pair:
    """BigVGAN with the release's sizes."""
    config = BigVGANConfig()
    here = lambda rngs: BigVGAN(config, weight_norm=training, dtype=dtype, rngs=rngs)
    there = lambda: TorchBigVGAN(config, training)
    # With 16, both sides together take more than 24 GB.
    return vocoder_pair(batch, 4 if training else 0, here, there, channels_first=True)


class TorchAntiAliased(torch.nn.Module):
    """SnakeBeta between a resampling to twice the rate and one back, with depthwise filters."""

    def __init__(self, channels: int):
        super().__init__()
        self.act = torch.nn.Module()
        self.act.alpha = torch.nn.Parameter(torch.zeros(channels))
        self.act.beta = torch.nn.Parameter(torch.zeros(channels))
        taps = torch.tensor(bigvgan._TAPS).expand(channels, 1, -1).contiguous()
        self.register_buffer("taps", taps, persistent=False)

    def forward(self, x):
        groups = x.shape[1]
        x = F.pad(x, (5, 5), mode="replicate")
        x = 2 * F.conv_transpose1d(x, self.taps, stride=2, groups=groups)[..., 15:-15]
        alpha, beta = (p.exp()[:, None] for p in (self.act.alpha, self.act.beta))
        x = x + torch.sin(x * alpha) ** 2 / (beta + 1e-9)
        x = F.pad(x, (5, 6), mode="replicate")
        return F.conv1d(x, self.taps, stride=2, groups=groups)


class TorchBigVGAN(torch.nn.Module):
    """BigVGAN's generator in plain PyTorch, under its released names."""

    def __init__(self, config: BigVGANConfig, weight_norm: bool):
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm if weight_norm else (lambda m: m)
        conv = lambda *a, **kw: norm(torch.nn.Conv1d(*a, **kw))
        width = config.upsample_initial_channel
        self.kinds = len(config.resblock_kernel_sizes)
        self.conv_pre = conv(config.model_in_dim, width, 7, padding=3)
        self.ups, self.resblocks = torch.nn.ModuleList(), torch.nn.ModuleList()
        for rate, size in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = torch.nn.ConvTranspose1d(width, width // 2, size, rate, (size - rate) // 2)
            self.ups.append(torch.nn.ModuleList([norm(up)]))
            width //= 2
            for kernel, dilations in zip(
                config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True
            ):
                block = torch.nn.Module()
                same = lambda d, w=width, k=kernel: conv(
                    w, w, k, dilation=d, padding=d * (k - 1) // 2
                )
                block.convs1 = torch.nn.ModuleList(same(d) for d in dilations)
                block.convs2 = torch.nn.ModuleList(same(1) for _ in dilations)
                block.activations = torch.nn.ModuleList(
                    TorchAntiAliased(width) for _ in range(2 * len(dilations))
                )
                self.resblocks.append(block)
        self.activation_post = TorchAntiAliased(width)
        self.conv_post = conv(width, 1, 7, padding=3)

    def forward(self, mel):
        x = self.conv_pre(mel)
        for i, (up,) in enumerate(self.ups):
            x = up(x)
            total = 0
            for block in self.resblocks[self.kinds * i : self.kinds * (i + 1)]:
                y = x
                for j, (conv1, conv2) in enumerate(zip(block.convs1, block.convs2, strict=True)):
                    z = conv1(block.activations[2 * j](y))
                    y = y + conv2(block.activations[2 * j + 1](z))
                total = total + y
            x = total / self.kinds
        return torch.tanh(self.conv_post(self.activation_post(x)))[:, 0]


PAIRS = {
    "unet": unet_pair,
    "autoencoder": autoencoder_pair,
    "hifigan": hifigan_pair,
    "bigvgan": bigvgan_pair,
}

_NETWORKS = flags.DEFINE_list("networks", list(PAIRS), f"Any of {', '.join(PAIRS)}.")
_BATCH = flags.DEFINE_integer(
    "batch", 1, "Examples a run; in training each is 16 segments for HiFi-GAN, 4 for BigVGAN."
)
_REPEATS = flags.DEFINE_integer("repeats", 4, "Timed runs of each; medians are compared.")
_COMPILE = flags.DEFINE_boolean("compile", False, "Compile the peers by torch.compile.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", list(TENSOR_DTYPES), "Type of the computation.")


def forward_case(pair: Pair, device: str, autocast) -> tuple[Callable, Callable, float]:
    """Returns both sides' forward pass and its operation count, after checking that they agree."""
    graphdef, params, module = pair.load(device)
    module.eval()
    ours, theirs = _on_devices(pair, device)
    compiled = jax.jit(lambda params, *a: pair.run_here(nnx.merge(graphdef, params), *a))

    def there():
        with torch.no_grad(), autocast():
            return pair.run_there(module, *theirs)

    here = lambda: compiled(params, *ours)
    mine, wanted = (jax.tree.leaves(x)[0] for x in (here(), _numpy(there())))
    error = np.abs(np.asarray(mine, np.float32) - wanted).max() / np.abs(wanted).max()
    if error > 1e-3 and ours[0].dtype == np.float32:
        raise RuntimeError(f"the two sides differ by {error:.1e} of the largest output")
    return here, there, _flops(there)


def guided_case(pair: Pair, device: str, autocast) -> tuple[Callable, Callable, float]:
    """Returns both sides' DDIM step with guidance, both conditions in one batch."""
    import diffusers

    graphdef, params, module = pair.load(device)
    module.eval()
    (x, _, context, _), theirs = _on_devices(pair, device)
    schedule = Schedule()
    table = samplers.coefficients("ddim", schedule, STEPS, guidance_scale=SCALE)[:1]

    @jax.jit
    def step(params, x, context):
        predict = samplers.guided(nnx.merge(graphdef, params), context, 0 * context)
        return samplers.sample(predict, x, table)

    scheduler = diffusers.DDIMScheduler.from_config(schedule.to_hf())
    scheduler.set_timesteps(STEPS)
    conditions = torch.cat([0 * theirs[2], theirs[2]])

    def there():
        with torch.no_grad(), autocast():
            t, latents = scheduler.timesteps[0], theirs[0]
            eps = module(torch.cat([latents, latents]), t, conditions).sample
            without, given = eps.chunk(2)
            return scheduler.step(without + SCALE * (given - without), t, latents).prev_sample

    return lambda: step(params, x, context), there, _flops(there)


def training_case(pair: Pair, device: str, autocast) -> tuple[Callable, Callable, float]:
    """Returns both sides' training step."""
    graphdef, params, module = pair.load(device)
    module.train()
    ours, theirs = _on_devices(pair, device)
    tx = optax.adamw(LEARNING_RATE)
    loss_fn = lambda params, *a: pair.loss_here(nnx.merge(graphdef, params), *a)

    def step(params, opt, *a):
        grads = jax.grad(loss_fn)(params, *a)
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt

    compiled = jax.jit(step, donate_argnums=(0, 1))
    state = [params, jax.jit(tx.init)(params)]
    del params
    optimizer = torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)

    def here():
        state[:] = compiled(*state, *ours)
        return state

    def there():
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = pair.loss_there(module, *theirs)
        loss.backward()
        optimizer.step()

    with torch.no_grad():
        flops = 3 * _flops(lambda: pair.loss_there(module, *theirs))
    return here, there, flops


def _flops(there: Callable) -> int:
    """Returns the number of operations of PyTorch's matrix products and convolutions in a run."""
    with FlopCounterMode(display=False) as counter:
        there()
    return counter.get_total_flops()


def _on_devices(pair: Pair, device: str):
    ours, theirs = pair.inputs
    return jax.device_put(ours), [torch.tensor(x, device=device) for x in theirs]


def _numpy(outputs):
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [x.float().cpu().numpy() for x in outputs]


def _seconds(run: Callable, wait: Callable) -> float:
    begin = time.perf_counter()
    wait(run())
    return time.perf_counter() - begin


def compare(here: Callable, there: Callable, repeats: int, sync: Callable) -> tuple[float, float]:
    """Returns both sides' median seconds per run, in alternating blocks of runs.

    A block's first run is not counted: it finds caches and memory as the other side left them.
    """
    sides = [(here, jax.block_until_ready), (there, lambda _: sync())]
    for side in sides:
        _seconds(*side)  # compiles
    times = ([], [])
    while len(times[0]) < repeats:
        for side, taken in zip(sides, times, strict=True):
            taken += [_seconds(*side) for _ in range(1 + _BLOCK)][1:]
    return tuple(statistics.median(taken[:repeats]) for taken in times)


def matmul_rate(device: str, dtype: str, sync: Callable) -> float:
    """Returns the best rate of a large matrix product on either side, in operations per second."""
    size = 2048 if device == "cpu" else 8192
    ours = jnp.ones((size, size), dtype)
    theirs = torch.ones(size, size, dtype=TENSOR_DTYPES[dtype], device=device)
    product = jax.jit(lambda x: x @ x)
    runs = [
        (lambda: product(ours), jax.block_until_ready),
        (lambda: theirs @ theirs, lambda _: sync()),
    ]
    return 2 * size**3 / min(_seconds(*run) for _ in range(10) for run in runs)


def main(argv: list[str]) -> None:
    """Prints the table."""
    del argv
    enable_compilation_cache()
    unknown = [n for n in _NETWORKS.value if n not in PAIRS]
    if unknown:
        raise app.UsageError(f"--networks={','.join(unknown)}: choose from {', '.join(PAIRS)}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if (jax.default_backend() == "cpu") != (device == "cpu"):
        raise app.UsageError(
            f"JAX runs on {jax.default_backend()} and PyTorch on {device}: install both for the "
            "same device, or set JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES= for the CPU"
        )
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    torch.set_num_threads(os.cpu_count())
    dtype = _DTYPE.value
    autocast = lambda: torch.autocast(device, TENSOR_DTYPES[dtype], enabled=dtype != "float32")
    rate = matmul_rate(device, dtype, sync)
    print(
        f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, {dtype}, batch {_BATCH.value}; "
        f"jax {jax.__version__}, torch {torch.__version__}; matrix product {rate / 1e9:.0f} GFLOP/s"
    )
    head = ("network", "pass", "here, s", "PyTorch, s", "speed / PyTorch", "of matmul")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for name in _NETWORKS.value:
        cases = {
            "forward": forward_case,
            "guided DDIM step": guided_case,
            "training": training_case,
        }
        for title, case in cases.items():
            if title == "guided DDIM step" and name != "unet":
                continue
            pair = PAIRS[name](_BATCH.value, jnp.dtype(dtype), title == "training")
            here, there, flops = case(pair, device, autocast)
            ours, theirs = compare(here, there, _REPEATS.value, sync)
            ratio, share = theirs / ours, flops / ours / rate
            print(
                f"| {name} | {title} | {ours:.3f} | {theirs:.3f} | {ratio:.2f} | {share:.0%} |",
                flush=True,
            )
            del pair, here, there
            gc.collect()


if __name__ == "__main__":
    app.run(main)
