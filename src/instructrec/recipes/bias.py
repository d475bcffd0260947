"""Execution bias of a model: labels, places of options, and names that must not matter (`report["bias"]`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.facts import wording_key
from ..data.language import script_of
from ..data.records import Origin, Record, Turn
from ..evaluation.arms import Bench
from ..evaluation.probes import probe
from ..inference.ranking import Candidates, likelihoods
from ..measures.bias import Exchange, distance_from_even, distance_from_truth, exchanges, position_choices
from ..measures.calibration import probabilities
from ..measures.statistics import Floats, Statistic, bootstrap, mean_of
from ..measures.text import normalise
from ..prompts.tasks import CONTENT_FREE
from ..prompts.template import Rendered
from .proofs import answers, languages_of, prompt_of
from .scoring import RESAMPLES, Measured, candidates_of, closed_set, entry_of
from .suites import Suite

LETTERS = ("A", "B", "C", "D")
WORDINGS = 8  # of which content-free rows are made
ROWS, FEWEST = 20, 5  # rows of the files in which names are exchanged; with fewer, rows of our own are taken
KINDS = {"names": "Other names", "genders": "Other gender", "cities": "Other cities"}
NAMES = ("label_bias", "content_free", "option_position", "option_order", *(f"counterfactual_{kind}" for kind in KINDS))
LINES = {"en": "Answer with the letter of the right option.", "zh": "请回答正确选项的字母。"}


@dataclass(frozen=True)
class _Row:
    """A row whose answer must not change. labels: to choose from, or None for an answer in words."""

    record: Record
    labels: tuple[str, ...] | None
    language: str
    texts: dict[str, str] | None = None  # what each arm has answered to it already


def bias(
    bench: Bench, suites: Sequence[Suite], measured: Sequence[Measured], arms: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Checks that apply: label bias and content-free rows where answers are labels, places of options and exchanged
    names always (on rows of our own where the files have none). 0 percent is a model without that bias."""
    languages = languages_of([record for suite in suites for record in suite.records])
    checks = _Checks(bench, arms, languages, seed)
    found = checks.labels(suites, measured)
    if bench.loaded.backbone.kind.chooses:  # letters of options and exchanged names ask for text
        return found
    found += checks.positions()
    return found + [entry for kind in KINDS if (entry := checks.exchanged(kind, suites, measured))]


class _Checks:
    def __init__(self, bench: Bench, arms: Sequence[str], languages: Sequence[str], seed: int) -> None:
        self.bench, self.arms, self.languages, self.seed = bench, list(arms), languages, seed
        # Rows are the same for all kinds of exchange; a key holds the whole prompt.
        self.said: dict[tuple[str, tuple[int, ...], tuple[str, ...]], str] = {}

    def labels(self, suites: Sequence[Suite], measured: Sequence[Measured]) -> list[dict[str, Any]]:
        """Label bias on the first suite of which the labels were ranked."""
        pairs = zip(suites, measured, strict=True)
        suite, result = next(((one, other) for one, other in pairs if "ranked" in other.entry), (None, None))
        if suite is None or result is None:
            return []
        labels = closed_set(self.bench, suite.records)
        assert labels
        known = {normalise(label): label for label in labels}
        truth = [known.get(normalise(record.answer), record.answer) for record in suite.records]
        chosen = {arm: [sample["ranked"][arm]["label"] for sample in result.samples] for arm in self.arms}
        entries = [
            self._entry(
                "label_bias",
                "Label bias",
                "Share of the labels chosen that would have to be others to be spread as the right ones are.",
                {arm: distance_from_truth(chosen[arm], truth, labels) for arm in self.arms},
            )
        ]
        return entries + self._content_free(suite, labels)

    def _content_free(self, suite: Suite, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Labels of rows whose input says nothing."""
        wordings = {wording_key(record): record for record in suite.records if record.input}
        records, owners = [], []
        for wording, record in list(wordings.items())[:WORDINGS]:
            language = "zh" if script_of(record.last_user.content) == "Han" else "en"
            for text in CONTENT_FREE[language]:
                turns = (*record.turns[:-2], Turn("user", record.instruction, input=text))
                records.append(replace(record, turns=turns))
                owners.append(wording)
        candidates = candidates_of(self.bench, suite.records[0], labels) if records else None
        prompts = [prompt_of(self.bench, record, self.arms, candidates.longest) for record in records if candidates]
        if candidates is None or not prompts or None in prompts:
            return []
        given = [prompt for prompt in prompts if prompt is not None]
        return [
            self._entry(
                "content_free",
                "Labels of rows that say nothing",
                "How far the probabilities of the labels are from even where the input is N/A, [MASK] or empty.",
                {arm: distance_from_even(probabilities(self._rank(arm, given, candidates))) for arm in self.arms},
                owners,
            )
        ]

    def positions(self) -> list[dict[str, Any]]:
        """Whether the choice among four options follows the place at which they stand."""
        asked: list[list[Rendered]] = []
        candidates = candidates_of(self.bench, Record.of("Which?"), LETTERS)
        for language in self.languages:
            for number, question in enumerate(probe("options")[language], 1):
                rows = []
                for turn in range(len(LETTERS)):
                    options = question["options"][-turn:] + question["options"][:-turn] if turn else question["options"]
                    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=True)]
                    text = "\n".join([question["q"], *lines, LINES[language]])
                    record = Record.of(text, origin=Origin(f"options/{language}", number))
                    rows.append(prompt_of(self.bench, record, self.arms, candidates.longest))
                whole = [row for row in rows if row is not None]
                if len(whole) == len(LETTERS):
                    asked.append(whole)
        if not asked:
            return []
        places: dict[str, Floats] = {}
        for arm in self.arms:
            logs = self._rank(arm, [row for rows in asked for row in rows], candidates)
            places[arm] = logs.argmax(1).reshape(-1, len(LETTERS)).astype(np.float64)
        found = {arm: position_choices(one) for arm, one in places.items()}
        return [
            self._entry(
                "option_position",
                "Option position",
                "Questions with four options, each asked with every option in every place: share of the choices that "
                "would have to move for all places to be chosen equally often.",
                {arm: one[0] for arm, one in found.items()},
            ),
            self._entry(
                "option_order",
                "Option order",
                "The same questions: share whose chosen option changes when the options change places.",
                {arm: one[1] for arm, one in found.items()},
            ),
        ]

    def exchanged(self, kind: str, suites: Sequence[Suite], measured: Sequence[Measured]) -> dict[str, Any] | None:
        """Share of rows whose answer changes when names, genders or cities in them do."""
        rows = self._of_files(kind, suites, measured)
        own = len(rows) < FEWEST
        if own:
            rows = self._of_ours()
        found = [(row, exchanges(row.record.last_user.content, probe("names")[row.language], kind)) for row in rows]
        pairs = [(row, exchange) for row, exchange in found if exchange is not None]
        others = [replace(row, record=_with(row.record, exchange), texts=None) for row, exchange in pairs]
        changed: dict[str, list[float]] = {}
        for arm in self.arms:
            before, after = self._answers(arm, [row for row, _ in pairs]), self._answers(arm, others)
            changed[arm] = [
                100.0 * (normalise(exchange(first)) != normalise(second))
                for (_, exchange), first, second in zip(pairs, before, after, strict=True)
                if first is not None and second is not None
            ]
        if not changed[self.arms[0]]:
            return None
        where = "of our own, as the files have too few such rows" if own else "of the files"
        return self._entry(
            f"counterfactual_{kind}",
            KINDS[kind],
            f"Share of rows ({where}) whose answer changes when {kind} in them are exchanged.",
            {arm: mean_of(found, (0.0, 100.0)) for arm, found in changed.items()},
        )

    def _of_files(self, kind: str, suites: Sequence[Suite], measured: Sequence[Measured]) -> list[_Row]:
        found: list[_Row] = []
        for suite, result in zip(suites, measured, strict=True):
            labels = closed_set(self.bench, suite.records)
            for place, record in enumerate(suite.records):
                language = "zh" if script_of(record.last_user.content) == "Han" else "en"
                if exchanges(record.last_user.content, probe("names")[language], kind) is None:
                    continue
                texts = {arm: result.answered[arm].texts[place] for arm in self.arms}
                found.append(_Row(record, labels, language, None if labels else texts))
        order = np.random.default_rng(self.seed).permutation(len(found))[:ROWS]
        return [found[place] for place in sorted(order.tolist())]

    def _of_ours(self) -> list[_Row]:
        found = []
        for number, row in enumerate(probe("names")["rows"], 1):
            record = Record.of(row["instruction"], input=row["input"], origin=Origin("names", number))
            language = "zh" if script_of(row["input"]) == "Han" else "en"
            if language in self.languages:
                found.append(_Row(record, tuple(sorted(row["labels"])), language))
        return found

    def _answers(self, arm: str, rows: Sequence[_Row]) -> list[str | None]:
        """What an arm answers to each row: the likeliest of its labels, or words; None where the row does not fit."""
        texts: list[str | None] = [row.texts[arm] if row.texts else None for row in rows]
        groups: dict[tuple[str, ...] | None, list[int]] = {}
        for place, row in enumerate(rows):
            if not row.texts:
                groups.setdefault(row.labels, []).append(place)
        for labels, places in groups.items():
            if labels:
                candidates = candidates_of(self.bench, rows[places[0]].record, labels)
                room = candidates.longest
            else:
                longest = max(len(self.bench.loaded.renderer.answer_ids(rows[place].record)[0]) for place in places)
                room = longest + max(8, longest // 4)
            prompts = {place: prompt_of(self.bench, rows[place].record, self.arms, room) for place in places}
            fitting = {place: prompt for place, prompt in prompts.items() if prompt is not None}
            if not fitting:
                continue
            if not labels:
                said = answers(self.bench, arm, list(fitting.values()), room, lambda _: None)
                for place, text in zip(fitting, said, strict=True):
                    texts[place] = text
                continue
            keys = {place: (arm, tuple(prompt.ids), labels) for place, prompt in fitting.items()}
            new = [place for place in fitting if keys[place] not in self.said]
            if new:
                scores = self._rank(arm, [fitting[place] for place in new], candidates)
                self.said |= {keys[place]: labels[int(best)] for place, best in zip(new, scores.argmax(1), strict=True)}
            for place in fitting:
                texts[place] = self.said[keys[place]]
        return texts

    def _rank(self, arm: str, prompts: Sequence[Rendered], candidates: Candidates) -> Floats:
        with self.bench.model_of(arm) as model:
            pad, rows = self.bench.loaded.backbone.pad_id, self.bench.batch_rows
            return likelihoods(model, prompts, candidates, pad_id=pad, batch_rows=rows)

    def _entry(
        self,
        name: str,
        label: str,
        explanation: str,
        found: dict[str, Statistic],
        clusters: Sequence[Hashable] | None = None,
    ) -> dict[str, Any]:
        estimates = {
            arm: entry_of(bootstrap(one, resamples=RESAMPLES, seed=self.seed, clusters=clusters))
            for arm, one in found.items()
        }
        rows = max(len(one) for one in found.values())
        return {
            "name": name, "label": label, "arm": estimates, "ideal": 0.0, "explanation": explanation, "rows": rows
        }  # fmt: skip


def _with(record: Record, exchange: Exchange) -> Record:
    """The record with what it asks exchanged; its answer is left."""
    turns = list(record.turns)
    place = max(number for number, turn in enumerate(turns) if turn.role == "user")
    turns[place] = replace(turns[place], text=exchange(turns[place].text), input=exchange(turns[place].input))
    return replace(record, turns=tuple(turns))


__all__ = ["NAMES", "bias"]
