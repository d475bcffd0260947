"""Rows asked through a task template: by ranking the words of the labels, or in the model's own words.

N rows, K words, L labels, F content-free inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np

from ..data.records import Record
from ..errors import DataError, InputError, Problem, did_you_mean
from ..inference.embedding import embedder
from ..inference.engine import Sampling, generate
from ..inference.loading import Loaded
from ..inference.ranking import Candidates, Floats, by_label, contextual, likelihoods, next_tokens
from ..measures.text import HAN, normalise
from ..prompts.fewshot import Picker, with_shots
from ..prompts.tasks import Task
from ..prompts.template import Rendered
from ..prompts.verbalizer import Verbalizer, learn

LEARNED_WORDS, LEARNED_FROM = 3, 1000  # words a label, chosen from so many that are likely answers at all
BATCH_TOKENS = 8192

Done = Callable[[int], None]


@dataclass(frozen=True)
class Way:
    """One way of asking. verbalizer None: answers are generated.  words_from: what the verbalizer is called."""

    task: Task
    verbalizer: Verbalizer | None = None
    words_from: str = ""
    shots: int = 0
    by: str = "random"
    order: str = "auto"
    calibrate: str = "none"
    combine: str = "any"
    per_token: bool = False

    @property
    def labels(self) -> list[str]:
        """The words that a template shows as `labels`."""
        return [self.verbalizer.shown(label) for label in self.verbalizer.labels] if self.verbalizer else []

    def to_json(self) -> dict[str, Any]:
        """All of it, for a report."""
        parts = {name: getattr(self, name) for name in ("words_from", "shots", "by", "order")}
        parts |= (
            {name: getattr(self, name) for name in ("calibrate", "combine", "per_token")} if self.verbalizer else {}
        )
        return {"template": self.task.name} | parts


@dataclass(frozen=True)
class Evidence:
    """Log-likelihoods from which scores are made: words [N, K] of each row, premise [N, K] of the domain alone, free
    [N, F, K] of content-free inputs (None: not asked for); tokens [K] of each word.  shots [N]: examples shown."""

    words: Floats
    tokens: Floats
    premise: Floats | None
    free: Floats | None
    shots: list[list[str]]

    def scores(self, way: Way) -> Floats:
        """[N, L]: the label with the highest score is the answer."""
        assert way.verbalizer
        size = self.tokens if way.per_token else np.ones_like(self.tokens)
        words = self.words / size
        if way.calibrate == "pmi":
            assert self.premise is not None
            words = words - self.premise / size
        labels = by_label(words, way.verbalizer, way.combine)
        if way.calibrate != "contextual":
            return labels
        assert self.free is not None
        rows, inputs, count = self.free.shape
        free = by_label((self.free / size).reshape(rows * inputs, count), way.verbalizer, way.combine)
        return contextual(labels, free.reshape(rows, inputs, -1))


class Asker:
    """Asks one model, with examples out of one pool."""

    def __init__(self, loaded: Loaded, pool: Sequence[Record], seed: int, batch_rows: int) -> None:
        self.loaded, self.pool, self.seed, self.batch_rows = loaded, pool, seed, batch_rows
        self._vectors = embedder(loaded)
        self._pickers: dict[tuple[int, str, str], Picker] = {}

    def evidence(self, way: Way, records: Sequence[Record], calibrations: Sequence[str], done: Done) -> Evidence:
        """What is needed to score the labels of rows. done: called with the number of prompts read, of
        `prompts_of(calibrations)` for each row."""
        verbalizer = way.verbalizer
        assert verbalizer
        shown = [way.task.show(records[0], word, way.labels) for _, word in verbalizer.candidates]
        if self.loaded.backbone.kind.chooses:
            if way.per_token:
                raise InputError("per_token: an encoder scores labels as a whole (leave it away)")
            self.loaded = self.loaded.choosing(Verbalizer({one.answer: (one.answer,) for one in shown}))
        candidates = Candidates.of(self.loaded.renderer, shown)
        asked = [self._ask(way, record, candidates.longest, self._answers(way)) for record in records]
        read = self._reader(candidates, done)
        words = read([row for row, _ in asked])
        premise = free = None
        if "pmi" in calibrations:
            premise = read([self.loaded.renderer.prompt(way.task.premise(record, way.labels)) for record in records])
        if "contextual" in calibrations:
            empty = [
                self.loaded.renderer.prompt(with_shots(one, shots))
                for record, (_, shots) in zip(records, asked, strict=True)
                for one in way.task.content_free(record, way.labels)
            ]
            free = read(empty).reshape(len(records), -1, len(candidates))
        return Evidence(words, candidates.tokens, premise, free, [_keys(shots) for _, shots in asked])

    def answer(
        self, way: Way, records: Sequence[Record], max_new_tokens: int | None, done: Done
    ) -> tuple[list[str], list[list[str]]]:
        """Answers in the model's own words, without what stands before the answer's place; and the examples shown.

        Where all right answers are one line an answer ends with its first: pretrained models that were shown examples
        rarely end an answer themselves, and go on with the next example.
        """
        renderer, backbone = self.loaded.renderer, self.loaded.backbone
        longest = max(len(renderer.answer_ids(way.task.show(record, record.answer))[0]) for record in records)
        budget = max_new_tokens or longest + max(8, longest // 4)
        asked = [self._ask(way, record, budget, lambda example: example.answer) for record in records]
        rows = [self._with_lead(way.task, record, row) for record, (row, _) in zip(records, asked, strict=True)]
        sampling = Sampling(max_new_tokens=budget)
        given: dict[str, Any] = {"stop_ids": self.loaded.stop_ids, "pad_id": backbone.pad_id, "sampling": sampling}
        found = generate(self.loaded.model, rows, batch_rows=self.batch_rows, done=done, **given)
        texts = [renderer.decode(one.ids) for one in found]
        if not any("\n" in record.answer for record in (*records, *self.pool)):
            texts = [text.partition("\n")[0].rstrip() for text in texts]
        return texts, [_keys(shots) for _, shots in asked]

    def learned(self, task: Task, labels: Sequence[str], records: Sequence[Record]) -> Verbalizer:
        """The verbalizer that solved rows choose: of the words of one token that are likely answers to them, those that
        tell a label's rows from the others (`verbalizer.learn`). `labels` of the records, in their order."""
        renderer, tokenizer = self.loaded.renderer, self.loaded.backbone.tokenizer
        if self.loaded.backbone.kind.chooses:
            raise InputError("verbalizer: words are learned from models that write text (want a file of words)")
        plain = [label.replace("_", " ") for label in dict.fromkeys(labels)]
        probes = [tuple(renderer.answer_ids(task.show(records[0], text, plain))[0]) for text in ("good", "bad", "是")]
        lead = tuple(commonprefix(probes))
        prompts = [renderer.prompt(task.ask(record, plain)) for record in records]
        prompts = [Candidates(lead, ((0,),)).behind(prompt) for prompt in prompts]
        ids, words = _single_words(tokenizer)
        if not ids:
            raise InputError("verbalizer: this tokenizer has no words of one token to learn from")
        logs = next_tokens(self.loaded.model, prompts, ids, pad_id=self.loaded.backbone.pad_id)
        kept: dict[str, int] = {}
        for column in np.argsort(-logs.mean(0), kind="stable")[: 2 * LEARNED_FROM].tolist():
            word = words[column]
            whole = renderer.answer_ids(task.show(records[0], word, plain))[0]
            if word not in kept and tuple(whole) == (*lead, ids[column]):
                kept[word] = column
            if len(kept) == LEARNED_FROM:
                break
        return learn(logs[:, list(kept.values())], labels, list(kept), LEARNED_WORDS)

    def _reader(self, candidates: Candidates, done: Done) -> Callable[[Sequence[Rendered]], Floats]:
        def read(prompts: Sequence[Rendered]) -> Floats:
            given: dict[str, Any] = {"pad_id": self.loaded.backbone.pad_id, "done": done}
            given |= {"batch_rows": self.batch_rows, "batch_tokens": BATCH_TOKENS}
            return likelihoods(self.loaded.model, prompts, candidates, **given)

        return read

    def _answers(self, way: Way) -> Callable[[Record], str]:
        verbalizer = way.verbalizer
        assert verbalizer
        return lambda example: verbalizer.shown(label_of(example, verbalizer))

    def _picker(self, way: Way) -> Picker:
        key = (way.shots, way.by, way.order)
        if key not in self._pickers:
            given: dict[str, Any] = {"by": way.by, "order": way.order, "seed": self.seed, "vectors": self._vectors}
            self._pickers[key] = Picker(self.pool, way.shots, **given)
        return self._pickers[key]

    def _ask(
        self, way: Way, record: Record, room: int, answer: Callable[[Record], str]
    ) -> tuple[Rendered, list[Record]]:
        """A row's prompt with as many examples as the model can hold beside an answer of `room` tokens."""
        shots = [
            way.task.show(example, answer(example), way.labels)
            for example in (self._picker(way).pick(record) if way.shots else ())
        ]
        asked, limit = way.task.ask(record, way.labels), self.loaded.backbone.max_positions
        while True:
            try:
                row = self.loaded.renderer.prompt(with_shots(asked, shots))
            except InputError as error:
                raise DataError([Problem(record.origin.file, record.origin.line, "prompt", str(error))]) from error
            if room <= self.loaded.room(row):
                return row, shots
            if not shots:
                size = self.loaded.positions(row)
                reason = f"{size:,} tokens and an answer of up to {room:,} are more than the {limit:,} of this model"
                raise DataError([Problem(record.origin.file, record.origin.line, "length", reason)])
            shots = shots[1:]

    def _with_lead(self, task: Task, record: Record, prompt: Rendered) -> Rendered:
        """The prompt with what stands before the answer's place."""
        lead = task.answered(record, "").strip()
        if not lead or not self.loaded.backbone.kind.causal:  # an encoder reads no beginning of an answer
            return prompt
        asked = task.show(record, "")
        begun = replace(asked, turns=(*asked.turns[:-1], replace(asked.turns[-1], text=lead)))
        ids, _ = self.loaded.renderer.answer_ids(begun)
        return Candidates(tuple(ids), ((0,),)).behind(prompt)


def label_of(record: Record, verbalizer: Verbalizer) -> str:
    """The label of a record: its answer, or the label whose word its answer is. Raises InputError naming the row."""
    known = {normalise(label): label for label in verbalizer.labels}
    found = known.get(normalise(record.answer)) or verbalizer.label_of(record.answer)
    if found is None:
        hint = did_you_mean(record.answer, verbalizer.labels)
        raise InputError(f"{record.origin}: verbalizer: no words for label '{record.answer}', {hint}")
    return found


def _keys(shots: Sequence[Record]) -> list[str]:
    return [shot.key for shot in shots]


def _single_words(tokenizer: Any) -> tuple[list[int], list[str]]:
    """Tokens that are a word: letters only, two at least, or Han; each word once, with the space it begins with."""
    special = set(tokenizer.all_special_ids)
    ids, words = [], []
    for number in range(len(tokenizer)):
        word = tokenizer.decode([number]).strip() if number not in special else ""
        han = word and all(any(low <= ord(char) <= high for low, high in HAN) for char in word)
        if han or (len(word) > 1 and word.isalpha() and word.isascii()):
            ids.append(number)
            words.append(word)
    return ids, words


__all__ = ["Asker", "Evidence", "Way", "label_of"]
