"""One line of JSONL: text in, a dict out, with an own error for everything that other readers let pass."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .turns import RowError, kind, shown

MAX_DEPTH = 64
# A string or a bracket. Possessive, and a string may end with the line: no input makes this more than linear.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]|[\]}]', re.DOTALL)
# Escapes that can spell what UTF-8 cannot hold (half a surrogate pair) or what we refuse (NUL).
_SUSPECT = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse(text: str) -> dict[str, Any]:
    """The object on one line; raises `RowError`."""
    if text.count("[") + text.count("{") > MAX_DEPTH:
        depth = _depth(text)
        if depth > MAX_DEPTH:
            raise RowError("", f"nested too deeply (got {depth} levels, want at most {MAX_DEPTH})")
    try:
        row = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = error.msg.removesuffix(" at").removesuffix(" starting")
        where = f"not JSON at column {error.colno} ({reason[:1].lower()}{reason[1:]})"
        raise RowError("", where, below=error.lineno - 1) from None
    except ValueError:  # int() refuses more than 4,300 digits
        raise RowError("", "a number with too many digits") from None
    if not isinstance(row, dict):
        raise RowError("", f"wrong type (got {kind(row)}, want a JSON object)")
    if "\\u" in text and _SUSPECT.search(text):  # the first test is twenty times faster than the second
        check_texts(row)
    return row


def check_texts(row: Mapping[Any, Any]) -> None:
    """Refuse what cannot be written out again: NUL, half surrogate pairs, NaN, keys that are no text, deep nesting."""
    for key, value in row.items():
        if not isinstance(key, str):
            raise RowError("", f"a key that is not text (got {kind(key)})")
        field = shown(key.encode("utf-8", "backslashreplace").decode())
        for found in (key, value):
            _check(field, found, 1)


def _check(field: str, value: Any, depth: int) -> None:
    if isinstance(value, str):
        if "\0" in value:
            raise RowError(field, f"NUL character at {value.index(chr(0))}")
        lone = _SURROGATE.search(value)
        if lone:
            raise RowError(field, f"half a surrogate pair, \\u{ord(lone[0]):04x} at {lone.start()}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(field, f"not a number that JSON has (got {value})")
    elif isinstance(value, (Mapping, list, tuple)):
        if depth >= MAX_DEPTH:
            raise RowError(field, f"nested too deeply (want at most {MAX_DEPTH} levels)")
        for inner in (*value.keys(), *value.values()) if isinstance(value, Mapping) else value:
            _check(field, inner, depth + 1)


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in "]}":
            depth -= 1
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowError(shown(twice.encode("utf-8", "backslashreplace").decode()), "key given twice")
    return row


def _constant(literal: str) -> NoReturn:
    raise RowError("", f"{literal} is not JSON (want a number or null)")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise RowError("", f"number too large (got {shown(literal)})")
    return number


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_constant, parse_float=_finite)
