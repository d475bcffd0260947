"""What every row becomes at the door: a `Record`. No dict of unknown shape travels further into the program."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

from ..errors import Problem

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `input` is the part of a user's message that the instruction is about (alpaca's `input`)."""

    role: str
    text: str
    supervised: bool = False
    input: str = ""

    @property
    def content(self) -> str:
        """Instruction and input as one message, a blank line between them."""
        return f"{self.text}\n\n{self.input}" if self.input else self.text


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from: file name as given by the user, line counted from 1, place in a JSON array from 0.

    Rows of Parquet and rows from Python have no lines: they are counted instead.
    """

    file: str = "<memory>"
    line: int = 0
    item: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return place if self.item is None else f"{place}[{self.item}]"

    def problem(self, field: str, reason: str) -> Problem:
        """A fault of this row."""
        item = "" if self.item is None else f"[{self.item}]"
        return Problem(self.file, self.line, ".".join(part for part in (item, field) if part), reason)


@dataclass(frozen=True, slots=True)
class Media:
    """A picture, sound or film of a row: where it is. It is not read yet.

    kind: image, audio or video.  path: as the row has it; '' if it has none.  column: of the row that its origin names,
    with the place in a list (`images[0]`); it may hold the bytes themselves.
    """

    kind: str
    path: str
    column: str


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation to learn from or to answer, with what is known about it."""

    turns: tuple[Turn, ...]
    task: str | None = None
    group: str | None = None  # rows of one group (one wording) are never split apart
    alternatives: tuple[str, ...] = ()  # further answers that count as right
    media: tuple[Media, ...] = ()
    origin: Origin = Origin()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        instruction: str,
        answer: str = "",
        *,
        input: str = "",
        system: str = "",
        task: str | None = None,
        group: str | None = None,
        origin: Origin | None = None,
    ) -> Record:
        """A one-turn record; without an answer it is a prompt."""
        turns = [Turn("system", system)] if system else []
        turns.append(Turn("user", instruction, input=input))
        if answer:
            turns.append(Turn("assistant", answer, supervised=True))
        return cls(tuple(turns), task=task, group=group, origin=origin or Origin())

    @property
    def system(self) -> str:
        """The system message, or ''."""
        return self.turns[0].text if self.turns and self.turns[0].role == "system" else ""

    @property
    def last_user(self) -> Turn:
        """The user's last turn."""
        return next(turn for turn in reversed(self.turns) if turn.role == "user")

    @property
    def instruction(self) -> str:
        """Text of the user's last turn without its input."""
        return self.last_user.text

    @property
    def input(self) -> str:
        """Input of the user's last turn, or ''."""
        return self.last_user.input

    @property
    def answer(self) -> str:
        """Text of the last turn if it is the assistant's, else ''."""
        return self.turns[-1].text if self.turns and self.turns[-1].role == "assistant" else ""

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer that counts as right, the row's own first."""
        return (self.answer, *(text for text in self.alternatives if text != self.answer))

    @property
    def prompt(self) -> Record:
        """The same record without its last answer: what a model is given."""
        if not self.answer:
            return self
        return Record(self.turns[:-1], self.task, self.group, self.alternatives, self.media, self.origin, self.metadata)

    @property
    def prompt_key(self) -> str:
        """16 hex digits over what the model is given (not the answer); equal prompts have equal keys."""
        return _key(self.turns[:-1] if self.answer else self.turns)

    @property
    def key(self) -> str:
        """16 hex digits over all turns: the row's identity across files and runs."""
        return _key(self.turns)


def _key(turns: Sequence[Turn]) -> str:
    # Lengths before texts, so that no two different lists of turns spell the same bytes.
    digest = hashlib.sha256()
    for turn in turns:
        for text in (turn.role, turn.text, turn.input):
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """One of several sources: its name, its files, its weight in the mix, and what was said about reading it."""

    name: str
    files: tuple[str, ...]
    weight: float | None = None
    how: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows(Sequence[Record]):
    """What `read` returns: the usable records and the account of the file they came from (read = used + rejected)."""

    records: Sequence[Record]
    files: Mapping[str, str] = field(default_factory=dict)  # file name -> sha256 of its bytes
    read: int = 0
    rejected: int = 0
    notes: tuple[str, ...] = ()  # what was guessed or noticed, to be said aloud
    sources: tuple[Part, ...] = ()  # where there were several

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self.records[index]

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)


def joined(parts: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """All records in one sequence; on disk if all are there, else in memory."""
    from .index import Stored

    stored = [part for part in parts if isinstance(part, Stored)]
    if stored and len(stored) == len(parts) and all(part.numbers is None for part in stored):
        return Stored([index for part in stored for index in part.indexes])
    return tuple(record for part in parts for record in part)


def merge(parts: Sequence[Rows]) -> Rows:
    """Several files as one."""
    if len(parts) == 1:
        return parts[0]
    return Rows(
        records=joined([part.records for part in parts]),
        files={name: digest for part in parts for name, digest in part.files.items()},
        read=sum(part.read for part in parts),
        rejected=sum(part.rejected for part in parts),
        notes=tuple(note for part in parts for note in part.notes),
    )
