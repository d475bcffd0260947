"""A file cut into rows that are still bytes: where each begins, on which line, and what it holds.

Nothing here knows what a row means; `parsing.Parser` makes a record of a piece, now or later from its place again.
A line ends at a newline byte and nowhere else (a U+2028 inside a text is text).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

MAX_LINE = 16 << 20  # bytes of one row
MAX_JOINED = 10_000  # lines of one CSV record
BOM = b"\xef\xbb\xbf"


class Piece(NamedTuple):
    """One row as it stands in the file.

    line: that it begins on, from 1 (Parquet: number of the row).  start: offset of `raw` in the file, or in what a
    compressed file unpacks to (Parquet: number of the row group).  raw: its bytes without the line's end; b"" is a
    blank line (Parquet: column -> value).  fault: why it is no whole row, else ''.
    """

    line: int
    start: int
    raw: Any
    fault: str = ""


class Broken(Exception):
    """The file cannot be cut into rows from a line on."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = line, reason


class Hashed(io.RawIOBase):
    """A file that keeps the sha256 of all that was read of it; it is read once, from front to back."""

    def __init__(self, handle: BinaryIO, digest: Any) -> None:
        self.handle, self.digest = handle, digest

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase` wants it: how many bytes are in the buffer now."""
        view = memoryview(buffer)
        count = self.handle.readinto(view)  # type: ignore[attr-defined]
        self.digest.update(view[:count])
        return int(count)


def lines(handle: BinaryIO, number: int = 0, start: int = 0) -> Iterator[Piece]:
    """Each line of a TSV or JSONL file. number, start: lines and bytes of the file that are before the handle's."""
    while raw := handle.readline(MAX_LINE + 1):
        number += 1
        length, fault = len(raw), ""
        if length > MAX_LINE and not raw.endswith(b"\n"):
            fault = f"line too long (want at most {MAX_LINE >> 20} MiB)"
            length += _skip_line(handle)
        skipped = len(BOM) if number == 1 and raw.startswith(BOM) else 0
        yield Piece(number, start + skipped, raw[skipped:].removesuffix(b"\n").removesuffix(b"\r"), fault)
        start += length


def _skip_line(handle: BinaryIO) -> int:
    """Read to the end of a line without keeping it; how many bytes that were."""
    count = 0
    while rest := handle.readline(1 << 20):
        count += len(rest)
        if rest.endswith(b"\n"):
            break
    return count


_INSIDE = re.compile(rb'(?:[^"]++|"")*+')


def csv_records(handle: BinaryIO, delimiter: bytes = b",") -> Iterator[Piece]:
    """Each record of a CSV file (RFC 4180): lines joined while a quoted field is open.

    A fault of quoting is put down to the line on which the record begins, and reading goes on with the line after it:
    one odd quote spoils one row, not all that follow.
    """
    waiting: list[Piece] = []  # lines of a record that went wrong, to be looked at again
    source = lines(handle)
    plain = re.compile(rb'[^"' + re.escape(delimiter) + rb"]*+")
    while True:
        first = waiting.pop() if waiting else next(source, None)
        if first is None:
            return
        opened, fault = _quotes(first.raw, delimiter, plain, inside=False)
        parts, size = [first], len(first.raw)
        while opened and not fault:
            line = waiting.pop() if waiting else next(source, None)
            if line is None:
                fault = "a quote is never closed"
                break
            parts.append(line)
            size += len(line.raw) + 2
            opened, fault = _quotes(line.raw, delimiter, plain, inside=True)
            if line.fault or size > MAX_LINE or len(parts) > MAX_JOINED:
                fault = f"a quote is not closed within {MAX_JOINED:,} lines and {MAX_LINE >> 20} MiB"
        if len(parts) == 1:
            yield first._replace(fault=first.fault or fault)
        elif fault:
            yield first._replace(fault=fault)
            waiting += reversed(parts[1:])
        else:
            yield Piece(first.line, first.start, _joined(parts))


def _joined(parts: list[Piece]) -> bytes:
    """The record's bytes with the line ends that stood between its lines."""
    raw = bytearray()
    for part in parts:
        if part is not parts[0]:
            raw += b"\r\n" if part.start - (parts[0].start + len(raw)) == 2 else b"\n"
        raw += part.raw
    return bytes(raw)


def _quotes(raw: bytes, delimiter: bytes, plain: re.Pattern[bytes], *, inside: bool) -> tuple[bool, str]:
    """Whether a quoted field is open at the end of a line, and what is wrong with the quotes in it, if anything."""
    if b'"' not in raw:
        return inside, ""
    place, end = 0, len(raw)
    while True:
        if not inside:
            inside = raw.startswith(b'"', place)
            place = place + 1 if inside else plain.match(raw, place).end()  # type: ignore[union-attr]
            if not inside and raw.startswith(b'"', place):
                return False, "a quote inside a field without quotes (want the field in quotes, and quotes doubled)"
        if inside:
            place = _INSIDE.match(raw, place).end()  # type: ignore[union-attr]
            if place == end:
                return True, ""
            place += 1
            if place < end and not raw.startswith(delimiter, place):
                return False, "text after a closing quote (want a quote in a field doubled)"
            inside = False
        if place == end:
            return False, ""
        place += len(delimiter)
