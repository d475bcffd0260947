"""A page of the report as a test reads it: its tags, its words, and those of its words that nobody but us wrote."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br"}
# What rows, models, files and commands say stands in these; so do names of settings.
THEIRS = {"bdi", "dd", "code", "pre", "style", "mark"}
ENGLISH = re.compile(r"\b[A-Za-z]+(?:[ -][A-Za-z']+){2,}")


class Page(HTMLParser):
    """tags: each with its attributes.  words: all visible text.  ours: texts that we wrote, titles of pictures too."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.ours: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if not THEIRS & {*self.open} and data.strip():
            self.ours.append(" ".join(data.split()))

    @property
    def english(self) -> list[str]:
        """Texts of ours with three English words or more in a row."""
        return [text for text in self.ours if ENGLISH.search(text)]
