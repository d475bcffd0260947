"""How an evaluation stands up to damage: the same rows clean and damaged, for each arm (`report["robustness"]`)."""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import console
from ..config import EvaluateSettings
from ..data.records import Record
from ..errors import InputError, did_you_mean
from ..evaluation.arms import ARMS, Bench
from ..inference.engine import Sampling, generate
from ..measures.extraction import Extractor
from ..measures.metrics import METRICS, Answers
from ..measures.perturbations import PERTURBATIONS, TEMPLATE, Perturbation
from ..measures.robustness import drop_rate, flips, row_scores, worst_case
from ..measures.statistics import Estimate, Statistic, bootstrap, paired_difference
from ..prompts.builtin import BUILTIN
from ..prompts.choose import make_renderer
from ..prompts.template import Rendered, Renderer
from .adversarial import Attack, attack_rows, attack_wordings
from .damage import Damager, damager

RESAMPLES = 1000
SHOWN, SHOWN_EACH = 24, 2  # examples in all, and of one perturbation
ROWS = {"quick": 40, "full": 200}
# Of these, the ones that change any row.
TRIED = {
    "quick": ("typos", "homophones", "synonyms", "paraphrase", "distractor_before", "options", "text_first"),
    "full": tuple(PERTURBATIONS),
}
CURVES = {"quick": ("typos", "homophones"), "full": ("typos", "drop_words", "distractor_before", "homophones")}
ATTACKS = {"adversarial": "Words chosen against the model", "adversarial_wording": "Wording chosen against the model"}
# Of the entries of a report; `template` stands for every other template.
NAMES = (*PERTURBATIONS, *(f"{TEMPLATE}_{name}" for name in ("model", *BUILTIN) if name != "cloze"), *ATTACKS)
POINTS = {"quick": (1.0,), "full": (0.1, 0.6, 1.0)}  # besides no damage and a perturbation's own strength


@dataclass(frozen=True)
class Clean:
    """A suite as it was answered undamaged, and how it was scored: damaged answers are scored alike.

    answers: what each arm wrote, row by row.  references: accepted answers of each row.  extract: finds the answer in
    what was written.  budget: tokens an answer may have.  labels: the closed set of answers, or None.  clusters: rows,
    wordings or tasks, what intervals are over; owners: the cluster of each row, None: its own."""

    suite: str
    records: Sequence[Record]
    answers: Mapping[str, Sequence[str]]
    references: Sequence[Sequence[str]]
    extract: Extractor
    budget: int
    labels: Sequence[str] | None
    metric: str
    clusters: str = "rows"
    owners: Sequence[Hashable] | None = None

    def take(self, rows: Sequence[int], arms: Sequence[str]) -> Clean:
        """Some rows, as these arms answered them."""
        return replace(
            self,
            records=[self.records[row] for row in rows],
            answers={arm: [self.answers[arm][row] for row in rows] for arm in arms},
            references=[self.references[row] for row in rows],
            owners=[self.owners[row] for row in rows] if self.owners else None,
        )


@dataclass(frozen=True)
class Trial:
    """A perturbation at one strength; `records` and `prompts` of the rows that it changes, by their number."""

    way: Perturbation
    strength: float
    name: str
    label: str
    records: dict[int, Record]
    prompts: dict[int, Rendered]
    stop_ids: tuple[int, ...]

    @property
    def key(self) -> tuple[str, float]:
        """What tells it from others."""
        return self.name, self.strength


def robustness(bench: Bench, clean: Clean, settings: EvaluateSettings) -> dict[str, Any]:
    """What damage does to a suite that was answered: scores, drop rates, flips, worst case, curves, examples.

    At most `settings.robustness_rows` rows are damaged, drawn by seed, for the base and the tuned model, or for the
    one that reads again where it is alone. Raises InputError for perturbations that are not known.
    """
    started = time.monotonic()
    level = settings.robustness
    wanted = chosen(settings.perturbations, level)
    number = settings.robustness_rows or ROWS[level]
    order = np.random.default_rng(settings.seed).permutation(len(clean.records))[:number]
    rows = sorted(order.tolist())
    arms = [arm for arm in ("base", "tuned") if arm in clean.answers] or ["reread"]
    clean = clean.take(rows, arms)
    ready = damager(clean.records, bench.picker.pool, clean.labels, settings.seed, settings.damage)
    asker = _Asker(bench, clean, ready)
    trials = [trial for way, strength in wanted for trial in asker.trials(way, strength, level)]
    curves = [trial for trial in trials if trial.name in CURVES[level] and trial.way.dial]
    points = [
        point
        for trial in curves
        for strength in POINTS[level]
        if strength != trial.strength
        for point in asker.trials(trial.way, strength, level)
    ]
    answers = asker.answer([*trials, *points], arms)
    attacks = _attacks(bench, clean, ready, settings, arms, asker) if level == "full" else {}
    table = _Table(clean, settings.seed)
    entries = [table.entry(trial, answers) for trial in trials]
    entries += [table.attacked(name, found) for name, (_, found) in attacks.items()]
    return {
        "suite": clean.suite,
        "rows": len(rows),
        "seed": settings.seed,
        "damaged": settings.damage,
        "metric": clean.metric,
        "clusters": clean.clusters,
        "arms": arms,
        "clean": {arm: table.estimate(table.clean[arm]) for arm in arms},
        "perturbations": entries,
        "worst_case": table.worst(trials, answers),
        "curves": [table.curve(trial, [one for one in points if one.name == trial.name], answers) for trial in curves],
        "by_task": table.by_task(trials, answers),
        "examples": table.examples(trials, answers, asker),
        "adversarial": table.adversarial(*attacks["adversarial"]) if "adversarial" in attacks else None,
        "seconds": round(time.monotonic() - started, 1),
    }


def chosen(text: str, level: str) -> list[tuple[Perturbation, float]]:
    """The perturbations of a setting, `typos,case:0.5`, or those of a level. Raises InputError for unknown ones."""
    if text == "auto":
        return [(PERTURBATIONS[name], PERTURBATIONS[name].strength) for name in TRIED[level]]
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, given = part.partition(":")
        if name not in PERTURBATIONS:
            raise InputError(f"perturbations: unknown '{name}', {did_you_mean(name, PERTURBATIONS)}")
        way = PERTURBATIONS[name]
        try:
            strength = float(given) if given else way.strength
        except ValueError:
            strength = -1.0
        if not 0 < strength <= 1:
            raise InputError(f"perturbations: {name}: strength out of range (got '{given}', want above 0, to 1)")
        found.append((way, strength if way.dial else 1.0))
    if not found:
        raise InputError("perturbations: none is named (want auto, or names such as typos,case:0.5)")
    return found


class _Asker:
    """Renders damaged rows and has them answered, equal prompts once."""

    def __init__(self, bench: Bench, clean: Clean, ready: Damager) -> None:
        self.bench, self.clean, self.damager = bench, clean, ready
        loaded = bench.loaded
        self.plain = [loaded.renderer.render(record.prompt).ids for record in clean.records]

    def trials(self, way: Perturbation, strength: float, level: str) -> list[Trial]:
        """A perturbation where it changes rows; each other template is a trial of its own."""
        loaded = self.bench.loaded
        if way.name != TEMPLATE:
            changed = {
                number: after
                for number, record in enumerate(self.clean.records)
                if (after := self.damager.damaged(record, way.name, strength)) is not record
            }
            found = [self._trial(way, strength, way.name, way.label, changed, loaded.renderer)]
        else:
            every = dict(enumerate(self.clean.records))
            found = [
                self._trial(way, strength, f"{way.name}_{one.name}", f"Template '{one.name}'", every, one)
                for one in self.templates()[: None if level == "full" else 1]
            ]
        return [trial for trial in found if trial.prompts]

    def templates(self) -> list[Renderer]:
        """The prompt templates that the model is not asked through."""
        loaded = self.bench.loaded
        backbone, own = loaded.backbone, loaded.renderer
        names = [*(["model"] if getattr(backbone.tokenizer, "chat_template", None) else []), *BUILTIN]
        kind = backbone.kind
        if kind.chooses:  # its own template has the mask, or its pooled text, that others lack
            return []
        others = [
            make_renderer(backbone.tokenizer, name, own.system, default=kind.template, closed=kind.closed)
            for name in names
            if name not in (own.name, "cloze")
        ]
        return [one.with_reading(own.reading) for one in others if one.source != own.source]

    def _trial(
        self, way: Perturbation, strength: float, name: str, label: str, records: dict[int, Record], renderer: Renderer
    ) -> Trial:
        prompts = {}
        for number, record in records.items():
            prompt = self.render(record, renderer)
            if prompt is not None and prompt.ids != self.plain[number]:
                prompts[number] = prompt
        stops = tuple(renderer.stop_ids(self.bench.loaded.stop_ids))
        return Trial(way, strength, name, label, {number: records[number] for number in prompts}, prompts, stops)

    def render(self, record: Record, renderer: Renderer) -> Rendered | None:
        """The prompt of a damaged row; None where it can't be rendered or has become too long for the model."""
        try:
            prompt = renderer.render(record.prompt)
        except InputError:
            return None
        return prompt if self.bench.loaded.room(prompt) >= self.clean.budget else None

    def answer(
        self, trials: Sequence[Trial], arms: Sequence[str]
    ) -> dict[tuple[str, float], dict[str, dict[int, str]]]:
        """Answers of each arm to the changed rows of each trial."""
        loaded = self.bench.loaded
        found: dict[tuple[str, float], dict[str, dict[int, str]]] = {
            trial.key: {arm: {} for arm in arms} for trial in trials
        }
        unique: dict[tuple[tuple[int, ...], tuple[int, ...]], Rendered] = {}
        for trial in trials:
            for prompt in trial.prompts.values():
                unique.setdefault((trial.stop_ids, tuple(prompt.ids)), prompt)
        with console.progress(len(unique) * len(arms), "Answering damaged rows", unit="rows") as bar:
            for arm in arms:
                bar.advance(0, arm=arm)
                texts: dict[Any, str] = {}
                for stops in {key[0] for key in unique}:
                    keys = [key for key in unique if key[0] == stops]
                    with self.bench.model_of(arm) as model:
                        results = generate(
                            model,
                            [unique[key] for key in keys],
                            stop_ids=stops,
                            pad_id=loaded.backbone.pad_id,
                            sampling=Sampling(max_new_tokens=self.clean.budget),
                            batch_rows=self.bench.batch_rows,
                            done=bar.advance,
                        )
                    texts |= {key: loaded.renderer.decode(one.ids) for key, one in zip(keys, results, strict=True)}
                for trial in trials:
                    found[trial.key][arm] = {
                        number: texts[trial.stop_ids, tuple(prompt.ids)] for number, prompt in trial.prompts.items()
                    }
        return found


Found = Mapping[tuple[str, float], Mapping[str, Mapping[int, str]]]


class _Table:
    """Figures over the rows of one suite, with intervals."""

    def __init__(self, clean: Clean, seed: int) -> None:
        self.rows, self.seed = clean, seed
        self.clean = {arm: self.statistic(texts) for arm, texts in clean.answers.items()}

    def statistic(self, texts: Sequence[str]) -> Statistic:
        """The metric over all rows, of the answers in these texts."""
        answers = Answers(self.extracted(texts), self.rows.references, self.rows.labels)
        found = METRICS[self.rows.metric].statistic(answers)
        assert found is not None
        return found

    def extracted(self, texts: Sequence[str]) -> list[str]:
        """The answers in texts, found as the suite's were."""
        return [self.rows.extract(text)[0] for text in texts]

    def _given(self, rows: Sequence[int] | None = None) -> dict[str, Any]:
        clusters = self.rows.owners
        if clusters is not None and rows is not None:
            clusters = [clusters[row] for row in rows]
        return {"resamples": RESAMPLES, "seed": self.seed, "clusters": clusters}

    def estimate(self, statistic: Statistic, rows: Sequence[int] | None = None) -> dict[str, float]:
        """A score with its interval."""
        return _entry(bootstrap(statistic, **self._given(rows)))

    def damaged(self, trial: Trial, answers: Found, arm: str) -> list[str]:
        """What an arm answers to all rows; to those that a trial does not change, as before."""
        changed = answers[trial.key][arm]
        return [changed.get(number, text) for number, text in enumerate(self.rows.answers[arm])]

    def entry(self, trial: Trial, answers: Found) -> dict[str, Any]:
        """One perturbation, over the rows that it changes."""
        texts = {arm: self.damaged(trial, answers, arm) for arm in self.clean}
        return self._entry(trial.name, trial.label, trial.way.kind, trial.strength, sorted(trial.prompts), texts)

    def attacked(self, name: str, found: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
        """An attack, over the rows that it was tried on."""
        rows = sorted(next(iter(found.values())))
        texts = {arm: [found[arm].get(n, text) for n, text in enumerate(self.rows.answers[arm])] for arm in self.clean}
        return self._entry(name, ATTACKS[name], "adversarial", 1.0, rows, texts)

    def _entry(
        self, name: str, label: str, kind: str, strength: float, rows: list[int], texts: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        given = self._given(rows)
        found: dict[str, Any] = {"name": name, "label": label, "kind": kind, "strength": strength, "rows": len(rows)}
        for key in ("clean", "scores", "drop", "difference", "flips"):
            found[key] = {}
        for arm, clean in self.clean.items():
            before, after = clean.take(rows), self.statistic(texts[arm]).take(rows)
            found["clean"][arm] = self.estimate(before, rows)
            found["scores"][arm] = self.estimate(after, rows)
            found["difference"][arm] = _entry(paired_difference(after, before, **given))
            if drop := drop_rate(before, after, **given):
                found["drop"][arm] = _entry(drop)
            pairs = [self.extracted([side[arm][row] for row in rows]) for side in (self.rows.answers, texts)]
            found["flips"][arm] = _entry(bootstrap(flips(*pairs), **given))
        return found

    def worst(self, trials: Sequence[Trial], answers: Found) -> dict[str, Any]:
        """Each row by its worst answer, undamaged or under any of the perturbations."""
        return {
            arm: self.estimate(
                worst_case([clean, *(self.statistic(self.damaged(trial, answers, arm)) for trial in trials)])
            )
            for arm, clean in self.clean.items()
        }

    def curve(self, trial: Trial, points: Sequence[Trial], answers: Found) -> dict[str, Any]:
        """Scores by strength, over the rows that the perturbation changes at its own strength."""
        rows = sorted(trial.prompts)
        found = [(0.0, {arm: self.estimate(clean.take(rows), rows) for arm, clean in self.clean.items()})]
        for one in sorted((trial, *points), key=lambda one: one.strength):
            scores = {arm: self.statistic(self.damaged(one, answers, arm)).take(rows) for arm in self.clean}
            found.append((one.strength, {arm: self.estimate(score, rows) for arm, score in scores.items()}))
        shown = [{"strength": strength, "scores": scores} for strength, scores in found]
        return {"name": trial.name, "label": trial.label, "rows": len(rows), "points": shown}

    def by_task(self, trials: Sequence[Trial], answers: Found) -> dict[str, Any]:
        """Task -> perturbation -> arm: damaged less clean score, in points, over the task's rows that are changed."""
        tasks: dict[str, dict[str, dict[str, float]]] = {}
        if len({record.task for record in self.rows.records if record.task}) < 2:
            return {}
        for trial in trials:
            scores = {arm: self.statistic(self.damaged(trial, answers, arm)) for arm in self.clean}
            for task in sorted({self.rows.records[row].task or "" for row in trial.prompts} - {""}):
                rows = [row for row in sorted(trial.prompts) if self.rows.records[row].task == task]
                tasks.setdefault(task, {})[trial.name] = {
                    arm: round(score.take(rows).value - self.clean[arm].take(rows).value, 2)
                    for arm, score in scores.items()
                }
        return dict(sorted(tasks.items()))

    def examples(self, trials: Sequence[Trial], answers: Found, asker: _Asker) -> list[dict[str, Any]]:
        """Rows that lost most, by the last arm; a few of each perturbation."""
        arm = list(self.clean)[-1]
        before = row_scores(self.clean[arm])
        found = []
        for trial in trials:
            texts = self.damaged(trial, answers, arm)
            fall = before - row_scores(self.statistic(texts))
            for row in np.argsort(-fall, kind="stable").tolist()[:SHOWN_EACH]:
                if fall[row] > 0:
                    found.append((float(fall[row]), self._example(trial, row, texts[row], arm, asker)))
        found.sort(key=lambda pair: -pair[0])
        return [shown for _, shown in found[:SHOWN]]

    def _example(self, trial: Trial, row: int, text: str, arm: str, asker: _Asker) -> dict[str, Any]:
        record, after = self.rows.records[row], trial.records[row]
        shown = [record.last_user.content, after.last_user.content]
        if trial.way.name == TEMPLATE:
            decode = asker.bench.loaded.backbone.tokenizer.decode
            shown = [decode(asker.plain[row]), decode(trial.prompts[row].ids)]
        return {
            "perturbation": trial.name,
            "arm": arm,
            "origin": str(record.origin),
            "task": record.task,
            "clean": shown[0],
            "damaged": shown[1],
            "expected": record.answer,
            "clean_answer": self.rows.answers[arm][row],
            "damaged_answer": text,
        }

    def adversarial(self, attack: Attack, found: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
        """The attack on rows, with examples of rows that it turned."""
        rows = sorted(attack.records)
        texts = {arm: [found[arm].get(n, text) for n, text in enumerate(self.rows.answers[arm])] for arm in self.clean}
        before = row_scores(self.clean[attack.arm])
        fall = before - row_scores(self.statistic(texts[attack.arm]))
        examples = []
        for row in [row for row in np.argsort(-fall, kind="stable").tolist() if fall[row] > 0][: SHOWN_EACH * 4]:
            record = self.rows.records[row]
            examples.append({
                "origin": str(record.origin), "task": record.task, "clean": record.last_user.content,
                "damaged": attack.records[row].last_user.content, "expected": record.answer,
                "clean_answer": self.rows.answers[attack.arm][row], "damaged_answer": texts[attack.arm][row],
            })  # fmt: skip
        return {
            "rows": len(rows),
            "queries": round(attack.queries / max(1, len(rows)), 1),
            "label": f"Words chosen against the {ARMS[attack.arm].lower()}",
            "scores": {arm: self.estimate(self.statistic(texts[arm]).take(rows), rows) for arm in self.clean},
            "clean": {arm: self.estimate(clean.take(rows), rows) for arm, clean in self.clean.items()},
            "examples": examples,
        }


def _attacks(
    bench: Bench, clean: Clean, ready: Damager, settings: EvaluateSettings, arms: Sequence[str], asker: _Asker
) -> dict[str, tuple[Attack, dict[str, dict[int, str]]]]:
    """Both attacks, each with what the arms answer to it; an attack that can't be made is left out."""
    found = {}
    for name, make in (("adversarial", attack_rows), ("adversarial_wording", attack_wordings)):
        attack = make(bench, arms[-1], ready, clean.records, clean.labels, settings.seed)
        if attack is None:
            continue
        way = Perturbation(name=name, label=ATTACKS[name], kind="adversarial")
        trial = asker._trial(way, 1.0, name, way.label, attack.records, bench.loaded.renderer)
        answers = asker.answer([trial], arms)[trial.key]
        same = {arm: {row: clean.answers[arm][row] for row in attack.records} for arm in arms}
        found[name] = (attack, {arm: same[arm] | answers[arm] for arm in arms})
    return found


def _entry(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def show(report: Mapping[str, Any]) -> None:
    """The figures of `report["robustness"]` in the terminal."""
    found = report["robustness"]
    unit = report["metrics"][found["metric"]]["unit"]

    def value(entry: Mapping[str, Any] | None, digits: int = 1) -> str:
        return "" if not entry else f"{entry['value']:.{digits}f}"

    rows = []
    for entry in found["perturbations"]:
        cells = [entry["label"], f"{entry['strength']:g}", entry["rows"]]
        for arm in found["arms"]:
            drop = entry["drop"].get(arm)
            lost = f", {drop['value']:.0f}% lost ({drop['low']:.0f} to {drop['high']:.0f})" if drop else ""
            cells.append(f"{value(entry['clean'][arm])} → {value(entry['scores'][arm])}{lost}")
        rows.append(cells)
    worst = [f"{value(found['clean'][arm])} → {value(found['worst_case'][arm])}" for arm in found["arms"]]
    rows.append(["Worst of them, row by row", "", found["rows"], *worst])
    metric = report["metrics"][found["metric"]]["label"]
    title = (
        f"{found['suite']} damaged: {metric}{f' in {unit}' if unit else ''}, clean → damaged, share lost (95% interval)"
    )
    console.table(("", "strength", "rows", *(ARMS[arm] for arm in found["arms"])), rows, title=title)
