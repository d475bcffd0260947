"""Which rows test what: rows of a test file sorted by what a run was trained on, and what their intervals are over.

A row is, the first that holds:

    training         its prompt was trained on
    other_language   its prompt or its answer is in a language (a column `language`) or a script that training rows lack
    other_domains    its domain (a column `domain`, `source` or `dataset`) is none of the training rows'
    unseen_tasks     its task is none of theirs
    unseen_wordings  its wording (`splits.wording_key`) is none of theirs
    seen             all of that was trained on, this row was not
    all              nothing is known of the training rows but their prompts, or there were none
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .facts import column, hashed, take, wording_key
from .facts import tasks as tasks_of
from .language import script_of
from .records import Record

KINDS = ("all", "seen", "unseen_wordings", "unseen_tasks", "other_domains", "other_language", "training")
DOMAIN_COLUMNS = ("domain", "source", "dataset")
LANGUAGE_COLUMNS = ("language", "lang")
MOST = 100_000  # training rows that are read for all but their tasks and wordings, drawn by seed
MOST_DOMAINS = 1000  # a column with more different values names no domains
RARE = 0.01  # a script that fewer of the training rows are in is a slip of theirs, not a language that was trained
FEWEST_CLUSTERS = 5  # with fewer tasks or wordings a bootstrap over them says nothing


@dataclass(frozen=True)
class Traits:
    """What training rows were like, as far as sorting test rows needs it.

    wordings: hashes of their wordings (`facts.hashed`).  tasks, domains, languages: by name; none where no row has any.
    domain_column: that `domains` come from.  scripts: of prompts and of answers.  majority: the commonest answer of all
    rows (under '') and of each task.
    """

    wordings: frozenset[int] = frozenset()
    tasks: frozenset[str] = frozenset()
    domain_column: str = ""
    domains: frozenset[str] = frozenset()
    languages: frozenset[str] = frozenset()
    scripts: Mapping[str, frozenset[str]] = field(default_factory=dict)
    majority: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0

    @classmethod
    def of(cls, records: Sequence[Record], seed: int = 0) -> Traits:
        """Of training rows. Of very many, domains, scripts and commonest answers are those of a sample."""
        numbers, names = tasks_of(records)
        languages: set[str] = set()
        domains: dict[str, set[str]] = {name: set() for name in DOMAIN_COLUMNS}
        scripts: dict[str, Counter[str]] = {"prompt": Counter(), "answer": Counter()}
        answers: dict[str, Counter[str]] = {"": Counter()}
        for record in take(records, sample(len(records), MOST, seed)):
            answers[""][record.answer] += 1
            if record.task:
                answers.setdefault(record.task, Counter())[record.answer] += 1
            for name, found in domains.items():
                if (value := _value(record, name)) and len(found) <= MOST_DOMAINS:
                    found.add(value)
            if language := language_of(record):
                languages.add(language)
            for part, text in _texts(record):
                if script := script_of(text):
                    scripts[part][script] += 1
        known = [name for name, found in domains.items() if 0 < len(found) <= MOST_DOMAINS]
        return cls(
            wordings=frozenset(np.unique(column(records, "wording")).tolist()),
            tasks=frozenset(names[number] for number in np.unique(numbers).tolist() if number >= 0),
            domain_column=known[0] if known else "",
            domains=frozenset(domains[known[0]]) if known else frozenset(),
            languages=frozenset(languages),
            scripts={part: _usual(counts) for part, counts in scripts.items()},
            majority={task: _commonest(counts) for task, counts in answers.items() if counts},
            rows=len(records),
        )

    def to_json(self) -> dict[str, Any]:
        """As a run folder keeps it, without the wordings, which may be as many as rows."""
        plain = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in asdict(self).items()}
        del plain["wordings"]
        return plain | {"scripts": {part: sorted(found) for part, found in self.scripts.items()}}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], wordings: Sequence[int]) -> Traits:
        """From what `to_json` gave, and the wordings."""
        sets = {name: frozenset(value[name]) for name in ("tasks", "domains", "languages")}
        return cls(
            wordings=frozenset(wordings),
            **sets,
            domain_column=value["domain_column"],
            scripts={part: frozenset(found) for part, found in value["scripts"].items()},
            majority=dict(value["majority"]),
            rows=value["rows"],
        )

    def kind_of(self, record: Record) -> str:
        """The kind of a row that was not trained on."""
        if self._foreign(record):
            return "other_language"
        domain = _value(record, self.domain_column) if self.domain_column else ""
        if domain and domain not in self.domains:
            return "other_domains"
        if self.tasks and record.task and record.task not in self.tasks:
            return "unseen_tasks"
        return "seen" if hashed(wording_key(record)) in self.wordings else "unseen_wordings"

    def _foreign(self, record: Record) -> bool:
        language = language_of(record)
        if language and self.languages:
            return language not in self.languages
        parts = ((script_of(text), self.scripts.get(part)) for part, text in _texts(record))
        return any(script and known and script not in known for script, known in parts)


def sample(size: int, most: int, seed: int) -> list[int]:
    """At most so many of the places 0 to size - 1, drawn by seed, in order."""
    if size <= most:
        return list(range(size))
    return np.sort(np.random.default_rng(seed).permutation(size)[:most]).tolist()


def sort_rows(records: Sequence[Record], trained: frozenset[str], traits: Traits | None) -> dict[str, list[Record]]:
    """kind -> its rows in file order, kinds in the order of `KINDS`.

    trained: keys of the prompts that were trained on.  traits: None where no more is known than that.
    """
    found: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for record in records:
        kind = traits.kind_of(record) if traits else "all"
        if record.prompt_key in trained:
            kind = "training"
        found[kind].append(record)
    return {kind: rows for kind, rows in found.items() if rows}


def clusters_of(records: Sequence[Record], fewest: int = FEWEST_CLUSTERS) -> tuple[str, list[str] | None]:
    """What a bootstrap over these rows draws (tasks, wordings or rows), and the cluster of each row (None: its own).

    Tasks where all rows name theirs and there are five or more, else wordings where there are five or more and some of
    them have several rows, else rows.
    """
    tasks = [record.task or "" for record in records]
    if all(tasks) and fewest <= len(set(tasks)):
        return "tasks", tasks
    wordings = [wording_key(record) for record in records]
    if fewest <= len(set(wordings)) < len(wordings):
        return "wordings", wordings
    return "rows", None


def language_of(record: Record) -> str:
    """What a column `language` or `lang` says, or ''."""
    return next(filter(None, (_value(record, column) for column in LANGUAGE_COLUMNS)), "")


def _value(record: Record, column: str) -> str:
    value = record.metadata.get(column)
    return value.strip() if isinstance(value, str) else ""


def _texts(record: Record) -> tuple[tuple[str, str], ...]:
    return ("prompt", record.last_user.content), ("answer", record.answer)


def _usual(counts: Counter[str]) -> frozenset[str]:
    least = RARE * counts.total()
    return frozenset(script for script, count in counts.items() if count >= least)


def _commonest(counts: Counter[str]) -> str:
    most = max(counts.values())
    return min(answer for answer, count in counts.items() if count == most)
