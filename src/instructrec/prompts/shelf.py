"""Rendered rows that stay on disk: token ids one after the other, and where each row begins.

Made once for a file, a renderer and a length limit, by as many processes as there are cores; after that a run maps it
and reads no text. `Shelf` is a sequence of rendered rows like any other.

N rows, M tokens of all rows, K rows that are not learned from just their answer (conversations).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ..data.index import Stored
from ..data.records import Record
from ..errors import Problem
from ..files import disk_faults, read_json, write_json
from ..forked import processes, side_by_side
from .template import Rendered

FORMAT = 1
PARTS = {
    "size": "int32", "full": "int32", "prompt_end": "int32", "instruction_end": "int32", "skipped": "int16",
    "state": "uint8",
}  # fmt: skip
KEPT, DROPPED, TRIMMED, UNKNOWN, ODD, FAULTY = 0, 1, 2, 4, 8, 16  # bits of `state`
FEW = 2_000  # rows for which no second process is started


@dataclass
class Fate:
    """What became of one record: its row, or why there is none."""

    row: Rendered | None = None
    state: int = KEPT
    size: int = 0  # tokens before anything was done to it
    problem: Problem | None = None


# Records, which of them, the type of ids, and what makes rows of them.
Work = tuple[Stored, tuple[int, int], str, Callable[[Record], Fate]]


class Shelf(Sequence[Rendered]):
    """Rendered rows of records on disk; `numbers` are those of the rows on the shelf, [N]."""

    def __init__(self, home: Path, records: Stored, numbers: NDArray[np.int64], kind: str) -> None:
        self.home, self.records, self.numbers, self.kind = home, records, numbers, kind
        self.columns = {name: _mapped(home / name, dtype) for name, dtype in PARTS.items()}
        self.starts = _mapped(home / "start", "int64")
        self.ids = _mapped(home / "ids", kind)
        self.flags, self.flag_rows = _mapped(home / "flags", "uint8"), _mapped(home / "flag_rows", "int64")
        self.flag_starts = _mapped(home / "flag_starts", "int64")

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Rendered: ...
    @overload
    def __getitem__(self, place: slice) -> Shelf: ...
    def __getitem__(self, place: int | slice) -> Rendered | Shelf:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        number = int(self.numbers[place])
        start, size = int(self.starts[number]), int(self.columns["size"][number])
        prompt_end = int(self.columns["prompt_end"][number])
        if int(self.columns["state"][number]) & ODD:
            at = int(np.searchsorted(self.flag_rows, number))
            first = int(self.flag_starts[at])
            supervised = self.flags[first : first + size].astype(bool).tolist()
        else:
            supervised = [False] * prompt_end + [True] * (size - prompt_end)
        ids = self.ids[start : start + size].tolist()
        skipped = int(self.columns["skipped"][number])
        return Rendered(
            ids, supervised, int(self.columns["instruction_end"][number]), prompt_end, skipped,
            self.records.origin(int(place)),
        )  # fmt: skip

    def take(self, places: Sequence[int] | NDArray[Any]) -> Shelf:
        """Some of these rows, in this order."""
        chosen = np.asarray(places, dtype=np.int64)
        return Shelf(self.home, self.records.take(chosen), self.numbers[chosen], self.kind)

    def column(self, name: str) -> NDArray[Any]:
        """One number of each row: `size`, `prompt_end`, `instruction_end`, `skipped` or `state`."""
        found: NDArray[Any] = self.columns[name][self.numbers]
        return found

    def targets(self) -> NDArray[Any]:
        """Supervised tokens of each row."""
        found = (self.column("size") - self.column("prompt_end")).astype(np.int64)
        for place in np.flatnonzero(self.column("state") & ODD).tolist():
            found[place] = self[place].targets
        return found


def column(rows: Sequence[Rendered], name: str) -> NDArray[Any]:
    """`size`, `prompt_end` or `instruction_end` of each row, on a shelf or in memory."""
    if isinstance(rows, Shelf):
        return rows.column(name)
    if name == "size":
        return np.fromiter((len(row.ids) for row in rows), np.int64, len(rows))
    return np.fromiter((getattr(row, name) for row in rows), np.int64, len(rows))


def targets(rows: Sequence[Rendered]) -> NDArray[Any]:
    """Supervised tokens of each row."""
    if isinstance(rows, Shelf):
        return rows.targets()
    return np.fromiter((row.targets for row in rows), np.int64, len(rows))


def _mapped(path: Path, kind: str) -> NDArray[Any]:
    size = path.stat().st_size // np.dtype(kind).itemsize
    return np.memmap(path, dtype=kind, mode="r", shape=(size,)) if size else np.zeros(0, dtype=kind)


@dataclass
class Shelved:
    """A shelf of all records, and the problems of those that have no row: number of the record -> problem."""

    home: Path
    kind: str
    problems: dict[int, Problem] = field(default_factory=dict)


def shelf_of(
    records: Stored, how: dict[str, Any], vocabulary: int, fate: Callable[[Record], Fate], done: Callable[[int], None]
) -> Shelved:
    """The shelf of all records of these files, made if it is not there. how: all that decides what rows look like.

    fate: renders one record; called in other processes too.  done: told how many records more are through.
    """
    whole = Stored(records.indexes)
    kind = "uint16" if vocabulary <= 1 << 16 else "int32"
    told = [FORMAT, [[index.known["digest"], index.home.name, len(index)] for index in whole.indexes], how]
    name = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]
    home = whole.indexes[0].home / f"rendered-{name}"
    if not (home / "shelf.json").is_file():
        with disk_faults(f"rows on disk: {home.parent} can't be written to"):
            _fill(home, whole, kind, fate, done)
        done(len(whole))  # not where the shelf was there: a tick for each of five million rows takes seconds
    known = read_json(home / "shelf.json")
    return Shelved(home, kind, {int(place): Problem(*problem) for place, problem in known["problems"].items()})


def _fill(home: Path, records: Stored, kind: str, fate: Callable[[Record], Fate], done: Callable[[int], None]) -> None:
    folder = Path(tempfile.mkdtemp(prefix=".new.", dir=home.parent))
    try:
        count = processes() if len(records) >= FEW else 1
        cuts = np.linspace(0, len(records), count + 1).astype(int).tolist()
        works = [(records, span, kind, fate) for span in zip(cuts, cuts[1:], strict=False)]
        # The first part tells how far all are.
        tell = [lambda rows: done(rows * count), *[lambda _: None] * (count - 1)]
        parts = [partial(_part, folder, *part) for part in zip(range(count), works, tell, strict=True)]
        side_by_side("rendering rows", folder, parts)
        problems = _together(folder, count)
        write_json(folder / "shelf.json", {"rows": len(records), "problems": problems})
        try:
            os.rename(folder, home)
        except OSError:  # another process was faster
            if not (home / "shelf.json").is_file():
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _part(folder: Path, number: int, work: Work, done: Callable[[int], None]) -> None:
    """Rows of the records from `span[0]` to before `span[1]`, in files that end in `-number`."""
    records, span, kind, fate = work
    names = (*PARTS, "ids", "flags", "flag_rows")
    files = {name: (folder / f"{name}-{number}").open("wb") for name in names}
    problems: dict[int, Problem] = {}
    try:
        for place, record in enumerate(records[span[0] : span[1]], span[0]):
            found = fate(record)
            row, state = found.row, found.state
            if found.problem:
                problems[place], state = found.problem, state | FAULTY
            if row is None:
                row = Rendered([], [], 0, 0)
            answer = len(row.ids) - row.prompt_end
            if row.supervised != [False] * row.prompt_end + [True] * answer:
                state |= ODD
                files["flags"].write(np.array(row.supervised, dtype=np.uint8).tobytes())
                files["flag_rows"].write(np.int64(place).tobytes())
            files["ids"].write(np.array(row.ids, dtype=kind).tobytes())
            numbers = (len(row.ids), found.size, row.prompt_end, row.instruction_end, row.skipped_turns, state)
            for (name, dtype), value in zip(PARTS.items(), numbers, strict=True):
                files[name].write(value.to_bytes(np.dtype(dtype).itemsize, sys.byteorder))
            if place % 256 == 0:
                done(256)
    finally:
        for file in files.values():
            file.close()
    listed = {str(place): [one.file, one.line, one.field, one.reason] for place, one in problems.items()}
    write_json(folder / f"problems-{number}.json", listed)


def _together(folder: Path, count: int) -> dict[str, Any]:
    """The parts' files as one; where each row begins follows from the sizes."""
    for name in (*PARTS, "ids", "flags", "flag_rows"):
        with open(folder / name, "wb") as target:
            for number in range(count):
                part = folder / f"{name}-{number}"
                with open(part, "rb") as source:
                    shutil.copyfileobj(source, target, 1 << 20)
                part.unlink()
    sizes = np.fromfile(folder / "size", dtype="int32").astype(np.int64)
    (np.cumsum(sizes) - sizes).tofile(folder / "start")
    own = sizes[np.fromfile(folder / "flag_rows", dtype="int64")]
    (np.cumsum(own) - own).tofile(folder / "flag_starts")
    problems: dict[str, Any] = {}
    for number in range(count):
        problems |= read_json(folder / f"problems-{number}.json")
        (folder / f"problems-{number}.json").unlink()
    return problems


__all__ = ["Fate", "Shelf", "Shelved", "column", "shelf_of", "targets"]
