import io
import os

import numpy as np
import pytest
import soundfile

from maa_jax.audio.io import (
    AudioError,
    GrowingWav,
    decode,
    encode_flac,
    is_silent,
    load,
    resample,
    write_wav,
)

FORMATS = [
    ("WAV", "PCM_U8", 8000, 2),
    ("WAV", "ULAW", 22050, 1),
    ("WAVEX", "PCM_16", 96000, 2),
    ("RF64", "PCM_16", 44100, 2),
    ("W64", "PCM_16", 44100, 1),
    ("AIFF", "PCM_16", 44100, 2),
    ("CAF", "PCM_16", 44100, 1),
    ("CAF", "ALAC_16", 44100, 2),
    ("AU", "ULAW", 8000, 1),
    ("WAV", "PCM_16", 44100, 2),
    ("WAV", "FLOAT", 8000, 1),
    ("WAV", "PCM_24", 16000, 6),
    ("FLAC", "PCM_16", 48000, 2),
    ("OGG", "VORBIS", 44100, 2),
    ("OGG", "OPUS", 48000, 1),
    ("MP3", "MPEG_LAYER_III", 44100, 2),
    ("MP3", "MPEG_LAYER_III", 16000, 1),
]


def tone(rate, channels, seconds=1.0):
    """440 Hz at 0.5 in every channel, [samples, channels]."""
    wav = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    return np.repeat(wav[:, None], channels, axis=1).astype(np.float32)


def encoded(wav, rate, container, subtype, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=container, subtype=subtype, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("container", "subtype", "rate", "channels"), FORMATS)
def test_decodes_to_16_khz_mono(container, subtype, rate, channels):
    wav = decode(encoded(tone(rate, channels), rate, container, subtype))
    assert wav.dtype == np.float32 and wav.ndim == 1
    assert abs(len(wav) - 16000) <= 1
    middle = wav[4000:12000]
    assert np.abs(np.fft.rfft(middle * np.hanning(8000))).argmax() == 220
    assert 0.47 < np.abs(middle).max() < 0.53


@pytest.mark.parametrize(("container", "subtype", "rate", "channels"), FORMATS)
def test_truncated_files_are_refused(container, subtype, rate, channels):
    data = encoded(tone(rate, channels, seconds=2), rate, container, subtype)
    for share in (0.01, 0.3, 0.5, 0.8, 0.95, 0.99):
        with pytest.raises(AudioError):
            decode(data[: int(len(data) * share)])


def mp3(mode):
    """Two seconds without the frame in front that counts the others, as some encoders write."""
    options = {"bitrate_mode": mode, "compression_level": 0.5}
    data = encoded(tone(44100, 2, seconds=2), 44100, "MP3", "MPEG_LAYER_III", **options)
    return data[data.index(data[:2], 4) :]


def test_a_cut_mp3_is_refused_without_a_count_of_its_frames():
    data = mp3("CONSTANT")
    assert 32000 <= len(decode(data)) < 33500
    for end in (1, 5, len(data) // 2 + 5):
        with pytest.raises(AudioError, match="truncated"):
            decode(data[:-end])


def test_an_mp3_is_read_to_its_end_or_refused():
    # libsndfile guesses its length from the first frame's bit rate, and reads no further.
    with pytest.raises(AudioError, match=r"only .* can be decoded.*convert it"):
        decode(mp3("VARIABLE"))


def test_files_written_into_a_pipe_are_read_to_their_end():
    wav = tone(16000, 1)
    data = bytearray(encoded(wav, 16000, "FLAC", "PCM_16"))
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # the number of samples
    assert len(decode(bytes(data))) == 16000
    data = bytearray(encoded(wav, 16000, "WAV", "PCM_16"))
    for size in (0xFFFFFFFF, 0xFFFFF000, 0x7FFFF000, 0x80000000):
        data[40:44] = size.to_bytes(4, "little")
        assert len(decode(bytes(data))) == 16000
    data = bytearray(encoded(wav, 16000, "AU", "PCM_16"))
    data[8:12] = b"\xff" * 4
    assert len(decode(bytes(data))) == 16000


def test_a_count_that_is_too_large_costs_no_memory():
    data = bytearray(encoded(tone(16000, 1), 16000, "FLAC", "PCM_16"))
    data[21] |= 0x0F  # 2^36 samples
    with pytest.raises(AudioError, match="hours long; the most is 4"):
        decode(bytes(data))
    data[21], data[22] = data[21] & 0xF0, 1  # 2^24 samples
    with pytest.raises(AudioError, match=r"truncated: 16000 of 167\d+ frames"):
        decode(bytes(data))
    data = encoded(tone(44100, 1), 44100, "MP3", "MPEG_LAYER_III")
    at = data.index(b"Info" if b"Info" in data else b"Xing") + 8
    for count in (b"\x7f\xff\xff\xff", b"\0\0\0\x03"):
        with pytest.raises(AudioError, match=r"truncated|broken"):
            decode(data[:at] + count + data[at + 4 :])


def test_a_broken_page_of_ogg_is_no_gap():
    data = bytearray(encoded(tone(48000, 1, seconds=3), 48000, "OGG", "OPUS"))
    data[len(data) // 2] ^= 1
    with pytest.raises(AudioError, match="checksum"):
        decode(bytes(data))


def test_streams_of_ogg_behind_the_first_are_not_left_out_in_silence():
    data = encoded(tone(48000, 1), 48000, "OGG", "OPUS")
    with pytest.raises(AudioError, match="several streams"):
        decode(data + data)


@pytest.mark.parametrize("rate", [1, 100, 999, 800_000, 2**31 - 1])
def test_rates_that_no_recording_has_are_refused(rate):
    with pytest.raises(AudioError, match=f"says {rate} Hz; sample rates are from 1000 to 768000"):
        decode(encoded(np.full(20000, 0.1), rate, "WAV", "PCM_16"))


def test_channels_and_hours_have_bounds():
    with pytest.raises(AudioError, match="100 channels; there may be 64"):
        decode(encoded(np.full((100, 100), 0.1), 16000, "WAV", "PCM_16"))
    with pytest.raises(AudioError, match=r"5\.6 hours long; the most is 4: cut it into parts"):
        decode(encoded(np.zeros(20_000_000), 1000, "WAV", "PCM_U8"))


def test_formats_whose_cuts_nobody_sees_are_refused():
    with pytest.raises(AudioError, match=r"VOC.*convert it to wav or FLAC"):
        decode(encoded(tone(16000, 1), 16000, "VOC", "PCM_16"))


@pytest.mark.parametrize(
    "container", ["WAV", "FLAC", "AIFF", "MP3"], ids=lambda container: container.lower()
)
def test_tags_in_front_cost_no_samples(container):
    subtype = "MPEG_LAYER_III" if container == "MP3" else "PCM_16"
    data = encoded(tone(16000, 1), 16000, container, subtype)
    size = 20_000
    tag = b"ID3\x04\0\0" + bytes([0, size >> 14, (size >> 7) & 127, size & 127])
    tag += b"\1" * size
    whole = decode(data)
    for front in (tag, tag + tag, tag + bytes(70_000)):
        np.testing.assert_array_equal(decode(front + data), whole)


def test_long_files_are_resampled_in_pieces_without_seams():
    wav = np.random.default_rng(0).normal(0, 0.1, 1_200_000).astype("f")
    result = decode(encoded(wav, 44100, "WAV", "FLOAT"))
    np.testing.assert_array_equal(result, resample(wav, 44100, 16000))


def test_channels_are_averaged():
    wav = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    result = decode(encoded(wav, 16000, "WAV", "FLOAT"))
    np.testing.assert_allclose(result, 0.2, atol=1e-6)


def test_of_channels_that_cancel_one_is_taken(tmp_path, caplog):
    x = tone(16000, 1)
    quiet = np.random.default_rng(0).normal(0, 1e-4, (16000, 1)).astype("f")
    soundfile.write(tmp_path / "a.wav", np.hstack([0.9 * x, quiet - x]), 16000, subtype="FLOAT")
    # Not quite opposite: the mean is 26 dB below the channels.
    assert np.abs(load(tmp_path / "a.wav")).max() < 0.03
    soundfile.write(tmp_path / "a.wav", np.hstack([x, quiet - x]), 16000, subtype="FLOAT")
    with caplog.at_level("WARNING", "absl"):
        wav = load(tmp_path / "a.wav")
    assert np.abs(wav).max() > 0.49
    assert "a.wav: its channels cancel; channel" in caplog.text


def test_one_channel_of_many_does_not_cancel(caplog):
    wav = np.zeros((16000, 64), "f")
    wav[:, 3:4] = tone(16000, 1)
    with caplog.at_level("WARNING", "absl"):
        assert 0.007 < np.abs(decode(encoded(wav, 16000, "WAV", "FLOAT"))).max() < 0.008
    assert not caplog.text


@pytest.mark.parametrize("rate", [16000, 44100])
def test_sums_of_loud_channels_do_not_overflow(rate):
    with pytest.raises(AudioError, match=r"up to 3e\+38; full scale is 1"):
        decode(encoded(np.full((4000, 2), 3e38), rate, "WAV", "FLOAT"))
    loud = decode(encoded(np.full((4000, 2), 32767.0), rate, "WAV", "FLOAT"))
    assert np.isfinite(loud).all() and loud.max() > 32000  # nothing is clipped


def test_a_result_holds_a_sample():
    with pytest.raises(AudioError, match="shorter than one sample at 16000 Hz"):
        decode(encoded(np.full(10, 0.1), 768_000, "WAV", "FLOAT"))


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path):
    for container, name in [("MP3", "a.wav"), ("WAV", "a.mp3"), ("FLAC", "a"), ("OGG", "a.b.txt")]:
        subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(container, "PCM_16")
        (tmp_path / name).write_bytes(encoded(tone(16000, 1), 16000, container, subtype))
        assert abs(len(load(tmp_path / name)) - 16000) <= 1


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.wav")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    for name in ("fifo", "folder", "device", "loop", "nul\0"):
        with pytest.raises(AudioError, match=rf"{name}.*\.wav: cannot be read"):
            load(tmp_path / f"{name}.wav")


def test_unusable_files_are_named(tmp_path):
    with pytest.raises(AudioError, match="file is empty"):
        decode(b"")
    with pytest.raises(AudioError, match="cannot be decoded"):
        decode(b"no sound at all" * 50)
    with pytest.raises(AudioError, match="no samples"):
        decode(encoded(np.zeros((0, 1)), 16000, "WAV", "PCM_16"))
    with pytest.raises(AudioError, match="NaN"):
        decode(encoded(np.full(100, np.nan), 16000, "WAV", "FLOAT"))
    with pytest.raises(AudioError, match=r"gone\.wav.*No such file"):
        load(tmp_path / "gone.wav")
    (tmp_path / "text.mp3").write_text("a text")
    with pytest.raises(AudioError, match=r"text\.mp3: cannot be decoded"):
        load(tmp_path / "text.mp3")


def test_flac_round_trip_is_exact_to_16_bits():
    wav = np.random.default_rng(0).uniform(-1, 1, 300_000).astype(np.float32)  # several blocks
    once = decode(encode_flac(wav, 16000))
    np.testing.assert_allclose(once, wav, atol=5e-5)


def test_write_wav(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, np.array([0.0, 0.5, -2.0, 2.0]), 22050)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (22050, 1, "PCM_16", 4)
    pcm, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(pcm, [0, 16384, -32768, 32767])
    with pytest.raises(AudioError, match="NaN"):
        write_wav(path, np.array([np.nan]))
    with pytest.raises(AudioError, match=r"\(3, 2\)"):
        write_wav(path, np.zeros((3, 2)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]
    assert soundfile.info(path).frames == 4  # The whole old file stays.


def test_a_wav_that_grows_can_be_played_before_it_is_whole(tmp_path):
    wav = np.random.default_rng(0).uniform(-1.1, 1.1, 1000).astype("f")
    write_wav(tmp_path / "at_once.wav", wav, 8000)
    growing = GrowingWav(tmp_path / "a.wav", 1000, 8000)
    assert not growing.write(wav[:300])
    assert {p.name for p in tmp_path.iterdir()} == {"at_once.wav", "a.part.wav"}
    once, _ = soundfile.read(tmp_path / "at_once.wav", dtype="int16")
    part, rate = soundfile.read(tmp_path / "a.part.wav", dtype="int16")
    assert rate == 8000
    np.testing.assert_array_equal(part, once[:300])
    assert not growing.write(wav[300:999])
    assert growing.write(wav[999:])
    assert not list(tmp_path.glob("*.part.wav"))
    whole, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
    np.testing.assert_array_equal(whole, once)
    # One that is made at once is never there in part.
    assert GrowingWav(tmp_path / "b.wav", 1000, 8000).write(wav)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "at_once.wav").read_bytes()


def test_resample_keeps_duration_and_pitch():
    wav = tone(44100, 1)[:, 0]
    assert abs(len(resample(wav, 44100, 16000)) - 16000) <= 1
    assert resample(wav, 16000, 16000) is wav


def test_is_silent():
    assert is_silent(np.zeros(100, np.float32))
    assert is_silent(np.full(100, 5e-5))
    assert is_silent(np.zeros(0))
    assert not is_silent(np.array([0, 0, 0.01]))
