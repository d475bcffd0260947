"""`read`: a file of rows, or rows from Python, to records, with an account of every line.

Lines end at a newline byte and nowhere else (a U+2028 inside a text is text). A bad row is named by file, line and
field; whatever is read is either used or rejected, and nothing is rejected unless the caller chose to skip.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import io
import json
import os
import reprlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import SHOWN, DataError, EnvironmentFault, InputError, Problem, did_you_mean, nearest
from ..files import write_text
from . import jsonl, pieces
from .columns import Columns, RowError, check_columns, kind
from .parsing import Parser, decoded
from .pieces import BOM, Hashed, Piece
from .records import Origin, Record, Rows
from .tables import csv_sign, table_of

HEAD = 1 << 16  # bytes looked at before reading
FORMATS = ("auto", "tsv", "csv", "jsonl")
SUFFIXES = {".tsv": "tsv", ".tab": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl"}
NOT_READ = (".parquet", ".xlsx", ".xls", ".gz", ".zip", ".zst", ".bz2", ".xz")
EXCERPT = 1000  # characters of a row that was too long to be kept whole in rejected.jsonl
_short = reprlib.Repr()
_short.maxstring = _short.maxother = EXCERPT
_short.maxdict = _short.maxlist = 20


def read(
    path: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    format: str = "auto",
    columns: Mapping[str, Any] | None = None,
    instruction: str = "",
    on_bad_row: str = "stop",
    rejected: str | os.PathLike[str] | None = None,
) -> Rows:
    """Records of a TSV or JSONL file, or of dicts handed over from Python (origin `<memory>:i`, i from 1).

    `columns`: role -> column name (TSV: or its number from 1) where the names do not say it; roles are those of
    `columns.ROLES`. `instruction`: the same instruction for all rows, whose own text becomes the input.
    `on_bad_row`: "stop" raises `DataError` with all bad rows counted and the first 20 named; "skip" leaves them out
    and writes them to the file `rejected` (objects with file, line, field, reason, text). No usable row at all
    raises `DataError` either way. Wrong arguments raise `InputError`.
    """
    if format not in FORMATS:
        raise InputError(f"format: unknown '{format}', {did_you_mean(str(format), FORMATS)}")
    if on_bad_row not in ("stop", "skip"):
        raise InputError(f"on_bad_row: unknown '{on_bad_row}', {did_you_mean(str(on_bad_row), ('stop', 'skip'))}")
    if instruction and instruction.isspace():
        raise InputError("instruction: only white space (want text)")
    given = check_columns(columns or {}, instruction)
    if isinstance(path, (str, os.PathLike)):
        name = os.fspath(path).encode("utf-8", "backslashreplace").decode()  # as typed, but always printable
        account = _Account(name, skip=on_bad_row == "skip")
        if (
            rejected is not None
            and os.path.exists(rejected)
            and os.path.exists(path)
            and os.path.samefile(rejected, path)
        ):
            raise InputError(f"rejected: would overwrite the rows themselves (got {name}, want another file)")
        _read_file(path, account, format, given, instruction)
    else:
        account = _Account("<memory>", skip=on_bad_row == "skip")
        _read_memory(path, account, Columns(given, instruction))
    return account.rows(Path(rejected) if rejected is not None else None)


class _Account:
    """What has become of each row of one source."""

    def __init__(self, name: str, *, skip: bool) -> None:
        self.name = name
        self.skip = skip
        self.records: list[Record] = []
        self.problems: list[Problem] = []  # the first ones
        self.refused: list[str] = []  # lines for rejected.jsonl
        self.rejected = self.blank = 0
        self.header = False
        self.digest = ""
        self.notes: list[str] = []

    def reject(self, line: int, error: RowError, text: str) -> None:
        self.rejected += 1
        if len(self.problems) < SHOWN:
            self.problems.append(Problem(self.name, line, error.field, error.reason))
        if self.skip:
            row = {"file": self.name, "line": line, "field": error.field, "reason": error.reason, "text": text}
            self.refused.append(json.dumps(row, ensure_ascii=False) + "\n")

    def fail(self, reason: str, line: int = 0, field: str = "", advice: str = "") -> DataError:
        """The error of a file that cannot be read as a whole."""
        return DataError([Problem(self.name, line, field, reason)], advice=advice)

    def rows(self, target: Path | None) -> Rows:
        """The result, or the error that all of this amounts to; writes `target` if rows were skipped."""
        if not self.records and (self.skip or not self.rejected):
            states = (
                (self.rejected, f"{self.rejected} rejected"),
                (self.header, "only a header line"),
                (self.blank, f"only {_count(self.blank, 'blank line')}"),
                (self.digest, "an empty file"),
            )
            got = next((state for holds, state in states if holds), "no rows")
            first = Problem(self.name, 0, "", f"0 usable rows (got {got})")
            raise DataError([first, *self.problems], total=1 + self.rejected)
        if self.rejected and not self.skip:
            advice = f"{_count(len(self.records), 'other row')} can be used; --on-bad-row=skip leaves the bad ones out"
            raise DataError(self.problems, total=self.rejected, advice=advice if self.records else "")
        if self.blank:
            self.notes.append(f"{self.name}: {_count(self.blank, 'blank line')} passed over")
        if self.rejected:
            where = f", written to {target}" if target else ""
            total = len(self.records) + self.rejected
            self.notes.append(f"{self.name}: {self.rejected} of {_count(total, 'row')} rejected{where}")
            if target:
                try:
                    write_text(target, "".join(self.refused))
                except OSError as error:
                    raise EnvironmentFault(f"{target}: cannot be written: {error.strerror}") from None
        files = {self.name: self.digest} if self.digest else {}
        read = len(self.records) + self.rejected
        return Rows(tuple(self.records), files, read, self.rejected, tuple(self.notes))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _read_memory(rows: Iterable[Mapping[str, Any]], account: _Account, columns: Columns) -> None:
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise InputError(f"read: neither a path nor a list of dicts (got {kind(rows)})")
    for number, row in enumerate(rows, start=1):
        try:
            if not isinstance(row, Mapping):
                raise RowError("", f"wrong type (got {kind(row)}, want a dict)")
            jsonl.check_texts(row)
            account.records.append(columns.record(row, Origin(account.name, number)))
        except RowError as error:
            account.reject(number, error, _short.repr(row))
    _say(account, columns, f"read as {columns.shape}")


def _say(account: _Account, columns: Columns, how: str) -> None:
    wrong = columns.unseen()
    if wrong and account.records:
        raise account.fail(wrong, field="columns")
    if columns.roles:
        account.notes.insert(0, f"{account.name}: {how}: {columns.describe()}")


def _read_file(
    path: str | os.PathLike[str], account: _Account, format: str, given: Mapping[str, str], instruction: str
) -> None:
    _check_path(path, account)
    try:
        with open(path, "rb", buffering=0) as handle:
            before = os.fstat(handle.fileno())
            head = os.pread(handle.fileno(), HEAD, 0)
            shape = _sniff(head, path, account, format)
            digest = hashlib.sha256()
            sign = csv_sign(head.decode("utf-8", "replace")) if shape == "csv" else "\t"
            stream = io.BufferedReader(Hashed(handle, digest), 1 << 20)
            rows = pieces.csv_records(stream, sign.encode()) if shape == "csv" else pieces.lines(stream)
            with _no_garbage_collection():
                _read_pieces(rows, account, _opener(shape, account, given, instruction, sign))
            after = os.fstat(handle.fileno())
    except OSError as error:
        raise account.fail(f"not readable: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise account.fail(f"changed while it was read (got {before.st_size} bytes first, {after.st_size} at the end)")
    account.digest = digest.hexdigest()


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows hold no cycles, and the collector would walk all of them again and again: half of the time and more."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read_pieces(rows: Iterator[Piece], account: _Account, open_parser: Callable[[Piece], Parser]) -> None:
    """All rows of a file; the first one that is not blank decides what the columns of a table are."""
    parser: Parser | None = None
    name, keep = account.name, account.records.append
    for piece in rows:
        number, _, raw, fault = piece
        if not raw or (isinstance(raw, bytes) and raw.isspace()):
            account.blank += 1
            continue
        try:
            if parser is None:
                parser = open_parser(piece)
                if parser.table and parser.table.header:
                    continue
            if fault:
                raise RowError("", fault)
            keep(parser.record(raw, Origin(name, number)))
        except RowError as error:
            account.reject(number, error, _excerpt(raw))
    if parser is None:
        return
    how = f"read as {parser.columns.shape}"
    if parser.table:
        how = "first line read as header" if account.header else "no header line"
    _say(account, parser.columns, how)


def _opener(
    shape: str, account: _Account, given: Mapping[str, str], instruction: str, sign: str
) -> Callable[[Piece], Parser]:
    """What makes the parser of a file when its first row is there."""

    def open_parser(piece: Piece) -> Parser:
        if shape == "jsonl":
            return Parser(shape, Columns(given, instruction))
        # What is wrong with the first row of a table is wrong for the whole file.
        try:
            if piece.fault:
                raise RowError("header" if shape == "csv" else "", piece.fault)
            text = decoded(piece.raw)
            table = table_of(text, given, fixed=bool(instruction), sign=sign)
            columns = Columns(table.columns, instruction)
            if table.header or given:
                columns.settle(table.names)
        except RowError as error:
            raise account.fail(error.reason, piece.line, error.field) from None
        account.header = table.header
        return Parser(shape, columns, table)

    return open_parser


def _excerpt(raw: Any) -> str:
    """A row's own text for rejected.jsonl, cut where it was too long to be read whole."""
    if not isinstance(raw, bytes):
        return _short.repr(raw)
    whole = len(raw) <= pieces.MAX_LINE
    return raw.decode("utf-8", "backslashreplace") if whole else raw[:EXCERPT].decode("utf-8", "replace") + "…"


def _sniff(head: bytes, path: str | os.PathLike[str], account: _Account, format: str) -> str:
    """The format, by the file's name, else by its first character; refuses UTF-16 and JSON arrays outright."""
    suffix = Path(path).suffix.lower()
    if format == "auto" and suffix in NOT_READ:
        raise account.fail(f"{suffix} files are not read (want TSV, CSV or JSONL)")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise account.fail(f"not UTF-8, byte 0x{head[0]:02x} at 0 (got UTF-16, want UTF-8)", line=1)
    start = head.removeprefix(BOM).lstrip()[:1]
    found = format if format != "auto" else SUFFIXES.get(suffix) or ("jsonl" if start in (b"{", b"[") else "tsv")
    if found == "jsonl" and start == b"[":
        line = 1 + head[: head.index(b"[")].count(b"\n")
        advice = "jq -c '.[]' turns an array into lines"
        raise account.fail("a JSON array (want one JSON object a line)", line=line, advice=advice)
    return found


def _check_path(path: str | os.PathLike[str], account: _Account) -> None:
    """Refuse what is no readable file before it is opened: opening a named pipe would wait for a writer."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise account.fail(_nearby(Path(path))) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        loop = "symbolic links in a loop" if getattr(error, "errno", 0) == errno.ELOOP else ""
        raise account.fail(loop or f"not readable: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
        got = next((name for is_kind, name in kinds if is_kind(mode)), "a device")
        raise account.fail(f"not a file (got {got}, want a TSV or JSONL file)")


def _nearby(path: Path) -> str:
    """Why a path leads nowhere, with the nearest name that does exist."""
    if path.is_symlink():
        return f"no such file (a symbolic link to {os.readlink(path)}, which is missing)"
    if not path.parent.is_dir():
        return f"no such file (there is no folder {path.parent})"
    try:
        with os.scandir(path.parent) as entries:
            match = nearest(
                path.name, [entry.name for entry in islice(entries, 5000) if not entry.is_dir(follow_symlinks=False)]
            )
    except OSError:
        match = None
    return f"no such file, did you mean '{match}'?" if match else "no such file"
