"""What rows say about each other: repeats, contradictions, copies, answers in another language, overlap with a test.

All in one pass over the rows, of which only hashes and a few small numbers are kept: five million rows on disk take
150 MB. N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .facts import hashed, origin_of
from .language import script_of, scripts_in
from .records import Origin, Record, Turn

SHOWN = 5  # places named in a finding
LONG = 20_000  # characters of one turn
MINORITY = 0.1  # a script with this share of the answers or more is no slip


@dataclass(frozen=True)
class Finding:
    """One kind of trouble: how many rows, the first places (overlap: test row, training row, test row, …)."""

    kind: str
    message: str
    count: int
    examples: tuple[Origin, ...]
    severity: Literal["warning", "note"] = "warning"


def normalise(text: str) -> str:
    """Case and spacing aside."""
    return " ".join(text.split()).casefold()


class _Seen:
    """What one pass over rows leaves: numbers of each row, [N], and the few places of what stands out."""

    def __init__(self, rows: Sequence[Record]) -> None:
        size = len(rows)
        self.prompt, self.answer = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
        self.like, self.script = np.zeros(size, np.int32), np.zeros(size, np.int16)
        self.likes: dict[tuple[str | None, str | None], int] = {}  # (task, script of the prompt) -> number
        self.scripts: dict[str | None, int] = {None: 0}
        self.copied, self.long, self.wordless = Places(), Places(), Places()
        for place, row in enumerate(rows):
            self._look(place, row)

    def _look(self, place: int, row: Record) -> None:
        answer = normalise(row.answer)
        prompt = row.last_user
        self.prompt[place], self.answer[place] = _digest(row.prompt.turns), hashed(answer)
        like = row.task, script_of(prompt.content)
        self.like[place] = self.likes.setdefault(like, len(self.likes))
        self.script[place] = self.scripts.setdefault(script_of(row.answer), len(self.scripts))
        # An answer that repeats the input (the instruction where there is none), whole or nine tenths of it.
        source = normalise(prompt.input or prompt.text)
        if answer and len(answer) >= 0.9 * len(source) and answer in source:
            self.copied.add(row.origin)
        if any(len(turn.text) > LONG or len(turn.input) > LONG for turn in row.turns):
            self.long.add(row.origin)
        if row.answer and not any(map(str.isalnum, row.answer[:1000])):
            self.wordless.add(row.origin)


@dataclass
class Places:
    """How many rows, and where the first ones are."""

    count: int = 0
    first: list[Origin] = field(default_factory=list)

    def add(self, origin: Origin) -> None:
        """One row more."""
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(origin)

    @classmethod
    def of(cls, rows: Sequence[Record], places: NDArray[Any]) -> Places:
        """Of rows by their places."""
        return cls(len(places), [origin_of(rows, int(place)) for place in places[:SHOWN]])


def examine(rows: Sequence[Record], test: Sequence[Record] = ()) -> list[Finding]:
    """Findings over training rows, and over the prompts that test rows share with them; [] where all is well."""
    seen = _Seen(rows)
    repeated, torn, prompts = _alike(seen)
    of_prompts = f"{prompts} prompt{'s' * (prompts != 1)} with different answers"
    found = [
        _finding("duplicates", "{rows} repeated (same prompt and answer as an earlier row)", Places.of(rows, repeated)),
        _finding("conflicts", f"{of_prompts}: {{rows}}", Places.of(rows, torn)),
        _finding("copied", "{rows} whose answer is a copy of the prompt's text", seen.copied),
        _finding("language", "{rows} answered in another script than rows like them", _strangers(seen, rows)),
        _overlap(seen, rows, test),
        _finding("long", f"{{rows}} with more than {LONG:,} characters in one turn", seen.long, "note"),
        _finding("wordless", "{rows} whose answer has no letter and no digit", seen.wordless, "note"),
    ]
    return [finding for finding in found if finding is not None]


def _alike(seen: _Seen) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Rows that repeat an earlier one; the first rows with each of the different answers of a prompt, prompt by prompt
    in the order of their first rows; and how many such prompts there are."""
    order = np.lexsort((seen.answer, seen.prompt))  # stable: equal rows stay in their order
    prompt, answer = seen.prompt[order], seen.answer[order]
    new_prompt = np.ones(len(order), dtype=bool)
    new_prompt[1:] = prompt[1:] != prompt[:-1]
    new_pair = new_prompt.copy()
    new_pair[1:] |= answer[1:] != answer[:-1]
    repeated = np.sort(order[~new_pair])
    firsts, group = order[new_pair], np.cumsum(new_prompt)[new_pair] - 1
    sizes = np.bincount(group, minlength=1)
    several = sizes[group] > 1
    firsts, group = firsts[several], group[several]
    earliest = np.full(len(sizes), len(seen.prompt))
    np.minimum.at(earliest, group, firsts)
    return repeated, firsts[np.lexsort((firsts, earliest[group]))], int(np.count_nonzero(sizes > 1))


def _finding(
    kind: str, message: str, places: Places, severity: Literal["warning", "note"] = "warning"
) -> Finding | None:
    if not places.count:
        return None
    more = ", …" if places.count > SHOWN else ""
    where = ", ".join(map(str, places.first))
    text = message.format(rows=f"{places.count:,} row{'s' * (places.count != 1)}")
    return Finding(kind, f"{text}: {where}{more}", places.count, tuple(places.first), severity)


def _overlap(seen: _Seen, rows: Sequence[Record], test: Sequence[Record]) -> Finding | None:
    if not test:
        return None
    asked = np.array([_digest(row.prompt.turns) for row in test], dtype=np.uint64)
    known, first = np.unique(seen.prompt, return_index=True)
    near = np.minimum(np.searchsorted(known, asked), max(0, len(known) - 1))
    shared = np.flatnonzero(known[near] == asked) if len(known) else near[:0]
    if not len(shared):
        return None
    pairs = [(test[at].origin, origin_of(rows, int(first[near[at]]))) for at in shared[:SHOWN].tolist()]
    where = ", ".join(f"{ours} = {theirs}" for ours, theirs in pairs) + (", …" if len(shared) > SHOWN else "")
    message = f"{len(shared):,} of {len(test):,} test prompts are in the training rows too: {where}"
    return Finding("overlap", message, len(shared), tuple(place for pair in pairs for place in pair))


def _strangers(seen: _Seen, rows: Sequence[Record]) -> Places:
    """Answers in a script that few answers of like rows have and that their prompt is not in either.

    Rows are alike that share task and script of the prompt: a task that translates into Chinese is no slip. Nor is an
    answer that is a name out of the prompt, or a sentence full of foreign names: it has words of the usual script.
    """
    likes, scripts = list(seen.likes), list(seen.scripts)
    same = np.zeros((len(likes), len(scripts)), dtype=np.int64)
    np.add.at(same, (seen.like, seen.script), 1)
    same[:, 0] = 0  # answers of no script are neither usual nor strange
    usual = [scripts[number] for number in same.argmax(axis=1)]
    rare = same[seen.like, seen.script] < MINORITY * same.sum(axis=1)[seen.like]
    at_home = np.array([seen.scripts.get(script, -1) for _, script in likes])[seen.like]
    found = Places()
    for place in np.flatnonzero(rare & (seen.script > 0) & (seen.script != at_home)).tolist():
        row = rows[place]
        content, script = row.last_user.content, scripts[seen.script[place]]
        if (
            scripts_in(content).get(str(script), 0) < MINORITY
            and scripts_in(row.answer).get(str(usual[seen.like[place]]), 0) < MINORITY
            and normalise(row.answer) not in normalise(content)
        ):
            found.add(row.origin)
    return found


def _digest(turns: Iterable[Turn]) -> int:
    # A system message belongs to the prompt: the same question under another one may have another answer.
    return hashed("\0".join(f"{turn.role}\0{normalise(turn.text)}\0{normalise(turn.input)}" for turn in turns))
