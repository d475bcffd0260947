"""Our own small lists of words, in English and Chinese, read when they are first needed."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml

from ..text import HAN, KANA

_NO_SPACES = "".join(f"{chr(low)}-{chr(high)}" for low, high in (*HAN, *KANA))
HAN_CHARACTER = f"[{''.join(f'{chr(low)}-{chr(high)}' for low, high in HAN)}]"  # for regular expressions
WORD = rf"(?:(?![{_NO_SPACES}])[^\W\d_])+(?:['’](?:(?![{_NO_SPACES}])[^\W\d_])+)*"


@lru_cache(maxsize=2)
def words(language: str) -> dict[str, Any]:
    """The lists of a language (en or zh): `synonyms` by word, `function`, `fixed`, `negations`, `distractors`, …"""
    text = resources.files(__package__).joinpath(f"{language}.yaml").read_text(encoding="utf-8")
    lists: dict[str, Any] = yaml.safe_load(text)
    lists["synonyms"] = {word: tuple(others.split()) for word, others in lists["synonyms"].items()}
    return {name: frozenset(value.split()) if name in _SETS else value for name, value in lists.items()}


_SETS = ("function", "fixed", "negations", "whole")


@lru_cache(maxsize=1)
def homophones() -> dict[str, str]:
    """Common Chinese character -> the frequent ones that sound alike but for the tone; only where there are any.

    GB 2312 has its 3,755 common characters (rows 16 to 55) in the order of their syllables, so the first character of
    each syllable tells them all.
    """
    ordered = bytes(byte for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for byte in (row, cell))
    characters = ordered[: -2 * 5].decode("gb2312")  # the last row has five places empty
    firsts, frequent = frozenset(words("zh")["syllables"]), frozenset(words("zh")["frequent"])
    syllables: list[str] = []
    for character in characters:
        if character in firsts:
            syllables.append("")
        syllables[-1] += character
    found = {}
    for alike in syllables:
        often = "".join(character for character in alike if character in frequent)
        for character in alike:
            if others := often.replace(character, ""):
                found[character] = others
    return found


@lru_cache(maxsize=1)
def variants() -> dict[str, str]:
    """Simplified character -> its traditional form, and back."""
    pairs = words("zh")["variants"].split()
    return {first: second for first, second in pairs} | {second: first for first, second in pairs}
