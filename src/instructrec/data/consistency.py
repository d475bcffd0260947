"""What rows say about each other: repeats, contradictions, copies, answers in another language, overlap with a test.

All in one pass over the rows, so a file of a million rows is looked at in seconds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

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


def examine(rows: Sequence[Record], test: Sequence[Record] = ()) -> list[Finding]:
    """Findings over training rows, and over the prompts that test rows share with them; [] where all is well."""
    first_with: dict[bytes, Record] = {}  # prompt -> its first row
    answers: dict[bytes, dict[bytes, None]] = {}  # prompt -> its different answers
    by_prompt: dict[bytes, list[Origin]] = {}
    repeats: list[Origin] = []
    for row in rows:
        prompt, answer = _digest(row.prompt.turns), _hash(normalise(row.answer))
        first_with.setdefault(prompt, row)
        known = answers.setdefault(prompt, {})
        if answer in known:
            repeats.append(row.origin)
        else:
            known[answer] = None
            by_prompt.setdefault(prompt, []).append(row.origin)
    torn = [place for places in by_prompt.values() if len(places) > 1 for place in places]
    prompts = sum(len(places) > 1 for places in by_prompt.values())
    of_prompts = f"{prompts} prompt{'s' * (prompts != 1)} with different answers"
    found = [
        _finding("duplicates", "{rows} repeated (same prompt and answer as an earlier row)", repeats),
        _finding("conflicts", f"{of_prompts}: {{rows}}", torn),
        _finding("copied", "{rows} whose answer is a copy of the prompt's text", _copied(rows)),
        _finding("language", "{rows} answered in another script than rows like them", _strangers(rows)),
        _overlap(first_with, test),
        _finding("long", f"{{rows}} with more than {LONG:,} characters in one turn", _long(rows), "note"),
        _finding("wordless", "{rows} whose answer has no letter and no digit", _wordless(rows), "note"),
    ]
    return [finding for finding in found if finding is not None]


def _finding(
    kind: str, message: str, places: Sequence[Origin], severity: Literal["warning", "note"] = "warning"
) -> Finding | None:
    if not places:
        return None
    more = ", …" if len(places) > SHOWN else ""
    where = ", ".join(map(str, places[:SHOWN]))
    text = message.format(rows=f"{len(places):,} row{'s' * (len(places) != 1)}")
    return Finding(kind, f"{text}: {where}{more}", len(places), tuple(places[:SHOWN]), severity)


def _overlap(training: dict[bytes, Record], test: Sequence[Record]) -> Finding | None:
    pairs = [(row.origin, training[key].origin) for row in test if (key := _digest(row.prompt.turns)) in training]
    if not pairs:
        return None
    where = ", ".join(f"{ours} = {theirs}" for ours, theirs in pairs[:SHOWN]) + (", …" if len(pairs) > SHOWN else "")
    message = f"{len(pairs):,} of {len(test):,} test prompts are in the training rows too: {where}"
    return Finding("overlap", message, len(pairs), tuple(place for pair in pairs[:SHOWN] for place in pair))


def _copied(rows: Iterable[Record]) -> list[Origin]:
    """Answers that repeat the input (the instruction where there is none), whole or nine tenths of it."""
    places = []
    for row in rows:
        source, answer = normalise(row.input or row.instruction), normalise(row.answer)
        if answer and len(answer) >= 0.9 * len(source) and answer in source:
            places.append(row.origin)
    return places


def _strangers(rows: Sequence[Record]) -> list[Origin]:
    """Answers in a script that few answers of like rows have and that their prompt is not in either.

    Rows are alike that share task and script of the prompt: a task that translates into Chinese is no slip. Nor is an
    answer that is a name out of the prompt, or a sentence full of foreign names: it has words of the usual script.
    """
    likes = [(row.task, script_of(row.last_user.content)) for row in rows]
    scripts = [script_of(row.answer) for row in rows]
    same = Counter(zip(likes, scripts, strict=True))
    sizes: Counter[tuple[str | None, str | None]] = Counter()
    usual: dict[tuple[str | None, str | None], str] = {}
    for (like, script), number in reversed(same.most_common()):
        if script:
            sizes[like] += number
            usual[like] = script  # the most common one comes last
    return [
        row.origin
        for row, like, script in zip(rows, likes, scripts, strict=True)
        if script not in (None, like[1])
        and same[like, script] < MINORITY * sizes[like]
        and scripts_in(row.last_user.content).get(script, 0) < MINORITY
        and scripts_in(row.answer).get(usual[like], 0) < MINORITY
        and normalise(row.answer) not in normalise(row.last_user.content)
    ]


def _long(rows: Iterable[Record]) -> list[Origin]:
    return [row.origin for row in rows if any(len(turn.text) > LONG or len(turn.input) > LONG for turn in row.turns)]


def _wordless(rows: Iterable[Record]) -> list[Origin]:
    return [row.origin for row in rows if row.answer and not any(map(str.isalnum, row.answer[:1000]))]


def _digest(turns: Iterable[Turn]) -> bytes:
    # A system message belongs to the prompt: the same question under another one may have another answer.
    return _hash("\0".join(f"{turn.role}\0{normalise(turn.text)}\0{normalise(turn.input)}" for turn in turns))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
