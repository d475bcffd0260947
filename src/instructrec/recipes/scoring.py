"""What a suite's answers are worth: raw text, the answer in it, scores, references, ranking, with intervals."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import console
from ..config import EvaluateSettings
from ..data.records import Record
from ..data.suites import clusters_of
from ..evaluation.arms import ARMS, Answered, Asked, Bench
from ..inference.ranking import Candidates, likelihoods
from ..measures.calibration import calibration, probabilities
from ..measures.extraction import Extractor
from ..measures.metrics import METRICS, RowScores, label_set, score
from ..measures.statistics import Estimate, Statistic, bootstrap, paired_difference
from .known import Known
from .suites import Suite

WORST = 10
RESAMPLES = 1000
SHORT = 24  # characters: answers of this median length or less are right or wrong as a whole
RANKED = ("accuracy", "macro_f1", "exact_match")
REFERENCES = ("exact_match", "accuracy", "macro_f1", "token_f1")


@dataclass(frozen=True)
class Measured:
    """entry: of the suite in report.json.  primary: the metric shown first.  samples: lines of answers.jsonl.
    answered: of each arm.  extract, references, owners: how the answers were scored, and the clusters of intervals."""

    entry: dict[str, Any]
    primary: str
    samples: list[dict[str, Any]]
    answered: dict[str, Answered]
    extract: Extractor
    references: list[list[str]]
    owners: list[str] | None


def measure(suite: Suite, bench: Bench, asked: Asked, known: Known, settings: EvaluateSettings) -> Measured:
    """Answer the rows of a suite with every arm and score them."""
    return _Scoring(suite, bench, asked, known, settings).measured()


class _Scoring:
    """One suite."""

    def __init__(self, suite: Suite, bench: Bench, asked: Asked, known: Known, settings: EvaluateSettings) -> None:
        self.suite, self.bench, self.asked, self.known, self.settings = suite, bench, asked, known, settings
        self.records, self.arms, self.seed = suite.records, list(asked.rows), settings.seed
        self.labels = closed_set(bench, self.records)
        self.references = [bench.loaded.renderer.accepted(record.answers) for record in self.records]
        self.clusters, self.owners = clusters_of(self.records)

    def measured(self) -> Measured:
        records, arms, labels = self.records, self.arms, self.labels
        answered: dict[str, Answered] = {}
        with console.progress(len(records) * len(arms), f"Answering {self.suite.name}", unit="rows") as bar:
            for arm in arms:
                bar.advance(0, arm=arm)
                answered[arm] = self.bench.answer(arm, self.asked, bar.advance)
        extract = Extractor.of(labels, self.references, self.settings.extract)
        found = {arm: [extract(text) for text in result.texts] for arm, result in answered.items()}
        scores = {
            arm: score([text for text, _ in found[arm]], self.references, labels=labels, losses=result.losses)
            for arm, result in answered.items()
        }
        pairs = [("tuned", other) for other in ("base", "reread", "few_shot")] if "tuned" in arms else []
        primary = primary_metric(self.bench, labels, records)
        ranked, calibrated, chosen, ranking_notes = self._ranked()
        entry = {
            "name": self.suite.name,
            "file": self.suite.file,
            "sha256": self.suite.sha256,
            "kind": self.suite.kind,
            "rows": len(records),
            "clusters": self.clusters,
            "overlap": self.suite.overlap,
            "scores": {arm: self._estimates(one) for arm, one in scores.items()},
            "differences": {f"{a}-{b}": self._differences(scores[a], scores[b]) for a, b in pairs if b in scores},
            "by_task": self._by_task(scores),
            "worst": self._worst(answered, scores[arms[-1]]),
            "extraction": {arm: dict(Counter(rule for _, rule in one)) for arm, one in found.items()},
            "notes": self._notes(answered, scores) + ranking_notes,
        }
        if reference := self._references(primary):
            entry["references"] = reference
        if ranked:
            entry |= {"ranked": ranked, "calibration": calibrated}
        samples = self._samples(answered, found, scores, chosen)
        return Measured(entry, primary, samples, answered, extract, self.references, self.owners)

    def _notes(self, answered: Mapping[str, Answered], scores: Mapping[str, RowScores]) -> list[str]:
        notes = [self.suite.account] * bool(self.suite.account) + list(self.suite.notes)
        notes += [
            f"{ARMS[arm]}: {result.ended:.0f}% of answers ended by themselves" for arm, result in answered.items()
        ]
        if self.labels:
            notes += [f"{ARMS[arm]}: {one.outside_share:.1f}% of answers are no label" for arm, one in scores.items()]
        found_by = [found for one in scores.values() for found in one.statistics.values()]
        return notes + sorted({f"sacrebleu {found.note}" for found in found_by if found.note})

    # -- intervals ---------------------------------------------------------------------------------------------------

    def _estimates(self, scores: RowScores) -> dict[str, dict[str, float]]:
        return {name: self._estimate(statistic) for name, statistic in scores.statistics.items()}

    def _estimate(self, statistic: Statistic) -> dict[str, float]:
        return entry_of(bootstrap(statistic, resamples=RESAMPLES, seed=self.seed, clusters=self.owners))

    def _differences(self, a: RowScores, b: RowScores) -> dict[str, dict[str, float]]:
        given: dict[str, Any] = {"resamples": RESAMPLES, "seed": self.seed, "clusters": self.owners}
        shared = [name for name in a.statistics if name in b.statistics]
        return {name: entry_of(paired_difference(a.statistics[name], b.statistics[name], **given)) for name in shared}

    def _by_task(self, scores: Mapping[str, RowScores]) -> dict[str, Any]:
        """Scores of each task, with intervals over its wordings or rows."""
        found = {}
        for task, rows in _tasks(self.records).items():
            _, owners = clusters_of([_without_task(self.records[row]) for row in rows])
            found[task] = {
                arm: {
                    name: entry_of(bootstrap(one, resamples=RESAMPLES, seed=self.seed, clusters=owners))
                    for name, one in scored.take(rows).statistics.items()
                }
                for arm, scored in scores.items()
            }
        return found

    # -- what scores are to be compared with ---------------------------------------------------------------------------

    def _references(self, primary: str) -> dict[str, Any]:
        """Scores of who guesses and of who always says the commonest answer; {} where answers are texts."""
        if primary not in REFERENCES:
            return {}
        given = [self._commonest(record) for record in self.records]
        by_majority = score(given, self.references, labels=self.labels)
        names = [name for name in REFERENCES if name in by_majority.statistics]
        right = [len({*self.labels} & {*texts}) for texts in self.references] if self.labels else []
        guessed = 100.0 * sum(right) / len(right) / len(self.labels) if self.labels else None
        chance = {name: guessed if name in ("accuracy", "exact_match") else None for name in names}
        return {
            "chance": chance,
            "majority": {name: by_majority.statistics[name].value for name in names},
            "majority_from": "the training rows" if self._majority else "the test rows",
        }

    @property
    def _majority(self) -> Mapping[str, str]:
        return self.known.traits.majority if self.known.traits else {}

    def _commonest(self, record: Record) -> str:
        """The commonest answer among the training rows of the row's task, else among all; else among the rows."""
        known = self._majority
        return known.get(record.task or "", known[""]) if known else self._own_majority[record.task]

    @cached_property
    def _own_majority(self) -> dict[str | None, str]:
        counts: dict[str | None, Counter[str]] = {}
        for record in self.records:
            counts.setdefault(record.task, Counter())[record.answer] += 1
        return {task: found.most_common(1)[0][0] for task, found in counts.items()}

    # -- labels by likelihood ------------------------------------------------------------------------------------------

    def _ranked(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, list[dict[str, Any]]], list[str]]:
        """Of each arm: scores, calibration, and label and confidence of each row; notes where it can't be done."""
        if not self.labels or not self.settings.ranking:
            return {}, {}, {}, []
        rows, loaded = self.asked.rows, self.bench.loaded
        candidates = candidates_of(self.bench, self.records[0], self.labels)
        least = min(self.bench.room(row, arm) for arm in self.arms for row in rows[arm])
        if candidates.longest > least:
            longest = f"the longest label has {candidates.longest} tokens, and there is room for {least}"
            return {}, {}, {}, [f"labels were not ranked: {longest}"]
        ranked, calibrated, chosen = {}, {}, {}
        given: dict[str, Any] = {"pad_id": loaded.backbone.pad_id, "batch_rows": self.settings.batch_rows}
        with console.progress(len(self.records) * len(self.arms), f"Ranking {self.suite.name}", unit="rows") as bar:
            for arm in self.arms:
                with self.bench.model_of(arm) as model:
                    logs = likelihoods(model, rows[arm], candidates, done=bar.advance, **given)
                shares = probabilities(logs)
                best = shares.argmax(1)
                texts = [self.labels[place] for place in best]
                scored = score(texts, self.references, labels=self.labels)
                ranked[arm] = {name: self._estimate(scored.statistics[name]) for name in RANKED}
                right = scored.values("exact_match") / 100.0
                sure = shares[np.arange(len(best)), best]
                found, bins = calibration(sure, right, resamples=RESAMPLES, seed=self.seed, clusters=self.owners)
                calibrated[arm] = {"ece": entry_of(found), "bins": bins}
                chosen[arm] = [
                    {"label": text, "confidence": round(float(share), 4)}
                    for text, share in zip(texts, sure, strict=True)
                ]
        return ranked, calibrated, chosen, []

    # -- rows ----------------------------------------------------------------------------------------------------------

    def _worst(self, answered: Mapping[str, Answered], scores: RowScores) -> list[dict[str, Any]]:
        """Rows that the last arm answered worst, by token F1, at most ten; wrong answers only."""
        values, exact = scores.values("token_f1"), scores.values("exact_match")
        places = [place for place in np.argsort(values, kind="stable").tolist() if exact[place] < 100][:WORST]
        return [
            {
                "origin": str(self.records[place].origin),
                "task": self.records[place].task,
                "prompt": self.records[place].last_user.content,
                "expected": self.records[place].answer,
                "answers": {arm: answered[arm].texts[place] for arm in self.arms},
                "score": round(float(values[place]), 1),
            }
            for place in places
        ]

    def _samples(
        self,
        answered: Mapping[str, Answered],
        found: Mapping[str, Sequence[tuple[str, str]]],
        scores: Mapping[str, RowScores],
        chosen: Mapping[str, Sequence[Mapping[str, Any]]],
    ) -> list[dict[str, Any]]:
        """A line of answers.jsonl for each row: what was asked, written, taken for the answer, and what it is worth."""
        own = {
            arm: {name: one.values(name) for name in one.statistics if METRICS[name].per_row}
            for arm, one in scores.items()
        }
        last = self.arms[-1]
        return [
            {
                "suite": self.suite.name,
                "kind": self.suite.kind,
                "origin": str(record.origin),
                "row": record.key,
                "prompt": record.prompt_key,
                "target": _digest(self.asked.rows[last][place].ids[self.asked.rows[last][place].prompt_end :]),
                "rendered": {
                    arm: _digest(rows[place].ids[: rows[place].prompt_end]) for arm, rows in self.asked.rows.items()
                },
                "task": record.task,
                "cluster": self.owners[place] if self.owners else None,
                "expected": record.answer,
                "answers": {arm: result.texts[place] for arm, result in answered.items()},
                "extracted": {arm: {"text": one[place][0], "rule": one[place][1]} for arm, one in found.items()},
                "scores": {
                    arm: {name: round(float(values[place]), 2) for name, values in one.items()}
                    for arm, one in own.items()
                },
                "ranked": {arm: one[place] for arm, one in chosen.items()},
                "finish": {arm: result.finish[place] for arm, result in answered.items()},
                "nats": {arm: round(result.losses[place][0], 4) for arm, result in answered.items()},
                "tokens": answered[last].losses[place][1],
            }
            for place, record in enumerate(self.records)
        ]


def closed_set(bench: Bench, records: Sequence[Record]) -> tuple[str, ...] | None:
    """The closed set of labels: the run's, else that of the rows, else None."""
    own = bench.loaded.renderer.labels
    known = own.labels if own else bench.loaded.run.get("labels")
    return tuple(known) if known else label_set([record.answer for record in records])


def candidates_of(bench: Bench, record: Record, labels: Sequence[str]) -> Candidates:
    """The labels as answers to a record."""
    shown = [Record.of(record.instruction, label, input=record.input, system=record.system) for label in labels]
    return Candidates.of(bench.loaded.renderer, shown)


def primary_metric(bench: Bench, labels: Any, records: Sequence[Record]) -> str:
    """The metric that is shown first: accuracy for labels, exact match for short or fixed answers, chrF for texts."""
    if labels:
        return "accuracy"
    lengths = sorted(len(record.answer) for record in records)
    fixed = bench.loaded.run.get("fixed_answers", False)
    return "exact_match" if fixed or lengths[len(lengths) // 2] <= SHORT else "chrf"


def entry_of(estimate: Estimate) -> dict[str, float]:
    """An estimate as report.json has it."""
    return asdict(estimate)


def _digest(ids: Sequence[int]) -> str:
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()[:16]


def _tasks(records: Sequence[Record]) -> dict[str, list[int]]:
    tasks: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        if record.task:
            tasks.setdefault(record.task, []).append(place)
    return tasks if len(tasks) > 1 else {}


def _without_task(record: Record) -> Record:
    return Record(record.turns, None, record.group)


__all__ = ["RESAMPLES", "Measured", "candidates_of", "entry_of", "closed_set", "measure", "primary_metric"]
