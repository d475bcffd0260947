"""Damage that is chosen against a model: greedy substitution of words within a budget of queries.

Words are tried in the order of their importance, which is what the objective gains when the word is left out
(TextFooler, arXiv 1907.11932); each gives way to the substitute that hurts most, a typo, a swap, a lost letter or a
synonym as in TextBugger (arXiv 1812.05271). The objective is the loss of the right answer in nats, or, where the answer
is one of a closed set of labels, the log-likelihood of the best wrong one less that of the right one. What the answer
hangs on is kept (`measures/kept.py`), which stands in for the sentence encoder by which TextFooler holds the meaning.

A target is one row, or the wording that several rows share: then the objective is its mean over them, and the result a
wording that is bad for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from ..data.records import Record
from ..evaluation.arms import Bench
from ..inference.ranking import Candidates, Floats, likelihoods
from ..measures import edits
from ..measures.edits import Edit
from ..measures.kept import Span, kept
from ..measures.text import normalise
from ..training.loss import row_losses
from .damage import Damager, asking

ROWS, QUERIES = 30, 40  # rows attacked, and texts that the model is asked for each
WORDINGS, WORDING_ROWS = 4, 8  # wordings attacked, and rows on which each is tried
SHARED = 3  # rows that a wording has at least, to be attacked as one
SHARE = 0.2  # of the words are changed at most, one at least
WAYS = (
    edits.typos, edits.typos, edits.swap_letters, edits.drop_letters, edits.synonyms, edits.synonyms, edits.homophone,
    edits.variant,
)  # fmt: skip
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Attack:
    """What an attack made of rows, by their number.  arm: whom it was aimed at.  queries: texts that it asked, over all
    targets."""

    arm: str
    records: dict[int, Record]
    queries: int


@dataclass
class _Target:
    """Rows that share the text under attack.

    before, after: of the text in each row's instruction, the rest of it.  spans: kept.  places: words left to try, the
    most important first.  done: edits that are made.  score: the objective as it stands.
    """

    rows: list[int]
    text: str
    rest: list[str]
    spans: list[Span]
    choices: dict[Span, list[Edit]] = field(default_factory=dict)
    places: list[Span] = field(default_factory=list)
    done: list[Edit] = field(default_factory=list)
    score: float = 0.0
    queries: int = 0
    most: int = 1
    best: str = ""

    def with_edits(self, more: Sequence[Edit]) -> str:
        """The text with the edits that are made and some more."""
        text = self.text
        for start, end, new in sorted([*self.done, *more], reverse=True):
            text = text[:start] + new + text[end:]
        return text


Objective = Callable[[Sequence[Record]], Floats]


def attack_rows(
    bench: Bench, arm: str, ready: Damager, records: Sequence[Record], labels: Sequence[str] | None, seed: int
) -> Attack | None:
    """Each of the first rows attacked by itself; None where no row has a word to change."""
    targets = [_target([row], records, ready, seed) for row in range(min(ROWS, len(records)))]
    return _attack(bench, arm, [one for one in targets if one], records, labels)


def attack_wordings(
    bench: Bench, arm: str, ready: Damager, records: Sequence[Record], labels: Sequence[str] | None, seed: int
) -> Attack | None:
    """The instructions that most rows share, attacked over some of their rows and changed in all; None where no
    three rows share one."""
    shared: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if record.input:
            shared.setdefault(record.instruction, []).append(row)
    groups = sorted((rows for rows in shared.values() if len(rows) >= SHARED), key=lambda rows: (-len(rows), rows))
    targets = [_target(rows, records, ready, seed) for rows in groups[:WORDINGS]]
    return _attack(bench, arm, [one for one in targets if one], records, labels)


def _target(rows: list[int], records: Sequence[Record], ready: Damager, seed: int) -> _Target | None:
    """The instruction of rows, with what may be done to it; None where nothing may."""
    said = [ready.said(records[row]) for row in rows]
    text = said[0].split()[0]
    spans: list[Span] = []
    for one in said:
        more = kept(text, one, "instruction")
        if more is None:
            return None
        spans += more
    draw = Random(f"{seed} {text} {'' if len(rows) > 1 else records[rows[0]].prompt_key}")
    target = _Target(rows, text, [one.split()[1] for one in said], spans)
    words = [match.span() for match in edits.free_words(text, spans)]
    for way in WAYS:
        for edit in way(text, spans, draw):
            place = next((word for word in words if word[0] <= edit[0] < word[1]), edit[:2])
            found = target.choices.setdefault(place, [])
            if edit not in found:
                found.append(edit)
    target.most = max(1, round(SHARE * max(len(words), len(text) // 4 if said[0].chinese else 0)))
    return target if target.choices else None


def _attack(
    bench: Bench, arm: str, targets: Sequence[_Target], records: Sequence[Record], labels: Sequence[str] | None
) -> Attack | None:
    if not targets:
        return None
    with bench.model_of(arm) as model:
        ask = _margin(bench, model, labels) if labels else _loss(bench, model)
        _search(targets, records, ask, stop=bool(labels))
    changed = {row: _asked(target, place, records, target.best)
               for target in targets for place, row in enumerate(target.rows)}  # fmt: skip
    return Attack(arm, changed, sum(target.queries for target in targets))


def _search(targets: Sequence[_Target], records: Sequence[Record], ask: Objective, stop: bool) -> None:
    """Attack all targets side by side. stop: once the objective is above 0, since then the answer is wrong."""
    scores = _scored([(target, [target.text]) for target in targets], records, ask)
    for target, (score,) in zip(targets, scores, strict=True):
        target.score, target.best = score, target.text
    # Half of the queries at most go into finding out what matters.
    looked = [(target, sorted(target.choices)[: QUERIES // 2]) for target in targets]
    without = [(target, [target.with_edits([(*place, "")]) for place in places]) for target, places in looked]
    for (target, places), found in zip(looked, _scored(without, records, ask), strict=True):
        order = np.argsort(-np.array(found), kind="stable")
        target.places = [places[number] for number in order]
    while True:
        work = []
        for target in targets:
            beaten = stop and target.score > 0
            if target.places and len(target.done) < target.most and target.queries < QUERIES and not beaten:
                choices = target.choices[target.places.pop(0)][: QUERIES - target.queries]
                free = [edit for edit in choices if all(edit[1] <= a or edit[0] >= b for a, b, _ in target.done)]
                work.append((target, free))
        if not work:
            return
        texts = [(target, [target.with_edits([edit]) for edit in choices]) for target, choices in work]
        for (target, choices), (_, tried), found in zip(work, texts, _scored(texts, records, ask), strict=True):
            place = int(np.argmax(found)) if found else -1
            if found and found[place] > target.score:
                target.done.append(choices[place])
                target.score, target.best = found[place], tried[place]


def _scored(
    work: Sequence[tuple[_Target, Sequence[str]]], records: Sequence[Record], ask: Objective
) -> list[list[float]]:
    """The objective of each text of each target, as a mean over the target's rows, all in one batch."""
    asked, owners = [], []
    for number, (target, texts) in enumerate(work):
        target.queries += len(texts)
        for text in texts:
            for place in range(min(len(target.rows), WORDING_ROWS)):
                asked.append(_asked(target, place, records, text))
            owners.append(number)
    values = ask(asked) if asked else np.zeros(0)
    found: list[list[float]] = [[] for _ in work]
    start = 0
    for number in owners:
        size = min(len(work[number][0].rows), WORDING_ROWS)
        found[number].append(float(values[start : start + size].mean()))
        start += size
    return found


def _asked(target: _Target, place: int, records: Sequence[Record], text: str) -> Record:
    record = records[target.rows[place]]
    return asking(record, text + target.rest[place], record.input)


def _loss(bench: Bench, model: Any) -> Objective:
    """Nats of the right answer; a row that does not fit counts least."""

    def ask(records: Sequence[Record]) -> Floats:
        asked, problems = bench.ask(records, ["base"], 1)
        if problems:
            fitting = [not bench.ask([record], ["base"], 1)[1] for record in records]
            asked, _ = bench.ask([record for record, fits in zip(records, fitting, strict=True) if fits], ["base"], 1)
        else:
            fitting = [True] * len(records)
        values = np.full(len(records), -np.inf)
        rows = asked.rows["base"]
        pad = bench.loaded.backbone.pad_id
        values[fitting] = [nats for nats, _ in row_losses(model, rows, pad_id=pad, batch_tokens=BATCH_TOKENS)]
        return values

    return ask


def _margin(bench: Bench, model: Any, labels: Sequence[str]) -> Objective:
    """Log-likelihood of the best wrong label less that of the right one."""
    renderer, names = bench.loaded.renderer, [normalise(label) for label in labels]

    def ask(records: Sequence[Record]) -> Floats:
        first = records[0].prompt
        shown = [Record.of(first.instruction, label, input=first.input, system=first.system) for label in labels]
        candidates = Candidates.of(renderer, shown)
        prompts = [renderer.render(record.prompt) for record in records]
        found = likelihoods(model, prompts, candidates, pad_id=bench.loaded.backbone.pad_id, batch_rows=32)
        accepted = [{normalise(answer) for answer in renderer.accepted(record.answers)} for record in records]
        right = np.array([[name in known for name in names] for known in accepted])
        best = np.where(right, found, -np.inf).max(1, initial=-1e9)
        return np.where(right, -np.inf, found).max(1) - best

    return ask
