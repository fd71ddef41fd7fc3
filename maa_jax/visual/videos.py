"""Video files: pictures evenly over their time, and copies with another sound (by PyAV)."""

import bisect
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from maa_jax.files import check_regular, replace_file
from maa_jax.visual.images import check_size

# Containers of mp4, mov, webm, mkv and avi; others, such as playlists, may lead to other files.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
_REMEDY = "give a whole mp4, mov, webm, mkv or avi file"
# Sound in a copy, by its ending: without loss where common players take that.
_SOUND = {
    ".mp4": "aac",
    ".m4v": "aac",
    ".mov": "pcm_s16le",
    ".avi": "pcm_s16le",
    ".mkv": "flac",
    ".webm": "libopus",
}
# Ending of the files in which browsers play pictures of a codec.
_PLAYED = {"h264": ".mp4", "vp8": ".webm", "vp9": ".webm", "av1": ".webm"}
_OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
_BLOCK = 4096  # samples that are encoded at a time
# Share of the length in a file's header that may be missing before the file counts as cut.
_MISSING = 0.02


@dataclasses.dataclass(frozen=True)
class Video:
    """What is read of a video.

    Attributes:
      seconds: length of its picture stream, from the first picture to the end of the last.
      pictures: the pictures asked for, uint8 [h, w, 3] each, rotated as players show them.
    """

    seconds: float
    pictures: list[np.ndarray]


def load(path: str | os.PathLike[str], count: int = 4) -> Video:
    """Reads a video's length, and the pictures shown in the middle of `count` equal parts of it.

    All times are those of the file's own pictures, so that any frame rate, also a varying one, is
    right; the paper picks 4 pictures uniformly (section 4.3).

    Raises:
      ValueError: the file cannot be used; the message begins with its path.
    """
    with _opened(path) as (container, stream):
        starts, end = _times(container, stream)
        length = end - starts[0]
        chosen = []
        for part in range(count):
            middle = starts[0] + length * (2 * part + 1) / (2 * count)
            chosen.append(starts[bisect.bisect_right(starts, middle) - 1])
        pictures = [_picture(container, stream, start) for start in chosen]
        return Video(float(length * stream.time_base), pictures)


def played_ending(video: str | os.PathLike[str]) -> str:
    """Returns the ending of a file in which browsers play a video's pictures, .mp4 or .webm.

    Raises:
      ValueError: the video cannot be used, or browsers cannot play its pictures.
    """
    with _opened(video) as (_, stream):
        codec = stream.codec_context.name
    if codec not in _PLAYED:
        raise ValueError(
            f"{video}: its pictures are {codec}, which browsers do not play: convert it to "
            f"{', '.join(_PLAYED)} (ffmpeg -i ... -c:v libx264 copy.mp4)"
        )
    return _PLAYED[codec]


def mux(
    video: str | os.PathLike[str],
    wav: np.ndarray | None,
    sample_rate: int,
    out: str | os.PathLike[str],
) -> None:
    """Writes a copy of a video with another sound; its pictures are copied and not encoded again.

    Args:
      video: path of the video.
      wav: waveform [samples] in -1..1; it is cut, or padded with silence, to the video's length.
        None for a copy without sound.
        AAC has blocks of 1024 samples: players cut the last one at the length that the file states.
      sample_rate: sample rate of `wav` in Hz.
      out: path of the copy, whose ending states its format: .mp4 and .m4v (AAC), .mov and .avi (16
        bits), .mkv (FLAC) or .webm (Opus).

    Raises:
      ValueError: the video cannot be used, or that format cannot hold its pictures.
    """
    import av

    out = pathlib.Path(out)
    if out.suffix.lower() not in _SOUND:
        raise ValueError(f"{out}: give a name that ends in {', '.join(_SOUND)}")
    codec = _SOUND[out.suffix.lower()]
    with _opened(video) as (source, stream):
        starts, end = _times(source, stream)
        seconds = (end - starts[0]) * stream.time_base
        samples = round(seconds * sample_rate)
        if wav is not None:
            wav = np.clip(wav[:samples], -1, 1).astype(np.float32)
            wav = np.pad(wav, (0, samples - len(wav)))
        source.seek(starts[0], stream=stream)
        # In mp4 and mov, the unit of the length that players keep to.
        settings = {"movie_timescale": str(sample_rate)} if out.suffix in (".mp4", ".mov") else {}
        rate = 48_000 if codec == "libopus" and sample_rate not in _OPUS_RATES else sample_rate
        try:
            with replace_file(out) as new, av.open(str(new), "w", options=settings) as target:
                pictures = target.add_stream_from_template(stream)
                encoded: Iterator[Any] = iter(())
                if wav is not None:
                    sound: Any = target.add_stream(codec, rate=rate, layout="mono")
                    encoded = _encoded(sound, wav, sample_rate)
                written = -1.0
                for packet in source.demux(stream):
                    if not packet.size:  # the end
                        continue
                    packet.dts = None if packet.dts is None else packet.dts - starts[0]
                    packet.pts = None if packet.pts is None else packet.pts - starts[0]
                    # Sound goes beside its pictures, so that neither waits in memory.
                    while written < _begin(packet) * stream.time_base:
                        more = next(encoded, None)
                        written = np.inf if more is None else _mux(target, more)
                    packet.stream = pictures
                    target.mux(packet)
                for more in encoded:
                    target.mux(more)
        except (av.error.FFmpegError, ValueError) as error:
            raise ValueError(
                f"{out}: cannot hold the pictures of {video} ({stream.codec_context.name}; "
                f"{error}); give a name that ends in {pathlib.Path(video).suffix}"
            ) from error


def _mux(target: Any, packet: Any) -> float:
    """Writes a packet of sound, and returns its time in seconds."""
    time = float(packet.pts * packet.time_base)
    target.mux(packet)
    return time


def _encoded(stream: Any, wav: np.ndarray, sample_rate: int) -> Iterator[Any]:
    """Yields the packets of a waveform [samples]."""
    import av

    for first in range(0, len(wav), _BLOCK):
        block = av.AudioFrame.from_ndarray(wav[None, first : first + _BLOCK], "fltp", "mono")
        block.sample_rate, block.pts = sample_rate, first
        yield from stream.encode(block)
    yield from stream.encode(None)


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """Yields an open video's container and its picture stream; their errors name the file."""
    import av

    try:
        check_regular(path)
        container = av.open(os.path.abspath(path), options={"format_whitelist": _CONTAINERS})
    except (OSError, ValueError) as error:  # among them PyAV's own
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: is no video that can be read ({reason}); {_REMEDY}") from error
    with container:
        try:
            cover = av.stream.Disposition.attached_pic  # the picture of a sound file
            streams = [s for s in container.streams.video if not s.disposition & cover]
            if not streams:
                raise ValueError(f"has no pictures; {_REMEDY}")
            check_size(streams[0].width, streams[0].height)
            streams[0].thread_type = "AUTO"
            yield container, streams[0]
        except av.error.FFmpegError as error:
            raise ValueError(
                f"{path}: is broken or cut ({error.strerror or error}); {_REMEDY}"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _times(container: Any, stream: Any) -> tuple[list[int], int]:
    """Returns when each picture begins, ascending, and when the last one ends.

    Both are in units of `stream.time_base`. Nothing is decoded.

    Raises:
      ValueError: there is no picture, or the file is cut.
    """
    pieces = []
    for packet in container.demux(stream):
        begin = _begin(packet)
        if not packet.size or packet.is_discard or begin is None:
            continue
        if packet.is_corrupt:
            raise ValueError(f"is cut; {_REMEDY}")
        pieces.append((begin, packet.duration or 0))
    if not pieces:
        raise ValueError(f"has no pictures; {_REMEDY}")
    starts = sorted(begin for begin, _ in pieces)
    last = max(pieces)[1]
    if not last:  # as in some webm files: as long as the picture before it
        rate = stream.average_rate or stream.guessed_rate or 25
        last = starts[-1] - starts[-2] if len(starts) > 1 else round(1 / rate / stream.time_base)
    end = starts[-1] + last
    stated = _stated(container, stream)
    if stated and float((end - starts[0]) * stream.time_base) < (1 - _MISSING) * stated - 0.1:
        raise ValueError(
            f"is cut: it has pictures for {float((end - starts[0]) * stream.time_base):.2f} s of "
            f"{stated:.2f} s; {_REMEDY}"
        )
    return starts, end


def _begin(piece: Any) -> int | None:
    """Returns when a packet or a frame is shown; old avi files only say when it is decoded."""
    return piece.dts if piece.pts is None else piece.pts


def _stated(container: Any, stream: Any) -> float:
    """Returns the length in seconds that the header states of the picture stream, 0 for none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if "DURATION" in stream.metadata:  # in webm and mkv: "00:00:01.500000000"
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = map(float, stream.metadata["DURATION"].split(":"))
            return 3600 * hours + 60 * minutes + seconds
    if len(container.streams) == 1 and container.duration:
        return container.duration / 1e6
    return 0.0


def _picture(container: Any, stream: Any, start: int) -> np.ndarray:
    """Returns the picture that begins at `start`, uint8 [h, w, 3]."""
    container.seek(start, stream=stream)  # to the key frame before it
    for frame in container.decode(stream):
        begin = _begin(frame)
        if begin is not None and begin >= start:
            picture = frame.to_ndarray(format="rgb24")
            # A display matrix turns counter-clockwise, as numpy does.
            return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
    raise ValueError(f"is broken: a picture cannot be decoded; {_REMEDY}")
