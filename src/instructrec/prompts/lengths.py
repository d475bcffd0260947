"""One length limit for rendered rows, and what happens to rows over it. An answer or its end token is never cut."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.facts import on_disk
from ..data.index import Stored
from ..data.records import Record
from ..data.splits import few_as_list
from ..errors import DataError, InputError
from .shelf import DROPPED, FAULTY, KEPT, TRIMMED, UNKNOWN, Fate, Shelf, shelf_of
from .template import Rendered, Renderer, shorten_input

_WORD = 16  # characters: longer tokens are rare
ON_LONG = ("stop", "drop", "trim-input")


@dataclass(frozen=True)
class Fitted:
    """Rendered rows with the account of what was done to them: len(records) = len(kept) + len(dropped)."""

    rendered: Sequence[Rendered]
    kept: Sequence[int]  # index into the records that were given, one for each of `rendered`
    dropped: list[int]
    trimmed: list[int]
    skipped_turns: int
    longest: int
    quantiles: dict[str, int]  # tokens a row
    unknown: tuple[int, ...] = ()  # index into the records: the answer holds what the tokenizer has no token for

    def warning(self, records: Sequence[Record]) -> str:
        """One sentence about answers that the model can't ever give, or ''. records: those that were fitted."""
        if not self.unknown:
            return ""
        places = ", ".join(str(records[index].origin) for index in self.unknown[:5])
        more = ", …" if len(self.unknown) > 5 else ""
        return f"{len(self.unknown)} answers hold characters that this tokenizer does not know: {places}{more}"

    def describe(self) -> str:
        """One sentence for the terminal."""
        text = "tokens a row: " + ", ".join(f"{name} {value:,}" for name, value in self.quantiles.items())
        text += f"; {len(self.trimmed)} inputs trimmed, {len(self.dropped)} rows dropped"
        if self.skipped_turns:
            text += f"; {self.skipped_turns} earlier answers not trained on (the template shows them differently later)"
        return text


def fit(
    records: Sequence[Record],
    renderer: Renderer,
    max_length: int,
    on_long: str = "stop",
    track: Callable[[Sequence[Record]], Iterable[Record]] = lambda records: records,
    size: Callable[[int, int], int] = lambda prompt, answer: prompt + answer,
) -> Fitted:
    """Render all records under `max_length` tokens a row. size: what counts of a prompt's tokens and an answer's.

    on_long: stop (DataError naming every row that is too long), drop (leave the row out, counted), trim-input (shorten
    the `input` of the last user turn; rows that stay too long are an error).
    Raises DataError, also for rows that the template refuses and for rows in which no token is supervised.
    """
    if on_long not in ON_LONG:
        raise InputError(f"on_long: unknown policy (got '{on_long}', want {', '.join(ON_LONG)})")

    limits = _Limits(renderer, max_length, on_long, size)
    if stored := on_disk(records):
        return _fitted_on_disk(stored, limits, track)
    rendered: list[Rendered] = []
    kept, dropped, trimmed, lengths, problems, lost = [], [], [], [], [], []
    for index, record in enumerate(track(records)):
        fate = limits.fate(record)
        lengths += [fate.size] if fate.size else []
        if fate.problem:
            problems.append(fate.problem)
        elif fate.row is None:
            dropped.append(index)
        else:
            kept.append(index)
            rendered.append(fate.row)
            lost += [index] if fate.state & UNKNOWN else []
        trimmed += [index] if fate.state & TRIMMED else []
    if problems:
        raise DataError(problems)
    skipped = sum(row.skipped_turns for row in rendered)
    longest = max(lengths, default=0)
    return Fitted(rendered, kept, dropped, trimmed, skipped, longest, _quantiles(lengths), tuple(lost))


class _Limits:
    """What happens to each record under a length limit."""

    def __init__(self, renderer: Renderer, max_length: int, on_long: str, size: Callable[[int, int], int]) -> None:
        self.renderer, self.max_length, self.on_long, self.size = renderer, max_length, on_long, size
        self.unknown = _unknown(renderer.tokenizer)

    def to_json(self) -> dict[str, Any]:
        """All that decides what rows look like. The tokenizer counts by its own file."""
        backend = self.renderer.tokenizer.backend_tokenizer.to_str()
        body = {key: value for key, value in self.renderer.to_json().items() if key not in ("sha256", "reading")}
        sides = [self.size(3, 5), self.size(5, 3)]  # how a kind of backbone counts
        tokenizer = hashlib.sha256(backend.encode("utf-8", "surrogatepass")).hexdigest()
        limits = {"max_length": self.max_length, "on_long": self.on_long, "sides": sides}
        return body | limits | {"tokenizer": tokenizer, "variant": self.renderer.variant}

    def over(self, row: Rendered) -> bool:
        """Whether a row has more tokens than it may."""
        return self.size(row.prompt_end, len(row.ids) - row.prompt_end) > self.max_length

    def fate(self, record: Record) -> Fate:
        """The record's row, or why it has none."""
        try:
            row = self.renderer.render(record)
        except InputError as error:
            return Fate(problem=record.origin.problem("prompt", str(error)))
        size, state = len(row.ids), KEPT
        if self.over(row) and self.on_long == "trim-input":
            shorter = _trim(record, self.renderer, self.over)
            row, state = shorter or row, KEPT if shorter is None else TRIMMED
        if self.over(row):
            if self.on_long == "drop":
                return Fate(state=DROPPED, size=size)
            reason = _too_long(row, self.max_length, self.on_long, bool(record.input))
            return Fate(state=DROPPED, size=size, problem=record.origin.problem("length", reason))
        if record.answer and not row.targets:
            problem = record.origin.problem("answer", "no token of this row is supervised")
            return Fate(row, state, size, problem)
        return Fate(row, state | (UNKNOWN if self.unknown in row.ids[row.prompt_end :] else 0), size)


def _fitted_on_disk(records: Stored, limits: _Limits, track: Callable[[Sequence[Record]], Iterable[Record]]) -> Fitted:
    """The same for rows that stay on disk; all rows of their files are rendered the first time."""
    whole = Stored(records.indexes)
    ticks = iter(track(range(len(whole))))  # type: ignore[arg-type]

    def done(count: int) -> None:
        deque(islice(ticks, count), 0)

    shelved = shelf_of(whole, limits.to_json(), limits.renderer.vocabulary, limits.fate, done)
    numbers = np.arange(len(whole)) if records.numbers is None else records.numbers
    shelf = Shelf(shelved.home, records, numbers, shelved.kind)
    states = shelf.column("state")
    if (states & FAULTY).any():
        raise DataError([shelved.problems[int(numbers[place])] for place in np.flatnonzero(states & FAULTY).tolist()])
    kept = np.flatnonzero(states & DROPPED == 0)
    rows = shelf if len(kept) == len(shelf) else shelf.take(kept)
    lengths = shelf.column("full")
    return Fitted(
        rows,
        few_as_list(kept),
        np.flatnonzero(states & DROPPED).tolist(),
        np.flatnonzero(states & TRIMMED).tolist(),
        int(rows.column("skipped").sum()),
        int(lengths.max(initial=0)),
        _quantiles(lengths),
        tuple(np.flatnonzero(states & UNKNOWN).tolist()),
    )


def _unknown(tokenizer: Any) -> int:
    """The id of what the tokenizer does not know; -1 where it knows all, or says so with a token that ends answers."""
    unknown = tokenizer.unk_token_id
    return -1 if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.bos_token_id) else int(unknown)


def _too_long(row: Rendered, max_length: int, on_long: str, has_input: bool) -> str:
    text = f"{len(row.ids):,} tokens ({row.prompt_end:,} before the answer), over max_length {max_length:,}"
    if on_long == "trim-input":
        return text + (", also with its input trimmed away" if has_input else ", and it has no input to trim")
    return text + "; raise --max-length, or choose --on-long=trim-input or drop"


def _trim(record: Record, renderer: Renderer, over: Callable[[Rendered], bool]) -> Rendered | None:
    """The record with the longest head of its input that fits, or None if it does not fit without input either."""
    text = record.input
    low, high, best = 0, len(text), None
    if not text:
        return None
    while low <= high:
        middle = (low + high) // 2
        row = renderer.render(shorten_input(record, middle))
        if not over(row):
            best, low = row, middle + 1
        else:
            high = middle - 1
    if best is not None:  # a character more can make fewer tokens, when it completes a word
        for longer in range(high + 1, min(high + _WORD, len(text)) + 1):
            row = renderer.render(shorten_input(record, longer))
            best = best if over(row) else row
    return best


def _quantiles(lengths: Sequence[int] | NDArray[Any]) -> dict[str, int]:
    if not len(lengths):
        return {}
    names = {"median": 0.5, "95%": 0.95, "longest": 1.0}
    return {name: int(np.quantile(lengths, share, method="higher")) for name, share in names.items()}
