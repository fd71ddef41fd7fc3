"""Programs have the kernels of their target platform; networks support forward-mode gradients."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import maa_jax
from maa_jax.models.autoencoder import Autoencoder, AutoencoderConfig
from maa_jax.models.bigvgan import BigVGAN, BigVGANConfig
from maa_jax.models.hifigan import HifiGan, HifiGanConfig
from maa_jax.models.kernels import attention, conv1d, conv2d, upsample_conv2d
from maa_jax.models.mel_discriminators import PatchConfig, PatchDiscriminator
from maa_jax.models.rngs import InitRngs
from maa_jax.models.unet import UNet, UNetConfig
from maa_jax.models.waveform_discriminators import (
    MultiPeriodConfig,
    MultiPeriodDiscriminator,
    MultiScaleConfig,
    MultiScaleDiscriminator,
)
from tests.models.kernels.test_convolution import random
from tests.subprocesses import run_python


def unet():
    config = UNetConfig(
        block_out_channels=(8, 16),
        layers_per_block=1,
        num_heads=2,
        cross_attention_dim=5,
        norm_num_groups=4,
    )
    timesteps, context = jnp.array([3, 30]), random(2, 3, 5)
    return UNet, config, {}, random(2, 4, 6, 4), lambda net, x: net(x, timesteps, context)


def autoencoder():
    config = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    return Autoencoder, config, {}, random(2, 8, 12, 1), lambda net, x: net.decode(net.encode(x)[0])


SIZES = dict(
    model_in_dim=8,
    upsample_initial_channel=16,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 3), (1, 2)),
)


def hifigan():
    config = HifiGanConfig(**SIZES)
    return HifiGan, config, {"weight_norm": True}, random(2, 9, 8), lambda net, x: net(x)


def bigvgan():
    config = BigVGANConfig(**SIZES)
    return BigVGAN, config, {"weight_norm": True}, random(2, 9, 8), lambda net, x: net(x)


def multi_period():
    config = MultiPeriodConfig(periods=(2, 3), channels=(4, 8))
    logits = lambda net, x: jnp.concatenate([logits for logits, _ in net(x)], axis=1)
    return MultiPeriodDiscriminator, config, {}, random(2, 64), logits


def multi_scale():
    config = MultiScaleConfig(
        scales=2, channels=(4, 8), kernel_sizes=(5, 7), strides=(1, 2), groups=(1, 2)
    )
    logits = lambda net, x: jnp.concatenate([logits for logits, _ in net(x)], axis=1)
    return MultiScaleDiscriminator, config, {}, random(2, 64), logits


def patch():
    config = PatchConfig(channels=4, layers=2)
    return PatchDiscriminator, config, {}, random(2, 16, 16, 1), lambda net, x: net(x)[0][0]


GENERATORS = (unet, autoencoder, hifigan, bigvgan)
DISCRIMINATORS = (multi_period, multi_scale, patch)


def load(case):
    """Returns a pure function of parameters and a batch, parameters and a batch."""
    network, config, options, x, apply = case()
    graphdef, params, rest = nnx.split(network(config, rngs=InitRngs(0), **options), nnx.Param, ...)
    # No weight is zero, as some are in a fresh network.
    params = jax.tree.map(lambda p: 0.5 * p + 0.1 * random(*p.shape), params)
    return lambda params, x: apply(nnx.merge(graphdef, params, rest, copy=True), x), params, x


@pytest.mark.parametrize("case", [*GENERATORS, *DISCRIMINATORS])
def test_forward_mode_agrees_with_reverse_mode(case):
    f, params, x = load(case)
    tangents = jax.tree.map(lambda p: random(*p.shape, seed=1), (params, x))

    @jax.jit
    def both(params, x):
        out, tangent = jax.jvp(f, (params, x), tangents)
        weights = random(*out.shape, seed=2)
        gradient = jax.grad(lambda *args: jnp.sum(weights * f(*args)), (0, 1))(params, x)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(tangents), strict=True)
        return jnp.sum(weights * tangent), sum(jnp.vdot(g, t) for g, t in pairs)

    forward, reverse = both(params, x)
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


@pytest.mark.parametrize("case", GENERATORS)
def test_an_infinity_in_one_sample_changes_no_other(case):
    f, params, x = load(case)
    f = jax.jit(f)
    expected, out = f(params, x), f(params, x.at[0].set(jnp.inf))
    assert not np.isfinite(out[0]).all()
    np.testing.assert_array_equal(out[1], expected[1])


# Wide enough for every form that CPUs have.
ONE = ((1, 1), (1, 1))
WIDE = {
    "conv2d": (lambda x, k: conv2d(x, k, padding=ONE), (2, 16, 32, 128), (3, 3, 128, 128)),
    "conv1d": (lambda x, k: conv1d(x, k, padding=3), (2, 512, 128), (7, 128, 128)),
    "upsampling": (upsample_conv2d, (2, 16, 32, 8), (3, 3, 8, 8)),
    "attention": (lambda q, k: attention(q, k, k), (1, 1500, 1, 8), (1, 1500, 1, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", ["conv2d", "conv1d"])
def test_an_infinity_in_one_sample_changes_no_other_by_winograds_filters(case):
    f, *shapes = WIDE[case]
    x, kernel = random(*shapes[0]), random(*shapes[1], seed=1)
    f = jax.jit(f)
    np.testing.assert_array_equal(f(x.at[0].set(jnp.inf), kernel)[1], f(x, kernel)[1])


def operations(case, platform):
    """Returns the names of the operations of a value and its gradients."""
    f, *shapes = WIDE[case]
    value_and_grad = jax.value_and_grad(lambda *args: jnp.sum(f(*args) ** 2), (0, 1))
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = export.export(jax.jit(value_and_grad), platforms=[platform])(*args)
    return re.findall(r"stablehlo\.(\w+)", program.mlir_module())


@pytest.mark.parametrize("case", WIDE)
def test_a_program_has_the_kernels_of_the_platform_that_it_is_lowered_for(case):
    tpu, cuda, cpu = (operations(case, platform) for platform in ("tpu", "cuda", "cpu"))
    assert tpu == cuda
    if case == "attention":
        assert "while" in cpu and "while" not in tpu
    else:
        assert tpu.count("convolution") == 3
        assert cpu.count("convolution") > 3


def test_a_batch_that_is_spread_over_devices_is_not_gathered():
    code = """
        import jax
        import jax.numpy as jnp
        from jax.sharding import AxisType, NamedSharding
        from jax.sharding import PartitionSpec as P

        from tests.models.kernels.test_platforms import WIDE

        mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
        rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
        for case, (f, shape, kernel) in WIDE.items():
            second = rows if case == "attention" else whole
            args = (
                jax.ShapeDtypeStruct((8, *shape[1:]), jnp.float32, sharding=rows),
                jax.ShapeDtypeStruct(
                    (8, *kernel[1:]) if second is rows else kernel, jnp.float32, sharding=second
                ),
            )
            gradient = jax.grad(lambda *args: jnp.mean(f(*args) ** 2), (0, 1))
            program = jax.jit(gradient, out_shardings=(rows, second)).lower(*args).compile()
            for moved in ("all-gather(", "all-to-all(", "collective-permute("):
                assert moved not in program.as_text(), (case, moved)
    """
    run_python(code, devices=8)


def test_the_environment_turns_the_forms_for_cpus_off():
    code = """
        from tests.models.kernels.test_platforms import WIDE, operations

        for case in WIDE:
            assert operations(case, "cpu") == operations(case, "tpu"), case
    """
    run_python(code, MAA_JAX_CPU_KERNELS="0")


def test_no_other_file_depends_on_processors():
    root = pathlib.Path(maa_jax.__file__).parent
    # The pipeline's default type, one of the loop's compiler options, a flag of XLA's that must be
    # set before there is a backend, and torch's own devices.
    exempt = {"pipeline/arguments.py", "train/loop.py", "devices.py", "convert/torch_files.py"}
    words = re.compile(r"default_backend|platform_dependent|[\"']cpu[\"']|import cpu|kernels\.cpu")
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if not name.startswith("models/kernels/") and name not in exempt:
            assert not words.search(path.read_text()), name
