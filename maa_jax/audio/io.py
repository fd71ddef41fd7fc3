"""Reading and writing of sound files: decodes common formats to mono, writes wav and FLAC.

libsndfile decodes (wav, flac, ogg, mp3 and its other formats), soxr resamples.
"""

import io
import os
import pathlib

import numpy as np

from maa_jax.files import replace_file

# Sample rate in Hz of all recordings: every dataset, stage and encoder gets them at this rate.
SAMPLE_RATE = 16_000
# A recording with a lower peak counts as silent: -80 dBFS, three steps of 16-bit PCM.
SILENCE = 1e-4


class AudioError(ValueError):
    """A recording that cannot be used: unreadable, truncated, empty or not finite."""


def load(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a sound file, local or in a bucket, as float32 mono [samples]; see `decode`."""
    from etils import epath

    try:
        data = epath.Path(path).read_bytes()
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        return decode(data, sample_rate)
    except AudioError as error:
        raise AudioError(f"{path}: {error}") from error


def decode(data: bytes, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decodes the content of a sound file: channels averaged, resampled, nothing normalised.

    Args:
      data: content of the file: wav, flac, ogg, mp3 or another format of libsndfile.
      sample_rate: sample rate of the result, in Hz.

    Returns:
      float32 [samples] in [-1, 1], apart from overshoot of the resampling.

    Raises:
      AudioError: the file cannot be read, is truncated or empty, or holds NaN or infinity.
    """
    import soundfile

    if not data:
        raise AudioError("the file is empty")
    _check_complete(data)
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            expected, rate = file.frames, file.samplerate
            if file.format == "MP3":  # its header may count up to two frames that hold no audio
                expected -= 2 * 1152
            wav = file.read(dtype="float32", always_2d=True)  # [frames, channels]
    except soundfile.LibsndfileError as error:
        raise AudioError(f"cannot be decoded ({error.error_string.rstrip('.')})") from error
    if len(wav) < expected:
        raise AudioError(f"truncated: {len(wav)} of {expected} frames can be decoded")
    if not len(wav):
        raise AudioError("holds no samples")
    if not np.isfinite(wav).all():
        raise AudioError("holds NaN or infinite samples")
    return resample(wav.mean(axis=1), rate, sample_rate)


def _check_complete(data: bytes) -> None:
    """Raises for truncated wav and Ogg files, which libsndfile reads as if they were shorter."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        position = 12
        while position + 8 <= len(data):
            name = data[position : position + 4]
            size = int.from_bytes(data[position + 4 : position + 8], "little")
            left = len(data) - position - 8
            # Programs that write into a pipe leave the size unset, as 0 or all ones.
            if name == b"data" and left < size < 0xFFFF0000:
                raise AudioError(f"truncated: {left} of {size} bytes of samples are present")
            position += 8 + size + size % 2
    elif data[:4] == b"OggS":
        last = data[data.rfind(b"OggS") :]
        lacing = last[27 : 27 + last[26]] if len(last) > 26 else b""  # bytes of each segment
        whole = len(last) >= 27 + len(lacing) + sum(lacing) and len(lacing) == last[26]
        if not (lacing and whole and last[5] & 4):
            raise AudioError("truncated: the Ogg stream's last page is missing or cut")


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples [samples] or [samples, channels] from one rate in Hz to another."""
    if from_rate == to_rate:
        return wav
    import soxr

    return soxr.resample(wav, from_rate, to_rate, quality="HQ")


def is_silent(wav: np.ndarray) -> bool:
    """Whether a recording [samples] is silent: no sample reaches `SILENCE`."""
    return not len(wav) or float(np.abs(wav).max()) < SILENCE


def encode_flac(wav: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Encodes float [samples] as 16-bit FLAC; values beyond [-1, 1] are clipped."""
    return _encode(wav, sample_rate, "FLAC")


def pcm16(wav: np.ndarray) -> np.ndarray:
    """Rounds float [samples] to the int16 of FLAC and wav files; clips beyond [-1, 1]."""
    # libsndfile would truncate, which distorts the quietest sounds.
    return np.round(np.clip(wav, -1, 1) * 32767).astype(np.int16)


def write_wav(
    path: str | os.PathLike[str], wav: np.ndarray, sample_rate: int = SAMPLE_RATE
) -> None:
    """Writes float [samples] as a 16-bit PCM file, whole or not at all; clips beyond [-1, 1]."""
    data = _encode(wav, sample_rate, "WAV")
    with replace_file(pathlib.Path(path)) as new:
        new.write_bytes(data)


def _encode(wav: np.ndarray, sample_rate: int, container: str) -> bytes:
    import soundfile

    wav = np.asarray(wav, np.float32)
    if wav.ndim != 1:
        raise AudioError(f"waveform of shape {wav.shape}: give one channel, [samples]")
    if not np.isfinite(wav).all():
        raise AudioError("the waveform holds NaN or infinite samples")
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm16(wav), sample_rate, subtype="PCM_16", format=container)
    return buffer.getvalue()
