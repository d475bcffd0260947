"""Ranges of a large file of lines, for several processes to read: each begins and ends where a line does."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .pieces import Piece, lines

FIRST = 1 << 20  # bytes of the first range, whose rows decide what columns are
WORTH = 16 << 20  # bytes of a file for which a second process is started
_BLOCK = 1 << 20


class Range(NamedTuple):
    """Bytes of a file from `start` to before `end`. lines: of the file before them."""

    start: int
    end: int
    lines: int

    def pieces(self, descriptor: int) -> Iterator[Piece]:
        """The lines in it; the file's own position is left alone."""
        handle: BinaryIO = io.BufferedReader(_Part(descriptor, self.start, self.end), _BLOCK)
        return lines(handle, self.lines, self.start)


def ranges(descriptor: int, size: int, count: int, digest: Any) -> list[Range]:
    """A short first range and up to `count` more, alike in size, of a file of `size` bytes; all of them go through
    `digest` (of hashlib)."""
    wanted = [min(FIRST, size), *(FIRST + (size - FIRST) * part // count for part in range(1, count)), size]
    found: list[Range] = []
    start = place = passed = before = 0  # of the range, of the block, and lines before each
    while block := os.pread(descriptor, min(_BLOCK, size - place), place):
        digest.update(block)
        after = -1
        while (at := wanted[0] - place) < len(block) and (after := block.find(b"\n", max(at, after + 1))) >= 0:
            lines_here = passed + block.count(b"\n", 0, after + 1)
            found.append(Range(start, place + after + 1, before))
            start, before = place + after + 1, lines_here
            while len(wanted) > 1 and wanted[0] <= start:
                wanted.pop(0)
        passed += block.count(b"\n")
        place += len(block)
    if start < place:
        found.append(Range(start, place, before))
    return found


class _Part(io.RawIOBase):
    """Bytes of an open file from a place to another."""

    def __init__(self, descriptor: int, start: int, end: int) -> None:
        self.descriptor, self.place, self.end = descriptor, start, end

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self.descriptor, min(len(buffer), self.end - self.place), self.place)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)
