"""Reading and writing of sound files: decodes common formats to mono, writes wav and FLAC.

libsndfile decodes (`CONTAINERS`), soxr resamples, and `complete.py` sees what libsndfile does not:
files that were cut. A recording is read in blocks, so that memory is bounded by the result.
"""

import io
import os
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, TypeVar

import numpy as np
from absl import logging

from maa_jax.audio.complete import AudioError, check_complete, skip_tags
from maa_jax.files import check_regular, replace_file

# Sample rate in Hz of all recordings: every dataset, stage and encoder gets them at this rate.
SAMPLE_RATE = 16_000
# A recording with a lower peak counts as silent: -80 dBFS, three steps of 16-bit PCM.
SILENCE = 1e-4
# libsndfile's names of the containers that are read. It knows others, of the eighties and nineties,
# in which neither it nor this package would see that a file is cut.
CONTAINERS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3")
# What a recording may have; a header that says more, or less, is broken.
RATES = (1_000, 768_000)  # Hz
MOST_CHANNELS = 64  # ambisonics of the seventh order
MOST_HOURS = 4  # 0.9 GB at 16 kHz
LOUDEST = 2.0**32  # full scale is 1, but some float files hold integers of 16 or 32 bits
_HEADER = 44  # bytes before the samples of a wav file
_BLOCK = 2**17  # samples of all channels that are decoded at a time
_MP3_SILENCE = 5 * 1152  # samples at both ends of an MP3 that hold no sound, at most
# Channels cancel if their mean is 30 dB below that of independent channels of their power.
_CANCELLED = 1e-3


def load(path: str | os.PathLike[str], sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Reads a sound file, local or in a bucket, as float32 mono [samples]; see `decode`.

    Raises:
      AudioError: the file cannot be used; the message begins with its path.
    """
    return _read(path, lambda file: _decode(file, sample_rate, f"{path}: "))


def sample_rate(path: str | os.PathLike[str]) -> int:
    """Returns the sample rate in Hz that the header of a sound file states.

    Raises:
      AudioError: the file cannot be used; the message begins with its path.
    """
    import soundfile

    def rate(file: BinaryIO) -> int:
        try:
            file = skip_tags(file)
            file.seek(0)
            with _sound_file(file) as sound:
                _check_header(sound)
                return int(sound.samplerate)
        except soundfile.LibsndfileError as error:
            raise _undecodable(error) from error

    return _read(path, rate)


def _undecodable(error: Any) -> AudioError:
    """Returns the error for a soundfile.LibsndfileError."""
    return AudioError(f"cannot be decoded ({error.error_string.rstrip('.')})")


T = TypeVar("T")


def _read(path: str | os.PathLike[str], function: Callable[[BinaryIO], T]) -> T:
    """Returns what a function reads from a file; its AudioErrors then begin with the path."""
    from etils import epath

    try:
        check_regular(path)
        file = epath.Path(path).open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise AudioError(f"{path}: cannot be read ({reason})") from error
    with file:
        try:
            return function(file)
        except AudioError as error:
            raise AudioError(f"{path}: {error}") from error


def decode(data: bytes, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Decodes the content of a sound file: channels averaged, resampled, nothing normalised.

    Where the channels cancel each other, as one of them has its polarity reversed, the strongest
    stands for all, and a warning says so.

    Args:
      data: content of the file, in one of `CONTAINERS`.
      sample_rate: sample rate of the result, in Hz.

    Returns:
      float32 [samples], at least one, all finite. Files of integers give [-1, 1] apart from
      overshoot of the resampling; those of floats what they hold.

    Raises:
      AudioError: the file cannot be decoded, is truncated, empty or out of the bounds above, or
        holds NaN or infinity.
    """
    return _decode(io.BytesIO(data), sample_rate, "")


def _decode(file: BinaryIO, sample_rate: int, name: str) -> np.ndarray:
    import soundfile

    try:
        file = skip_tags(file)
        held = check_complete(file)
        wav, powers, power = _mono(file, sample_rate, held)
        if power < _CANCELLED * powers.sum() / len(powers) ** 2:
            loudest = int(powers.argmax())
            logging.warning("%sits channels cancel; channel %d is taken", name, loudest + 1)
            wav, _, _ = _mono(file, sample_rate, held, loudest)
    except soundfile.LibsndfileError as error:
        raise _undecodable(error) from error
    except AudioError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError) as error:  # what else the decoders raise
        raise AudioError(f"cannot be decoded ({error})") from error
    if not len(wav):
        raise AudioError(f"is shorter than one sample at {sample_rate} Hz")
    return wav


def _mono(
    file: BinaryIO, sample_rate: int, held: int, channel: int | None = None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Decodes a file, and resamples the mean of its channels, or one of them.

    Returns:
      float32 [samples], and the powers of the channels [channels] and of their mean, as sums.
    """
    file.seek(0)
    result = bytearray()  # grows in place
    with _sound_file(file) as sound:
        _check_header(sound)
        resampler = _Resampler(sound.samplerate, sample_rate)
        powers, power = np.zeros(sound.channels), 0.0
        for block in _blocks(sound, held):
            peak = max(block.max(), -block.min())
            if not np.isfinite(peak):
                raise AudioError("holds NaN or infinite samples")
            if peak > LOUDEST:
                raise AudioError(f"holds samples of up to {peak:.2g}; full scale is 1")
            mean = block @ np.full(sound.channels, 1 / sound.channels, np.float32)
            powers += np.einsum("fc,fc->c", block, block)
            power += mean @ mean
            mono = mean if channel is None else np.ascontiguousarray(block[:, channel])
            result += resampler(mono).data
        result += resampler(np.zeros(0, np.float32), last=True).data
    return np.frombuffer(result, np.float32), powers, power


def _sound_file(file: BinaryIO) -> Any:
    """Returns the open soundfile.SoundFile of a file."""
    import soundfile

    class Stream(soundfile.SoundFile):
        """Reads on. After each block soundfile seeks to where it is, which disturbs mpg123."""

        def seekable(self) -> bool:
            return False

    return Stream(file)


def _check_header(sound: Any) -> None:
    """Raises an AudioError unless what a soundfile.SoundFile's header says is within bounds."""
    if sound.format not in CONTAINERS:
        raise AudioError(f"is a file of {sound.format_info}: convert it to wav or FLAC")
    if not RATES[0] <= sound.samplerate <= RATES[1]:
        raise AudioError(
            f"its header says {sound.samplerate} Hz; sample rates are from {RATES[0]} to {RATES[1]}"
        )
    if sound.channels > MOST_CHANNELS:
        raise AudioError(f"its header says {sound.channels} channels; there may be {MOST_CHANNELS}")


def _blocks(sound: Any, held: int) -> Iterator[np.ndarray]:
    """Yields float32 [frames, channels] to the end of a soundfile.SoundFile.

    Args:
      sound: the open file.
      held: what `check_complete` counts.
    """
    expected, most = sound.frames, MOST_HOURS * 3600 * sound.samplerate
    if expected > 2**62:  # a FLAC that was written into a pipe does not know its length
        expected = 0
    if sound.format == "MP3":  # libsndfile guesses, or believes the first frame
        expected -= 2 * 1152
    done = 0
    while True:
        if max(done, expected) > most:
            hours = max(done, expected) / 3600 / sound.samplerate
            raise AudioError(
                f"is {hours:.1f} hours long; the most is {MOST_HOURS}: cut it into parts"
            )
        block = sound.read(_BLOCK // sound.channels, dtype="float32", always_2d=True)
        if not len(block):
            break
        done += len(block)
        yield block
    if done < expected:
        raise AudioError(f"truncated: {done} of {expected} frames can be decoded")
    if done < held - _MP3_SILENCE:
        raise AudioError(
            f"only {done} of {held} frames can be decoded, as they are not counted in front:"
            " convert it to wav or FLAC"
        )
    if not done:
        raise AudioError("holds no samples")


class _Resampler:
    """Resamples a signal that comes in pieces, float32 [n]; equal to `resample` of the whole."""

    def __init__(self, from_rate: int, to_rate: int):
        import soxr

        same = from_rate == to_rate
        self._stream = None if same else soxr.ResampleStream(from_rate, to_rate, 1, "float32", "HQ")

    def __call__(self, piece: np.ndarray, last: bool = False) -> np.ndarray:
        return piece if self._stream is None else self._stream.resample_chunk(piece, last)


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resamples [samples] or [samples, channels] from one rate in Hz to another."""
    if from_rate == to_rate:
        return wav
    import soxr

    return soxr.resample(wav, from_rate, to_rate, quality="HQ")


def resample_all(wavs: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Returns waveforms [n, samples] at another sample rate; the same array if it is the same."""
    if from_rate == to_rate:
        return wavs
    return np.stack([resample(wav, from_rate, to_rate) for wav in wavs])


def is_silent(wav: np.ndarray) -> bool:
    """Whether a recording [samples] is silent: no sample reaches `SILENCE`."""
    return not len(wav) or float(np.abs(wav).max()) < SILENCE


def encode_flac(wav: np.ndarray, sample_rate: int = SAMPLE_RATE) -> bytes:
    """Encodes float [samples] as 16-bit FLAC; values beyond [-1, 1] are clipped."""
    buffer = io.BytesIO()
    _write(buffer, wav, sample_rate, "FLAC")
    return buffer.getvalue()


def pcm16(wav: np.ndarray) -> np.ndarray:
    """Rounds float [..., samples] to the int16 of FLAC and wav files; clips beyond [-1, 1]."""
    # libsndfile would truncate, which distorts the quietest sounds.
    return _rounded(wav).astype(np.int16)


def _rounded(wav: np.ndarray) -> np.ndarray:
    # Samples read from such a file, multiples of 2^-15, are written as they were.
    return np.clip(np.round(wav * np.float32(2**15)), -(2**15), 2**15 - 1)


def as_read(wav: np.ndarray) -> np.ndarray:
    """Returns float [..., samples] as it comes back from a wav file that this module wrote.

    Scores hear this: a spectrogram in decibels shows noise far below 16 bits, so that those of a
    sound and of its file would differ. NaN stays NaN.
    """
    return _rounded(wav) / np.float32(2**15)


def write_wav(
    path: str | os.PathLike[str], wav: np.ndarray, sample_rate: int = SAMPLE_RATE
) -> None:
    """Writes float [samples] as a 16-bit PCM file, whole or not at all; clips beyond [-1, 1]."""
    buffer = io.BytesIO()
    _write(buffer, wav, sample_rate, "WAV")
    with replace_file(pathlib.Path(path)) as new:
        new.write_bytes(buffer.getbuffer())


class GrowingWav:
    """A 16-bit PCM file that can be played while it is made.

    Until it is whole its name ends in .part.wav. One that is written at once never has that name.

    Args:
      path: path of the file, whose name ends in .wav.
      samples: its length.
      sample_rate: its sample rate, in Hz.
    """

    def __init__(self, path: pathlib.Path, samples: int, sample_rate: int):
        self._path, self._part = path, path.with_suffix(".part.wav")
        self._samples, self._rate, self._written = samples, sample_rate, 0

    def write(self, wav: np.ndarray) -> bool:
        """Appends float [samples], clipped beyond [-1, 1]; returns whether the file is whole."""
        if len(wav) >= self._samples:
            write_wav(self._path, wav, self._rate)
            return True
        with self._part.open("r+b" if self._written else "wb") as file:
            # Samples come first: the header never states more than there are.
            file.seek(_HEADER + 2 * self._written)
            file.write(pcm16(wav).astype("<i2").tobytes())
            self._written += len(wav)
            file.seek(0)
            file.write(_pcm_header(self._written, self._rate))
            file.flush()
            os.fsync(file.fileno())
        if self._written < self._samples:
            return False
        self._part.replace(self._path)
        return True


def _pcm_header(samples: int, sample_rate: int) -> bytes:
    """Returns the header of a wav file of one channel of 16 bits."""
    size = 2 * samples
    sizes = (16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)  # of the format, and the format
    form = b"RIFF" + struct.pack("<I", 36 + size) + b"WAVE"
    return form + b"fmt " + struct.pack("<IHHIIHH", *sizes) + b"data" + struct.pack("<I", size)


def _write(buffer: io.BytesIO, wav: np.ndarray, sample_rate: int, container: str) -> None:
    import soundfile

    wav = np.asarray(wav, np.float32)
    if wav.ndim != 1:
        raise AudioError(f"waveform of shape {wav.shape}: give one channel, [samples]")
    if not np.isfinite(wav).all():
        raise AudioError("the waveform holds NaN or infinite samples")
    file = soundfile.SoundFile(buffer, "w", sample_rate, 1, "PCM_16", format=container)
    with file:
        for start in range(0, len(wav), _BLOCK):  # in blocks, since rounding makes copies
            file.write(pcm16(wav[start : start + _BLOCK]))
