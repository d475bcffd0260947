"""`instructrec prompt`: what a model makes of rows that it is only asked, without training; and the search for a good
way of asking.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, console
from ..config import PromptingSettings, Source
from ..data.records import Record, Rows
from ..data.splits import split
from ..environment import commit_of_source
from ..errors import InputError
from ..evaluation.report import cell, clean
from ..files import write_json, write_text
from ..inference.loading import Choosing, open_target
from ..inference.ranking import CALIBRATIONS, Floats
from ..measures.metrics import METRICS, RowScores, label_set, score
from ..measures.statistics import bootstrap, mean_of
from ..prompts.tasks import Task, find, library
from ..prompts.verbalizer import Verbalizer
from ..settings import checked
from .asking import Asker, Evidence, Way, label_of
from .measure import RESAMPLES, report_folder
from .rows import Data, announce, read_rows

RESULT, ROWS = "prompting.json", "rows.jsonl"
BEST = 2  # wordings that go on from the first stage of a search to the second
SHOWN = 12  # ways of a search that the terminal shows; all are in the result


@dataclass(frozen=True)
class Prompting:
    """result: what prompting.json holds.  folder: where it lies.  answers: of the rows, in their order."""

    result: dict[str, Any]
    folder: Path
    answers: list[str]

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """metric -> value, low, high, n."""
        return dict(self.result["scores"])


@dataclass(frozen=True)
class _Tried:
    """One way that a search has tried, with its score on the set-aside rows."""

    way: Way
    value: float
    stage: int


def prompt(template: str, data: Data, **settings: Any) -> Prompting:
    """Ask a model, tuned or not, through a task template, and measure what it answers.

    template: a family of the library (`sentiment-en`), one of its wordings (`sentiment-en/was`), a file, or a text
    with {{ placeholders }}.  settings: those of `instructrec prompt`, such as `shots=4`, `by="bm25"`.
    """
    return _prompt(template, data, checked(PromptingSettings, settings), "")


def prompt_files(template: str, files: Sequence[str | Source], settings: PromptingSettings, command: str) -> Prompting:
    """The same from the command line; prints the scores."""
    found = _prompt(template, files, settings, command)
    _print(found.result)
    console.say(f"Results: {found.folder / RESULT}, answers row by row: {found.folder / ROWS}")
    return found


def list_templates() -> None:
    """Print the template library."""
    rows = []
    for family, tasks in library().items():
        for task in tasks:
            rows.append((task.name, " ".join(f"{task.instruction} {task.input}".split())[:70], _words(task)))
        console.note(f"{family}: {tasks[0].about}")
    console.table(("template", "asks", "answers"), rows)


def _words(task: Task) -> str:
    return task.answer.replace("{{ answer }}", "…")


def _prompt(template: str, data: Data, settings: PromptingSettings, command: str) -> Prompting:
    tasks = find(template)
    source = data if isinstance(data, (str, os.PathLike)) else data[0] if isinstance(data, list) and data else ""
    stem = Path(source).stem if isinstance(source, (str, os.PathLike)) else "rows"
    name = "".join(char if char.isalnum() or char in "-_" else "-" for char in f"prompt-{tasks[0].name}-{stem}")
    folder = Path(settings.out) if settings.out else Path("runs") / name[:120]
    with report_folder(folder):
        return _run(tasks, data, settings, command, folder)


def _run(tasks: list[Task], data: Data, settings: PromptingSettings, command: str, folder: Path) -> Prompting:
    import torch

    started = time.monotonic()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    rows = read_rows(data, settings, folder / "rejected.jsonl")
    test, pool, notes = _parts(rows, settings)
    labels = _labels([*test, *pool], settings, tasks[0])
    given = {name: getattr(settings, name) for name in ("precision", "offline", "template", "system", "strokes")}
    announce(settings.model)
    if settings.encoder.verbalizer != "auto":
        raise InputError("encoder.verbalizer: is --verbalizer here")
    choosing = Choosing(Verbalizer.of(labels) if labels else None, settings.encoder.head)
    loaded = open_target(settings.model, **given, choosing=choosing)
    for note in loaded.notes:
        console.warn(note)
    asker = Asker(loaded, pool, settings.seed, settings.batch_rows)
    way = _first_way(asker, tasks[0], labels, pool, settings)
    tried: list[_Tried] = []
    if settings.search:
        tried = _search(asker, tasks, way, _some(pool, settings.search_rows, settings.seed), pool, settings)
        way = max(tried, key=lambda one: one.value).way  # the first of equals, which is the simplest
    answers, shots, scores, table = _measure(asker, way, test, settings)
    primary = _primary(way, test)
    commit, dirty = commit_of_source()
    result: dict[str, Any] = {
        "format": 1,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "version": __version__,
        "commit": commit,
        "dirty": dirty,
        "model": settings.model,
        "precision": loaded.precision,
        "strokes": loaded.strokes,
        "settings": settings.model_dump(),
        "files": dict(rows.files),
        "rows": len(test),
        "examples": len(pool),
        "way": way.to_json(),
        "wording": {part: getattr(way.task, part) for part in ("instruction", "input", "system", "answer", "domain")},
        "verbalizer": way.verbalizer.to_json() if way.verbalizer else None,
        "primary": primary,
        "interval": f"95% bootstrap over rows, {RESAMPLES:,} resamples",
        "scores": {metric: _interval(found, settings.seed) for metric, found in scores.statistics.items()},
        "baselines": _baselines(way, test, settings.seed),
        "answered": dict(Counter(answers).most_common(20)),
        "shots_shown": round(float(np.mean([len(one) for one in shots])), 2),
        "tried": [one.way.to_json() | {"value": round(one.value, 2), "stage": one.stage} for one in tried],
        "notes": [*notes, *loaded.notes],
    }
    write_json(folder / RESULT, clean(result))
    write_text(folder / ROWS, "".join(_lines(test, answers, shots, table, way)))
    return Prompting(result, folder, answers)


def _parts(rows: Rows, settings: PromptingSettings) -> tuple[list[Record], list[Record], list[str]]:
    """Rows to measure on, examples, and what has to be said of them. Equal rows are never on both sides."""
    records = [record for record in rows if record.answer]
    notes = [f"{len(rows) - len(records)} rows without an answer were passed over"] * (len(records) < len(rows))
    needed = settings.shots > 0 or settings.search or settings.verbalizer == "learned"
    pool: list[Record] = []
    if settings.examples:
        pool = [record for record in read_rows(settings.examples, settings) if record.answer]
        keys = {record.prompt_key for record in pool}
        same = sum(record.prompt_key in keys for record in records)
        if same:
            notes.append(f"{same} of {len(records)} rows are also among the examples")
            console.warn(notes[-1])
    elif needed:
        parts = split(records, share=settings.examples_share, by="row", seed=settings.seed)
        pool = [records[place] for place in parts.held_out]
        records = [records[place] for place in parts.train]
        notes.append(f"{len(pool)} of the rows were set aside as examples")
        console.note(notes[-1])
    if needed and not pool:
        raise InputError("examples: no row is left to choose from (want a file, or a larger --examples-share)")
    if not records:
        raise InputError("no row with an answer to measure on")
    return _some(records, settings.rows, settings.seed), pool, notes


def _some(records: Sequence[Record], most: int | None, seed: int) -> list[Record]:
    if not most or len(records) <= most:
        return list(records)
    order = np.random.default_rng(seed).permutation(len(records))[:most]
    return [records[place] for place in sorted(order)]


def _labels(records: Sequence[Record], settings: PromptingSettings, task: Task) -> list[str] | None:
    """The closed set of labels, or None where answers are generated."""
    if settings.score == "generate":
        return None
    if settings.verbalizer not in ("auto", "learned"):
        return list(Verbalizer.from_file(settings.verbalizer).labels)
    if task.verbalizer and settings.verbalizer == "auto":
        return list(task.verbalizer.labels)
    found = label_set([record.answer for record in records])
    if found is None and (settings.score == "rank" or settings.verbalizer == "learned"):
        kinds = len({record.answer for record in records})
        raise InputError(
            f"score: {kinds} different answers in {len(records)} rows are no closed set of labels "
            "(want --score=generate, or a verbalizer with the labels)"
        )
    return list(found) if found else None


def _first_way(
    asker: Asker, task: Task, labels: list[str] | None, pool: Sequence[Record], settings: PromptingSettings
) -> Way:
    """The way of asking that the settings say."""
    if labels is None:
        for name in ("calibrate", "verbalizer"):
            if getattr(settings, name) not in ("none", "auto"):
                raise InputError(
                    f"{name}: {getattr(settings, name)} is for ranking labels; these answers are generated"
                )
        return Way(task, shots=settings.shots, by=settings.by, order=settings.order)
    if settings.verbalizer == "learned":
        words, source = _learned(asker, task, labels, pool), "learned"
    elif settings.verbalizer != "auto":
        words, source = Verbalizer.from_file(settings.verbalizer), Path(settings.verbalizer).name
    else:
        words, source = (task.verbalizer, "template") if task.verbalizer else (Verbalizer.of(labels), "labels")
    chosen = ("shots", "by", "order", "calibrate", "combine", "per_token")
    return Way(task, words, source, **{name: getattr(settings, name) for name in chosen})


def _learned(asker: Asker, task: Task, labels: Sequence[str], pool: Sequence[Record]) -> Verbalizer:
    names = [label_of(record, Verbalizer.of(labels)) for record in pool]
    if missing := sorted({*labels} - {*names}):
        raise InputError(f"verbalizer: no example has the label '{missing[0]}': nothing to learn its words from")
    return asker.learned(task, names, pool).only(labels)


def _search(
    asker: Asker,
    tasks: Sequence[Task],
    way: Way,
    watched: Sequence[Record],
    pool: Sequence[Record],
    settings: PromptingSettings,
) -> list[_Tried]:
    """Every wording (and verbalizer) without examples; then the best of them with examples. Each is scored with every
    calibration, which costs little once the likelihoods are there."""
    ways = [replace(way, task=task, shots=0) for task in tasks]
    if way.verbalizer and way.words_from == "labels":
        learned = _learned(asker, tasks[0], way.verbalizer.labels, pool)
        ways += [replace(one, verbalizer=learned, words_from="learned") for one in ways]
    elif way.verbalizer:
        labels = Verbalizer.of(way.verbalizer.labels)
        ways += [replace(one, verbalizer=labels, words_from="labels") for one in ways]
    tried = _stage(asker, ways, watched, settings, 1)
    if settings.shots:
        best: list[Way] = []
        for one in sorted(tried, key=lambda one: -one.value):
            plain = replace(one.way, calibrate="none", per_token=False, combine="any", shots=settings.shots)
            if plain not in best and len(best) < BEST:
                best.append(plain)
        kinds = dict.fromkeys((settings.by, "bm25"))
        tried += _stage(asker, [replace(one, by=by) for one in best for by in kinds], watched, settings, 2)
    return tried


def _stage(
    asker: Asker, ways: Sequence[Way], watched: Sequence[Record], settings: PromptingSettings, stage: int
) -> list[_Tried]:
    tried = []
    with console.progress(len(ways), f"Searching, stage {stage}", unit="ways") as bar:
        for way in ways:
            if way.verbalizer is None:
                answers, _ = asker.answer(way, watched, settings.max_new_tokens, lambda _: None)
                name = _primary(way, watched)
                value = score(answers, [record.answers for record in watched]).statistics[name].value
                tried.append(_Tried(way, value, stage))
            else:
                tried += _calibrated(asker, way, watched, stage)
            bar.advance(1, best=f"{max(one.value for one in tried):.1f}")
    return tried


def _calibrated(asker: Asker, way: Way, watched: Sequence[Record], stage: int) -> list[_Tried]:
    assert way.verbalizer
    evidence = asker.evidence(way, watched, CALIBRATIONS, lambda _: None)
    right = [label_of(record, way.verbalizer) for record in watched]
    several = any(len(words) > 1 for words in way.verbalizer.words.values())
    found = []
    for calibrate in CALIBRATIONS:
        for combine in ("any", "mean") if several else ("any",):
            for per_token in (False, True) if np.ptp(evidence.tokens) else (False,):
                one = replace(way, calibrate=calibrate, combine=combine, per_token=per_token)
                given = [way.verbalizer.labels[place] for place in evidence.scores(one).argmax(1)]
                value = 100.0 * float(np.mean([a == b for a, b in zip(given, right, strict=True)]))
                found.append(_Tried(one, value, stage))
    return found


def _measure(
    asker: Asker, way: Way, test: Sequence[Record], settings: PromptingSettings
) -> tuple[list[str], list[list[str]], RowScores, Floats | None]:
    """Answers, examples shown, scores of the rows; and the scores of the labels [N, L] where they were ranked."""
    if way.verbalizer is None:
        with console.progress(len(test), "Answering", unit="rows") as bar:
            answers, shots = asker.answer(way, test, settings.max_new_tokens, bar.advance)
        return answers, shots, score(answers, [record.answers for record in test]), None
    right = [label_of(record, way.verbalizer) for record in test]
    per_row = {"none": 1, "pmi": 2, "contextual": 1 + len(way.task.content_free(test[0], way.labels))}[way.calibrate]
    with console.progress(per_row * len(test), "Ranking", unit="prompts") as bar:
        evidence: Evidence = asker.evidence(way, test, (way.calibrate,), bar.advance)
    table = evidence.scores(way)
    answers = [way.verbalizer.labels[place] for place in table.argmax(1)]
    return answers, evidence.shots, score(answers, [[label] for label in right], labels=way.verbalizer.labels), table


def _primary(way: Way, records: Sequence[Record]) -> str:
    """Accuracy of labels; exact match of short answers, chrF of long ones."""
    if way.verbalizer:
        return "accuracy"
    lengths = sorted(len(record.answer) for record in records)
    return "exact_match" if lengths[len(lengths) // 2] <= 24 else "chrf"


def _baselines(way: Way, test: Sequence[Record], seed: int) -> dict[str, Any]:
    """What always giving the most frequent answer would score, and guessing among the labels."""
    if way.verbalizer is None:
        common, _ = Counter(record.answer for record in test).most_common(1)[0]
        found = score([common] * len(test), [record.answers for record in test]).statistics[_primary(way, test)]
        return {"majority": {"answer": common[:60]} | _interval(found, seed)}
    labels = [label_of(record, way.verbalizer) for record in test]
    common, _ = Counter(labels).most_common(1)[0]
    hits = mean_of([100.0 * (label == common) for label in labels], (0.0, 100.0))
    return {"majority": {"answer": common} | _interval(hits, seed), "chance": 100.0 / len(way.verbalizer.labels)}


def _interval(statistic: Any, seed: int) -> dict[str, float]:
    found = bootstrap(statistic, resamples=RESAMPLES, seed=seed)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def _lines(
    test: Sequence[Record], answers: Sequence[str], shots: Sequence[list[str]], table: Floats | None, way: Way
) -> list[str]:
    lines = []
    for place, record in enumerate(test):
        row = {"origin": str(record.origin), "row": record.key, "expected": record.answer, "answer": answers[place]}
        more: dict[str, Any] = {"shots": shots[place]}
        if table is not None and way.verbalizer:
            scores = [round(float(value), 4) for value in table[place]]
            more |= {"scores": dict(zip(way.verbalizer.labels, scores, strict=True))}
        lines.append(json.dumps(clean(row | more), ensure_ascii=False, allow_nan=False) + "\n")
    return lines


def _print(result: dict[str, Any]) -> None:
    if result["tried"]:
        best = sorted(result["tried"], key=lambda one: -one["value"])
        keys = [key for key in best[0] if key not in ("value", "stage")]
        rows = [[one[key] for key in keys] + [f"{one['value']:.1f}"] for one in best[:SHOWN]]
        console.table([*keys, "set aside"], rows, title=f"{len(best)} ways tried; the best {len(rows)}")
    way, baselines = result["way"], result["baselines"]
    rows = [
        [METRICS[name].label, cell(found, METRICS[name].unit)]
        for name, found in result["scores"].items()
        if name in (("accuracy", "macro_f1") if result["verbalizer"] else ("exact_match", "token_f1", "chrf"))
    ]
    majority = baselines["majority"]
    rows.append([f"Always '{majority['answer']}'", cell(majority, "%")])
    if "chance" in baselines:
        rows.append(["Guessing", f"{baselines['chance']:.1f}%"])
    hidden = {"template"} | ({"by", "order"} if not way["shots"] else set())
    asked = ", ".join(f"{key}={value}" for key, value in way.items() if key not in hidden and value not in ("", False))
    title = f"{way['template']} on {result['rows']} rows with {result['model']} ({asked}); 95% interval in brackets"
    console.table(("", "score"), rows, title=title)


__all__ = ["Prompting", "list_templates", "prompt", "prompt_files"]
