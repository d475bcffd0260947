"""Rows that stay on disk: where each row of a large file begins, and numbers that say what must be known of all rows.

A million records as objects take a gigabyte and more. Here a row is a place in its file, read again when it is asked
for, and some numbers that are mapped from disk: its place, hashes (of the row, its prompt, its wording, its answer),
its task, how many answers it has, and what `consistency` looks at. `Stored` is a sequence of records like any other.

N rows of a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import cache_dir, read_json, write_json
from .facts import Facts, facts, keys, marks
from .parsing import Parser
from .records import Origin, Record
from .turns import RowError

FORMAT = 2
LARGE = 64 << 20  # bytes of a file from which its rows stay on disk
COLUMNS = {
    "start": "int64", "size": "uint32", "line": "int64", "item": "int64", "key": "uint64", "prompt": "uint64",
    "wording": "uint64", "answer": "uint64", "task": "int32", "answers": "uint16",
    "same": "uint64", "said": "uint64", "scripts": "uint8", "odd": "uint8",
}  # fmt: skip
_KEPT = 1 << 13  # rows whose numbers wait in memory before they are written
_AHEAD = 1 << 20  # bytes read at once where rows are read in order


def large() -> int:
    """Bytes of a file from which its rows stay on disk; `INSTRUCTREC_LARGE_FILE` says another number."""
    given = os.environ.get("INSTRUCTREC_LARGE_FILE", "")
    if not given:
        return LARGE
    if not given.isdigit():
        raise InputError(f"INSTRUCTREC_LARGE_FILE: not a number of bytes (got '{given}')")
    return int(given)


@dataclass(frozen=True)
class Index:
    """The rows of one file. home: folder of the columns.  known: `index.json`.  name: the file as the user named it."""

    home: Path
    known: Mapping[str, Any]
    name: str
    path: str

    def __len__(self) -> int:
        return int(self.known["rows"])

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """Name -> numbers of the N rows, mapped from disk."""
        return {name: _mapped(self.home / name, kind, len(self)) for name, kind in COLUMNS.items()}

    @cached_property
    def parser(self) -> Parser:
        """Makes records of rows."""
        return Parser.from_json(self.known["parser"])

    @cached_property
    def _handle(self) -> BinaryIO:
        spool = self.home / "rows"
        return open(spool if spool.exists() else self.path, "rb", buffering=0)

    def origin(self, number: int) -> Origin:
        """Where row `number` is in its file."""
        item = int(self.columns["item"][number])
        return Origin(self.name, int(self.columns["line"][number]), None if item < 0 else item)

    def record(self, number: int) -> Record:
        """Row `number`, read from its file."""
        start, size = int(self.columns["start"][number]), int(self.columns["size"][number])
        raw = os.pread(self._handle.fileno(), size, start)
        return self._made(raw, number)

    def records(self, numbers: Sequence[int] | NDArray[Any]) -> Iterator[Record]:
        """Rows in this order; those that lie beside each other are read together."""
        starts, sizes = self.columns["start"], self.columns["size"]
        descriptor, block, base = self._handle.fileno(), b"", 0
        for number in numbers:
            start, size = int(starts[number]), int(sizes[number])
            if not base <= start <= start + size <= base + len(block):
                beside = 0 <= start - base - len(block) + _AHEAD <= 2 * _AHEAD
                block, base = os.pread(descriptor, max(size, _AHEAD if beside else 0), start), start
            yield self._made(block[start - base : start - base + size], number)

    def _made(self, raw: bytes, number: int) -> Record:
        origin = self.origin(number)
        try:
            record = self.parser.record(raw, origin)
        except RowError:
            record = None
        if record is None or keys(record)[1] != int(self.columns["key"][number]):
            raise InputError(f"{origin}: the file was changed while it was used (want it left alone, or a copy)")
        return record


def _mapped(path: Path, kind: str, rows: int) -> NDArray[Any]:
    return np.memmap(path, dtype=kind, mode="r", shape=(rows,)) if rows else np.zeros(0, dtype=kind)


class Stored(Sequence[Record]):
    """Records of indexed files, or some of them: `numbers` counts through all files, None is all rows in order."""

    def __init__(self, indexes: Sequence[Index], numbers: NDArray[np.int64] | None = None) -> None:
        self.indexes, self.numbers = tuple(indexes), numbers
        self.ends = np.cumsum([len(index) for index in indexes])

    def __len__(self) -> int:
        return len(self.numbers) if self.numbers is not None else int(self.ends[-1])

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Stored: ...
    def __getitem__(self, place: int | slice) -> Record | Stored:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        index, number = self._at(place)
        return index.record(number)

    def __iter__(self) -> Iterator[Record]:
        if self.numbers is None:
            for index in self.indexes:
                yield from index.records(range(len(index)))
            return
        owners = np.searchsorted(self.ends, self.numbers, side="right")
        cuts = np.flatnonzero(np.diff(owners)) + 1
        for part in np.split(np.arange(len(self.numbers)), cuts):
            if len(part):
                owner = int(owners[part[0]])
                yield from self.indexes[owner].records(self.numbers[part] - self._before(owner))

    def take(self, places: Sequence[int] | NDArray[Any]) -> Stored:
        """Some of these records, in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        return Stored(self.indexes, chosen if self.numbers is None else self.numbers[chosen])

    def origin(self, place: int) -> Origin:
        """Where a record stands, without reading it."""
        index, number = self._at(place)
        return index.origin(number)

    def column(self, name: str) -> NDArray[Any]:
        """One number of each record, by the names of `COLUMNS`."""
        parts = [index.columns[name] for index in self.indexes]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole if self.numbers is None else whole[self.numbers]

    def files(self) -> NDArray[np.int64]:
        """Number of each record's file."""
        numbers = np.arange(len(self)) if self.numbers is None else self.numbers
        return np.searchsorted(self.ends, numbers, side="right")

    def tasks(self) -> tuple[NDArray[Any], list[str]]:
        """Number of each record's task (-1: none), and the names in the order in which the records come to them."""
        names: dict[str, int] = {}
        parts = []
        for index in self.indexes:
            own = [names.setdefault(name, len(names)) for name in index.known["tasks"]]
            parts.append(np.array([*own, -1], dtype=np.int32)[index.columns["task"]])
        found = np.concatenate(parts)
        if self.numbers is None:
            return found, list(names)
        # A task of other rows of the files is none of these rows' tasks: it would be held out with no row in it.
        found = found[self.numbers]
        first = np.full(len(names) + 1, len(found))
        first[found[::-1]] = np.arange(len(found))[::-1]  # of equal places the last one written stays
        order = np.argsort(first[:-1], kind="stable")[: np.count_nonzero(first[:-1] < len(found))]
        renumbered = np.full(len(names) + 1, -1, dtype=np.int32)
        renumbered[order] = np.arange(len(order))
        known = list(names)
        return renumbered[found], [known[number] for number in order]

    def _before(self, owner: int) -> int:
        return int(self.ends[owner - 1]) if owner else 0

    def _at(self, place: int) -> tuple[Index, int]:
        size = len(self)
        if not -size <= place < size:
            raise IndexError(place)
        number = place % size if self.numbers is None else int(self.numbers[place])
        owner = int(np.searchsorted(self.ends, number, side="right"))
        return self.indexes[owner], number - self._before(owner)


class Writer:
    """Takes the rows of one file as they are read, and leaves an `Index`."""

    def __init__(self) -> None:
        shelf = cache_dir() / "rows"
        shelf.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=".new.", dir=shelf))
        self.files = {name: (self.folder / name).open("wb") for name in COLUMNS}
        self.bytes: BinaryIO | None = None
        self.waiting: list[tuple[int, ...]] = []
        self.tasks: dict[str, int] = {}
        self.rows = 0

    def spool(self) -> None:
        """Rows are to be kept in a file of their own, as theirs can't be read from the middle (compressed, Parquet)."""
        self.bytes = open(self.folder / "rows", "wb")  # noqa: SIM115  closed by `finish` and `drop`

    def add(self, record: Record, raw: Any, start: int) -> None:
        """One row more. raw: its bytes, or its values where the file has none.  start: of the bytes in the file."""
        if self.bytes is not None:
            # Bytes that are no text (a picture inside Parquet) are not what rows are learned from.
            values = raw if isinstance(raw, bytes) else json.dumps(raw, ensure_ascii=False, default=lambda _: None)
            raw = values if isinstance(values, bytes) else values.encode()
            start = self.bytes.tell()
            self.bytes.write(raw)
        origin = record.origin
        item = -1 if origin.item is None else origin.item
        task = -1 if record.task is None else self.tasks.setdefault(record.task, len(self.tasks))
        key, prompt, wording, answer, answers = facts(record)
        own = start, len(raw), origin.line, item, key, prompt, wording, answer, task, answers
        self.waiting.append(own + marks(record, answer))  # in the order of COLUMNS
        if len(self.waiting) >= _KEPT:
            self._flush()

    def _flush(self) -> None:
        for (name, kind), numbers in zip(COLUMNS.items(), zip(*self.waiting, strict=True), strict=False):
            self.files[name].write(np.array(numbers, dtype=kind).tobytes())
        self.rows += len(self.waiting)
        self.waiting = []

    def close(self, **told: Any) -> None:
        """Leave the rows of a part of a file, and what is told of them, for `join`."""
        self._flush()
        self._close()
        write_json(self.folder / "part.json", {"rows": self.rows, "tasks": list(self.tasks), **told})

    def join(self, part: Writer) -> dict[str, Any]:
        """Put the rows of a part behind those that are here; what was told of it."""
        self._flush()
        told = read_json(part.folder / "part.json")
        own = [self.tasks.setdefault(name, len(self.tasks)) for name in told["tasks"]]
        numbers = np.fromfile(part.folder / "task", dtype=COLUMNS["task"])
        np.array([*own, -1], dtype=COLUMNS["task"])[numbers].tofile(part.folder / "task")
        for name, file in self.files.items():
            with open(part.folder / name, "rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        self.rows += int(told["rows"])
        return dict(told)

    def finish(self, home: Path, known: Mapping[str, Any], name: str, path: str) -> Index:
        """Put what was written in its place. An index of before is replaced."""
        self._flush()
        self._close()
        told = {"format": FORMAT, "rows": self.rows, "tasks": list(self.tasks), **known}
        write_json(self.folder / "index.json", told)
        # What is written here can be made again: nothing is synced, an index that is damaged is told by its sizes.
        shutil.rmtree(home, ignore_errors=True)
        try:
            os.rename(self.folder, home)
        except OSError:  # another process was faster: its rows are the same
            shutil.rmtree(self.folder, ignore_errors=True)
        return Index(home, told, name, path)

    def drop(self) -> None:
        """Nothing is left of what `finish` has not put in its place."""
        self._close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _close(self) -> None:
        for file in (*self.files.values(), *filter(None, [self.bytes])):
            file.close()


def home_of(path: str, how: Mapping[str, Any]) -> Path:
    """The folder in the user's cache that belongs to a file read in this way."""
    told = json.dumps([FORMAT, os.path.abspath(path), how], sort_keys=True, ensure_ascii=True)
    return cache_dir() / "rows" / hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()[:24]


def stamp(status: os.stat_result) -> list[int]:
    """What a file has another of once it was changed."""
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def current(home: Path, now: Sequence[int], name: str, path: str) -> Index | None:
    """The index in `home` if it is whole and the file is as it was, else None."""
    try:
        known = read_json(home / "index.json")
        index = Index(home, known, name, path)
        whole = known["format"] == FORMAT and known["stamp"] == list(now)
        sizes = {name: np.dtype(kind).itemsize * len(index) for name, kind in COLUMNS.items()}
        whole = whole and all((home / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if whole else None


__all__ = ["Facts", "Index", "Stored", "Writer", "current", "home_of", "large", "stamp"]
