import dataclasses
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import maa_jax
from maa_jax.audio import io
from maa_jax.audio.mel import MelConfig
from maa_jax.diffusion.schedule import Schedule
from maa_jax.files import FolderError
from maa_jax.latents import LatentCodec
from maa_jax.model_folder import networks
from maa_jax.model_folder.index import save_scheduler
from maa_jax.pipeline import denoising, pipeline, programs
from maa_jax.pipeline.lengths import Lengths
from maa_jax.text.tokenizer import Tokenizer
from maa_jax.vocoder import Vocoder
from tests.subprocesses import run_python


@pytest.fixture(scope="module")
def pipe(tiny_model):
    # Short segments and few shapes: nearly all the time of these tests is compilation.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "MAX_SEGMENT", 2)
        yield maa_jax.Pipeline.from_pretrained(tiny_model)


def test_sounds_have_the_length_asked_for(pipe):
    assert pipe.sample_rate == 16000
    for duration, samples in ((0.5, 8000), (0.51234, 8197), (1e-9, 1), (None, 32768)):
        wavs = pipe("a crow caws", steps=2, duration=duration)
        assert wavs.shape == (1, samples)
        assert wavs.dtype == np.float32
        assert np.abs(wavs).max() <= 1
        # No silence at either end.
        assert np.abs(wavs[:, :256]).max() > 0
        assert np.abs(wavs[:, -256:]).max() > 0


def test_agrees_with_its_parts(pipe, tiny_model):
    """The same, network by network, with noise and guidance written out."""
    got = pipe(
        "a crow caws", steps=4, guidance_scale=2.5, seed=7, negative_prompt="rain", duration=0.5
    )

    def load(name, method="__call__"):
        return jax.jit(getattr(networks.build(*networks.load_network(tiny_model, name)), method))

    tokens = Tokenizer.from_folder(tiny_model / "tokenizer")(["rain", "a crow caws"])
    context = load("text_projection")(load("text_encoder")(tokens))
    unet, alphas = load("unet"), Schedule().alphas_cumprod
    z = jax.random.normal(jax.random.fold_in(jax.random.key(7), 0), (1, 10, 8, 8))
    for t in (751, 501, 251, 1):
        without, with_ = unet(jnp.concatenate([z, z]), jnp.array([t, t]), context)
        noise = without + 2.5 * (with_ - without)
        clean = (z - np.sqrt(1 - alphas[t]) * noise) / np.sqrt(alphas[t])
        alpha = alphas[t - 250] if t > 250 else alphas[0]
        z = np.sqrt(alpha) * clean + np.sqrt(1 - alpha) * noise
    mel = load("vae", "decode")(z / 0.5)[..., 0].transpose(0, 2, 1)
    vocode = jax.jit(Vocoder.from_folder(tiny_model, MelConfig()))
    wav, _ = vocode(networks.load_network(tiny_model, "vocoder")[1], mel, np.array([8000]))
    np.testing.assert_allclose(got, wav[:, :8000], atol=1e-4)


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
        assert np.abs(other - plain).max() > 1e-3 * np.abs(plain).max()


def test_sampling_starts_from_given_latents(pipe):
    args = dict(steps=2, duration=0.5, num_samples=2)
    shape = pipe.latent_shape(0.5)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(2)]
    noise = np.stack([jax.random.normal(key, shape) for key in keys])
    same = pipe("rain", initial_latents=noise, seed=99, **args)
    np.testing.assert_allclose(same, pipe("rain", seed=0, **args), atol=1e-5)
    with pytest.raises(ValueError, match=r"initial_latents.*\(3, 10.*\(2, 10"):
        pipe("rain", initial_latents=np.zeros((3, *shape)), **args)


def test_widths_are_few_even_and_within_the_limit(pipe, monkeypatch):
    widths = {pipe.latent_shape(s)[1] for s in np.linspace(0.01, 2.048, 50)}
    assert widths == {8, 16}
    assert pipe.latent_shape() == (10, 16, 8)
    longer = dataclasses.replace(pipe.model, max_duration=2.3)
    # 2.048 s are exactly 128 frames and 16 latents: no more than that is ever computed.
    with monkeypatch.context() as patch:
        patch.setattr(pipe, "max_duration", 2.3)
        patch.setattr(pipe, "_lengths", Lengths(longer, pipe._codec))
        assert pipe.latent_shape()[1] == 18


def test_programs_compile_once_for_a_shape(pipe):
    pipe("rain", steps=2, duration=0.5)
    compiled = []

    def listen(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    monitoring.register_event_duration_secs_listener(listen)
    pipe("a crow caws", steps=2, duration=0.9, seed=5, guidance_scale=7.0, negative_prompt="rain")
    pipe("", steps=4, duration=0.1, start_index=4)  # two segments
    for sampler, scales in (("plms", [1, 2, 3]), ("dpmpp_2m", [1, 2])):  # four and two evaluations
        pipe("rain", steps=len(scales), duration=0.5, sampler=sampler, guidance_scale=scales)
    assert compiled == []
    pipe("rain", steps=2, duration=0.5, num_samples=3)
    assert compiled  # the listener works
    monitoring.unregister_event_duration_listener(listen)


def test_progress_is_reported(pipe):
    calls = []
    pipe("rain", steps=4, num_samples=9, duration=0.3, callback=lambda *a: calls.append(a))
    assert [call[:2] for call in calls] == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert [call[2].shape for call in calls] == [(8, 10, 8, 8)] * 2 + [(1, 10, 8, 8)] * 2
    # The last estimate is close to what is decoded.
    args = dict(steps=4, duration=0.3)
    latents = pipe("rain", output="latents", callback=lambda *a: calls.append(a), **args)
    np.testing.assert_allclose(calls[-1][2], latents, atol=0.05 * np.abs(latents).max())
    silent = pipe("rain", steps=2, duration=0.3)
    np.testing.assert_array_equal(
        silent, pipe("rain", steps=2, duration=0.3, callback=lambda *_: None)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(duration=0), "duration=0: give seconds above 0"),
        (dict(duration=-1.5), "duration=-1.5"),
        (dict(duration=float("nan")), "duration=nan"),
        (dict(duration=float("inf")), "duration=inf"),
        (dict(duration=3601), "duration=3601: give seconds above 0 and up to 3600"),
        (dict(duration="long"), "duration='long'"),
        (dict(steps=0), "steps=0: give"),
        (dict(steps=1001), "steps=1001: give a number from 1 to 1000"),
        (dict(steps=2.5), "steps=2.5"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed=2**32), "seed=4294967296"),
        (dict(num_samples=0), "num_samples=0"),
        (dict(start_index=-1), "start_index=-1"),
        (dict(guidance_scale=float("nan")), "guidance_scale=nan"),
        (dict(guidance_scale="3"), "guidance_scale='3'"),
        (dict(guidance_scale=[1, 2], steps=3), "guidance_scale=[1, 2]: give a finite number, such"),
        (dict(guidance_scale=lambda t: float("inf"), steps=3), "guidance_scale=<function"),
        (dict(sampler="plsm"), "sampler='plsm': did you mean 'plms'?"),
        (dict(spacing="lmd"), "spacing='lmd': did you mean 'ldm'?"),
        (dict(output="waves"), "output='waves': did you mean 'wav'?"),
        (dict(eta=2), "eta=2: give a number from 0 to 1"),
        (dict(eta="much"), "eta='much'"),
        (dict(eta=0.5, sampler="plms"), "eta=0.5: sampler='plms' adds no noise"),
        (dict(batch_size=0), "batch_size=0"),
        (dict(num_candidates=1, num_samples=2), "num_candidates=1: give num_samples=2 or more"),
        (dict(duration=[0.5, 0.5]), "duration=[0.5, 0.5]: give one, or one for each of the 1"),
        (dict(duration=[0]), "duration=[0]: give seconds"),
        (dict(prompts=[]), "prompts=[]"),
        (dict(prompts=[3]), "prompts=[3]"),
        (dict(prompts=None), "prompts=None: give one sentence or more"),
        (dict(prompts=7), "prompts=7"),
        (dict(prompts=b"rain"), "prompts=b'rain'"),
        (dict(prompts="caf\udce9"), "prompts='caf\\udce9': '\\udce9' is no character"),
        (dict(negative_prompt="caf\udce9"), "negative_prompt='caf\\udce9'"),
        (dict(stepz=3), "option='stepz': did you mean 'steps'?"),
        (dict(callback=3), "callback=3: give a function"),
        (dict(initial_latents="noise"), "initial_latents is no array of numbers"),
        (dict(initial_latents=np.full((1, 10, 16, 8), np.nan)), "initial_latents holds NaN"),
        (dict(initial_latents=[np.zeros(3), np.zeros(4)]), "initial_latents is no array"),
        (dict(initial_latents=3, duration=[1]), "initial_latents has shape ()"),
        (dict(steps=10**400), "steps=1000"),
        (dict(guidance_scale=1e300), "guidance_scale=1e+300"),
        (dict(guidance_scale=10**400), "guidance_scale=1000"),
        (dict(duration=np.array(-9.0)), "duration=array(-9.)"),
        (dict(num_candidates=2.0), "num_candidates=2.0"),
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
    with pytest.warns(UserWarning, match="no word of '🐦 鳥' is known to this model"):
        pipe("🐦 鳥", steps=2, duration=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("", steps=2, duration=0.1)
        pipe("rain 🐦", steps=2, duration=0.1)


def test_samplers_and_spacings_are_used(pipe):
    args = dict(duration=0.5, output="latents", steps=5)
    made = [
        pipe("rain", **args, **how)
        for how in ({}, {"sampler": "plms"}, {"sampler": "dpmpp_2m"}, {"spacing": "trailing"})
    ]
    assert np.isfinite(made).all()
    for i, one in enumerate(made):
        for other in made[:i]:
            assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_outputs_are_stages_of_one_sound(pipe):
    args = dict(steps=2, duration=0.5)
    wavs = pipe("rain", **args)
    latents = pipe("rain", output="latents", **args)
    assert latents.shape == (1, *pipe.latent_shape(0.5))
    mels = pipe("rain", output="mel", **args)
    assert mels.shape == (1, 32, 80)  # 8000 samples at a hop of 256
    np.testing.assert_allclose(pipe.decode(latents, "mel")[:, :32], mels, atol=1e-5)
    fade = 80  # samples at the end of a sound
    np.testing.assert_allclose(pipe.decode(latents)[:, : 8000 - fade], wavs[:, :-fade], atol=1e-5)
    assert np.abs(wavs[:, -1]).max() < np.abs(wavs[:, -fade:]).max() / 10


def test_sounds_become_latents_and_come_back(pipe, tiny_model):
    wavs = pipe(["rain", "a crow caws"], steps=2, duration=0.5)
    latents = pipe.encode(wavs)
    assert latents.shape == (2, *pipe.latent_shape(0.5))
    codec, params = LatentCodec.load(tiny_model)
    padded = np.pad(wavs, ((0, 0), (0, 8 * 8 * 256 - 8000)))
    np.testing.assert_allclose(latents, jax.jit(codec.encode)(params, padded), atol=1e-4)
    assert np.abs(latents[0] - latents[1]).max() > 1e-2 * np.abs(latents).max()
    assert pipe.decode(latents).shape == (2, codec.samples(8))
    for bad in (wavs[0], np.zeros((0, 8000))):
        with pytest.raises(ValueError, match="wavs has shape"):
            pipe.encode(bad)


def test_time_is_measured_only_inside_timed(pipe):
    args = dict(steps=2, duration=0.5)
    plain = pipe("rain", **args)
    with pipe.timed() as seconds:
        np.testing.assert_array_equal(pipe("rain", **args), plain)
    assert set(seconds) == {"text encoder", "U-Net", "autoencoder", "vocoder"}
    assert min(seconds.values()) > 0


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
def test_the_folder_says_what_the_network_predicts(pipe, tiny_model, tmp_path, kind):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    save_scheduler(model, Schedule(200, prediction_type=kind))
    args = dict(steps=2, duration=0.5, output="latents")
    other = maa_jax.Pipeline.from_pretrained(model)
    made = other("rain", **args)
    assert np.isfinite(made).all()
    assert np.abs(made - pipe("rain", **args)).max() > 1e-2 * np.abs(made).max()
    with pytest.raises(ValueError, match=r"steps=201: give a number from 1 to 200"):
        other("rain", steps=201)


def test_each_prompt_may_have_its_own_duration(pipe):
    args = dict(steps=2, seed=3, batch_size=1)
    wavs = pipe(["rain", "a crow caws", "rain"], duration=[0.5, 1.5, 0.25], num_samples=2, **args)
    assert [len(wav) for wav in wavs] == [8000] * 2 + [24000] * 2 + [4000] * 2
    alone = pipe("a crow caws", duration=1.5, start_index=3, **args)
    np.testing.assert_allclose(wavs[3], alone[0], atol=1e-4)
    noise = [np.zeros(pipe.latent_shape(d)) for d in (0.5, 1.5)]
    a, b = pipe(["rain"] * 2, duration=[0.5, 1.5], initial_latents=noise, **args)
    assert (len(a), len(b)) == (8000, 24000)
    with pytest.raises(ValueError, match="initial_latents"):
        pipe(["rain"] * 2, duration=[0.5, 1.5], initial_latents=noise[::-1], **args)


def test_batches_may_have_any_size(pipe):
    args = dict(steps=2, duration=0.5, num_samples=2, output="latents")
    whole = pipe(["rain", "a crow caws"], **args)
    np.testing.assert_allclose(
        pipe(["rain", "a crow caws"], batch_size=1, **args), whole, atol=1e-4
    )


def test_guidance_by_step(pipe):
    args = dict(steps=3, duration=0.5, output="latents")
    constant = pipe("rain", guidance_scale=2.0, **args)
    for same in ([2, 2, 2], np.full(3, 2.0), lambda progress: 2):
        np.testing.assert_array_equal(pipe("rain", guidance_scale=same, **args), constant)
    seen = []
    other = pipe("rain", guidance_scale=lambda t: seen.append(t) or 1 + 6 * t, **args)
    assert seen[-3:] == [0, 0.5, 1]
    np.testing.assert_array_equal(pipe("rain", guidance_scale=[1, 4, 7], **args), other)
    assert np.abs(other - constant).max() > 1e-4 * np.abs(constant).max()


def test_noise_of_the_steps_does_not_depend_on_the_batch(pipe):
    args = dict(steps=2, duration=0.5, output="latents", eta=1.0, batch_size=1)
    both = pipe("rain", num_samples=2, **args)
    np.testing.assert_allclose(pipe("rain", start_index=1, **args)[0], both[1], atol=1e-4)
    assert np.abs(both - pipe("rain", num_samples=2, **args | {"eta": 0.0})).max() > 1e-2


def test_candidates_are_ranked(pipe):
    args = dict(steps=2, duration=0.5, batch_size=1)
    best = pipe(["rain", "a crow caws"], num_candidates=3, num_samples=2, **args)
    assert isinstance(best, pipeline.Ranked)
    assert best.sounds.shape == (4, 8000)
    scores = best.scores.reshape(2, 2)
    assert (scores[:, 0] >= scores[:, 1]).all()
    assert (np.abs(scores) <= 1).all()
    assert ((best.indices[:2] < 3) & (best.indices[2:] >= 3)).all()
    again = pipe("a crow caws", start_index=int(best.indices[2]), **args)
    np.testing.assert_allclose(again[0], best.sounds[2], atol=1e-4)
    # No candidate left out is better, and other outputs are ranked by their sound too.
    every = pipe(["rain", "a crow caws"], num_candidates=3, num_samples=3, **args)
    np.testing.assert_allclose(every.scores.reshape(2, 3)[:, :2], scores, atol=1e-4)
    mels = pipe("rain", num_candidates=3, output="mel", **args)
    assert (mels.sounds.shape, mels.indices[0]) == ((1, 32, 80), best.indices[0])


def test_half_precision_is_that_of_the_u_net_and_the_autoencoder(pipe, tiny_model, monkeypatch):
    """Latents between steps, the decoder's last convolution, and the vocoder are in float32."""
    lowered = {}
    for name in ("denoise", "encode", "decode", "vocode"):

        def spy(*args, name=name, program=getattr(programs, name), **options):
            lowered[name] = program.lower(*args, **options)
            return program(*args, **options)

        monkeypatch.setattr(programs, name, spy)
    half = maa_jax.Pipeline.from_pretrained(tiny_model, dtype=jnp.bfloat16)
    wavs = half("rain", steps=2, duration=0.5)
    half.encode(wavs)
    for name, program in lowered.items():
        matrix_products = re.findall(  # types of the operands
            r"(?:dot_general|convolution)[ (].*: \(tensor<(?:\d+x)*(\w+)>", program.as_text()
        )
        if name == "vocode":
            assert "bf16" not in program.as_text()
        else:
            # All but the convolutions at the networks' ends.
            assert matrix_products.count("bf16") > 0.8 * len(matrix_products) > 3
        if name == "decode":
            assert matrix_products[-1] == "f32"
        assert {x.dtype for x in jax.tree.leaves(program.out_info)} == {np.dtype("float32")}
    # What a bfloat16 pipeline makes of a mel is what a float32 one makes of it.
    mels = half("rain", steps=2, duration=0.5, output="mel")
    (alone, _), (same, _) = (
        programs.vocode(p._coder.vocoder, p._networks.load("vocoder")[1], mels)
        for p in (pipe, half)
    )
    np.testing.assert_array_equal(alone, same)
    np.testing.assert_allclose(alone[0, :6000], wavs[0, :6000], atol=1e-5)  # no cut is near


def test_a_sound_scores_as_its_file_does(pipe, tmp_path):
    """16 bits hide what a spectrogram in decibels shows."""
    ranked = pipe("rain", num_candidates=2, num_samples=2, steps=2, duration=0.5)
    quiet = np.float32(1e-6) * np.random.default_rng(0).standard_normal((1, 8000)).astype("f")
    io.write_wav(tmp_path / "quiet.wav", quiet[0])
    np.testing.assert_array_equal(io.as_read(quiet)[0], io.load(tmp_path / "quiet.wav"))
    for wav, score in zip(ranked.sounds, ranked.scores, strict=True):
        io.write_wav(tmp_path / "x.wav", wav, pipe.sample_rate)
        heard = np.pad(io.load(tmp_path / "x.wav"), (0, 8 * 8 * 256 - 8000))[None]
        again = pipe._score(["rain"], heard, pipe.sample_rate)
        np.testing.assert_allclose(again, score, atol=1e-6)


def test_a_sound_that_is_not_finite_is_refused_with_its_prompt(tiny_model):
    broken = maa_jax.Pipeline.from_pretrained(tiny_model)
    broken.load()
    _, params = broken._networks._read["unet"]
    params["conv_out"]["bias"] = params["conv_out"]["bias"].at[0].set(np.nan)
    for output in ("wav", "mel", "latents"):
        with pytest.raises(FolderError, match=r"gives NaN or infinity for 'rain' \(index 2\): its"):
            broken("rain", steps=2, duration=0.5, start_index=2, output=output)


@pytest.fixture
def loud(tiny_model):
    """A pipeline all of whose samples are clipped."""
    loud = maa_jax.Pipeline.from_pretrained(tiny_model)
    loud.load()
    _, params = loud._networks._read["vocoder"]
    params["conv_post"]["kernel"] *= 1e5
    return loud


def test_only_what_is_made_anew_counts_as_clipped(loud):
    recording = np.tile(np.float32([1, -1]), 8000)
    with pytest.warns(UserWarning, match="are clipped") as said:
        loud("rain", audio=recording, mask="0.4-0.5", steps=2)
    (warning,) = said
    assert float(str(warning.message).partition("%")[0]) <= 10  # a tenth is made anew


def test_a_clipped_sound_is_said_once(loud):
    with pytest.warns(UserWarning) as said:
        for _ in range(3):
            loud(["rain"], steps=2, duration=0.5)
    (warning,) = said
    assert re.search(
        r"\d\.\d% of the samples of a sound for 'rain' are clipped: lower guidance",
        str(warning.message),
    )


def test_devices_share_a_batch(tiny_model):
    """Three sounds on two devices are those of one device."""
    run_python(
        f"""
        import jax, numpy as np
        import maa_jax
        assert len(jax.devices()) == 2
        args = dict(num_samples=3, steps=2, duration=0.3, eta=0.5)
        one = maa_jax.Pipeline.from_pretrained({str(tiny_model)!r})("rain", **args)
        pipe = maa_jax.Pipeline.from_pretrained({str(tiny_model)!r}, devices=jax.devices())
        two = pipe("rain", **args)
        np.testing.assert_allclose(one, two, atol=1e-4 * np.abs(one).max())
        _, params = pipe._networks.load("unet")
        assert len(params["conv_in"]["kernel"].devices()) == 2
        """,
        devices=2,
    )
