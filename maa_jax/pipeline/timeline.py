"""Captions with times: "0-3 s rain; 3-6 s thunder"."""

import re
from typing import NamedTuple

_TIMES = r"(\d+(?:\.\d*)?|\.\d+)\s*[-\u2013]\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:s|sec|seconds?):?"
_SEGMENT = re.compile(rf"\s*{_TIMES}\s+(\S.*?)\s*")
_SECOND = re.compile(rf"[,.]\s*{_TIMES}\s+\S")  # within a caption, where ";" was meant


class Segment(NamedTuple):
    """What is heard for some time.

    Attributes:
      start: beginning in seconds.
      end: end in seconds.
      caption: what is heard.
    """

    start: float
    end: float
    caption: str


def parse(prompt: str) -> list[Segment]:
    """Returns the segments of a prompt with times, [] for one without.

    Raises:
      ValueError: a part has no times where another has, or several, or segments leave gaps or
        overlap.
    """
    parts = [part for part in prompt.split(";") if part.strip()]
    found = [_SEGMENT.fullmatch(part) for part in parts]
    if not any(found) or (len(parts) == 1 and found[0] and float(found[0][1])):
        return []  # "5-10 s of rain" is a sentence
    remedy = 'give them one after the other from 0 s, as in "0-3 s rain; 3-6 s thunder"'
    segments: list[Segment] = []
    for part, match in zip(parts, found, strict=True):
        if match is None:
            raise ValueError(f"prompts={prompt!r}: {part.strip()!r} has no times: {remedy}")
        if _SECOND.search(match[3]):
            raise ValueError(f"prompts={prompt!r}: {match[3]!r} has times within it: {remedy}")
        segment = Segment(float(match[1]), float(match[2]), match[3])
        expected = segments[-1].end if segments else 0.0
        if segment.start != expected or segment.end <= segment.start:
            raise ValueError(
                f"prompts={prompt!r}: {segment.start:g}-{segment.end:g} s does not begin at "
                f"{expected:g} s, or has no length: {remedy}"
            )
        segments.append(segment)
    return segments


def caption_at(segments: list[Segment], seconds: float) -> str:
    """Returns what is heard at a time; after the end, the last segment's caption."""
    return next((s.caption for s in segments if seconds < s.end), segments[-1].caption)
