"""Whether a sound file is whole, by what its container says of its length.

libsndfile reads cut files of most formats as if they were shorter. A file passes here if its
container does not say how long it is, as when it was written into a pipe; whether its content can
be decoded is the decoder's to say.
"""

import io
import os
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, Literal, NamedTuple, cast


class AudioError(ValueError):
    """A recording that cannot be used: unreadable, truncated, empty or not finite."""


class _Content(io.RawIOBase):
    """What lies in a file from a position on, as a file of its own.

    No seek fails: a false header may send a decoder anywhere, whose callbacks cannot raise.
    """

    def __init__(self, file: BinaryIO, start: int):
        self._file, self._start = file, start

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)  # type: ignore[attr-defined]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_SET:
            offset += self._start
        elif whence == os.SEEK_CUR:
            offset += self._file.tell()
        else:
            offset += self._file.seek(0, os.SEEK_END)
        return self._file.seek(min(max(offset, self._start), _FARTHEST)) - self._start


_FARTHEST = 2**62


def skip_tags(file: BinaryIO) -> BinaryIO:
    """Returns the content of a file, without ID3 tags and zeros behind them in front.

    libsndfile skips some of them, but then takes the tag's length off the end of a wav file.
    """
    file.seek(0)
    start = 0
    while len(head := file.read(10)) == 10 and head[:3] == b"ID3":
        size = sum((byte & 0x7F) << 7 * (3 - i) for i, byte in enumerate(head[6:]))
        start += 10 + size + 10 * bool(head[5] & 0x10)
        file.seek(start)
    if start:
        file.seek(start)
        while (block := file.read(2**16)) and not block.strip(b"\0"):
            start += len(block)
        start += len(block) - len(block.lstrip(b"\0"))
    return cast(BinaryIO, _Content(file, start))


def check_complete(file: BinaryIO) -> int:
    """Checks that no sample of a file is missing, as far as its container says.

    Returns:
      For an MP3 the samples of a channel that its frames hold, silence of the encoder included;
      for other files 0, since there the decoder knows.

    Raises:
      AudioError: the file was cut, or does not match its own checksums or counts.
    """
    file.seek(0)
    magic = file.read(4)
    if not magic:
        raise AudioError("the file is empty")
    size = file.seek(0, os.SEEK_END)
    if layout := _LAYOUTS.get(magic):
        _check_chunks(file, size, layout)
    elif magic in _AU:
        file.seek(4)
        offset, samples = (int.from_bytes(file.read(4), _AU[magic]) for _ in range(2))
        _check_left(size - offset, samples, 4)
    elif magic == b"OggS":
        _check_ogg(file, size)
    elif magic[:1] == b"\xff" and magic[1:2] >= b"\xe0":
        return _check_mp3(file, size)
    return 0


class _Layout(NamedTuple):
    """How a container stores its chunks: an id, a size, and the content."""

    first: int  # position of the first chunk
    id_bytes: int
    size_bytes: int
    order: Literal["little", "big"]  # of the bytes of a size
    own: int  # what a size counts besides the content
    align: int
    samples: bytes  # how the id of the chunk of samples begins


_LAYOUTS = {
    b"RIFF": _Layout(12, 4, 4, "little", 0, 2, b"data"),
    b"RF64": _Layout(12, 4, 4, "little", 0, 2, b"data"),
    b"RIFX": _Layout(12, 4, 4, "big", 0, 2, b"data"),
    b"FORM": _Layout(12, 4, 4, "big", 0, 2, b"SSND"),
    b"caff": _Layout(8, 4, 8, "big", 0, 1, b"data"),
    b"riff": _Layout(40, 16, 8, "little", 24, 8, b"data"),
}
_AU: dict[bytes, Literal["little", "big"]] = {b".snd": "big", b"dns.": "little"}
_MOST_CHUNKS = 10_000


def _check_chunks(file: BinaryIO, end: int, layout: _Layout) -> None:
    """Finds the chunk of samples, and compares its size with what is left of the file."""
    position, long_size = layout.first, None
    for _ in range(_MOST_CHUNKS):
        file.seek(position)
        name = file.read(layout.id_bytes)
        size = int.from_bytes(file.read(layout.size_bytes), layout.order) - layout.own
        position += layout.id_bytes + layout.size_bytes
        if position > end:
            return
        if name.startswith(layout.samples):
            if long_size is None:
                _check_left(end - position, size, layout.size_bytes)
            else:
                _check_left(end - position, long_size, 8)
            return
        if name == b"ds64":  # sizes of a wav file beyond 4 GB
            file.seek(position + 8)
            long_size = int.from_bytes(file.read(8), "little")
        position += max(size, 0) + -size % layout.align


def _check_left(left: int, size: int, size_bytes: int) -> None:
    # Programs that write into a pipe leave the size unset: as all ones, as the largest number with
    # a sign, or somewhat less than either.
    unset = any(0 <= 2**bits - size <= 2**16 for bits in (8 * size_bytes, 8 * size_bytes - 1))
    if left < size and not unset:
        raise AudioError(f"truncated: {max(left, 0)} of {size} bytes of samples are present")


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _check_ogg(file: BinaryIO, end: int) -> None:
    """Checks the pages of an Ogg stream: libsndfile leaves out those that are broken."""
    position, last = 0, False
    while position < end:
        file.seek(position)
        head = file.read(27)
        if last and head[:4] == b"OggS" and head[5:6] == b"\2":  # libsndfile reads the first alone
            raise AudioError(
                "holds several streams, one behind the other: convert it to wav or FLAC"
            )
        if head[:4] != b"OggS" and last:  # some other bytes behind the stream
            return
        lacing = file.read(head[26]) if len(head) == 27 else b""  # bytes of each segment
        page = head[:22] + bytes(4) + head[26:] + lacing + file.read(sum(lacing))
        position += 27 + len(lacing) + sum(lacing)
        if len(head) < 27 or len(lacing) < head[26] or position > end:
            raise AudioError("truncated: the Ogg stream's last page is cut")
        # Ogg's checksum is zlib's of reversed bits, without its inversions.
        reverse = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        if int(f"{reverse:032b}"[::-1], 2) != int.from_bytes(head[22:26], "little"):
            raise AudioError(f"broken: the Ogg page before byte {position} has a wrong checksum")
        last = bool(head[5] & 4)
    if not last:
        raise AudioError("truncated: the Ogg stream's last page is missing")


# Bit rates in kbit/s of MPEG 1 and of MPEG 2, by layer; sample rates in Hz of MPEG 1.
_BITRATES = {
    (1, 1): range(0, 480, 32),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_RATES = (44_100, 48_000, 32_000)


def _check_mp3(file: BinaryIO, end: int) -> int:
    """Checks that the last frame is whole, and that there are as many as the first one counts.

    Returns:
      The samples of a channel that the frames hold.
    """
    frames = list(_mp3_frames(file))
    if not frames:
        return 0
    position, length = frames[-1]
    if position + length > end:
        raise AudioError(f"truncated: {end - position} of {length} bytes of the last frame")
    start, length = frames[0]
    file.seek(start)
    first = file.read(length)
    for name in (b"Xing", b"Info"):
        at = first.find(name, 4, 4 + 32 + 2 + 4)
        # Only where the frames are walked to the end: other bytes may lie between them.
        if at > 0 and first[at + 7] & 1 and sum(frames[-1]) == end:
            counted = int.from_bytes(first[at + 8 : at + 12], "big")
            # Some writers count the first one, which holds no samples.
            if not len(frames) - 1 <= counted <= len(frames):
                raise AudioError(f"truncated: {len(frames) - 1} of {counted} frames are present")
    return len(frames) * _mp3_samples(first)


def _mp3_samples(head: bytes) -> int:
    """Returns the samples of a channel in a frame, by its header."""
    version, layer = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3)
    return {1: 384, 2: 1152, 3: 1152 if version == 3 else 576}[layer]


def _mp3_frames(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Yields position and length in bytes of frames, until other bytes or the file's end."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
            return
        version, layer = (head[1] >> 3) & 3, 4 - ((head[1] >> 1) & 3)
        rate, rate_index, padding = head[2] >> 4, (head[2] >> 2) & 3, (head[2] >> 1) & 1
        if version == 1 or layer == 4 or rate in (0, 15) or rate_index == 3:
            return
        kind = 1 if version == 3 else 2
        bits = 1000 * _BITRATES[kind, layer][rate]
        hertz = _MPEG_RATES[rate_index] // {3: 1, 2: 2, 0: 4}[version]
        if layer == 1:
            length = (12 * bits // hertz + padding) * 4
        else:
            length = (72 if kind == 2 and layer == 3 else 144) * bits // hertz + padding
        yield position, length
        position += length
