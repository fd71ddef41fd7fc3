import io

import numpy as np
import pytest
import soundfile

from maa_jax.audio.io import (
    AudioError,
    decode,
    encode_flac,
    is_silent,
    load,
    resample,
    write_wav,
)

FORMATS = [
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


def encoded(wav, rate, container, subtype):
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=container, subtype=subtype)
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
@pytest.mark.parametrize("share", [0.01, 0.5, 0.8])
def test_truncated_files_are_refused(container, subtype, rate, channels, share):
    data = encoded(tone(rate, channels, seconds=2), rate, container, subtype)
    with pytest.raises(AudioError):
        decode(data[: int(len(data) * share)])


def test_channels_are_averaged():
    wav = np.stack([np.full(800, 0.5), np.full(800, -0.1)], axis=1)
    result = decode(encoded(wav, 16000, "WAV", "FLOAT"))
    np.testing.assert_allclose(result, 0.2, atol=1e-6)


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
    wav = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    once = decode(encode_flac(wav, 16000))
    np.testing.assert_allclose(once, wav, atol=5e-5)


def test_write_wav(tmp_path):
    path = tmp_path / "a.wav"
    write_wav(path, np.array([0.0, 0.5, -2.0, 2.0]), 22050)
    info = soundfile.info(path)
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (22050, 1, "PCM_16", 4)
    pcm, _ = soundfile.read(path, dtype="int16")
    np.testing.assert_array_equal(pcm, [0, 16384, -32767, 32767])
    with pytest.raises(AudioError, match="NaN"):
        write_wav(path, np.array([np.nan]))
    with pytest.raises(AudioError, match=r"\(3, 2\)"):
        write_wav(path, np.zeros((3, 2)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.wav"]
    assert soundfile.info(path).frames == 4  # The whole old file stays.


def test_resample_keeps_duration_and_pitch():
    wav = tone(44100, 1)[:, 0]
    assert abs(len(resample(wav, 44100, 16000)) - 16000) <= 1
    assert resample(wav, 16000, 16000) is wav


def test_is_silent():
    assert is_silent(np.zeros(100, np.float32))
    assert is_silent(np.full(100, 5e-5))
    assert is_silent(np.zeros(0))
    assert not is_silent(np.array([0, 0, 0.01]))
