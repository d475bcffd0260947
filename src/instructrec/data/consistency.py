"""What rows say about each other: repeats, contradictions, copies, answers in another language, overlap with a test.

Of each row only a few numbers are looked at (`facts.Marks`), which of rows on disk stand in their index. N rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .facts import COPIED, LONG, MANY, WORDLESS, marked, normalise, origin_of, tasks
from .language import SCRIPTS, scripts_in
from .records import Origin, Record

SHOWN = 5  # places named in a finding
MINORITY = 0.1  # a script with this share of the answers or more is no slip


@dataclass(frozen=True)
class Finding:
    """One kind of trouble: how many rows, the first places (overlap: test row, training row, test row, …)."""

    kind: str
    message: str
    count: int
    examples: tuple[Origin, ...]
    severity: Literal["warning", "note"] = "warning"


class _Seen:
    """The marks of all rows, [N] each. script: number of the answer's.  like: rows of one number share task and script
    of the prompt."""

    def __init__(self, rows: Sequence[Record]) -> None:
        found = marked(rows)
        self.prompt, self.answer, self.odd = found["same"], found["said"], found["odd"]
        self.script = (found["scripts"] & 15).astype(np.int64)
        pairs = tasks(rows)[0].astype(np.int64) * 16 + (found["scripts"] >> 4).astype(np.int64)
        kinds, self.like = np.unique(pairs, return_inverse=True)
        self.at_home = kinds & 15  # script of the prompt, [number of `like`]


class Places(NamedTuple):
    """How many rows, and where the first ones are."""

    number: int
    first: list[Origin]

    @classmethod
    def of(cls, rows: Sequence[Record], places: NDArray[Any]) -> Places:
        """Of rows by their places."""
        return cls(len(places), [origin_of(rows, int(place)) for place in places[:SHOWN]])


def examine(rows: Sequence[Record], test: Sequence[Record] = ()) -> list[Finding]:
    """Findings over training rows, and over the prompts that test rows share with them; [] where all is well."""
    seen = _Seen(rows)
    repeated, torn, prompts = _alike(seen)

    def _odd(bit: int) -> Places:
        return Places.of(rows, np.flatnonzero(seen.odd & seen.odd.dtype.type(bit)))

    of_prompts = f"{prompts} prompt{'s' * (prompts != 1)} with different answers"
    found = [
        _finding("duplicates", "{rows} repeated (same prompt and answer as an earlier row)", Places.of(rows, repeated)),
        _finding("conflicts", f"{of_prompts}: {{rows}}", Places.of(rows, torn)),
        _finding("copied", "{rows} whose answer is a copy of the prompt's text", _odd(COPIED)),
        _finding("language", "{rows} answered in another script than rows like them", _strangers(seen, rows)),
        _overlap(seen, rows, test),
        _finding("long", f"{{rows}} with more than {MANY:,} characters in one turn", _odd(LONG), "note"),
        _finding("wordless", "{rows} whose answer has no letter and no digit", _odd(WORDLESS), "note"),
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
    if not places.number:
        return None
    more = ", …" if places.number > SHOWN else ""
    where = ", ".join(map(str, places.first))
    text = message.format(rows=f"{places.number:,} row{'s' * (places.number != 1)}")
    return Finding(kind, f"{text}: {where}{more}", places.number, tuple(places.first), severity)


def _overlap(seen: _Seen, rows: Sequence[Record], test: Sequence[Record]) -> Finding | None:
    if not test:
        return None
    asked = marked(test)["same"]
    known, first = np.unique(seen.prompt, return_index=True)
    near = np.minimum(np.searchsorted(known, asked), max(0, len(known) - 1))
    shared = np.flatnonzero(known[near] == asked) if len(known) else near[:0]
    if not len(shared):
        return None
    pairs = [(origin_of(test, at), origin_of(rows, int(first[near[at]]))) for at in shared[:SHOWN].tolist()]
    where = ", ".join(f"{ours} = {theirs}" for ours, theirs in pairs) + (", …" if len(shared) > SHOWN else "")
    message = f"{len(shared):,} of {len(test):,} test prompts are in the training rows too: {where}"
    return Finding("overlap", message, len(shared), tuple(place for pair in pairs for place in pair))


def _strangers(seen: _Seen, rows: Sequence[Record]) -> Places:
    """Answers in a script that few answers of like rows have and that their prompt is not in either.

    Rows are alike that share task and script of the prompt: a task that translates into Chinese is no slip. Nor is an
    answer that is a name out of the prompt, or a sentence full of foreign names: it has words of the usual script.
    """
    same = np.zeros((len(seen.at_home), len(SCRIPTS)), dtype=np.int64)
    np.add.at(same, (seen.like, seen.script), 1)
    same[:, 0] = 0  # answers of no script are neither usual nor strange
    usual = [SCRIPTS[number] for number in same.argmax(axis=1)]
    rare = same[seen.like, seen.script] < MINORITY * same.sum(axis=1)[seen.like]
    at_home = seen.at_home[seen.like]
    found = []
    for place in np.flatnonzero(rare & (seen.script > 0) & (seen.script != at_home)).tolist():
        row = rows[place]
        content, script = row.last_user.content, SCRIPTS[seen.script[place]]
        if (
            scripts_in(content).get(str(script), 0) < MINORITY
            and scripts_in(row.answer).get(str(usual[seen.like[place]]), 0) < MINORITY
            and normalise(row.answer) not in normalise(content)
        ):
            found.append(place)
    return Places.of(rows, np.array(found))
