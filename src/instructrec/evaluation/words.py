"""All words of the report, in English and Chinese, from one table: `words.yaml`.

`messages` are the report's own, by name. `said` are texts that other rooms make (labels, explanations, notes) by their
English form, where `{0}` stands for what changes and `{0#}` for a number; a text that is not among them stays as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from instructrec.evaluation.numbers import spoken

LANGUAGES = ("en", "zh")
TABLE = Path(__file__).with_name("words.yaml")


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, Any]]:
    """`messages`: name -> language -> text.  `said`: English -> Chinese."""
    import yaml

    loaded: dict[str, dict[str, Any]] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return loaded


@lru_cache(maxsize=1)
def _patterns() -> list[tuple[re.Pattern[str], str]]:
    """The texts of `said` with places in them, as expressions; those that begin with words are tried first."""
    patterns = []
    forms = [text for text in table()["said"] if re.search(r"\{\d#?\}", text)]
    for english in sorted(forms, key=lambda text: (text.startswith("{"), -len(text))):
        escaped = re.sub(r"\\\{\d(\\#)?\\\}", lambda place: r"([\d.,]+)" if place[1] else "(.+?)", re.escape(english))
        patterns.append((re.compile(escaped, flags=re.DOTALL), table()["said"][english]))
    return patterns


class Words:
    """The words of one language."""

    def __init__(self, language: str = "en") -> None:
        self.language = language

    def __call__(self, name: str, /, **values: Any) -> str:
        """A message by name. Raises KeyError if there is no such message."""
        text: str = table()["messages"][name][self.language]
        return text.format(**values) if values else text

    def count(self, name: str, amount: int) -> str:
        """`1 row`, `1,200 rows`: the messages `name.one` and `name.many`."""
        return self(f"{name}.{'one' if amount == 1 else 'many'}", n=f"{amount:,}")

    def said(self, text: str) -> str:
        """What another room says in English, in this language where it is known."""
        if self.language == "en":
            return text
        if text in table()["said"]:
            return str(table()["said"][text])
        for pattern, form in _patterns():
            if found := pattern.fullmatch(text):
                return form.format(*map(self.said, found.groups()))
        return text

    def known(self, text: str) -> bool:
        """Whether `said` has this text in this language."""
        return self.said(text) != text

    def named(self, group: str, name: str) -> str:
        """What a name of ours (a kind of suite, a set) is called, or the name as a reader would say it."""
        message = table()["messages"].get(f"{group}.{name}")
        return message[self.language] if message else spoken(name)

    def duration(self, seconds: float) -> str:
        """`45 s`, `6 min 42 s`, `2 h 5 min`."""
        full = round(seconds)
        if full < 60:
            return self("unit.s", s=full)
        if full < 3600:
            return self("unit.min", m=full // 60, s=full % 60)
        return self("unit.h", h=full // 3600, m=full % 3600 // 60)

    def told(self, label: str, text: str) -> str:
        """`Base model: 31%`."""
        return self("told", label=label, text=text)

    def listed(self, parts: list[str]) -> str:
        """`a, b, c`."""
        return self("comma").join(parts)

    def lower(self, label: str) -> str:
        """A label inside a sentence: `Base model` as `base model`; GPT stays GPT."""
        return label[:1].lower() + label[1:] if label[1:2].islower() else label
