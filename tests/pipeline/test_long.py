import jax.numpy as jnp
import numpy as np
import pytest

import maa_jax
from maa_jax.diffusion import samplers
from maa_jax.pipeline import coding, denoising, timeline, windows

FAST = dict(steps=2, guidance_scale=1.5)


@pytest.fixture(scope="module")
def pipe(tiny_model):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoising, "MAX_SEGMENT", 2)
        yield maa_jax.Pipeline.from_pretrained(tiny_model)


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("total", [16, 17, 40, 100])
def test_windows_cover_everything_once_in_sum(total, loop):
    plan = windows.plan(total, 16, loop=loop)
    sums = np.zeros(total)
    for start, weight in zip(plan.starts, plan.weights, strict=True):
        np.add.at(sums, (start + np.arange(16)) % total, weight)
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    if total == 16 and not loop:
        assert len(plan.starts) == 1
    # Neighbours overlap by half a window or more.
    assert np.diff(plan.starts).max(initial=0) <= 8


@pytest.mark.parametrize("total, longest", [(97, 96), (200, 96), (1000, 96), (53, 20)])
def test_sections_follow_each_other_without_a_gap(total, longest):
    made = windows.sections(total, 16, longest)
    assert len(made) > 1 and len({s.windows.total for s in made}) == 1
    assert made[0].windows.total <= longest
    done = 0
    for section in made:
        assert section.first + section.known == done
        assert section.known >= 8 or not done  # half a window that is known
        done = section.first + section.end
        assert section.end <= section.windows.total - 8 or done == total
    assert done == total and made[-1].first + made[-1].windows.total == total


@pytest.mark.parametrize("loop", [False, True])
def test_pieces_are_the_whole_and_come_as_soon_as_they_are_known(loop):
    plan = windows.plan(100, 16, loop=loop)
    x = np.random.default_rng(0).normal(size=(2, 300)).astype("f")
    whole = windows.join(np.sin, [windows.Part(x, 1, 3)], plan, axis=1, size=3)
    read = []

    def source():
        for start in range(0, 300, 7):
            read.append(start)
            yield x[:, start : start + 7]

    growing = windows.Growing(source(), 1)
    see = lambda n: np.sin(
        x[:, plan.columns(n, 3)]
        if loop
        else growing.read(plan.starts[n] * 3, (plan.starts[n] + 16) * 3)
    )
    pieces = windows.pieces(see, plan, axis=1, size=3)
    first = next(pieces)
    assert loop or (first.shape[1] == plan.starts[1] * 3 and len(read) == 7)
    np.testing.assert_array_equal(np.concatenate([first, *pieces], 1), whole)


def test_very_long_sounds_are_heard_before_their_end_is_made(pipe):
    """Six times 2.048 s are one section; 15 s are two."""
    options = FAST | {"seed": 3, "num_samples": 2, "duration": 15.001}
    seen = []
    callback = lambda done, total, x0: seen.append((done, total, x0.shape))
    stream = pipe.stream("rain", callback=callback, **options)
    assert not seen
    number, first = next(stream)
    assert number == 0 and 0 < len(first) < 5 * 16000
    assert seen == [(2, 4, seen[0][2])]  # one section of two
    parts = {0: [first], 1: []}
    for number, piece in stream:
        parts[number].append(piece)
    wavs = pipe("rain", **options)
    assert wavs.shape == (2, 240016)
    for number, wav in enumerate(wavs):
        np.testing.assert_array_equal(np.concatenate(parts[number]), wav)
    # No seam: as smooth as elsewhere, and the same from a batch of one.
    short = pipe("rain", duration=2.0, **FAST)
    assert np.abs(np.diff(wavs)).max() < 2 * np.abs(np.diff(short)).max()
    alone = pipe("rain", **options | {"num_samples": 1, "start_index": 1})
    np.testing.assert_allclose(alone[0], wavs[1], atol=1e-4)
    latents = pipe("rain", output="latents", **options)
    assert latents.shape == (2, *pipe.latent_shape(15.001))
    decoded = pipe.decode(latents)  # without the fade at the end
    np.testing.assert_allclose(decoded[:, : 240016 - 80], wavs[:, :-80], atol=1e-5)
    # What a section knows of the one before is what that has made, not only near it.
    plan = pipe._lengths.windows(latents.shape[1:])
    (_, second) = pipe._lengths.sections(plan)
    start = second.first + second.known
    joined = np.abs(latents[:, :, start] - latents[:, :, start - 1]).mean()
    assert joined < 1.5 * np.abs(np.diff(latents, axis=2)).mean()


def test_sections_hear_their_own_captions_and_noise(pipe):
    timed = "0-7.5 s rain; 7.5-15 s a crow caws"
    both = pipe(timed, eta=1.0, seed=1, **FAST)[0]
    rain = pipe("rain", duration=15.0, eta=1.0, seed=1, **FAST)[0]
    middle = 7 * 16000
    assert np.abs(both - rain)[: middle - 32000].max() < 1e-3
    assert np.abs(both - rain)[middle + 32000 :].max() > 1e-3
    # Were the sampler's noise the same in each section, so would be much of their sound.
    latents = pipe("rain", duration=15.0, eta=1.0, output="latents", **FAST)[0]
    plan = pipe._lengths.windows(latents.shape)
    first, second = pipe._lengths.sections(plan)
    a = latents[:, second.known : first.end]
    b = latents[:, second.first + second.known : second.first + first.end]
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.5


def test_pieces_beyond_full_scale_get_quieter_without_a_step():
    rng = np.random.default_rng(0)
    loud = np.array([0.5, 2.0, 0.9, 1.0, 3.0])
    pieces = [(x * rng.choice([-1, 1], (1, 100))).astype("f") for x in loud]
    made = list(coding.limited(iter(pieces)))
    assert [piece.shape for piece in made] == [(1, 100)] * 5
    gain = np.concatenate(made, 1)[0] / np.concatenate(pieces, 1)[0]
    assert np.abs(np.concatenate(made, 1)).max() == pytest.approx(0.99, abs=0.01)
    assert gain[0] > 0.99 and gain[150] == pytest.approx(0.495)
    assert gain[400:].max() == pytest.approx(0.33, abs=0.01)
    assert np.abs(np.diff(gain)).max() < 0.01
    # What is within full scale stays as it is, bit for bit.
    np.testing.assert_array_equal(list(coding.limited(iter(pieces[2:4]))), pieces[2:4])
    (alone,) = coding.limited(iter(pieces[1:2]))
    np.testing.assert_allclose(alone, pieces[1] * 0.495, rtol=1e-6)


def test_very_long_sounds_are_ranked_whole(pipe):
    wavs, scores, indices = pipe("rain", duration=15.0, num_candidates=2, **FAST)
    assert wavs.shape == (1, 240000) and scores.shape == (1,) and indices[0] in (0, 1)
    with pytest.raises(ValueError, match="num_candidates=2: sounds are ranked when they are whole"):
        pipe.stream("rain", num_candidates=2)


def test_what_sees_each_column_alone_is_the_same_by_windows():
    plan = windows.plan(40, 16)
    network = samplers.widened(lambda x, t, c: jnp.sin(x) * t[:, None, None, None] + c.mean())
    latents = np.random.default_rng(0).normal(size=(2, 3, 40, 4)).astype("f")
    times, context = np.array([1.0, 2.0]), np.ones((2, 5, 6), "f")
    whole = network(latents, times, context)
    by_windows = windows.windowed(network, *plan[:2])(jnp.asarray(latents), times, context)
    np.testing.assert_allclose(by_windows, whole, atol=1e-5)
    joined = windows.join(np.sin, [windows.Part(latents, 2, 1)], plan, axis=2, size=1)
    np.testing.assert_allclose(joined, np.sin(latents), atol=1e-5)


def test_sounds_longer_than_those_of_training_are_exact_and_have_no_seam(pipe):
    wavs = pipe("rain", duration=5.00013, num_samples=2, **FAST)
    assert wavs.shape == (2, 80002)
    # As loud and as rough everywhere as a short sound of the same model.
    short = pipe("rain", duration=2.0, **FAST)
    steps = np.abs(np.diff(wavs)).max(axis=1)
    assert steps.max() < 2 * np.abs(np.diff(short)).max()
    alone = pipe("rain", duration=5.00013, start_index=1, **FAST)
    np.testing.assert_allclose(alone[0], wavs[1], atol=1e-4)


def test_long_latents_decode_by_windows_as_a_whole(pipe):
    """Apart from a network's normalisation over all that it sees, a window changes nothing."""
    long = np.random.default_rng(0).normal(size=(1, 128 * 3, 80)).astype("f") - 2
    whole, _ = pipe._coder.vocode(long)
    plan = windows.plan(48, 16)
    parts, _ = pipe._coder.vocode(long, windows=plan)
    np.testing.assert_allclose(parts, whole, atol=1e-3)


def test_a_loop_goes_on_at_its_beginning(pipe):
    duration = 3 * 16 * 128 * 8 / 16000  # three latent windows
    wav = pipe("rain", duration=duration, loop=True, **FAST)[0]
    assert len(wav) == round(duration * 16000)
    twice = np.concatenate([wav, wav])
    seam = np.abs(np.diff(twice))[len(wav) - 1]
    assert seam <= np.abs(np.diff(wav)).max()
    # A short one too, whose window is the whole sound; and not silent at its ends. Its latents end
    # where it does, although others are rounded up to about a second.
    wav = pipe("rain", duration=0.768, loop=True, **FAST)[0]
    assert pipe("rain", duration=0.768, loop=True, output="latents", **FAST).shape[2] == 6
    assert min(np.abs(wav[:64]).max(), np.abs(wav[-64:]).max()) > 0.1 * np.abs(wav).max()
    with pytest.raises(ValueError, match=r"loop=True: a sound of 1 s .* such as 1.024"):
        pipe("rain", duration=1.0, loop=True, **FAST)


def test_captions_with_times_are_heard_in_their_turn(pipe):
    args = FAST | dict(output="latents", seed=1)
    both = pipe("0-2.048 s rain; 2.048-4.096 s a crow caws", **args)
    rain = pipe("0-2.048 s rain; 2.048-4.096 s rain", **args)
    crow = pipe("0-2.048 s a crow caws; 2.048-4.096 s a crow caws", **args)
    assert both.shape == rain.shape == (1, 10, 32, 8)
    start, end = np.s_[:, :, :6], np.s_[:, :, -6:]
    np.testing.assert_allclose(both[start], rain[start], atol=1e-4)
    np.testing.assert_allclose(both[end], crow[end], atol=1e-4)
    assert np.abs(both[end] - rain[end]).max() > 1e-2
    assert pipe("0-3 s rain; 3-4 s a crow caws", **FAST).shape == (1, 64000)


def test_a_long_recording_is_edited_and_continued(pipe):
    rng = np.random.default_rng(0)
    wav = (0.1 * rng.normal(size=16000 * 3)).astype("f")
    out = pipe("rain", audio=wav, mask=["1-1.2", "continue:2"], **FAST)[0]
    assert len(out) == 16000 * 5
    np.testing.assert_array_equal(out[:15000], wav[:15000])
    np.testing.assert_array_equal(out[20000:47000], wav[20000:47000])
    assert np.abs(out[49000:79000]).max() > 0


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ("0-3 s rain; thunder", "'thunder' has no times: give them one after the other"),
        ("0-3 s rain; 4-6 s thunder", "4-6 s does not begin at 3 s"),
        ("3-1 s rain; 1-2 s thunder", "does not begin at 0 s"),
        ("0-3 s rain, 3-6 s thunder", "'rain, 3-6 s thunder' has times within it: give them one"),
    ],
)
def test_times_that_leave_gaps_are_refused(prompt, error):
    with pytest.raises(ValueError, match=error):
        timeline.parse(prompt)
    assert timeline.parse("rain; thunder") == timeline.parse("5-10 s of rain") == []


def test_times_are_read_as_people_write_them():
    want = [(0, 0.5, "rain, wind"), (0.5, 6, "thunder")]
    for prompt in (
        "0-0.5 s rain, wind; 0.5-6 s thunder",
        "0 - .5s: rain, wind; .5 - 6. sec thunder;",
        "0\u20130.5 seconds rain, wind; 0.5\u20136 seconds thunder",
    ):
        assert timeline.parse(prompt) == want


@pytest.mark.parametrize(
    ("prompt", "given", "error"),
    [
        ("0-3 s rain; 3-3601 s thunder", {}, "ends at 3601 s: give up to 3600 s"),
        ("0-1 s rain; 1-2 s thunder", dict(duration=0.9), "'thunder' begins at 1 s, but the sound"),
        ("0-1 s rain; 1-2 s thunder", dict(audio=np.ones(8000)), "but the sound ends at 0.5 s"),
    ],
)
def test_captions_that_would_not_be_heard_are_refused(pipe, prompt, given, error):
    with pytest.raises(ValueError, match=error):
        pipe(prompt, **FAST | given)
