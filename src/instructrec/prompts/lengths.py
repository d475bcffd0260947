"""One length limit for rendered rows, and what happens to rows over it. An answer or its end token is never cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.records import Record
from ..errors import DataError, InputError
from .template import Rendered, Renderer, shorten_input

_WORD = 16  # characters: longer tokens are rare
ON_LONG = ("stop", "drop", "trim-input")


@dataclass(frozen=True)
class Fitted:
    """Rendered rows with the account of what was done to them: len(records) = len(kept) + len(dropped)."""

    rendered: list[Rendered]
    kept: list[int]  # index into the records that were given, one for each of `rendered`
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

    def over(row: Rendered) -> bool:
        return size(row.prompt_end, len(row.ids) - row.prompt_end) > max_length

    rendered: list[Rendered] = []
    kept, dropped, trimmed, lengths, problems = [], [], [], [], []
    for index, record in enumerate(track(records)):
        try:
            row = renderer.render(record)
        except InputError as error:
            problems.append(record.origin.problem("prompt", str(error)))
            continue
        lengths.append(len(row.ids))
        if over(row) and on_long == "trim-input":
            shorter = _trim(record, renderer, over)
            if shorter is not None:
                trimmed.append(index)
                row = shorter
        if over(row):
            if on_long == "drop":
                dropped.append(index)
                continue
            reason = _too_long(row, max_length, on_long, bool(record.input))
            problems.append(record.origin.problem("length", reason))
        elif record.answer and not row.targets:
            problems.append(record.origin.problem("answer", "no token of this row is supervised"))
        else:
            kept.append(index)
            rendered.append(row)
    if problems:
        raise DataError(problems)
    unknown = _unknown(renderer.tokenizer)
    lost = tuple(index for index, row in zip(kept, rendered, strict=True) if unknown in row.ids[row.prompt_end :])
    skipped = sum(row.skipped_turns for row in rendered)
    longest = max(lengths, default=0)
    return Fitted(rendered, kept, dropped, trimmed, skipped, longest, _quantiles(lengths), lost)


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


def _quantiles(lengths: list[int]) -> dict[str, int]:
    if not lengths:
        return {}
    names = {"median": 0.5, "95%": 0.95, "longest": 1.0}
    return {name: int(np.quantile(lengths, share, method="higher")) for name, share in names.items()}
