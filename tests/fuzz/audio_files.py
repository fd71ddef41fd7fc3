"""Sound files: every format of libsndfile that people use, cut, flipped, and with false headers."""

import functools
import io
import os
import pathlib
import socket

import numpy as np
import soundfile

from maa_jax.audio.io import load
from tests.fuzz.frame import Case

LARGE = 500

# Container, encoding, rate in Hz, channels, the name's suffix.
FORMATS = [
    ("WAV", "PCM_16", 44100, 2, "wav"),
    ("WAV", "PCM_U8", 8000, 1, "wav"),
    ("WAV", "PCM_24", 48000, 6, "wav"),
    ("WAV", "FLOAT", 22050, 2, "wav"),
    ("WAV", "IMA_ADPCM", 16000, 1, "wav"),
    ("WAVEX", "PCM_16", 32000, 2, "wav"),
    ("RF64", "PCM_16", 44100, 1, "wav"),
    ("W64", "PCM_16", 44100, 2, "w64"),
    ("AIFF", "PCM_16", 44100, 2, "aiff"),
    ("AIFF", "FLOAT", 16000, 1, "aif"),
    ("CAF", "PCM_16", 44100, 1, "caf"),
    ("CAF", "ALAC_16", 44100, 2, "caf"),
    ("AU", "PCM_16", 22050, 1, "au"),
    ("AU", "ULAW", 8000, 1, "au"),
    ("FLAC", "PCM_16", 48000, 2, "flac"),
    ("FLAC", "PCM_24", 44100, 1, "flac"),
    ("OGG", "VORBIS", 44100, 2, "ogg"),
    ("OGG", "OPUS", 48000, 1, "opus"),
    ("MP3", "MPEG_LAYER_III", 44100, 2, "mp3"),
    ("MP3", "MPEG_LAYER_III", 16000, 1, "mp3"),
]
# Values that headers give for sizes, counts and rates.
NUMBERS = [0, 1, 7, 100, 999, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 10**6, 10**9]
NUMBERS += [2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
IDS = [b"RIFF", b"RIFX", b"RF64", b"WAVE", b"fmt ", b"data", b"LIST", b"FORM", b"SSND", b"COMM"]
IDS += [
    b"caff",
    b"desc",
    b".snd",
    b"fLaC",
    b"OggS",
    b"ID3\x04",
    b"Xing",
    b"Info",
    b"\xff\xfb\x90\x00",
]
NAMES = ["a b", "-rf", "ä", "雨", "🐦", "a\nb", "a'b\"c", "%s%n", "x" * 200, "..a", "a.b.c", "~"]


@functools.cache
def encoded(container: str, subtype: str, rate: int, channels: int, seconds: float = 1) -> bytes:
    """Returns a file of `seconds` of noisy tones."""
    noise = np.random.default_rng(0).normal(0, 0.05, (int(rate * seconds), channels))
    time = np.arange(len(noise))[:, None] / rate
    wav = 0.3 * np.sin(2 * np.pi * 440 * time * np.arange(1, channels + 1)) + noise
    buffer = io.BytesIO()
    soundfile.write(buffer, wav, rate, format=container, subtype=subtype)
    return buffer.getvalue()


def cut(rng, data):
    return f"cut at {(at := int(rng.integers(len(data))))} of {len(data)} bytes", data[:at]


def flip(rng, data):
    end = min(len(data), int(rng.choice([64, 512, len(data)])))
    count = int(rng.choice([1, 3, 10, 100]))
    changed = bytearray(data)
    for at in rng.integers(end, size=count):
        changed[at] ^= int(rng.integers(1, 256))
    return f"{count} bytes changed in the first {end}", bytes(changed)


def number(rng, data):
    value, width = NUMBERS[rng.integers(len(NUMBERS))], int(rng.choice([2, 4, 8]))
    at = int(rng.integers(min(len(data), 128) - width))
    order = str(rng.choice(["little", "big"]))
    put = (value % 2 ** (8 * width)).to_bytes(width, order)
    return f"{value} as {width} bytes at {at}", data[:at] + put + data[at + width :]


def swap_id(rng, data):
    at, new = int(4 * rng.integers(16)), IDS[rng.integers(len(IDS))]
    return f"{new!r} at {at}", data[:at] + new + data[at + 4 :]


def insert(rng, data):
    at = int(rng.choice([0, 4, 12, 44, len(data)]))
    more = rng.bytes(int(rng.choice([1, 2, 100, 5000])))
    return f"{len(more)} random bytes at {at}", data[:at] + more + data[at:]


def remove(rng, data):
    at = int(rng.integers(min(len(data), 256)))
    count = int(rng.choice([1, 2, 8, 40]))
    return f"{count} bytes removed at {at}", data[:at] + data[at + count :]


def zeros(rng, data):
    at, count = int(rng.integers(len(data))), int(rng.choice([4, 64, 4096, len(data)]))
    return f"{count} zeros at {at}", data[:at] + bytes(min(count, len(data) - at)) + data[
        at + count :
    ]


def tags(rng, data):
    """Puts ID3 tags in front, inside each other or with false sizes."""
    size = int(rng.choice([0, 10, 1000, 200_000, 2**28 - 1]))
    coded = bytes((size >> s) & 0x7F for s in (21, 14, 7, 0))
    tag = b"ID3\x04\x00\x00" + coded + rng.bytes(min(size, 200_000))
    count = int(rng.choice([1, 2, 50]))
    return f"{count} ID3 tags of {size} bytes in front", tag * count + data


def repeat(rng, data):
    other = encoded(*FORMATS[rng.integers(len(FORMATS))][:4])
    return "another file behind it", data + other


def garbage(rng, data):
    return "random bytes", rng.bytes(int(rng.choice([1, 3, 12, 44, 5000])))


def behind_its_magic(rng, data):
    return "random bytes behind its first 4", data[:4] + rng.bytes(int(rng.choice([8, 40, 5000])))


MUTATIONS = [cut, flip, flip, flip, number, number, number, swap_id, insert, remove, zeros]
MUTATIONS += [tags, repeat, garbage, behind_its_magic]


def values(rng, path):
    """Writes samples that no recording has."""
    kind = str(
        rng.choice(["nan", "inf", "-inf", "loud", "loud stereo", "zeros", "antiphase", "none"])
    )
    rate = int(rng.choice([8000, 16000, 44100, 192000]))
    wav = rng.normal(0, 0.1, (rate // 4, 2)).astype("f")
    if kind in ("nan", "inf", "-inf"):
        wav[rng.integers(len(wav)), 0] = float(kind)
    elif kind.startswith("loud"):
        wav = np.full_like(wav, 3e38)[:, : 1 + kind.endswith("stereo")]
    elif kind == "antiphase":
        wav[:, 1] = -wav[:, 0]
    elif kind in ("zeros", "none"):
        wav = np.zeros_like(wav)[: len(wav) * (kind == "zeros")]
    soundfile.write(path, wav, rate, format="WAV", subtype="FLOAT")
    return Case(f"samples: {kind} at {rate} Hz", path, kind not in ("zeros", "antiphase"))


def rate(rng, path):
    """Writes a header with a rate that no recording has."""
    rate = int(rng.choice([1, 2, 10, 100, 999, 800_000, 10**6, 10**9, 2**31 - 1]))
    soundfile.write(path, rng.normal(0, 0.1, 200_000), rate, format="WAV")
    return Case(f"wav at {rate} Hz", path, broken=True)


def no_file(rng, path):
    """Puts something else than a file in its place."""
    kind = str(rng.choice(["fifo", "folder", "loop", "zero", "null", "socket", "empty", "missing"]))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind in ("zero", "null"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "socket":
        there = os.getcwd()
        os.chdir(path.parent)  # a socket's whole path may have 107 bytes
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
        os.chdir(there)
    elif kind == "empty":
        path.touch()
    return Case(f"in its place: {kind}", path, broken=True)


def make(rng: np.random.Generator, folder: pathlib.Path) -> Case:
    """Writes one file."""
    *audio, suffix = FORMATS[rng.integers(len(FORMATS))]
    name = NAMES[rng.integers(len(NAMES))] if rng.random() < 0.2 else "sound"
    path = folder / f"{name}.{suffix}"
    draw = rng.random()
    if draw < 0.2:
        if draw < 0.08:
            return no_file(rng, folder / f"sound.{suffix}")
        return (values if draw < 0.14 else rate)(rng, folder / "sound.wav")
    data, done = encoded(*audio), []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        what, data = MUTATIONS[rng.integers(len(MUTATIONS))](rng, data)
        done.append(what)
        if len(data) < 200:
            break
    path.write_bytes(data)
    return Case(f"{' '.join(map(str, audio))}: {', '.join(done)}", path)


def use(path: pathlib.Path) -> None:
    """Reads it as every program reads recordings."""
    wav = load(path)
    assert wav.dtype == np.float32 and wav.ndim == 1, (wav.dtype, wav.shape)
    assert len(wav) > 0, "empty"
    assert np.isfinite(wav).all(), "not finite"


def warm() -> None:
    """Imports the decoders and the resampler."""
    import etils.epath  # noqa: F401
    import soxr  # noqa: F401
