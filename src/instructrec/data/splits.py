"""Which rows are kept out of training: by row, by wording (rows with the same group stay together) or by task.

What is kept out depends on the seed and on what the rows say, not on their order: units (rows, wordings, tasks) are
put in the order of sha256(seed, unit) and the first ones are taken, so appending rows moves few others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import InputError, did_you_mean
from .records import Record

BY = ("row", "wording", "task")
FEWEST_ROWS = 8  # with fewer nothing is held out
FEWEST_TASKS = 4  # with fewer tasks none is held out unless asked for
FEWEST_WORDINGS = 10
UNSEEN = "unseen_tasks"
SEEN = "seen"


@dataclass(frozen=True)
class Split:
    """Positions of the rows to train on and of those held out, in file order; names of the tasks held out."""

    train: list[int]
    held_out: list[int]
    held_out_tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class HeldOut:
    """What tuning learns from and what it watches: sets "unseen_tasks" and "seen", each only if it has rows."""

    train: list[int]
    sets: dict[str, list[int]]
    explanation: str
    held_out_tasks: list[str] = field(default_factory=list)


def wording_key(record: Record) -> str:
    """Rows with equal keys are one wording: the row's group, else its instruction, case and spacing aside."""
    return record.group or " ".join(record.instruction.split()).casefold()


def split(records: Sequence[Record], *, share: float, by: str, seed: int, tasks: int | None = None) -> Split:
    """Hold out `share` of the rows or wordings, or `tasks` whole tasks (default one in six, 1 to 4).

    Equal rows are never split apart, and rows without a task are never held out by task. At least one unit is held out
    where share > 0, and at most half of the rows. Raises `InputError` where there is nothing to part.
    """
    everything = range(len(records))
    if by not in BY:
        raise InputError(f"by: unknown '{by}', {did_you_mean(by, BY)}")
    _check_share(share)
    if by == "task":
        names = _pick_tasks(records, tasks, seed)
        held = [index for index in everything if records[index].task in names]
    else:
        held = _pick(records, everything, _unit(by), share, seed)
        names = []
        if share and not held:
            raise InputError(f"split: all rows are one {by} (got {len(records)} rows, want at least two {by}s)")
    return Split(_rest(everything, held), held, names)


def plan_held_out(
    records: Sequence[Record], *, held_out: str, share: float, tasks: int | None = None, seed: int
) -> HeldOut:
    """What to keep out of training so as to watch it. `held_out`: auto, task, wording, row or none.

    With four tasks or more (or when asked) whole tasks are kept out as the set "unseen_tasks"; of the rest a share is
    kept out as "seen", by wording where that leaves every task with rows to train on, else by row. Raises `InputError`
    where the rows lack what `held_out` asks for.
    """
    if held_out not in ("auto", "none", *BY):
        raise InputError(f"held_out: unknown '{held_out}', {did_you_mean(held_out, ('auto', 'none', *BY))}")
    _check_share(share)
    everything = list(range(len(records)))
    known = {record.task for record in records if record.task}
    by_task = held_out == "task" or (held_out == "auto" and len(known) >= FEWEST_TASKS and tasks != 0)
    if held_out == "none":
        return HeldOut(everything, {}, "Nothing is held out, as asked.")
    if held_out == "task":
        _pick_tasks(records, tasks, seed)  # an order that cannot be carried out is an error however few the rows
    if len(records) < FEWEST_ROWS:
        reason = f"Nothing is held out: too few rows (got {len(records)}, want at least {FEWEST_ROWS})."
        return HeldOut(everything, {}, reason)
    names = _pick_tasks(records, tasks, seed) if by_task else []
    unseen = [index for index in everything if records[index].task in names]
    rest = _rest(everything, unseen)
    seen, unit = _pick_seen(records, rest, held_out, share, seed, tasks_out=by_task)
    sets = {name: rows for name, rows in ((UNSEEN, unseen), (SEEN, seen)) if rows}
    train = _rest(rest, seen)
    parts = []
    if unseen:
        shown = ", ".join(names)
        parts.append(f"{len(names)} of {len(known)} tasks ({shown}; {_rows(unseen)}) as unseen tasks")
    if seen:
        of = " of the other tasks" if unseen else ""
        wordings = len({wording_key(records[index]) for index in seen})
        # Where each row is its own wording the two are the same, and "rows" is the plain word for it.
        plain = unit == "row" or wordings == len(seen)
        what = _rows(seen) if plain else f"{wordings} wording{'s' * (wordings > 1)} ({_rows(seen)})"
        parts.append(f"{what}{of}")
    if not parts:
        why = "the share is 0" if not share else "all rows are equal"
        return HeldOut(everything, {}, f"Nothing is held out: {why}.")
    return HeldOut(train, sets, f"Held out: {' and '.join(parts)}; {_rows(train)} to train on.", names)


def _pick_seen(
    records: Sequence[Record], rest: list[int], held_out: str, share: float, seed: int, *, tasks_out: bool
) -> tuple[list[int], str]:
    """Rows of the set "seen" and the unit they were taken by.

    Where each task has one wording only, holding out a wording would hold out its task: unless the user asked for just
    that, each task keeps rows to train on.
    """
    keep_tasks = held_out in ("auto", "task")
    wordings = {wording_key(records[index]) for index in rest}
    if held_out == "wording" and len(wordings) < 2:
        raise InputError(f"held_out: not enough wordings (got {len(wordings)}, want at least 2 instructions or groups)")
    with_tasks = len({records[index].task for index in rest}) > 1
    enough = len(wordings) >= (3 if with_tasks else FEWEST_WORDINGS) or held_out == "wording"
    if held_out != "row" and enough:
        seen = _pick(records, rest, wording_key, share, seed, keep_tasks=keep_tasks)
        if _units(records, seen, wording_key) >= max(1, round(share * len(wordings))) or held_out == "wording":
            return seen, "wording"
    seen = _pick(records, rest, _row_key, share, seed, keep_tasks=keep_tasks)
    if not seen and not tasks_out:  # every row is a task of its own, and none of them is watched as unseen
        seen = _pick(records, rest, _row_key, share, seed)
    return seen, "row"


def _pick(
    records: Sequence[Record],
    among: Iterable[int],
    key: Callable[[Record], str],
    share: float,
    seed: int,
    *,
    keep_tasks: bool = False,
) -> list[int]:
    """Positions of a share of the units, at least one (if share > 0 and there are two), in file order.

    A unit that would bring what is held out over half of the rows is passed over, and with `keep_tasks` also one
    whose task would have no rows left.
    """
    units: dict[str, list[int]] = {}
    for index in among:
        units.setdefault(key(records[index]), []).append(index)
    if not share or len(units) < 2:
        return []
    total = sum(map(len, units.values()))
    left = Counter(records[index].task for rows in units.values() for index in rows)
    wanted = max(1, round(share * len(units)))
    held: list[int] = []
    for unit in sorted(units, key=lambda name: _rank(seed, name)):
        lost = Counter(records[index].task for index in units[unit])
        if 2 * (len(held) + len(units[unit])) > total or (keep_tasks and any(left[t] <= lost[t] for t in lost)):
            continue
        left -= lost
        held += units[unit]
        wanted -= 1
        if not wanted:
            break
    return sorted(held)


def _pick_tasks(records: Sequence[Record], number: int | None, seed: int) -> list[str]:
    names = sorted({record.task for record in records if record.task})
    if len(names) < 2:
        got = f"{len(names)} task{'s' * (len(names) != 1)}"
        raise InputError(f"held_out: not enough tasks to hold one out (got {got}, want at least 2 in a column 'task')")
    wanted = max(1, min(4, round(len(names) / 6))) if number is None else number
    if not 1 <= wanted < len(names):
        raise InputError(
            f"held_out_tasks: out of range (got {wanted}, want 1 to {len(names) - 1}: the rows have {len(names)} tasks)"
        )
    return sorted(sorted(names, key=lambda name: _rank(seed, name))[:wanted])


def _rank(seed: int, unit: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{unit}".encode("utf-8", "surrogatepass")).digest()


def _row_key(record: Record) -> str:
    return record.key  # over the text: equal rows are one unit, or the copy of a training row would be held out


def _unit(by: str) -> Callable[[Record], str]:
    return wording_key if by == "wording" else _row_key


def _units(records: Sequence[Record], rows: list[int], key: Callable[[Record], str]) -> int:
    return len({key(records[index]) for index in rows})


def _rest(rows: Iterable[int], without: Iterable[int]) -> list[int]:
    gone = set(without)
    return [index for index in rows if index not in gone]


def _rows(rows: list[int]) -> str:
    return f"{len(rows):,} row{'s' * (len(rows) != 1)}"


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise InputError(f"share: out of range (got {share}, want 0 to below 1)")
