"""Constraints on an answer that a program can check: lengths, words, order, case, format, language.

Numbers are `3` (exactly), `>=3`, `<=3` or `3-5`. Each check looks at the answer without white space around it; an empty
answer meets none.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .text import HAN, KANA, normalise, writing

Value = str | Sequence[str]
_ITEM = re.compile(r"\s*(?:[-*•·–]|\(?\d{1,2}[.)、：:]|[一二三四五六七八九十]{1,3}[、.])\s*\S")
_SENTENCE = re.compile(r"[.!?。！？…]+[\"'”’」)）]*(?=\s|$|[^\W\d_]|[“「])")


def meets(kind: str, value: Value, answer: str) -> bool:
    """Whether an answer keeps one constraint. Raises KeyError for a kind that is not known."""
    check, text = CHECKS[kind], answer.strip()
    return bool(text) and check(text, value)


def kept(checks: Sequence[Mapping[str, Value]], answer: str) -> list[tuple[str, bool]]:
    """(kind, whether it is kept) of each constraint `{kind: value}`."""
    return [(kind, meets(kind, value, answer)) for check in checks for kind, value in check.items()]


def within(count: int, wanted: str) -> bool:
    """Whether a count is as `3`, `>=3`, `<=3` or `3-5` says. Raises ValueError for other texts."""
    match = re.fullmatch(r"(>=|<=)?(\d+)(?:-(\d+))?", wanted)
    if match is None:
        raise ValueError(f"want 3, >=3, <=3 or 3-5 (got {wanted!r})")
    sign, low, high = match[1], int(match[2]), int(match[3] or match[2])
    if sign:
        return count >= low if sign == ">=" else count <= low
    return low <= count <= high


def words(answer: str) -> int:
    """Words of alphabetic scripts; a Chinese or Japanese character is one."""
    return len(re.findall(rf"{_CHARACTER}|(?:(?!{_CHARACTER})[\w'’-])+", answer))


def characters(answer: str) -> int:
    """Letters, digits and characters; white space and punctuation don't count."""
    return sum(char.isalnum() for char in answer)


def sentences(answer: str) -> int:
    """Pieces that end with `.`, `!`, `?` or their full-width forms, and what is left at the end if it has letters."""
    pieces = [piece for piece in _SENTENCE.split(answer) if any(char.isalnum() for char in piece)]
    return len(pieces)


def _lines(answer: str) -> list[str]:
    return [line for line in answer.splitlines() if line.strip()]


def _list_items(answer: str, value: Value) -> bool:
    lines = _lines(answer)
    return all(_ITEM.match(line) for line in lines) and within(len(lines), str(value))


def _json_keys(answer: str, value: Value) -> bool:
    inner = re.sub(r"^```(?:json)?\s*|\s*```$", "", answer)
    try:
        found = json.loads(inner)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(found) == set(_several(value))


def _order(answer: str, value: Value) -> bool:
    text, place = answer.casefold(), 0
    for part in _several(value):
        place = text.find(part.casefold(), place)
        if place < 0:
            return False
        place += len(part)
    return True


def _times(answer: str, value: Value) -> bool:
    """`3 sea`: the text exactly so often, as a word of its own where it is written with gaps."""
    wanted, _, text = str(value).partition(" ")
    cut = text[:1].isalnum() and writing([text]) == "other"
    pattern = rf"\b{re.escape(text)}\b" if cut else re.escape(text)
    return within(len(re.findall(pattern, answer, flags=re.I)), wanted)


def _separated(answer: str, value: Value) -> bool:
    """`3 ;`: so many parts between the signs, none of them empty."""
    wanted, _, sign = str(value).partition(" ")
    parts = [part.strip() for part in answer.rstrip(".。").split(sign)]
    return all(parts) and within(len(parts), wanted)


def _language(answer: str, value: Value) -> bool:
    if not any(char.isalpha() for char in answer):
        return False
    return writing([answer]) == {"zh": "han", "en": "other"}[str(value)]


def _several(value: Value) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _plain(text: str) -> str:
    return normalise(text).strip(" .。!！\"'“”")


def _has(answer: str, text: str) -> bool:
    return text.casefold() in answer.casefold()


CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "sentences": lambda answer, value: within(sentences(answer), value),
    "words": lambda answer, value: within(words(answer), value),
    "characters": lambda answer, value: within(characters(answer), value),
    "lines": lambda answer, value: within(len(_lines(answer)), value),
    "contains": lambda answer, value: all(_has(answer, text) for text in _several(value)),
    "excludes": lambda answer, value: not any(_has(answer, text) for text in _several(value)),
    "starts_with": lambda answer, value: answer.startswith(value),
    "ends_with": lambda answer, value: answer.endswith(value),
    "lower_case": lambda answer, _: answer == answer.lower() and answer != answer.upper(),
    "upper_case": lambda answer, _: answer == answer.upper() and answer != answer.lower(),
    "no_digits": lambda answer, _: not any(char.isdigit() for char in answer),
    "only_digits": lambda answer, _: answer.rstrip(".。").isdecimal(),
    "json_keys": _json_keys,
    "list_items": _list_items,
    "separated": _separated,
    "order": _order,
    "times": _times,
    "one_of": lambda answer, value: _plain(answer) in {_plain(text) for text in _several(value)},
    "language": _language,
}

_NO_SPACES = "".join(f"{chr(low)}-{chr(high)}" for low, high in (*HAN, *KANA))
_CHARACTER = f"[{_NO_SPACES}]"

__all__ = ["CHECKS", "characters", "kept", "meets", "sentences", "within", "words"]
