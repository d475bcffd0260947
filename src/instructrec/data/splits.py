"""Which rows are kept out of training: by row, by wording (rows with the same group stay together) or by task.

What is kept out depends on the seed and on what the rows say, not on their order: units (rows, wordings, tasks) are
put in the order of a hash of seed and unit and the first ones are taken, so appending rows moves few others. All is
done on arrays of numbers, so that five million rows on disk are parted in a second or two.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, did_you_mean
from .facts import column
from .facts import tasks as tasks_of
from .records import Record

Places = NDArray[np.int64]
_COLUMN = {"row": "key", "prompt": "prompt", "wording": "wording"}

BY = ("row", "wording", "task")
FEWEST_ROWS = 8  # with fewer nothing is held out
FEWEST_TASKS = 4  # with fewer tasks none is held out unless asked for
FEWEST_WORDINGS = 10
UNSEEN = "unseen_tasks"
SEEN = "seen"
MANY = 1 << 20  # places that are better kept as an array


@dataclass(frozen=True)
class Split:
    """Positions of the rows to train on and of those held out, in file order; names of the tasks held out."""

    train: Sequence[int]
    held_out: Sequence[int]
    held_out_tasks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class HeldOut:
    """What tuning learns from and what it watches: sets "unseen_tasks" and "seen", each only if it has rows."""

    train: Sequence[int]
    sets: dict[str, Sequence[int]]
    explanation: str
    held_out_tasks: list[str] = field(default_factory=list)


class _Units:
    """What rows are parted by, as numbers: `wording`, `row` and `task` are [N]; equal numbers are one unit."""

    def __init__(self, records: Sequence[Record], seed: int) -> None:
        self.records, self.seed = records, seed
        self.task, self.names = tasks_of(records)
        self.found: dict[str, tuple[NDArray[np.int32], NDArray[np.uint64]]] = {}

    def __len__(self) -> int:
        return len(self.records)

    def of(self, unit: str) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        """Number of each row's unit, [N], and the units, [U]."""
        if unit not in self.found:
            # Rows by their text: equal rows are one unit, or the copy of a training row would be held out.
            names, numbers = np.unique(column(self.records, _COLUMN[unit]), return_inverse=True)
            self.found[unit] = numbers.astype(np.int32), names
        return self.found[unit]

    def sizes(self, unit: str, places: Places) -> Places:
        """How many of these rows each unit has, [U]."""
        numbers, names = self.of(unit)
        return np.bincount(numbers[places], minlength=len(names))

    def wordings(self, places: Places) -> int:
        """How many different ones these rows have."""
        return int(np.count_nonzero(self.sizes("wording", places)))


def split(records: Sequence[Record], *, share: float, by: str, seed: int, tasks: int | None = None) -> Split:
    """Hold out `share` of the rows or wordings, or `tasks` whole tasks (default one in six, 1 to 4).

    Equal rows are never split apart, and rows without a task are never held out by task. At least one unit is held out
    where share > 0, and at most half of the rows. Raises `InputError` where there is nothing to part.
    """
    if by not in BY:
        raise InputError(f"by: unknown '{by}', {did_you_mean(by, BY)}")
    _check_share(share)
    units = _Units(records, seed)
    everything = np.arange(len(records))
    names: list[str] = []
    if by == "task":
        names = _pick_tasks(units, tasks)
        held = _of_tasks(units, names)
    else:
        held = _pick(units, everything, by, share)
        if share and not len(held):
            raise InputError(f"split: all rows are one {by} (got {len(records)} rows, want at least two {by}s)")
    return Split(few_as_list(_rest(everything, held)), few_as_list(held), names)


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
    units = _Units(records, seed)
    everything, known = np.arange(len(records)), len(units.names)
    by_task = held_out == "task" or (held_out == "auto" and known >= FEWEST_TASKS and tasks != 0)
    if held_out == "none":
        return HeldOut(few_as_list(everything), {}, "Nothing is held out, as asked.")
    if held_out == "task":
        _pick_tasks(units, tasks)  # an order that cannot be carried out is an error however few the rows
    if len(records) < FEWEST_ROWS:
        reason = f"Nothing is held out: too few rows (got {len(records)}, want at least {FEWEST_ROWS})."
        return HeldOut(few_as_list(everything), {}, reason)
    names = _pick_tasks(units, tasks) if by_task else []
    unseen = _of_tasks(units, names)
    rest = _rest(everything, unseen)
    seen, unit = _pick_seen(units, rest, held_out, share, tasks_out=by_task)
    sets = {name: few_as_list(rows) for name, rows in ((UNSEEN, unseen), (SEEN, seen)) if len(rows)}
    train = _rest(rest, seen)
    parts = []
    if len(unseen):
        shown = ", ".join(names)
        parts.append(f"{len(names)} of {known} tasks ({shown}; {_rows(unseen)}) as unseen tasks")
    if len(seen):
        of = " of the other tasks" if len(unseen) else ""
        wordings = units.wordings(seen)
        # Where each row is its own wording the two are the same, and "rows" is the plain word for it.
        plain = unit == "row" or wordings == len(seen)
        what = _rows(seen) if plain else f"{wordings} wording{'s' * (wordings > 1)} ({_rows(seen)})"
        parts.append(f"{what}{of}")
    if not parts:
        why = "the share is 0" if not share else "all rows are equal"
        return HeldOut(few_as_list(everything), {}, f"Nothing is held out: {why}.")
    sentence = f"Held out: {' and '.join(parts)}; {_rows(train)} to train on."
    return HeldOut(few_as_list(train), sets, sentence, names)


def plan_test(records: Sequence[Record], *, share: float, seed: int) -> Sequence[int]:
    """Rows kept for testing alone, before anything is held out to watch, in file order; [] where the share is 0.

    Whole tasks where there are six or more (one in six, at most 4); of the rest half of `share` as wordings, where rows
    share wordings and there are ten or more, and what is left of it as rows. Rows with one prompt stay together.
    Raises `InputError` where it comes to nothing.
    """
    _check_share(share)
    if not share:
        return []
    units = _Units(records, seed)
    everything = np.arange(len(records))
    held = _of_tasks(units, _pick_tasks(units, None) if len(units.names) >= FEWEST_TASKS + 2 else [])
    rest, left = _rest(everything, held), share
    if FEWEST_WORDINGS <= units.wordings(rest) <= len(rest) / 2:
        some = _pick(units, rest, "wording", share / 2, keep_tasks=True)
        held, rest, left = np.concatenate([held, some]), _rest(rest, some), share / 2
    some = _pick(units, rest, "prompt", left, keep_tasks=True)
    if not len(some) and not len(held):  # every row is a task of its own
        some = _pick(units, rest, "prompt", left)
    held = np.concatenate([held, some])
    if not len(held):
        raise InputError(f"test_share: no row can be kept for testing (got {_rows(everything)}, want at least two)")
    return few_as_list(np.sort(held))


def _pick_seen(units: _Units, rest: Places, held_out: str, share: float, *, tasks_out: bool) -> tuple[Places, str]:
    """Rows of the set "seen" and the unit they were taken by.

    Where each task has one wording only, holding out a wording would hold out its task: unless the user asked for just
    that, each task keeps rows to train on.
    """
    keep_tasks = held_out in ("auto", "task")
    wordings = units.wordings(rest)
    if held_out == "wording" and wordings < 2:
        raise InputError(f"held_out: not enough wordings (got {wordings}, want at least 2 instructions or groups)")
    with_tasks = len(np.unique(units.task[rest])) > 1
    enough = wordings >= (3 if with_tasks else FEWEST_WORDINGS) or held_out == "wording"
    if held_out != "row" and enough:
        seen = _pick(units, rest, "wording", share, keep_tasks=keep_tasks)
        if units.wordings(seen) >= max(1, round(share * wordings)) or held_out == "wording":
            return seen, "wording"
    seen = _pick(units, rest, "row", share, keep_tasks=keep_tasks)
    if not len(seen) and not tasks_out:  # every row is a task of its own, and none of them is watched as unseen
        seen = _pick(units, rest, "row", share)
    return seen, "row"


def _pick(units: _Units, among: Places, unit: str, share: float, *, keep_tasks: bool = False) -> Places:
    """Positions of a share of the units, at least one (if share > 0 and there are two), in file order.

    A unit that would bring what is held out over half of the rows is passed over, and with `keep_tasks` also one
    whose task would have no rows left.
    """
    numbers, names = units.of(unit)
    sizes = units.sizes(unit, among)
    there = np.flatnonzero(sizes)
    if not share or len(there) < 2:
        return among[:0]
    ranked = there[np.argsort(_mixed(names[there], units.seed), kind="stable")]
    left = np.bincount(units.task[among] + 1, minlength=len(units.names) + 1)
    wanted, held = max(1, round(share * len(there))), 0
    taken = np.zeros(len(names), dtype=bool)
    taken[ranked[:wanted]] = True
    lost = np.bincount(units.task[among[taken[numbers[among]]]] + 1, minlength=len(left))
    if 2 * sizes[taken].sum() <= len(among) and not (keep_tasks and ((left <= lost) & (lost > 0)).any()):
        return among[taken[numbers[among]]]  # no unit has to be passed over
    # The rows of unit u are among[order[ends[u] - sizes[u] : ends[u]]].
    order, ends = np.argsort(numbers[among], kind="stable"), np.cumsum(sizes)
    picked: list[Places] = []
    for place in ranked.tolist():
        rows = among[order[ends[place] - sizes[place] : ends[place]]]
        tasks, lost = np.unique(units.task[rows] + 1, return_counts=True)
        if 2 * (held + len(rows)) > len(among) or (keep_tasks and (left[tasks] <= lost).any()):
            continue
        left[tasks] -= lost
        held += len(rows)
        picked.append(rows)
        wanted -= 1
        if not wanted:
            break
    return np.sort(np.concatenate(picked)) if picked else among[:0]


def _pick_tasks(units: _Units, number: int | None) -> list[str]:
    names = sorted(units.names)
    if len(names) < 2:
        got = f"{len(names)} task{'s' * (len(names) != 1)}"
        raise InputError(f"held_out: not enough tasks to hold one out (got {got}, want at least 2 in a column 'task')")
    wanted = max(1, min(4, round(len(names) / 6))) if number is None else number
    if not 1 <= wanted < len(names):
        raise InputError(
            f"held_out_tasks: out of range (got {wanted}, want 1 to {len(names) - 1}: the rows have {len(names)} tasks)"
        )
    return sorted(sorted(names, key=lambda name: _rank(units.seed, name))[:wanted])


def _of_tasks(units: _Units, names: Sequence[str]) -> Places:
    numbers = [place for place, name in enumerate(units.names) if name in names]
    return np.flatnonzero(np.isin(units.task, numbers)) if numbers else np.zeros(0, dtype=np.int64)


def _mixed(units: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Ranks of units, which are hashes already: another order for each seed (splitmix64's last steps)."""
    mixed = units ^ np.uint64(_rank(seed, "units"))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _rank(seed: int, unit: str) -> int:
    digest = hashlib.sha256(f"{seed}\0{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def _rest(rows: Places, without: Places) -> Places:
    gone = np.zeros(int(rows[-1]) + 1 if len(rows) else 0, dtype=bool)
    gone[without] = True
    return rows[~gone[rows]]


def few_as_list(places: Places) -> Sequence[int]:
    """As a list while there are few: five million numbers in a list take 180 MB."""
    return places.tolist() if len(places) < MANY else places  # type: ignore[return-value]


def _rows(rows: Places) -> str:
    return f"{len(rows):,} row{'s' * (len(rows) != 1)}"


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise InputError(f"share: out of range (got {share}, want 0 to below 1)")
