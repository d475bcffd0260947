"""From what a model wrote to the answer that is scored, by rules that are named beside it.

    whole       the text as it is: it is a label, or answers may have several lines
    first_line  its first line that is not empty: right answers are one line, or that line is a label
    label       the one label that stands in the first line, else in the whole text, as words of its own
    none        labels are wanted and none was found, or several: the text as it is, which is wrong

A label is looked for as metrics compare (`text.normalise`), with `_` like a space. A label that is a single letter
counts inside a text only before `)`, `.`, `:`, `,` or the end. What is said of a label is not understood: "not
positive" holds `positive`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

from .text import HAN, KANA, normalise

RULES = ("whole", "first_line", "label", "none")
_MARKS = "\"'`*“”‘’「」《》()[]（）:：,，!！ "


def extracted(texts: Sequence[str], references: Sequence[Sequence[str]], labels: Sequence[str] | None) -> list[str]:
    """The answers found in what was written, as every score takes them. references: the right answers of each row."""
    extract = Extractor.of(labels, references)
    return [extract(text)[0] for text in texts]


class Extractor:
    """labels: a closed set of them, or None.  one_line: every right answer is one line."""

    def __init__(self, labels: Sequence[str] | None, one_line: bool, on: bool = True) -> None:
        self.labels, self.one_line, self.on = labels, one_line, on

    @classmethod
    def of(cls, labels: Sequence[str] | None, references: Sequence[Sequence[str]], on: bool = True) -> Extractor:
        """For rows with these right answers."""
        return cls(labels, not any("\n" in text for some in references for text in some), on)

    def __call__(self, text: str) -> tuple[str, str]:
        """The answer in a text, and the rule by which it was found."""
        if not self.on:
            return text, "whole"
        first = next((line.strip() for line in text.splitlines() if line.strip()), "")
        if not self.labels:
            return (first, "first_line") if self.one_line and first != text.strip() else (text, "whole")
        for part, rule in ((text, "whole"), (first, "first_line")):
            if normalise(part) in self._exact:
                return part if rule == "whole" else part.strip(), rule
        for part in (first, text):
            if len(found := self._found(part)) == 1:
                return found.pop(), "label"
        return text, "none"

    @cached_property
    def _exact(self) -> frozenset[str]:
        return frozenset(normalise(label) for label in self.labels or ())

    @cached_property
    def _spelled(self) -> dict[str, str]:
        """Plain spelling -> label; one that two labels share stands for neither."""
        spelled: dict[str, list[str]] = {}
        for label in self.labels or ():
            spelled.setdefault(_plain(label), []).append(label)
        return {plain: labels[0] for plain, labels in spelled.items() if len(labels) == 1 and plain}

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        # Longest first: where one label is part of another, the longer one is meant.
        words = sorted((plain for plain in self._spelled if len(plain) > 1 or not plain.isascii()), key=len)
        return re.compile("|".join(map(_bounded, reversed(words)))) if words else None

    def _found(self, text: str) -> set[str]:
        plain = _plain(text)
        if plain in self._spelled:
            return {self._spelled[plain]}
        found = {self._spelled[match[0]] for match in self._pattern.finditer(plain)} if self._pattern else set()
        letters = [label for label in self.labels or () if len(label) == 1 and label.isascii()]
        return found | {
            label for label in letters if re.search(rf"(?<!\w){re.escape(label)}(?=[).:,]|\s*$)", text, flags=re.M)
        }


def _plain(text: str) -> str:
    return normalise(" ".join(text.replace("_", " ").split())).strip(_MARKS)


def _bounded(word: str) -> str:
    before = r"(?<!\w)" if _cut(word[0]) else ""
    after = r"(?!\w)" if _cut(word[-1]) else ""
    return f"{before}{re.escape(word)}{after}"


def _cut(char: str) -> bool:
    """Whether words end before and behind this character: Chinese and Japanese have no gaps."""
    written = any(low <= ord(char) <= high for low, high in (*HAN, *KANA))
    return not written and char.isalnum()
