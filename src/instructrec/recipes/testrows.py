"""The rows of a comparison: those to tune on and those to test on, the same for all settings of a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import console
from ..config import TuneSettings
from ..data.facts import column, take, tasks
from ..data.records import Record, Rows
from ..data.splits import UNSEEN, Places, plan_held_out, split
from ..errors import InputError
from .rows import name_of, read_rows

Maker = Callable[[int], "SeedRows"]


@dataclass(frozen=True)
class SeedRows:
    """What one seed tunes on and is tested on. told: how the test rows were found."""

    train: Rows
    suites: dict[str, list[Record]]
    told: str

    @property
    def digests(self) -> dict[str, str]:
        """16 hex digits over the rows of each part, in their order; tasks, wordings and other right answers count."""
        return {"train": _digest(self.train.records)} | {
            name: _digest(rows, [list(row.alternatives) for row in rows]) for name, rows in self.suites.items()
        }


def _digest(records: Sequence[Record], more: Sequence[Any] = ()) -> str:
    numbers, names = tasks(records)
    digest = hashlib.sha256(json.dumps([names, more]).encode())
    for found in (column(records, "key"), column(records, "wording"), numbers):
        digest.update(np.ascontiguousarray(found, dtype="<i8" if found.dtype.kind == "i" else "<u8").tobytes())
    return digest.hexdigest()[:16]


def given(rows: Rows, test: Sequence[Any], settings: TuneSettings, folder: Path) -> Maker:
    """Test rows from files (each a suite) or from Python, the same for every seed; overlap is told.

    Raises DataError for bad rows, InputError where a file has none with an answer.
    """
    suites: dict[str, list[Record]] = {}
    trained = column(rows.records, "prompt")
    for source in test:
        stem = name_of(source)
        name = next(one for one in (stem, *(f"{stem}-{number}" for number in range(2, 999))) if one not in suites)
        read = read_rows(source, settings, folder / f"rejected-{name}.jsonl")
        suites[name] = [record for record in read if record.answer]
        if not suites[name]:
            raise InputError(f"{source}: no row has an answer to measure against")
        overlap = int(np.isin(column(suites[name], "prompt"), trained).sum())
        if overlap:
            console.warn(f"{name}: {overlap} of {len(suites[name])} prompts are also in the training rows")
    sizes = ", ".join(f"{len(found):,} rows of {name}" for name, found in suites.items())
    return lambda _: SeedRows(rows, suites, f"Tested on {sizes}; the same for every seed.")


def set_aside(rows: Rows, share: float) -> Maker:
    """Test rows taken from the rows by each seed before anything is tuned: unseen tasks, unseen and seen wordings, as
    far as the rows have them. Raises InputError where nothing can be taken."""

    def of_seed(seed: int) -> SeedRows:
        train, places = part(rows.records, share, seed)
        suites = {name: [row for row in take(rows.records, found) if row.answer] for name, found in places.items()}
        suites = {name: found for name, found in suites.items() if found}
        if not suites:
            raise InputError("compare: no rows could be set aside to test on (want more rows, or --test FILE)")
        told = ", ".join(f"{len(found):,} {name.replace('_', ' ')}" for name, found in suites.items())
        told = f"Set aside to test on: rows by seed (seed {seed}: {told}); {len(train):,} to tune on."
        return SeedRows(replace(rows, records=take(rows.records, train)), suites, told)

    return of_seed


def part(records: Sequence[Record], share: float, seed: int) -> tuple[Places, dict[str, Places]]:
    """Positions of the rows to tune on, and of each suite: `unseen_tasks`, `unseen_wordings`, `seen_wordings`, or
    `unseen_rows` where each row is worded in its own way."""
    plan = plan_held_out(records, held_out="auto", share=share, seed=seed)
    train = np.asarray(plan.train, dtype=np.int64)
    wordings = column(records, "wording")
    suites: dict[str, Places] = {}
    for name, found in plan.sets.items():
        places = np.asarray(found, dtype=np.int64)
        suites[name if name == UNSEEN else _kind(wordings[places], wordings[train])] = places
    if "unseen_wordings" in suites:
        again = split(take(records, train), share=share, by="row", seed=seed)
        kept = train[np.asarray(again.train, dtype=np.int64)]
        held = train[np.asarray(again.held_out, dtype=np.int64)]
        held = held[np.isin(wordings[held], wordings[kept])]
        if len(held):
            suites["seen_wordings"], train = held, np.setdiff1d(train, held)
    return train, suites


def _kind(found: NDArray[Any], train: NDArray[Any]) -> str:
    if np.isin(found, train).any():
        return "seen_wordings"
    both = np.concatenate([found, train])
    return "unseen_wordings" if len(np.unique(both)) < len(both) else "unseen_rows"


def units(records: Sequence[Record], fewest: int) -> tuple[str, list[str]]:
    """`tasks` or `rows`, and the unit of each row: its task where there are at least `fewest`, else its wording's group
    or the row itself."""
    known = {record.task for record in records}
    if len(known) >= fewest and None not in known:
        return "tasks", [str(record.task) for record in records]
    return "rows", [record.group or record.key for record in records]
