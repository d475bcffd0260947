"""A JSON array cut into its elements, as bytes with their lines, with one element in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from .pieces import BOM, MAX_LINE, Broken, Piece

CHUNK = 1 << 20  # bytes read at once
# A whole string (JSON has no line end inside one), or a sign; a quote alone begins a string that does not end here.
_SIGN = re.compile(rb'"(?:[^"\\\n]++|\\.)*+"|[\[\]{},"]')
_BEGUN = re.compile(rb'"(?:[^"\\\n]++|\\.)*+\\?\Z')  # a string as far as the buffer goes
_TEXT = rb'(?:[^"\[\]{}]++|"(?:[^"\\\n]++|\\.)*+")'
_INNER = rb"(?:" + _TEXT + rb"|\[" + _TEXT + rb"*+\]|\{" + _TEXT + rb"*+\})"
_MIDDLE = rb"(?:" + _TEXT + rb"|\[" + _INNER + rb"*+\]|\{" + _INNER + rb"*+\})"
_USUAL = re.compile(rb"\s*\{" + _MIDDLE + rb"*+\}")  # an object with at most two more levels in it: most rows are
_OPENER = {b"]": b"[", b"}": b"{"}


def array_elements(handle: BinaryIO) -> Iterator[Piece]:
    """Each element of an array, or of the one list in an object (`{"version": 1, "data": [...]}`).

    Brackets and commas of the list are checked, what stands in an element is not. A file that ends too early gives a
    last piece that says so. Raises `Broken` where the list's own text is at fault.
    """
    return _Array(handle).elements()


class _Array:
    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle
        self.buffer = b""
        self.base = 0  # offset in the file of the buffer's first byte
        self.place = 0  # in the buffer: up to here it has been looked at
        self.begun: int | None = None  # in the buffer: where the element begins that is being read
        self.line, self.counted = 1, 0  # the line at a place in the buffer
        self.open: list[bytes] = []  # brackets
        self.found = 0  # elements
        self.closed = False  # the list has ended

    def elements(self) -> Iterator[Piece]:
        """The pieces; see `array_elements`."""
        self._fill()
        self.place = len(BOM) if self.buffer.startswith(BOM) else 0
        level = 0  # brackets open around an element, once the list has begun
        while (sign := self._sign()) is not None:
            at = self.place - 1
            if sign in b"[{":
                if self.begun is None and len(self.open) == (self.open == [b"{"]):
                    if self.closed:
                        raise self._broken(at, "more after the list of rows (want one list, or an object with one)")
                    if sign == b"[":
                        level, self.begun = len(self.open) + 1, self.place
                self.open.append(sign)
            elif sign != b",":
                if not self.open or self.open[-1] != _OPENER[sign]:
                    raise self._broken(at, f"not JSON ('{sign.decode()}' without its opening bracket)")
                if self.begun is not None and len(self.open) == level:
                    yield from self._piece(at, last=True)
                    self.begun, self.closed = None, True
                self.open.pop()
            elif self.begun is not None and len(self.open) == level:
                yield from self._piece(at)
                self.begun = self.place
        if self.begun is not None:
            yield self._row(self.begun, len(self.buffer))._replace(fault="cut off: the file ends inside the list")
        elif self.open or not self.closed:
            raise self._broken(len(self.buffer), "cut off" if self.open else "no list of rows in it")

    def _piece(self, end: int, last: bool = False) -> Iterator[Piece]:
        row = self._row(self.begun or 0, end)
        if row.raw:
            yield row
        elif self.found or not last:  # an empty list is nothing, `[1, ]` and `[, 1]` are faults
            yield row._replace(fault="not JSON (nothing beside a comma)")
        self.found += 1

    def _row(self, begin: int, end: int) -> Piece:
        raw = self.buffer[begin:end]
        start = begin + len(raw) - len(raw.lstrip())
        return Piece(self._line_of(start), self.base + start, raw.strip())

    def _sign(self) -> bytes | None:
        """The next bracket or comma outside of strings, just before `place`; None at the file's end."""
        if self.place == self.begun and (whole := _USUAL.match(self.buffer, self.place)):
            self.place = whole.end()  # the same, ten times faster
        while True:
            found = _SIGN.search(self.buffer, self.place)
            between = (
                self.buffer[self.place : found.start() if found else None] if self.closed and not self.open else b""
            )
            if between.strip():
                raise self._broken(
                    self.place + len(between) - len(between.lstrip()), "more after the list of rows (want nothing)"
                )
            if found is not None and found[0] != b'"':
                self.place = found.end()
                if found.end() - found.start() == 1:
                    return found[0]
                continue
            if found is not None and not _BEGUN.match(self.buffer, found.start()):
                raise self._broken(found.start(), "not JSON (a string is not closed on its line)")
            self.place = found.start() if found else len(self.buffer)
            if not self._fill():
                return None

    def _fill(self) -> bool:
        """Read on, forgetting what is done with; False at the end of the file."""
        keep = self.place if self.begun is None else self.begun
        if len(self.buffer) - keep > MAX_LINE:
            raise self._broken(keep, f"row too long (want at most {MAX_LINE >> 20} MiB)")
        chunk = self.handle.read(CHUNK)
        if chunk:
            self._line_of(keep)
            self.buffer = self.buffer[keep:] + chunk
            self.base, self.place, self.counted = self.base + keep, self.place - keep, 0
            self.begun = None if self.begun is None else 0
        return bool(chunk)

    def _line_of(self, place: int) -> int:
        if place > self.counted:
            self.line += self.buffer.count(b"\n", self.counted, place)
            self.counted = place
        return self.line

    def _broken(self, place: int, reason: str) -> Broken:
        return Broken(self._line_of(place), reason)
