from fractions import Fraction

import numpy as np
import pytest

from maa_jax.visual import videos

av = pytest.importorskip("av", reason="videos need PyAV")

CODECS = {"mp4": "libx264", "mov": "mpeg4", "webm": "libvpx-vp9", "avi": "mpeg4", "mkv": "libx264"}


def write(path, codec, times, rate, size=(64, 48)):
    """A video whose picture i is as bright as 8 i, but for a red band at its top."""
    with av.open(str(path), "w") as target:
        stream = target.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i, time in enumerate(times):
            picture = np.full((size[1], size[0], 3), 8 * i, np.uint8)
            picture[:16] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = time, 1 / Fraction(rate)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path


def packets(path):
    with av.open(str(path)) as source:
        return [bytes(packet) for packet in source.demux(video=0) if packet.size]


EVEN = range(30)
UNEVEN = [0, 1, 2, 3, 10, 11, 12, 20, 21, 22, 30, 31]


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize(
    ("rate", "times"),
    [(24, EVEN), (25, EVEN), (Fraction(30000, 1001), EVEN), (25, UNEVEN)],
    ids=["24", "25", "29.97", "variable"],
)
def test_length_and_pictures_follow_the_files_own_times(tmp_path, ending, rate, times):
    path = write(tmp_path / f"a.{ending}", CODECS[ending], times, rate)
    video = videos.load(path, 4)
    length = (times[-1] + 1) / rate
    assert video.seconds == pytest.approx(float(length), abs=0.0015)  # webm counts milliseconds
    shown = [max(t for t in times if t < (times[-1] + 1) * (k + 0.5) / 4) for k in range(4)]
    bright = [int(picture[40, 40, 0]) for picture in video.pictures]
    np.testing.assert_allclose(bright, [8 * times.index(t) for t in shown], atol=12)
    assert all(p.shape == (48, 64, 3) and p[4, 32, 0] > 200 > p[4, 32, 1] for p in video.pictures)


@pytest.mark.parametrize("ending", CODECS)
def test_a_copy_has_the_same_pictures_and_the_given_sound_as_long_as_they_are(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", CODECS[ending], EVEN, 24)
    seconds = videos.load(path, 1).seconds
    for rate, length in ((16_000, 2.0), (22_050, 0.5)):  # too long, too short
        tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(length * rate)) / rate)
        out = tmp_path / f"b.{ending}"
        videos.mux(path, tone, rate, out)
        assert packets(out) == packets(path)
        assert videos.load(out, 1).seconds == pytest.approx(seconds, abs=0.005)
        with av.open(str(out)) as copy:
            sound = copy.streams.audio[0]
            blocks = list(copy.decode(sound))
        wav = np.concatenate([block.to_ndarray().reshape(-1) for block in blocks])
        if wav.dtype == np.int16:
            wav = wav / 2**15
        if ending == "mp4":  # players cut AAC's last block at the length that is stated
            assert float(sound.duration * sound.time_base) == pytest.approx(seconds, abs=1 / rate)
            assert 0 <= len(wav) - round(seconds * sound.rate) < 1024
        else:
            assert abs(len(wav) - seconds * sound.rate) <= 1
        heard = wav[: round(min(length, seconds) * sound.rate)]
        t = np.arange(len(heard)) / sound.rate
        assert np.std(heard) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
        assert np.abs(np.mean(heard * np.exp(-2j * np.pi * 440 * t))) == pytest.approx(
            0.25, rel=0.1
        )
        silent = wav[round((length + 0.1) * sound.rate) :]
        assert np.abs(silent).max(initial=0) < 0.02


def test_a_telephones_rotation_is_applied_and_kept(tmp_path):
    path = write(tmp_path / "a.mp4", "libx264", EVEN, 25)
    data = bytearray(path.read_bytes())
    one = 1 << 16
    place = data.index(b"tkhd") + 4 + 40  # the matrix: a quarter turn clockwise
    matrix = np.array([0, one, 0, -one, 0, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data[place : place + 36] = matrix
    path.write_bytes(data)
    videos.mux(path, np.zeros(10), 16_000, tmp_path / "b.mp4")
    for name in ("a.mp4", "b.mp4"):
        (picture,) = videos.load(tmp_path / name, 1).pictures
        assert picture.shape == (64, 48, 3)
        assert picture[32, -4, 0] > 200 > picture[32, -4, 1]  # what was the top is at the right


@pytest.mark.parametrize("ending", CODECS)
def test_a_silent_copy_for_browsers(tmp_path, ending):
    path = write(tmp_path / f"a.{ending}", CODECS[ending], EVEN, 24)
    spoken = tmp_path / f"b.{ending}"
    videos.mux(path, np.zeros(16_000, "f"), 16_000, spoken)
    if CODECS[ending] == "mpeg4":
        with pytest.raises(ValueError, match=r"b\..*: its pictures are mpeg4, which browsers do"):
            videos.played_ending(spoken)
        return
    assert videos.played_ending(spoken) == (".webm" if ending == "webm" else ".mp4")
    copy = tmp_path / f"c{videos.played_ending(spoken)}"
    videos.mux(spoken, None, 16_000, copy)
    assert len(packets(copy)) == len(EVEN)
    with av.open(str(copy)) as source:
        assert not source.streams.audio
    assert videos.load(copy, 1).seconds == pytest.approx(1.25, abs=0.002)


def test_what_is_no_whole_video_is_named_in_one_line(tmp_path):
    whole = {
        ending: write(tmp_path / f"whole.{ending}", codec, EVEN, 25).read_bytes()
        for ending, codec in CODECS.items()
    }
    with av.open(str(tmp_path / "sound.mp4"), "w") as target:
        stream = target.add_stream("aac", rate=16_000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.zeros((1, 4096), "f"), "fltp", "mono")
        block.sample_rate = 16_000
        target.mux(stream.encode(block))
        target.mux(stream.encode(None))
    (tmp_path / "text.mp4").write_text("a crow caws\n" * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    for ending, data in whole.items():
        (tmp_path / f"cut.{ending}").write_bytes(data[: len(data) * 6 // 10])
    for name, message in {
        "sound.mp4": "has no pictures",
        "text.mp4": "is no video",
        "empty.mp4": "is no video",
        "none.mp4": "No such file",
        **{f"cut.{ending}": "cut|is no video" for ending in whole},
    }.items():
        with pytest.raises(
            ValueError, match=rf"{name}: .*({message}).*; give a whole mp4"
        ) as error:
            videos.load(tmp_path / name)
        assert "\n" not in str(error.value)
        assert not error.value.args[1:]


def test_a_copy_that_cannot_be_written_is_refused(tmp_path):
    path = write(tmp_path / "a.mp4", "libx264", EVEN, 25)
    with pytest.raises(ValueError, match=r"b\.webm: cannot hold.*h264.*ends in \.mp4"):
        videos.mux(path, np.zeros(10), 16_000, tmp_path / "b.webm")
    with pytest.raises(ValueError, match=r"b\.wav: give a name that ends in \.mp4"):
        videos.mux(path, np.zeros(10), 16_000, tmp_path / "b.wav")
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
