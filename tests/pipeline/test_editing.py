import numpy as np
import pytest
import soundfile
from PIL import Image

import maa_jax
from maa_jax.audio.mel import MelConfig
from maa_jax.pipeline import denoising, regions
from maa_jax.pipeline.composing import compose
from tests.conftest import write_tiny_model

FAST = dict(steps=4, guidance_scale=1.5)


@pytest.fixture(scope="module")
def pipe(tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "MAX_SEGMENT", 2)
        yield maa_jax.Pipeline.from_pretrained(tiny_model)


def sound(samples=16000, seed=0):
    time = np.arange(samples) / 16000
    noise = np.random.default_rng(seed).normal(0, 0.01, samples)
    return (0.3 * np.sin(2 * np.pi * 440 * time) + noise).astype(np.float32)


def test_strength_0_gives_the_recording_back_and_1_makes_a_new_sound(pipe):
    wav = sound(8000)
    back = pipe("rain", audio=wav, strength=0, **FAST)
    decoded = pipe.decode(pipe.encode(wav[None]))
    np.testing.assert_allclose(back[:, :7900], decoded[:, :7900], atol=1e-4)  # then it fades out
    new = pipe("rain", audio=wav, strength=1, seed=3, **FAST)
    np.testing.assert_array_equal(new, pipe("rain", duration=0.5, seed=3, **FAST))


@pytest.mark.parametrize("sampler", ["ddim", "plms", "dpmpp_2m"])
def test_less_strength_keeps_more_with_every_sampler(pipe, sampler):
    wav = sound(8000)
    kept = pipe.encode(wav[None])

    def distance(strength):
        args = FAST | {"sampler": sampler, "output": "latents", "spacing": "trailing"}
        made = pipe("rain", audio=wav, strength=strength, **args)
        return np.abs(made - kept).mean()

    assert distance(0) == 0
    assert 0 < distance(0.25) < distance(0.75)


def test_an_edited_sound_does_not_depend_on_its_batch_nor_on_others_lengths(pipe):
    wavs = [sound(8000), sound(12000, 1), sound(20000, 2)]
    prompts = ["rain", "a crow caws", "rain"]
    args = FAST | {"strength": 0.5}
    for mask in (None, "0.1-0.3"):
        together = pipe(prompts, audio=wavs, mask=mask, **args)
        for i, wav in enumerate(together):
            assert wav.shape == wavs[i].shape
            alone = pipe(prompts[i], audio=wavs[i], mask=mask, start_index=i, **args)[0]
            np.testing.assert_allclose(alone, wav, atol=1e-4)


def test_files_of_any_rate_and_number_of_channels_are_edited(pipe, tmp_path):
    stereo = np.stack([sound(22050), sound(22050)], axis=1) * 0.1
    soundfile.write(tmp_path / "stereo.wav", stereo, 44100)
    soundfile.write(tmp_path / "loud.wav", 1000 * sound(8000), 16000, subtype="FLOAT")
    files = [tmp_path / "stereo.wav", tmp_path / "loud.wav"]
    first, second = pipe(["rain", "rain"], audio=files, **FAST)
    assert (len(first), len(second)) == (8000, 8000)
    assert np.isfinite(first).all() and np.isfinite(second).all()


def test_inversion_gives_back_the_recording_under_its_own_prompt(pipe):
    wav = sound(8000)
    args = dict(steps=50, guidance_scale=1.0, output="latents", strength=0.5)
    kept = pipe.encode(wav[None])
    inverted = pipe("rain", audio=wav, edit="inversion", source_prompt="rain", **args)
    noised = pipe("rain", audio=wav, **args)
    assert np.abs(inverted - kept).mean() < 0.2 * np.abs(noised - kept).mean()


def test_what_is_kept_is_kept_in_the_waveform_bit_for_bit(pipe):
    wav = sound(16000)
    out = pipe("rain", audio=wav, mask=["0.25-0.4", "0.8-"], **FAST)[0]
    same = out == wav
    frame, fade = 256, 160
    # Masks are rounded outwards to frames, and the crossfade lies outside them.
    assert same[: 4000 - frame - fade].all()
    assert same[6400 + frame + fade : 12800 - frame - fade].all()
    assert not same[4100:6300].any() and not same[12900:].any()


def test_bands_that_are_kept_stay_in_the_waveform(pipe):
    wav = sound(16000)  # a tone of 440 Hz
    out = pipe("rain", audio=wav, mask="0.2-0.8:2000-", **FAST)[0]
    tone = lambda x: np.abs(np.fft.rfft(x[4096:12288] * np.hanning(8192)))[: 8192 * 1500 // 16000]
    np.testing.assert_allclose(tone(out), tone(wav), rtol=0.02, atol=0.02 * tone(wav).max())
    assert np.abs(out - wav)[4000:12000].max() > 0


def test_a_seam_has_no_click_and_the_recordings_level():
    mel = MelConfig()
    wav = sound(16000)
    mask = np.zeros((80, 63), bool)
    mask[:, 20:40] = True
    for gain in (0.6, 1.0, 1.8):
        out = compose(wav, gain * wav, mask, mel)
        np.testing.assert_allclose(out, wav, atol=0.01)
    # Another sound altogether: no step between neighbours larger than the sounds' own.
    out = compose(wav, sound(16000, 1)[::-1].copy(), mask, mel)
    assert np.abs(np.diff(out)).max() <= 1.2 * np.abs(np.diff(wav)).max()


def test_bands_that_are_kept_go_on_through_the_seams():
    wav = sound(16000)  # a tone of 440 Hz
    made = 0.3 * np.cos(2 * np.pi * 440 * np.arange(16000) / 16000)  # in another phase
    mask = np.zeros((80, 63), bool)
    mask[40:, 20:30] = mask[40:, 50:] = True  # above 2 kHz
    out = compose(wav, made.astype("f"), mask, MelConfig())
    # Only the crossfades, 10 ms, hear the other phase; nearby nothing is cancelled.
    level = lambda x: np.sqrt(np.square(x[: len(x) // 400 * 400].reshape(-1, 400)).mean(axis=1))
    np.testing.assert_allclose(level(out), level(wav), rtol=0.1)


def test_continuation_adds_seconds_after_or_before(pipe):
    wav = sound(8000)
    after = pipe("rain", audio=wav, mask="continue:0.5", **FAST)[0]
    assert len(after) == 16000
    np.testing.assert_array_equal(after[: 8000 - 256 - 160], wav[: 8000 - 256 - 160])
    before = pipe("rain", audio=wav, mask="before:0.5", **FAST)[0]
    np.testing.assert_array_equal(before[8000 + 256 + 160 :], wav[256 + 160 :])
    # Regions count from the recording's own beginning, also one as long as what is added.
    both = regions.parse(["before:0.5", "-0.5"]).draw(16000 + 8000, MelConfig())
    assert both[:, : 16000 // 256].all() and not both[:, -30:].any()


def test_masks_come_from_pictures_and_from_the_silence_of_recordings(pipe, tmp_path):
    wav = sound(16000)
    paint = np.zeros((100, 200), np.uint8)
    paint[:, 100:150] = 255
    Image.fromarray(paint).save(tmp_path / "mask.png")
    gap = sound(16000)
    gap[8000:12000] = 0
    soundfile.write(tmp_path / "gap.wav", gap, 16000)
    # A pencil's picture: white on what is transparent; and one of 16 bits, whose grey is dark.
    alpha = np.full((100, 200, 4), 255, np.uint8)
    alpha[..., 3] = paint
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    deep = np.where(paint, 65535, 300).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for name in ("mask.png", "alpha.png", "deep.png", "gap.wav"):
        same = pipe("rain", audio=wav, mask=str(tmp_path / name), **FAST)[0] == wav
        assert same[:7500].all() and same[12500:].all()
        assert not same[8400:11600].any()


def test_a_denoiser_that_fills_gaps_is_given_the_masked_recording(tmp_path):
    folder = write_tiny_model(tmp_path / "model", fills=True)
    pipe = maa_jax.Pipeline.from_pretrained(folder)
    wav, other = sound(8000), sound(8000)
    other[:3000] *= 0.2  # outside the mask
    hidden = sound(8000)
    hidden[4200:5900] = 0  # inside it, farther from its edge than a frame's window
    args = FAST | {"mask": "0.2-0.4", "output": "latents"}
    made = pipe("rain", audio=wav, **args)
    assert np.abs(made - pipe("rain", audio=other, **args)).max() > 1e-3
    np.testing.assert_allclose(made, pipe("rain", audio=hidden, **args), atol=1e-5)
    # Without a recording everything is made anew.
    assert np.isfinite(pipe("rain", duration=0.5, **FAST)).all()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (dict(mask="0.2-0.3"), "mask: it edits a recording: give one .audio"),
        (dict(strength=0.5), "strength: it edits a recording"),
        (dict(audio=sound(800), duration=1.0), "leave out duration"),
        (dict(audio=sound(800), strength=1.5), "strength=1.5: give"),
        (dict(audio=sound(8000), mask="2-3"), "2 s to 3 s is no part of a sound of 0.5 s"),
        (dict(audio=sound(8000), mask="5-"), "5 s to its end is no part of a sound of 0.5 s"),
        (dict(audio=sound(8000), mask="0.3-0.2"), "mask='0.3-0.2' ends before it begins: give"),
        (dict(audio=sound(8000), mask="0.2-0.3:900-50"), "ends before it begins: give the lower"),
        (dict(audio=sound(8000), mask=""), "mask='' is no region and no file: give seconds"),
        (dict(audio=sound(8000), mask="a" * 5000), "is no region and no file: give seconds"),
        (
            dict(audio=sound(8000), mask="continue:99999999999"),
            "is 99999999999.500 s long with",
        ),
        (dict(audio=sound(8000), mask=0.5), "mask of type float: give seconds"),
        (dict(audio=sound(8000), mask=np.zeros((80, 32))), "mask of type ndarray: give seconds"),
        (dict(audio=sound(8000), mask=__file__), "test_editing.py' is no picture and no recording"),
        (dict(audio=sound(8000), mask="0-"), "marks the whole sound"),
        (dict(audio=sound(8000), mask="0.1-0.2:9000-"), "its centre within 9000 Hz to more: give"),
        (dict(audio=sound(8000), mask="middle"), "'middle' is no region and no file: give seconds"),
        (dict(audio=sound(8000), mask=np.zeros((80, 32), bool)), "marks 0%"),
        (dict(audio=np.zeros((1, 2, 2))), "give a path, or one channel"),
        (dict(audio=np.full(800, np.nan)), "holds NaN or infinity"),
        (dict(audio="nothing.wav"), "nothing.wav: cannot be read"),
        (dict(audio=""), "audio.0.='': give the path of a recording"),
        (dict(audio=3), "audio of type int: give the path of a recording"),
        (dict(audio=np.array(0.5)), "audio of type ndarray: give the path of a recording"),
        (dict(audio=[sound(8000)] * 3), "audio has 3 recordings: give one, or one for each of"),
        (dict(audio=sound(8000), edit="styl"), "style"),
        (dict(audio=sound(8000), edit="variation", mask="0-0.1"), "edit='variation': it is for"),
        (
            dict(audio=sound(8000), source_prompt="rain"),
            "source_prompt='rain': give a sentence, and",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(pipe, given, error):
    with pytest.raises(ValueError, match=error) as caught:
        pipe("rain", **FAST | given)
    assert "\n" not in str(caught.value)


def test_the_same_seed_edits_the_same_way(pipe):
    args = FAST | {"audio": sound(8000), "mask": "0.1-0.3", "eta": 0.5}
    np.testing.assert_array_equal(pipe("rain", **args), pipe("rain", **args))
