"""`read`: files of rows, or rows from Python, to records, with an account of every row.

A bad row is named by file, line and field; whatever is read is either used or rejected, and nothing is rejected unless
the caller chose to skip.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import SHOWN, DataError, EnvironmentFault, InputError, Problem, did_you_mean
from ..files import cache_dir, disk_faults, write_text
from ..forked import processes, side_by_side
from . import jsonl, pieces
from .columns import Columns, check_columns
from .index import Index, Stored, Writer, current, home_of, large, stamp
from .parsing import Parser, decoded
from .pieces import Broken, Piece
from .places import check_path, files_of, size_of
from .ranges import WORTH, ranges
from .records import Origin, Record, Rows, merge
from .streams import FORMATS, Stream
from .tables import table_of
from .turns import RowError, kind

EXCERPT = 1000  # characters of a row that was too long to be kept whole in rejected.jsonl
_short = reprlib.Repr()
_short.maxstring = _short.maxother = EXCERPT
_short.maxdict = _short.maxlist = 20
_TOLD = ("digest", "rejected", "blank", "header", "refused", "notes")  # of an account, besides its rows


@dataclass(frozen=True, kw_only=True)
class How:
    """How rows are read."""

    format: str
    given: Mapping[str, str]
    instruction: str
    labels: Mapping[str, str]
    skip: bool

    @classmethod
    def of(
        cls, format: str, columns: Mapping[str, Any], instruction: str, labels: Mapping[str, str], on_bad_row: str
    ) -> How:
        """The arguments of `read`, checked. Raises InputError."""
        if format not in FORMATS:
            raise InputError(f"format: unknown '{format}', {did_you_mean(str(format), FORMATS)}")
        if on_bad_row not in ("stop", "skip"):
            raise InputError(f"on_bad_row: unknown '{on_bad_row}', {did_you_mean(str(on_bad_row), ('stop', 'skip'))}")
        if instruction and instruction.isspace():
            raise InputError("instruction: only white space (want text)")
        if blank := [value for value, name in labels.items() if not str(name).strip()]:
            raise InputError(f"labels: no name for '{blank[0]}' (want text)")
        return cls(
            format=format,
            given=check_columns(columns, instruction),
            instruction=instruction,
            labels={str(value): str(name) for value, name in labels.items()},
            skip=on_bad_row == "skip",
        )

    def columns(self, given: Mapping[str, str] | None = None) -> Columns:
        """With nothing settled yet; `given` where a table's header has turned numbers into names."""
        return Columns(self.given if given is None else given, self.instruction, self.labels)


def read(
    path: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    *,
    format: str = "auto",
    columns: Mapping[str, Any] | None = None,
    instruction: str = "",
    labels: Mapping[str, str] | None = None,
    on_bad_row: str = "stop",
    rejected: str | os.PathLike[str] | None = None,
    offline: bool = False,
) -> Rows:
    """Records of a file, a folder's or a pattern's files, a dataset of the hub, or dicts from Python (`<memory>:1`, …).

    `columns`: role -> column name (TSV, CSV: or its number from 1) where the names do not say it; roles are those of
    `columns.ROLES`. `instruction`: the same for all rows, whose own text becomes the input; with `{column}` in it, it
    is filled from each row. `labels`: what stands in the answer's column -> the answer.
    `on_bad_row`: "stop" raises `DataError` with all bad rows counted and the first 20 named; "skip" leaves them out
    and writes them to the file `rejected` (objects with file, line, field, reason, text). No usable row at all
    raises `DataError` either way. Wrong arguments raise `InputError`. Rows of large files stay on disk.
    """
    how = How.of(format, columns or {}, instruction, labels or {}, on_bad_row)
    return read_as(path, how, rejected=rejected, offline=offline)


def read_as(
    path: str | os.PathLike[str] | Iterable[Mapping[str, Any]],
    how: How,
    *,
    rejected: str | os.PathLike[str] | None = None,
    offline: bool = False,
    on_disk: bool | None = None,
) -> Rows:
    """The same, with all that says how rows are read in one. on_disk: rows stay there; None: if files are large."""
    if not isinstance(path, (str, os.PathLike)):
        account = _Account("<memory>", skip=how.skip)
        _read_memory(path, account, how.columns())
        return _settled([account], Path(rejected) if rejected is not None else None)
    accounts, faults = [], []
    found = files_of(path, offline)
    stay = size_of(found) >= large() if on_disk is None else on_disk
    for name, file in found:
        account = _Account(name, skip=how.skip)
        if rejected is not None and os.path.exists(rejected) and _same(rejected, file):
            raise InputError(f"rejected: would overwrite the rows themselves (got {account.name}, want another file)")
        try:
            if stay:
                _index_file(file, account, how)
            else:
                _read_file(file, account, how)
            account.check()
        except DataError as error:
            faults.append(error)
        accounts.append(account)
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise DataError([one for error in faults for one in error.problems], sum(error.total for error in faults))
    return _settled(accounts, Path(rejected) if rejected is not None else None)


def _same(one: str | os.PathLike[str], other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(one, other)


class _Account:
    """What has become of each row of one file."""

    def __init__(self, name: str, *, skip: bool) -> None:
        self.name = name
        self.skip = skip
        self.records: list[Record] = []
        self.index: Index | None = None  # where they stay on disk
        self.writer: Writer | None = None
        self.used = 0
        self.problems: list[Problem] = []  # the first ones
        self.refused: list[str] = []  # lines for rejected.jsonl
        self.rejected = self.blank = 0
        self.header = False
        self.digest = ""
        self.notes: list[str] = []

    def keep(self, record: Record, raw: Any, start: int) -> None:
        """A row that can be used. raw, start: its bytes (or values), and where they begin in the file."""
        self.used += 1
        if self.writer:
            self.writer.add(record, raw, start)
        else:
            self.records.append(record)

    def told(self) -> dict[str, Any]:
        """What an index keeps of it."""
        return {name: getattr(self, name) for name in _TOLD}

    def part(self) -> dict[str, Any]:
        """What is to be said of one range of a file, for `absorb`."""
        problems = [[one.line, one.field, one.reason] for one in self.problems]
        return {"rejected": self.rejected, "blank": self.blank, "refused": self.refused, "problems": problems}

    def absorb(self, other: _Account, parser: Parser) -> None:
        """The rows and the account of the range that comes next."""
        assert self.writer and other.writer
        told = self.writer.join(other.writer)
        account = told["account"]
        self.used += told["used"]
        self.rejected += account["rejected"]
        self.blank += account["blank"]
        self.refused += account["refused"]
        self.problems += [Problem(self.name, *one) for one in account["problems"]][: SHOWN - len(self.problems)]
        parser.columns.meet(told["met"])

    def restore(self, index: Index) -> None:
        """As it was when the index was made."""
        self.index, self.used = index, len(index)
        for name in _TOLD:
            setattr(self, name, index.known[name])

    def reject(self, line: int, error: RowError, raw: Any, item: int | None = None) -> None:
        """`item`: place in a JSON array, where several rows can be on one line."""
        self.rejected += 1
        problem = Origin(self.name, line + error.below, item).problem(error.field, error.reason)
        if len(self.problems) < SHOWN:
            self.problems.append(problem)
        if self.skip:
            row = {"file": self.name, "line": problem.line, "field": problem.field, "reason": error.reason}
            self.refused.append(json.dumps(row | {"text": _excerpt(raw)}, ensure_ascii=False) + "\n")

    def fail(self, reason: str, line: int = 0, field: str = "") -> DataError:
        """The error of a file that cannot be read as a whole."""
        return DataError([Problem(self.name, line, field, reason)])

    def check(self) -> None:
        """Raise the error that all of this amounts to, if it does."""
        if not self.used and (self.skip or not self.rejected):
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
            advice = f"{_count(self.used, 'other row')} can be used; --on-bad-row=skip leaves the bad ones out"
            raise DataError(self.problems, total=self.rejected, advice=advice if self.used else "")

    def rows(self, target: Path | None) -> Rows:
        """The result; `target` is where the rejected rows go."""
        if self.blank:
            self.notes.append(f"{self.name}: {_count(self.blank, 'blank line')} passed over")
        if self.rejected:
            where = f", written to {target}" if target else ""
            total = self.used + self.rejected
            self.notes.append(f"{self.name}: {self.rejected} of {_count(total, 'row')} rejected{where}")
        files = {self.name: self.digest} if self.digest else {}
        records = Stored([self.index]) if self.index else tuple(self.records)
        return Rows(records, files, self.used + self.rejected, self.rejected, tuple(self.notes))


def _settled(accounts: list[_Account], target: Path | None) -> Rows:
    """What was read of all files; writes `target` if rows were skipped."""
    for account in accounts:
        account.check()
    refused = "".join(row for account in accounts for row in account.refused)
    rows = merge([account.rows(target) for account in accounts])
    if target and refused:
        try:
            write_text(target, refused)
        except OSError as error:
            raise EnvironmentFault(f"{target}: cannot be written: {error.strerror}") from None
    return rows


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
            account.keep(columns.record(row, Origin(account.name, number)), row, 0)
        except RowError as error:
            account.reject(number, error, row)
    _say(account, columns, f"read as {columns.shape}")


def _say(account: _Account, columns: Columns, how: str) -> None:
    wrong = columns.unseen()
    if wrong and account.used:
        raise account.fail(wrong, field="columns")
    if columns.roles:
        account.notes.insert(0, f"{account.name}: {how}: {columns.describe()}")
    account.notes += [f"{account.name}: {note}" for note in columns.notes()]


def _index_file(path: str, account: _Account, how: How) -> None:
    """Read a file whose rows stay on disk; where that was done before and it is as it was, nothing is read."""
    check_path(path)
    home = home_of(path, asdict(how))
    if index := current(home, stamp(os.stat(path)), account.name, path):
        account.restore(index)
        return
    with _writing() as writer:
        account.writer = writer
        parser = _read_file(path, account, how)
        if parser is None or not account.used or (account.rejected and not how.skip):
            return
        told = account.told() | {"stamp": stamp(os.stat(path)), "parser": parser.to_json()}
        account.index = writer.finish(home, told, account.name, path)


@contextlib.contextmanager
def _writing() -> Iterator[Writer]:
    with disk_faults(f"rows on disk: {cache_dir() / 'rows'} can't be written to"):
        writer = Writer()
        try:
            yield writer
        finally:
            writer.drop()


def _read_file(path: str, account: _Account, how: How) -> Parser | None:
    """All rows of a file; what its first rows have decided, None where it has none."""
    check_path(path)
    try:
        with open(path, "rb", buffering=0) as handle:
            before = os.fstat(handle.fileno())
            stream = Stream(path, handle, how.format)
            if account.writer and (stream.packing or stream.format == "parquet"):
                account.writer.spool()
            apart = account.writer and stream.lines and before.st_size >= WORTH and processes() > 1
            with _no_garbage_collection():
                parser = (_read_apart if apart else _read_whole)(stream, account, how)
            after = os.fstat(handle.fileno())
    except Broken as error:
        raise account.fail(error.reason, error.line) from None
    except OSError as error:
        raise account.fail(f"not readable: {error.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise account.fail(f"changed while it was read (got {before.st_size} bytes first, {after.st_size} at the end)")
    return parser


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


def _read_whole(stream: Stream, account: _Account, how: How) -> Parser | None:
    """All rows, one after the other."""
    parser = _read_pieces(stream.pieces(), stream, account, how)
    account.digest = stream.digest()
    if parser is not None:
        _say_columns(parser, account)
    return parser


def _read_apart(stream: Stream, account: _Account, how: How) -> Parser | None:
    """The same by several processes, each its range of lines, once the first lines have decided what columns are."""
    digest, descriptor = hashlib.sha256(), stream.descriptor
    first, *others = ranges(descriptor, os.fstat(descriptor).st_size, processes(), digest)
    account.digest = digest.hexdigest()
    parser = _read_pieces(first.pieces(descriptor), stream, account, how)
    while parser is None or not account.used:  # nothing is decided yet
        if not others:
            break
        parser = _read_pieces(others.pop(0).pieces(descriptor), stream, account, how, parser)
    if parser is None:
        return None
    assert account.writer
    parts = [_Account(account.name, skip=how.skip) for _ in others]
    try:
        for part in parts:
            part.writer = Writer()
        works = [
            partial(_read_part, part, where.pieces(descriptor), stream, how, parser)
            for part, where in zip(parts, others, strict=True)
        ]
        if works:
            side_by_side(f"{account.name}: reading rows", account.writer.folder, works)
        for part in parts:
            account.absorb(part, parser)
    finally:
        for part in parts:
            if part.writer:
                part.writer.drop()
    _say_columns(parser, account)
    return parser


def _read_part(account: _Account, part: Iterator[Piece], stream: Stream, how: How, parser: Parser) -> None:
    """One range, whose rows and account stay in its writer's folder."""
    assert account.writer
    own = Parser.from_json(parser.to_json())
    _read_pieces(part, stream, account, how, own)
    account.writer.close(used=account.used, account=account.part(), met=own.columns.met_in_rows())


def _read_pieces(
    pieces: Iterator[Piece], stream: Stream, account: _Account, how: How, parser: Parser | None = None
) -> Parser | None:
    """Rows of a file; the first one that is not blank decides what the columns of a table are."""
    name, keep, in_array, item = account.name, account.keep, stream.format == "json", -1
    for piece in pieces:
        number, start, raw, fault = piece
        if not fault and isinstance(raw, bytes) and (not raw or raw.isspace()):
            account.blank += 1
            continue
        item += 1
        try:
            if parser is None:
                parser = _parser(stream, piece, account, how)
                if parser.table and parser.table.header:
                    continue
            if fault:
                raise RowError("", fault)
            keep(parser.record(raw, Origin(name, number, item if in_array else None)), raw, start)
        except RowError as error:
            account.reject(number, error, raw, item if in_array else None)
    return parser


def _say_columns(parser: Parser, account: _Account) -> None:
    table = "first line read as header" if account.header else "no header line"
    _say(account, parser.columns, table if parser.table else f"read as {parser.columns.shape}")


def _parser(stream: Stream, first: Piece, account: _Account, how: How) -> Parser:
    """The parser of a file, when its first row is there; raises `RowError` only for the first line of a TSV file."""
    if not stream.sign:
        return Parser(stream.format, how.columns())
    if stream.format == "csv" and first.fault:
        raise account.fail(first.fault, first.line, "header")
    try:  # what is wrong with the first row of a table is wrong for the whole file
        if first.fault:
            raise RowError("", first.fault)
        table = table_of(decoded(first.raw), how.given, fixed=bool(how.instruction), sign=stream.sign)
        columns = how.columns(table.columns)
        if table.header or how.given:
            columns.settle(table.names)
    except RowError as error:
        raise account.fail(error.reason, first.line, error.field) from None
    account.header = table.header
    return Parser(stream.format, columns, table)


def _excerpt(raw: Any) -> str:
    """A row's own text for rejected.jsonl, cut where it was too long to be read whole."""
    if not isinstance(raw, bytes):
        return _short.repr(raw)
    whole = len(raw) <= pieces.MAX_LINE
    return raw.decode("utf-8", "backslashreplace") if whole else raw[:EXCERPT].decode("utf-8", "replace") + "…"
