"""From a path to rows as bytes: unpacking, hashing, finding out the format, and cutting."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .arrays import array_elements
from .parquet import parquet_rows
from .pieces import BOM, Broken, Hashed, Piece, csv_records, lines
from .tables import csv_sign
from .turns import TALKS

HEAD = 1 << 16  # bytes looked at before reading
FORMATS = ("auto", "tsv", "csv", "json", "jsonl", "parquet")
SUFFIXES = {
    ".tsv": "tsv", ".tab": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
PACKED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0"}
NOT_READ = (".xlsx", ".xls", ".zip", ".tar", ".tgz", ".7z", ".arrow", ".feather", ".pdf", ".docx", ".db", ".sqlite")
WANTED = "TSV, CSV, JSON, JSONL or Parquet"
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
# An object whose first list is one of objects: `{"version": "1.0", "data": [{`.
_HOLDS_ROWS = re.compile(r'\s*\{(?:\s*"[^"\\]*"\s*:\s*(?:"[^"\\]*"|[\w.+-]+)\s*,)*\s*"([^"\\]*)"\s*:\s*\[\s*\{')
_LISTS_OF_A_ROW = (*TALKS, "history", "images", "tools")


class Stream:
    """One file of rows: what it is, and its rows as pieces; `digest` is the sha256 of its bytes when all are read."""

    def __init__(self, path: str | os.PathLike[str], handle: BinaryIO, format: str) -> None:
        digest = hashlib.sha256()
        stream: Any = io.BufferedReader(Hashed(handle, digest), 1 << 20)
        suffixes = [suffix.lower() for suffix in Path(path).suffixes] or [""]
        self.packing = _packing(stream.peek(8))
        if self.packing:
            suffixes = suffixes[:-1] if suffixes[-1] in PACKED and len(suffixes) > 1 else suffixes
            self._under = stream
            stream = io.BufferedReader(_Unpacked(_unpacker(self.packing, stream), self.packing), 1 << 20)
        self._raw, self._stream, self._digest = handle, stream, digest
        head = stream.peek(HEAD)[:HEAD]
        self.format = _format(head, suffixes[-1], format)
        self.sign = {"csv": csv_sign(head.decode("utf-8", "replace")), "tsv": "\t"}.get(self.format, "")

    def pieces(self) -> Iterator[Piece]:
        """The rows; may raise `Broken`."""
        if self.format == "csv":
            return csv_records(self._stream, self.sign.encode())
        if self.format == "json":
            return array_elements(self._stream)
        if self.format == "parquet":
            if self.packing:
                raise Broken(0, "packed Parquet (want it unpacked: it is packed inside)")
            return parquet_rows(self._raw)
        return lines(self._stream)

    @property
    def lines(self) -> bool:
        """Whether each line of the file is a row, so that reading may begin at any line."""
        return not self.packing and self.format in ("jsonl", "tsv")

    @property
    def descriptor(self) -> int:
        """Of the file itself."""
        return int(self._raw.fileno())

    def digest(self) -> str:
        """Hex sha256 of the file's own bytes."""
        if self.format == "parquet":  # was read here and there: now from front to back
            self._raw.seek(0)
            self._digest = hashlib.sha256()
            while block := self._raw.read(1 << 20):
                self._digest.update(block)
            return str(self._digest.hexdigest())
        while (self._under if self.packing else self._stream).read(1 << 20):
            pass
        return str(self._digest.hexdigest())


class _Unpacked(io.RawIOBase):
    """What a compressed file unpacks to; damage is `Broken`, whatever the library calls it."""

    def __init__(self, source: Any, packing: str) -> None:
        self.source, self.packing = source, packing

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self.source.read(len(buffer))
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.strerror:
                raise
            raise Broken(0, f"damaged {self.packing} file ({str(error)[:100]})") from None
        buffer[: len(data)] = data
        return len(data)


def _packing(head: bytes) -> str:
    return next((suffix for suffix, magic in PACKED.items() if head.startswith(magic)), "")


def _unpacker(packing: str, stream: BinaryIO) -> Any:
    if packing == ".zst":
        import pyarrow

        return pyarrow.input_stream(stream, compression="zstd")
    openers: dict[str, Any] = {".gz": gzip.GzipFile, ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile}
    return openers[packing](stream) if packing != ".gz" else gzip.GzipFile(fileobj=stream)


def _format(head: bytes, suffix: str, given: str) -> str:
    """The format, by what was given, the file's name, or its first bytes. Raises `Broken` for what is not read."""
    if given == "auto" and suffix in NOT_READ:
        raise Broken(0, f"{suffix} files are not read (want {WANTED})")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise Broken(1, f"not UTF-8, byte 0x{head[0]:02x} at 0 (got UTF-16, want UTF-8)")
    start = head.removeprefix(BOM).lstrip()[:1]
    by_content = "parquet" if head.startswith(b"PAR1") else "jsonl" if start in (b"{", b"[") and start else "tsv"
    found = given if given != "auto" else SUFFIXES.get(suffix, by_content)
    if found in ("json", "jsonl"):
        return "json" if start == b"[" or _holds_rows(head, found) else "jsonl"
    return found


def _holds_rows(head: bytes, found: str) -> bool:
    """Whether a file is one object around a list of rows, and not a row on each line."""
    text = head.removeprefix(BOM).decode("utf-8", "replace")
    match = _HOLDS_ROWS.match(text) if found == "json" else None
    if match is None or match[1].lower() in _LISTS_OF_A_ROW:
        return False
    first, _, more = text.strip().partition("\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return True
    return not more.strip()
