"""A soundfont of a few kB with every preset of General MIDI, written as SoundFont 2.01 has it."""

import pathlib
import struct

import numpy as np

_RATE = 16_000
_KEYS, _SAMPLE_ID, _INSTRUMENT, _LOOP, _RELEASE = 43, 53, 41, 54, 38  # generators


def write_soundfont(path: pathlib.Path, programs: int = 128) -> pathlib.Path:
    """Writes a soundfont whose presets are one decaying tone, in bank 0 and as a drum kit.

    Args:
      path: path of the .sf2 file.
      programs: number of presets in bank 0.
    """
    times = np.arange(_RATE) / _RATE
    tone = np.sin(2 * np.pi * 261.63 * times) * np.exp(-1.5 * times)
    samples = np.concatenate([(tone * 30_000).astype("<i2"), np.zeros(46, "<i2")]).tobytes()
    presets = [(0, program) for program in range(programs)] + [(128, 0)]
    headers = [_preset(f"preset {p}", p, bank, i) for i, (bank, p) in enumerate(presets)]
    headers.append(_preset("EOP", 0, 0, len(presets)))
    bags = b"".join(struct.pack("<HH", i, 0) for i in range(len(presets) + 1))
    generators = struct.pack("<HH", _INSTRUMENT, 0) * len(presets) + bytes(4)
    instruments = _name("tone") + struct.pack("<H", 0) + _name("EOI") + struct.pack("<H", 1)
    zone = struct.pack("<HH", _KEYS, 127 << 8) + struct.pack("<Hh", _RELEASE, -4000)
    zone += struct.pack("<HH", _LOOP, 0) + struct.pack("<HH", _SAMPLE_ID, 0)
    sample = _name("tone") + struct.pack("<IIIIIBbHH", 0, _RATE, 0, _RATE, _RATE, 60, 0, 0, 1)
    sample += _name("EOS") + bytes(26)
    articles = [
        (b"phdr", b"".join(headers)),
        (b"pbag", bags),
        (b"pmod", bytes(10)),
        (b"pgen", generators),
        (b"inst", instruments),
        (b"ibag", struct.pack("<HHHH", 0, 0, 4, 0)),
        (b"imod", bytes(10)),
        (b"igen", zone + bytes(4)),
        (b"shdr", sample),
    ]
    info = _chunk(b"ifil", struct.pack("<HH", 2, 1)) + _chunk(b"isng", b"EMU8000\0")
    body = _list(b"INFO", info + _chunk(b"INAM", b"tiny\0\0"))
    body += _list(b"sdta", _chunk(b"smpl", samples))
    body += _list(b"pdta", b"".join(_chunk(*article) for article in articles))
    path.write_bytes(_chunk(b"RIFF", b"sfbk" + body))
    return path


def _preset(name: str, program: int, bank: int, bag: int) -> bytes:
    return _name(name) + struct.pack("<HHHIII", program, bank, bag, 0, 0, 0)


def _name(text: str) -> bytes:
    return text.encode().ljust(20, b"\0")


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _list(name: bytes, content: bytes) -> bytes:
    return _chunk(b"LIST", name + content)
