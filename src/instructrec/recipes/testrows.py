"""The rows of a comparison: those to tune on and those to test on, the same for all settings of a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import console
from ..config import TuneSettings
from ..data.records import Record, Rows
from ..data.splits import UNSEEN, plan_held_out, split, wording_key
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
        """16 hex digits over the rows of each part, in their order; tasks and wordings count."""
        return {"train": _digest(self.train.records)} | {name: _digest(rows) for name, rows in self.suites.items()}


def _digest(records: Sequence[Record]) -> str:
    texts = (f"{record.key}\0{record.task}\0{record.group}\0{record.alternatives}\n" for record in records)
    return hashlib.sha256("".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def given(rows: Rows, test: Sequence[Any], settings: TuneSettings, folder: Path) -> Maker:
    """Test rows from files (each a suite) or from Python, the same for every seed; overlap is told.

    Raises DataError for bad rows, InputError where a file has none with an answer.
    """
    suites: dict[str, list[Record]] = {}
    trained = {record.prompt_key for record in rows}
    for source in test:
        stem = name_of(source)
        name = next(one for one in (stem, *(f"{stem}-{number}" for number in range(2, 999))) if one not in suites)
        read = read_rows(source, settings, folder / f"rejected-{name}.jsonl")
        suites[name] = [record for record in read if record.answer]
        if not suites[name]:
            raise InputError(f"{source}: no row has an answer to measure against")
        overlap = sum(record.prompt_key in trained for record in suites[name])
        if overlap:
            console.warn(f"{name}: {overlap} of {len(suites[name])} prompts are also in the training rows")
    sizes = ", ".join(f"{len(found):,} rows of {name}" for name, found in suites.items())
    return lambda _: SeedRows(rows, suites, f"Tested on {sizes}; the same for every seed.")


def set_aside(rows: Rows, share: float) -> Maker:
    """Test rows taken from the rows by each seed before anything is tuned: unseen tasks, unseen and seen wordings, as
    far as the rows have them. Raises InputError where nothing can be taken."""

    def of_seed(seed: int) -> SeedRows:
        answered = [record for record in rows if record.answer]
        train, suites = part(answered, share, seed)
        if not suites:
            raise InputError("compare: no rows could be set aside to test on (want more rows, or --test FILE)")
        kept = {id(record) for record in train}
        without = [record for record in rows if id(record) in kept or not record.answer]
        told = ", ".join(f"{len(found):,} {name.replace('_', ' ')}" for name, found in suites.items())
        told = f"Set aside to test on: rows by seed (seed {seed}: {told}); {len(without):,} to tune on."
        return SeedRows(replace(rows, records=tuple(without)), suites, told)

    return of_seed


def part(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], dict[str, list[Record]]]:
    """Rows to tune on, and the suites: `unseen_tasks`, `unseen_wordings`, `seen_wordings`, or `unseen_rows` where each
    row is worded in its own way."""
    plan = plan_held_out(records, held_out="auto", share=share, seed=seed)
    train = [records[row] for row in plan.train]
    suites: dict[str, list[Record]] = {}
    for name, numbers in plan.sets.items():
        found = [records[row] for row in numbers]
        suites[name if name == UNSEEN else _kind(found, train)] = found
    if "unseen_wordings" in suites:
        again = split(train, share=share, by="row", seed=seed)
        left = {wording_key(train[row]) for row in again.train}
        held = {row for row in again.held_out if wording_key(train[row]) in left}
        if held:
            suites["seen_wordings"] = [train[row] for row in sorted(held)]
            train = [record for row, record in enumerate(train) if row not in held]
    return train, suites


def _kind(found: Sequence[Record], train: Sequence[Record]) -> str:
    wordings = {wording_key(record) for record in train}
    if any(wording_key(record) in wordings for record in found):
        return "seen_wordings"
    both = [wording_key(record) for record in (*train, *found)]
    return "unseen_wordings" if len(set(both)) < len(both) else "unseen_rows"


def units(records: Sequence[Record], fewest: int) -> tuple[str, list[str]]:
    """`tasks` or `rows`, and the unit of each row: its task where there are at least `fewest`, else its wording's group
    or the row itself."""
    tasks = {record.task for record in records}
    if len(tasks) >= fewest and None not in tasks:
        return "tasks", [str(record.task) for record in records]
    return "rows", [record.group or record.key for record in records]


def sizes(suites: Mapping[str, Sequence[Record]]) -> dict[str, int]:
    """Rows of each suite."""
    return {name: len(records) for name, records in suites.items()}
