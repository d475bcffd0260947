"""The suites of an evaluation: rows of each file sorted by what a run was trained on, and what overlaps with that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import console
from ..config import EvaluateSettings, Source
from ..data.records import Record
from ..data.suites import sort_rows
from ..errors import InputError
from ..inference.loading import is_run
from .known import Known, kept_rows, texts_of
from .rows import MEMORY, Data, name_of, read_rows, sources_of

SHOWN = 5  # near duplicates that a report quotes
NO_WORDINGS = 0.5  # training rows with more different wordings a row have no wordings that could be known


@dataclass(frozen=True)
class Suite:
    """Rows of one file that test one thing.

    kind: of `data.suites.KINDS`.  account: where not every row that was read is measured.  overlap: as in report.json.
    """

    name: str
    file: str
    sha256: str
    records: list[Record]
    account: str = ""
    kind: str = "all"
    overlap: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def data_of(target: str, data: Data | None) -> Any:
    """What to measure on: the data, or the rows that a run kept for testing. Raises InputError where there are none."""
    if data is not None and not (isinstance(data, (list, tuple)) and not data):
        return data
    kept = kept_rows(Path(target)) if is_run(target) else None
    if kept is None:
        kept_none = f"; {target} kept none for testing (tune --test-share)" if is_run(target) else ""
        raise InputError(f"no rows were named (want a file: instructrec evaluate {target} rows.tsv{kept_none})")
    return kept


def read_suites(data: Any, settings: EvaluateSettings, folder: Path) -> list[Suite]:
    """One for each file, not sorted yet; rows without an answer can't be measured. Rejected rows go into `folder`."""
    several = isinstance(data, (list, tuple)) and data and isinstance(data[0], (str, os.PathLike, Source))
    suites: list[Suite] = []
    for source in data if several else [data]:
        name = free_name(name_of(source), {suite.name for suite in suites})
        if isinstance(source, (str, os.PathLike, Source)) and sources_of(source)[0].weight is not None:
            raise InputError(
                f"{source}: a weight means nothing here, each source is measured by itself (want the path)"
            )
        rows = read_rows(source, settings, folder / f"rejected-{name}.jsonl")
        records = [record for record in rows if record.answer]
        if not records:
            raise InputError(f"{source}: no row has an answer to measure against")
        without = len(rows) - len(records)
        account = f"{len(rows) + rows.rejected:,} rows read: {rows.rejected:,} rejected, {without:,} without an answer"
        file, digest = next(iter(rows.files.items()), (MEMORY, ""))
        if len(rows.files) > 1:
            file, digest = str(source), hashlib.sha256("".join(rows.files.values()).encode()).hexdigest()
        whole = not rows.rejected and not without
        suites.append(Suite(name, file, digest, records, account, notes=("whole",) * whole))
    return suites


def sort_suites(files: Sequence[Suite], known: Known, settings: EvaluateSettings) -> list[Suite]:
    """Each file's rows as suites by kind; a file of one kind keeps its name. Rows that were trained on are left out,
    unless they are asked for. Raises InputError where nothing is left.
    """
    found: list[Suite] = []
    for file in files:
        kinds = sort_rows(file.records, known.trained, known.traits)
        trained = len(kinds["training"]) if "training" in kinds else 0
        if trained and not settings.training_rows:
            del kinds["training"]
            console.warn(
                f"{file.file}: {trained} of {len(file.records)} rows were trained on and are left out "
                "(--training-rows measures them apart)"
            )
        taken = {suite.name for suite in (*files, *found)} - {file.name}
        for kind, records in kinds.items():
            name = file.name if len(kinds) == 1 else free_name(f"{file.name}-{kind}", taken)
            taken.add(name)
            found.append(_suite(replace(file, name=name, kind=kind), records, trained, known, settings))
    if not found:
        rows = sum(len(file.records) for file in files)
        raise InputError(f"every row was trained on (got {rows:,} rows; --training-rows measures them)")
    return found


def _suite(file: Suite, records: list[Record], trained: int, known: Known, settings: EvaluateSettings) -> Suite:
    of_kind = len(records)
    if settings.rows and of_kind > settings.rows:
        order = np.random.default_rng(settings.seed).permutation(of_kind)[: settings.rows]
        records = [records[place] for place in sorted(order)]
    parts = [file.account]
    if trained and file.kind != "training":
        parts.append(
            f"{trained:,} trained on and left out" if not settings.training_rows else f"{trained:,} trained on"
        )
    if other := len(file.records) - of_kind - (trained if file.kind != "training" else 0):
        parts.append(f"{other:,} of other kinds")
    whole = "whole" in file.notes and len(records) == len(file.records)
    account = "" if whole else ", ".join([*parts, f"{len(records):,} measured"])
    overlap, notes = _overlap(file, records, known)
    if file.kind == "unseen_wordings" and known.traits and _no_wordings(known):
        notes.append(
            "nearly every training row has a wording of its own: a wording that was not trained on is any new row"
        )
    return replace(file, records=records, account=account, overlap=overlap, notes=tuple(notes))


def _no_wordings(known: Known) -> bool:
    traits = known.traits
    return traits is not None and len(traits.wordings) > NO_WORDINGS * traits.rows


def _overlap(suite: Suite, records: Sequence[Record], known: Known) -> tuple[dict[str, Any], list[str]]:
    """How many rows of a suite the run has seen, exactly or nearly, and notes that say so; what spoils the scores is
    warned of."""
    keys = [record.prompt_key for record in records]
    trained = sum(key in known.trained for key in keys)
    watched = sum(key in known.watched for key in keys)
    overlap: dict[str, Any] = {"with_training": trained, "with_watched": watched}
    notes = []
    if trained:
        notes.append(f"{trained} of {len(keys)} prompts were also trained on")
    if watched:
        notes.append(f"{watched} of {len(keys)} prompts also served to choose the checkpoint")
        console.warn(f"{suite.file}: {watched} of {len(keys)} prompts also served to choose the checkpoint")
    tasks = [record.task for record in records if record.task in known.watched_tasks]
    if tasks:
        names = ", ".join(sorted(set(tasks)))
        plural = "row belongs" if len(tasks) == 1 else "rows belong"
        notes.append(f"{len(tasks)} {plural} to tasks that were kept out of training to watch ({names})")
    if known.index is None:
        return overlap, notes
    nearest = known.index.near([texts_of(record) for record in records])
    pairs = [
        (str(record.origin), known.origins[number])
        for record, key, number in zip(records, keys, nearest, strict=True)
        if number >= 0 and key not in known.trained
    ]
    shown = [{"origin": origin, "trained": other} for origin, other in pairs[:SHOWN]]
    overlap |= {"exact": trained, "near": len(pairs), "near_examples": shown, "compared_with": len(known.index)}
    if pairs:
        repeat = "repeats" if len(pairs) == 1 else "repeat"
        notes.append(f"{len(pairs)} of {len(keys)} rows nearly {repeat} a training row ({_pairs(pairs)})")
    return overlap, notes


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    more = ", …" if len(pairs) > 2 else ""
    return ", ".join(f"{origin} = {trained}" for origin, trained in pairs[:2]) + more


def free_name(stem: str, taken: set[str]) -> str:
    """The name, with a number where another suite has it."""
    numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (stem, *numbered) if name not in taken)
