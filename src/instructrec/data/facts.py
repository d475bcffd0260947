"""What must be known of every row to split, count and compare, as numbers: of rows on disk they are read from there,
of others worked out. So the same lines serve a hundred rows and five million.

N rows.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .records import Origin, Record, Turn

if TYPE_CHECKING:
    from .index import Stored

Numbers = NDArray[np.uint64]


class Facts(NamedTuple):
    """key, prompt: `Record.key` and `Record.prompt_key` as numbers.  wording, answer: hashes of 64 bits.
    answers: supervised turns of the assistant."""

    key: int
    prompt: int
    wording: int
    answer: int
    answers: int


def facts(record: Record) -> Facts:
    """The facts of one record."""
    turns = record.turns
    last = turns[-1] if turns and turns[-1].role == "assistant" and turns[-1].text else None
    digest = hashlib.sha256(b"".join([_spelled(turn) for turn in (turns[:-1] if last else turns)]))
    prompt = key = int.from_bytes(digest.digest()[:8], "big")
    if last:
        digest.update(_spelled(last))
        key = int.from_bytes(digest.digest()[:8], "big")
    answers = 0
    for turn in turns:
        answers += turn.supervised and turn.role == "assistant"
    return Facts(key, prompt, _wording(record), hashed(last.text if last else ""), min(answers, 65535))


def _spelled(turn: Turn) -> bytes:
    """As `records._key` spells it: lengths before texts."""
    role, text, more = turn.role.encode(), turn.text.encode("utf-8", "surrogatepass"), b""
    if turn.input:
        more = turn.input.encode("utf-8", "surrogatepass")
    sizes = _SIZES(len(role)), _SIZES(len(text)), _SIZES(len(more))
    return sizes[0] + role + sizes[1] + text + sizes[2] + more


_SIZES = struct.Struct("<Q").pack
_WORDINGS: dict[str, int] = {}  # of instructions that many rows share


def _wording(record: Record) -> int:
    """`hashed(wording_key(record))`, looked up where the text was met lately."""
    text = record.group or record.last_user.text
    found = _WORDINGS.get(text) if not record.group else None
    if found is None:
        found = hashed(wording_key(record))
        if not record.group:
            if len(_WORDINGS) > 4096:
                _WORDINGS.clear()
            _WORDINGS[text] = found
    return found


def hashed(text: str) -> int:
    """64 bits of blake2b: of five million texts, two different ones are alike with a chance of one in a million."""
    raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "big")


def wording_key(record: Record) -> str:
    """Rows with equal keys are one wording: the row's group, else its instruction, case and spacing aside."""
    return record.group or " ".join(record.instruction.split()).casefold()


def column(records: Sequence[Record], name: str) -> NDArray[Any]:
    """One of the numbers of `Facts`, of each record."""
    if stored := on_disk(records):
        return stored.column(name)
    if name == "wording":  # the only one that is asked for often, and most rows share theirs
        return np.fromiter((hashed(wording_key(record)) for record in records), np.uint64, len(records))
    place = Facts._fields.index(name)
    return np.fromiter((facts(record)[place] for record in records), np.uint64, len(records))


def tasks(records: Sequence[Record]) -> tuple[NDArray[Any], list[str]]:
    """Number of each record's task (-1: none), and the names."""
    if stored := on_disk(records):
        return stored.tasks()
    names: dict[str, int] = {}
    found = (-1 if record.task is None else names.setdefault(record.task, len(names)) for record in records)
    return np.fromiter(found, np.int32, len(records)), list(names)


def take(records: Sequence[Record], places: Sequence[int] | NDArray[Any]) -> Sequence[Record]:
    """Some of the records, in this order; those on disk stay there."""
    if stored := on_disk(records):
        return stored.take(np.asarray(places))
    return [records[place] for place in places]


def origin_of(records: Sequence[Record], place: int) -> Origin:
    """Where a record stands."""
    stored = on_disk(records)
    return stored.origin(place) if stored else records[place].origin


def files_of(records: Sequence[Record]) -> tuple[NDArray[Any], list[str]]:
    """Number of each record's file, and the names."""
    if stored := on_disk(records):
        return stored.files(), [index.name for index in stored.indexes]
    names: dict[str, int] = {}
    found = (names.setdefault(record.origin.file, len(names)) for record in records)
    return np.fromiter(found, np.int64, len(records)), list(names)


class Answers(Sequence[str]):
    """The answers of records, each read when its turn comes."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Any) -> Any:
        return self.records[place].answer

    def __iter__(self) -> Iterator[str]:
        return (record.answer for record in self.records)


def different_answers(records: Sequence[Record]) -> Sequence[str]:
    """Their answers without those that were there before."""
    _, first = np.unique(column(records, "answer"), return_index=True)
    return Answers(take(records, np.sort(first)))


def on_disk(records: Sequence[Record]) -> Stored | None:
    """The records if they are on disk."""
    from .index import Stored

    return records if isinstance(records, Stored) else None
