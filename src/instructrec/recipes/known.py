"""What a run keeps of its rows, so that an evaluation can tell what tests what: traits, signatures, a test part.

split.json              keys of the prompts of each part
traits.json             tasks, wordings, domains and scripts of the training rows, and where they came from
signatures.safetensors  MinHash of at most 100,000 training rows, 256 bytes each
test.jsonl              rows that were kept for testing alone, where there are any
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.facts import column, take
from ..data.records import Media, Origin, Record, Rows, Turn
from ..data.suites import Traits, sample
from ..errors import InputError
from ..files import read_json, sha256_of, write_bytes, write_json, write_text
from ..measures.overlap import Index, Texts
from .watch import TEST

SPLIT, TRAITS, SIGNATURES, TEST_ROWS = "split.json", "traits.json", "signatures.safetensors", "test.jsonl"
MOST = 100_000  # training rows that near duplicates are looked for among
_ARRAYS = ("bodies", "wording", "wordings", "task")


@dataclass(frozen=True)
class Known:
    """What is known of the rows a model was tuned on.

    trained, watched: keys of prompts.  watched_tasks: kept out of training to watch.  traits, index: None for a run
    that was made before they were kept, and for a model that was not tuned.  origins: of the rows of `index`.
    """

    trained: frozenset[str] = frozenset()
    watched: frozenset[str] = frozenset()
    watched_tasks: frozenset[str] = frozenset()
    traits: Traits | None = None
    index: Index | None = None
    origins: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path | None, run: Mapping[str, Any]) -> Known:
        """Of a run folder, None for a model that was not tuned. Raises InputError for files that can't be read."""
        if folder is None or not (folder / SPLIT).is_file():
            return cls()
        parts = dict(read_json(folder / SPLIT))
        trained = frozenset(parts.pop("train"))
        parts.pop(TEST, None)
        watched = frozenset(key for keys in parts.values() for key in keys)
        tasks = frozenset(run["training"]["held_out_tasks"])
        if not (folder / TRAITS).is_file():
            return cls(trained, watched, tasks)
        kept = read_json(folder / TRAITS)
        return cls(trained, watched, tasks, *_index(folder, kept))


def keep_known(folder: Path, train: Sequence[Record], sets: Mapping[str, Sequence[Record]], seed: int) -> None:
    """Write what `Known.of` reads, and the test part, into a run folder. sets: held out; "test": for testing alone."""
    from safetensors.numpy import save

    parts = {"train": train} | dict(sets)
    keys = {name: [f"{key:016x}" for key in column(rows, "prompt").tolist()] for name, rows in parts.items()}
    write_json(folder / SPLIT, keys)
    files: dict[str, int] = {}
    origins: list[tuple[int, int, int]] = []

    def texts() -> Iterable[Texts]:
        for record in take(train, sample(len(train), MOST, seed)):
            origin = record.origin
            item = -1 if origin.item is None else origin.item
            origins.append((files.setdefault(origin.file, len(files)), origin.line, item))
            yield texts_of(record)

    index = Index.of(texts())
    arrays = {name: getattr(index, name) for name in _ARRAYS}
    arrays["origins"] = np.array(origins, dtype=np.int64).reshape(-1, 3)
    traits = Traits.of(train, seed)
    arrays["trained_wordings"] = np.array(sorted(traits.wordings), dtype=np.uint64)
    write_bytes(folder / SIGNATURES, save(arrays))
    about = {"format": 1, "traits": traits.to_json(), "tasks": list(index.tasks), "files": list(files)}
    write_json(folder / TRAITS, about)
    if test := sets.get(TEST):
        write_text(folder / TEST_ROWS, "".join(_line(record) for record in test))


def kept_rows(folder: Path) -> Rows | None:
    """The rows that a run kept for testing alone, None where it kept none. Raises InputError where they are damaged."""
    file = folder / TEST_ROWS
    if not file.is_file():
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        records = tuple(_record(json.loads(line)) for line in lines)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: not as tune wrote it ({error})") from None
    return Rows(records, {str(file): sha256_of(file)}, read=len(records))


def texts_of(record: Record) -> Texts:
    """What of a row near duplicates are looked for by."""
    return Texts(record.instruction, record.input, record.task)


def _index(folder: Path, kept: Mapping[str, Any]) -> tuple[Traits, Index, tuple[str, ...]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    file = folder / SIGNATURES
    try:
        arrays = load_file(file)
        traits = Traits.from_json(kept["traits"], arrays["trained_wordings"].tolist())
        index = Index(**{name: arrays[name] for name in _ARRAYS}, tasks=tuple(kept["tasks"]))
        files = kept["files"]
        origins = tuple(
            str(Origin(files[number], line, None if item < 0 else item))
            for number, line, item in arrays["origins"].tolist()
        )
    except (SafetensorError, KeyError, IndexError, OSError) as error:
        raise InputError(f"{file}: not as tune wrote it ({error})") from None
    return traits, index, origins


def _line(record: Record) -> str:
    told = {
        "turns": [[turn.role, turn.text, turn.input, turn.supervised] for turn in record.turns],
        "task": record.task,
        "group": record.group,
        "alternatives": list(record.alternatives),
        "media": [asdict(one) for one in record.media],
        "origin": asdict(record.origin),
        "metadata": dict(record.metadata),
    }
    return json.dumps(told, ensure_ascii=True, default=str) + "\n"


def _record(told: Mapping[str, Any]) -> Record:
    return Record(
        tuple(Turn(role, text, supervised, about) for role, text, about, supervised in told["turns"]),
        task=told["task"],
        group=told["group"],
        alternatives=tuple(told["alternatives"]),
        media=tuple(Media(**one) for one in told["media"]),
        origin=Origin(**told["origin"]),
        metadata=told["metadata"],
    )


__all__ = ["Known", "keep_known", "kept_rows", "texts_of"]
