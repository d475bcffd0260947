"""What must be known of every row to split, count and compare, as numbers: of rows on disk they are read from there,
of others worked out. So the same lines serve a hundred rows and five million.

N rows.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .language import script_number
from .records import Origin, Record, Turn

if TYPE_CHECKING:
    from .index import Stored

Numbers = NDArray[np.uint64]
from_bytes = int.from_bytes


class Facts(NamedTuple):
    """key, prompt: `Record.key` and `Record.prompt_key` as numbers.  wording, answer: hashes of 64 bits.
    answers: supervised turns of the assistant."""

    key: int
    prompt: int
    wording: int
    answer: int
    answers: int


class Marks(NamedTuple):
    """What `consistency` looks at. same, said: hashes of prompt and answer, case and spacing aside.
    scripts: numbers of the scripts of prompt and answer in `language.SCRIPTS`, 16 times the first and the second.
    odd: bits `COPIED`, `LONG` and `WORDLESS`."""

    same: int
    said: int
    scripts: int
    odd: int


COPIED, LONG, WORDLESS = 1, 2, 4
MANY = 20_000  # characters of one turn that is long


def facts(record: Record) -> Facts:
    """The facts of one record."""
    last = record.turns[-1] if record.turns else None
    answer = last.text if last and last.role == "assistant" else ""
    prompt, key = keys(record)
    answers = 0
    for turn in record.turns:
        answers += turn.supervised and turn.role == "assistant"
    wording = hashed(wording_key(record)) if record.group else _told(_asked(record).text).wording
    return Facts(key, prompt, wording, hashed(answer), min(answers, 65535))


def keys(record: Record) -> tuple[int, int]:
    """`Record.prompt_key` and `Record.key` as numbers."""
    turns = record.turns
    last = turns[-1] if turns and turns[-1].role == "assistant" and turns[-1].text else None
    digest = sha256(b"".join([_spelled(turn) for turn in (turns[:-1] if last else turns)]))
    prompt = key = from_bytes(digest.digest()[:8], "big")
    if last:
        digest.update(_spelled(last))
        key = from_bytes(digest.digest()[:8], "big")
    return prompt, key


def marks(record: Record, known: int | None = None) -> Marks:
    """The marks of one record. known: `Facts.answer`, where that is known."""
    turns, asked = record.turns, _asked(record)
    last = turns[-1]
    answer, more = last.text if last.role == "assistant" else "", asked.input
    told, said = _told(asked.text), normalise(answer)
    source = normalise(more) if more else ""
    # A system message belongs to the prompt: the same question under another one may have another answer.
    alone = len(turns) == (2 if answer else 1)
    same = f"user\0{told.normal}\0{source}" if alone else _whole(turns[:-1] if answer else turns)
    if told.plain is not None and more.isascii():
        script = told.plain or script_number(more)
    else:
        script = script_number(asked.content)
    # An answer that repeats the input (the instruction where there is none), whole or nine tenths of it.
    if not more:
        source = told.normal
    odd = COPIED if said and len(said) >= 0.9 * len(source) and said in source else 0
    for turn in turns:
        if len(turn.text) > MANY or len(turn.input) > MANY:
            odd |= LONG
    if answer and not answer[0].isalnum() and not any(map(str.isalnum, answer[:1000])):
        odd |= WORDLESS
    kept = known if known is not None and said == answer else hashed(said)
    return Marks(hashed(same), kept, 16 * script + script_number(answer), odd)


def normalise(text: str) -> str:
    """Case and spacing aside."""
    return " ".join(text.split()).casefold()


def _whole(turns: Sequence[Turn]) -> str:
    return "\0".join([f"{turn.role}\0{normalise(turn.text)}\0{normalise(turn.input)}" for turn in turns])


def _asked(record: Record) -> Turn:
    """`Record.last_user`, which of most rows is the last turn but one."""
    turns = record.turns
    near = turns[-2] if len(turns) > 1 else turns[-1]
    return near if near.role == "user" and turns[-1].role == "assistant" else record.last_user


def _spelled(turn: Turn) -> bytes:
    """As `records._key` spells it: lengths before texts."""
    role, text = turn.role.encode(), turn.text.encode("utf-8", "surrogatepass")
    if not turn.input:
        return b"%b%b%b%b%b" % (_size(len(role)), role, _size(len(text)), text, _NOTHING)
    more = turn.input.encode("utf-8", "surrogatepass")
    return b"%b%b%b%b%b%b" % (_size(len(role)), role, _size(len(text)), text, _size(len(more)), more)


class _Told(NamedTuple):
    """Of an instruction: hash of its wording, itself without case and spacing, its script's number if it is ASCII."""

    wording: int
    normal: str
    plain: int | None


@lru_cache(4096)  # many rows share theirs
def _told(text: str) -> _Told:
    normal = normalise(text)
    return _Told(hashed(normal), normal, script_number(text) if text.isascii() else None)


_size = struct.Struct("<Q").pack
_NOTHING = _size(0)


def hashed(text: str) -> int:
    """64 bits of blake2b: of five million texts, two different ones are alike with a chance of one in a million."""
    return from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def wording_key(record: Record) -> str:
    """Rows with equal keys are one wording: the row's group, else its instruction, case and spacing aside."""
    return record.group or normalise(record.instruction)


def column(records: Sequence[Record], name: str) -> NDArray[Any]:
    """One of the numbers of `Facts`, of each record."""
    if stored := on_disk(records):
        return stored.column(name)
    if name == "wording":  # the only one that is asked for often, and most rows share theirs
        return np.fromiter((hashed(wording_key(record)) for record in records), np.uint64, len(records))
    place = Facts._fields.index(name)
    return np.fromiter((facts(record)[place] for record in records), np.uint64, len(records))


def marked(records: Sequence[Record]) -> dict[str, NDArray[Any]]:
    """All numbers of `Marks`, of each record."""
    if stored := on_disk(records):
        return {name: stored.column(name) for name in Marks._fields}
    table = np.array([marks(record) for record in records], dtype=np.uint64).reshape(-1, len(Marks._fields))
    return dict(zip(Marks._fields, table.T, strict=True))


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
