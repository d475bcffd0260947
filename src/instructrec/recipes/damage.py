"""Rows as `measures/perturbations.py` damages them, and a look at what comes of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import console
from ..data.records import Record
from ..measures.kept import PARTS, Said
from ..measures.metrics import label_set
from ..measures.perturbations import PERTURBATIONS, damage, draw_of
from ..measures.text import normalise

WORDINGS, ROWS_OF = 20, 3  # a task has at most so many wordings, each on average in so many rows


@dataclass(frozen=True)
class Damager:
    """Damages rows. labels: the closed set that answers are from, or ().  wordings: of each task.  parts: what is
    damaged of a row, one of `PARTS`."""

    labels: tuple[str, ...] = ()
    wordings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0
    parts: str = PARTS[0]

    def said(self, record: Record) -> Said:
        """What a row asks, with what its answer depends on."""
        turn = record.last_user
        others = self.wordings.get(record.task or "", ())
        return Said(
            turn.text,
            turn.input,
            tuple(filter(None, record.answers)),
            self.labels,
            others if turn.text in others else (),
        )

    def damaged(self, record: Record, name: str, strength: float) -> Record:
        """The row under a perturbation, its answer and earlier turns as they were; the row itself where there is
        nothing to damage. The same row, seed and strength always give the same."""
        before = self.said(record)
        after = damage(before, name, strength, draw_of(self.seed, record.prompt_key, name), self.parts)
        if after == before or not after.instruction.strip():
            return record
        return asking(record, after.instruction, after.input)


def asking(record: Record, instruction: str, input: str) -> Record:
    """The row with another last question."""
    place = max(number for number, turn in enumerate(record.turns) if turn.role == "user")
    turn = replace(record.turns[place], text=instruction, input=input)
    return replace(record, turns=(*record.turns[:place], turn, *record.turns[place + 1 :]))


def wordings_of(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """Task -> its wordings, for tasks whose instructions say the same in other words.

    Rows do not say whether theirs do, so it is taken from how they are used: few wordings, each with several inputs,
    and never another answer to the same input. Instructions that name what they are about ("towards Nokia") are too
    many for that.
    """
    used: dict[str, Counter[str]] = defaultdict(Counter)
    answers: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        if record.task and record.input:
            used[record.task][record.instruction] += 1
            answers[record.task, normalise(record.input)].add(normalise(record.answer))
    split = {task for (task, _), given in answers.items() if len(given) > 1}
    return {
        task: tuple(sorted(counts))
        for task, counts in used.items()
        if task not in split and 1 < len(counts) <= WORDINGS and counts.total() >= ROWS_OF * len(counts)
    }


def damager(records: Sequence[Record], pool: Sequence[Record], labels: Any, seed: int, parts: str) -> Damager:
    """A damager for rows; pool: further rows whose wordings are known."""
    return Damager(tuple(labels or ()), wordings_of([*records, *pool]), seed, parts)


def show_damaged(records: Sequence[Record], number: int, seed: int = 0) -> None:
    """Print the first rows under each perturbation that changes them, as `evaluate` damages them."""
    ready = damager(records, (), label_set([record.answer for record in records if record.answer]), seed, PARTS[0])
    for record in records[:number]:
        console.say("")
        console.say(f"{record.origin}: {_line(record)}", "bold")
        rows = []
        for way in PERTURBATIONS.values():
            after = ready.damaged(record, way.name, way.strength)
            if after is not record:
                rows.append([way.name, f"{way.strength:g}", _line(after)])
        console.table(("damage", "strength", f"answer: {record.answer}"), rows)


def _line(record: Record) -> str:
    return " ⏎ ".join(record.last_user.content.splitlines())
