import json
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maa_jax
from maa_jax import bundle, pipeline
from maa_jax.diffusion.schedule import Schedule


@pytest.fixture(scope="module")
def pipe(tiny_model):
    # Short segments and few shapes: nearly all the time of these tests is compilation.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "MAX_SEGMENT", 2)
        yield maa_jax.Pipeline.from_pretrained(tiny_model)


def test_sounds_have_the_length_asked_for(pipe):
    assert pipe.sample_rate == 16000
    for duration, samples in ((0.5, 8000), (0.51234, 8197), (1e-9, 1), (None, 32768)):
        wavs = pipe("a crow caws", steps=2, duration=duration)
        assert wavs.shape == (1, samples)
        assert wavs.dtype == np.float32
        assert np.abs(wavs).max() <= 1
        # No silence in front or behind.
        assert np.abs(wavs[:, :256]).max() > 0
        assert np.abs(wavs[:, -256:]).max() > 0


def test_is_what_its_parts_make(pipe, tiny_model):
    """The same by hand, network by network, with noise and guidance spelt out."""
    got = pipe(
        "a crow caws", steps=4, guidance_scale=2.5, seed=7, negative_prompt="rain", duration=0.5
    )

    def load(name, method="__call__"):
        return jax.jit(getattr(bundle.build(*bundle.load_network(tiny_model, name)), method))

    tokens = pipe._conditioner.tokenize(["rain", "a crow caws"])
    context = load("text_projection")(load("text_encoder")(tokens))
    unet, alphas = load("unet"), Schedule().alphas_cumprod
    z = jax.random.normal(jax.random.fold_in(jax.random.key(7), 0), (1, 10, 8, 4))
    for t in (751, 501, 251, 1):
        without, with_ = unet(jnp.concatenate([z, z]), jnp.array([t, t]), context)
        noise = without + 2.5 * (with_ - without)
        clean = (z - np.sqrt(1 - alphas[t]) * noise) / np.sqrt(alphas[t])
        alpha = alphas[t - 250] if t > 250 else alphas[0]
        z = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * noise
    mel = load("vae", "decode")(z / 0.5)[..., 0].transpose(0, 2, 1)
    np.testing.assert_allclose(got, load("vocoder")(mel)[:, :8000], atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch(pipe):
    args = dict(steps=2, duration=0.5, seed=3)
    # Ten samples are a batch of eight and one of two.
    wavs = pipe(["rain", "a crow caws"], num_samples=5, **args)
    scale = np.abs(wavs).max()
    assert len(wavs) == 10
    for i in (0, 3, 8):
        prompt = "rain" if i < 5 else "a crow caws"
        alone = pipe(prompt, start_index=i, **args)
        np.testing.assert_allclose(alone[0], wavs[i], atol=1e-4 * scale)
    assert np.abs(wavs[0] - wavs[1]).max() > 1e-2 * scale
    assert np.abs(wavs[0] - pipe("rain", **args | {"seed": 4})[0]).max() > 1e-2 * scale


def test_the_prompt_the_negative_prompt_and_the_guidance_matter(pipe):
    args = dict(steps=2, duration=0.5)
    plain = pipe("rain", **args)
    for other in (
        pipe("a crow caws", **args),
        pipe("rain", negative_prompt="a crow caws", **args),
        pipe("rain", guidance_scale=1.0, **args),
        pipe("", **args),
    ):
        assert np.isfinite(other).all()
        assert np.abs(other - plain).max() > 1e-6


def test_latents_given_are_started_from(pipe):
    args = dict(steps=2, duration=0.5, num_samples=2)
    shape = pipe.latent_shape(0.5)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(2)]
    noise = np.stack([jax.random.normal(key, shape) for key in keys])
    same = pipe("rain", initial_latents=noise, seed=99, **args)
    np.testing.assert_allclose(same, pipe("rain", seed=0, **args), atol=1e-5)
    with pytest.raises(ValueError, match=r"initial_latents.*\(3, 10.*\(2, 10"):
        pipe("rain", initial_latents=np.zeros((3, *shape)), **args)


def test_widths_are_few_even_and_within_the_limit(pipe):
    widths = {pipe.latent_shape(s)[1] for s in np.linspace(0.01, 2.048, 50)}
    assert widths == {8, 16}
    assert pipe.latent_shape() == (10, 16, 4)
    # 2.048 s are exactly 128 frames and 16 latents: no more than that is ever computed.
    pipe.max_duration, limit = 2.3, pipe.max_duration
    try:
        assert pipe.latent_shape()[1] == 18
    finally:
        pipe.max_duration = limit


def test_programs_compile_once_for_a_shape(pipe):
    jitted = (pipe._encode, pipe._noise, pipe._denoise, pipe._decode)
    pipe("rain", steps=2, duration=0.5)
    before = [f._cache_size() for f in jitted]
    pipe("a crow caws", steps=2, duration=0.9, seed=5, guidance_scale=7.0, negative_prompt="rain")
    pipe("", steps=6, duration=0.1, start_index=4)  # three segments of two steps
    assert [f._cache_size() for f in jitted] == before


def test_progress_is_reported(pipe):
    calls = []
    pipe("rain", steps=4, num_samples=9, duration=0.3, callback=lambda *a: calls.append(a))
    assert calls == [(2, 8), (4, 8), (6, 8), (8, 8)]
    silent = pipe("rain", steps=2, duration=0.3)
    np.testing.assert_array_equal(
        silent, pipe("rain", steps=2, duration=0.3, callback=lambda *_: None)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(duration=0), "duration=0: give seconds above 0 and up to 2.048"),
        (dict(duration=-1.5), "duration=-1.5"),
        (dict(duration=float("nan")), "duration=nan"),
        (dict(duration=float("inf")), "duration=inf"),
        (dict(duration=2.05), "duration=2.05: give seconds above 0 and up to 2.048"),
        (dict(duration="long"), "duration='long'"),
        (dict(steps=0), "steps=0: give"),
        (dict(steps=1001), "steps=1001: give a number from 1 to 1000"),
        (dict(steps=2.5), "steps=2.5"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed=2**32), "seed=4294967296"),
        (dict(num_samples=0), "num_samples=0"),
        (dict(start_index=-1), "start_index=-1"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan"),
        (dict(prompts=[]), "prompts=[]"),
        (dict(prompts=[3]), "prompts=[3]"),
        (dict(negative_prompt=None), "negative_prompt=None"),
    ],
)
def test_bad_arguments_are_named(pipe, arguments, message):
    with pytest.raises(ValueError) as e:
        pipe(**{"prompts": "rain"} | arguments)
    assert message in str(e.value)


def test_a_long_prompt_is_cut_with_a_warning(pipe):
    words = ["rain"] * 80 + ["thunder"]
    with pytest.warns(UserWarning, match="thunder"):
        pipe(" ".join(words), steps=2, duration=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("", steps=2, duration=0.1)


def test_folders_that_do_not_fit_together_are_refused(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    shutil.rmtree(model / "vocoder")
    with pytest.raises(bundle.BundleError, match=r"missing.*vocoder/config\.json"):
        maa_jax.Pipeline.from_pretrained(model)

    model = shutil.copytree(tiny_model, tmp_path / "rates")
    index = json.loads((model / "model_index.json").read_text())
    index["mel"]["hop_length"] = 200
    (model / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(bundle.BundleError, match=r"vocoder: hop_length=256.*mel: hop_length=200"):
        maa_jax.Pipeline.from_pretrained(model)


def test_half_precision_reaches_every_network(tiny_model):
    pipe = maa_jax.Pipeline.from_pretrained(tiny_model, dtype=jnp.bfloat16)
    shape, params = (1, *pipe.latent_shape(0.5)), pipe._params
    denoise = jax.make_jaxpr(pipe._denoise)(
        params["unet"], jnp.zeros(shape), jnp.ones((2, 3)), *jnp.zeros((2, 1, 77, 24)), 3.0
    )
    decode = jax.make_jaxpr(pipe._decode)(params["vae"], params["vocoder"], jnp.zeros(shape))
    encode = jax.make_jaxpr(pipe._encode)(params["text"], jnp.zeros((1, 77), jnp.int32))
    for program in (denoise, decode, encode):
        matrix_products = re.findall(
            r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", str(program)
        )
        assert matrix_products.count("bf16") > 0.9 * len(matrix_products) > 3
    for program in (denoise, decode):  # what a step hands on, and sound, stay in float32
        assert program.out_avals[0].dtype == jnp.float32


@pytest.mark.parametrize(("steps", "segment"), [(1, 1), (7, 7), (97, 1), (25, 5), (100, 10)])
def test_segments_divide_the_steps(steps, segment, monkeypatch):
    monkeypatch.setattr(pipeline, "MAX_SEGMENT", 10)
    assert pipeline._segment(steps) == segment
