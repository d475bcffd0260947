"""`instructrec evaluate`: answers on held-out rows, scored, with intervals, beside the base model; and the report."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__, console
from ..config import EvaluateSettings, Source
from ..data.records import Record
from ..environment import commit_of_source
from ..errors import DataError, EnvironmentFault, InputError
from ..evaluation.arms import ARMS, Answered, Asked, Bench, choose_arms
from ..evaluation.card import write_card
from ..evaluation.report import cell, clean, write_report
from ..files import read_json, write_text
from ..inference.loading import Choosing, Loaded, is_run, open_target
from ..measures.metrics import METRICS, RowScores, label_set, score
from ..measures.statistics import Estimate, bootstrap, paired_difference
from ..models import embedded
from ..settings import checked
from .labels import labels_of
from .robustness import Clean, chosen, robustness
from .robustness import show as show_robustness
from .rows import MEMORY, Data, announce, name_of, read_rows, sources_of
from .runfolder import Lock

WORST = 10
RESAMPLES = 1000


@dataclass(frozen=True)
class Evaluation:
    """report: everything that was measured, as in report.json.  page: the report to look at."""

    report: dict[str, Any]
    page: Path

    def scores(self, suite: str | None = None) -> dict[str, dict[str, dict[str, float]]]:
        """arm -> metric -> value, low, high, n of one suite (default: the first)."""
        suites = {entry["name"]: entry["scores"] for entry in self.report["suites"]}
        return suites[suite or next(iter(suites))]


def evaluate(target: str | os.PathLike[str], data: Data, **settings: Any) -> Evaluation:
    """Measure a run folder or any pretrained model on rows it was not tuned on, and write the report.

    data: a file, several (each becomes a suite), a list of dicts, or what `read` returned.  settings: those of
    `instructrec evaluate`, such as `arms="tuned"`, `rows=100`, `out="reports/mine"`.
    """
    return _evaluate(os.fspath(target), data, checked(EvaluateSettings, settings), "")


def evaluate_files(target: str, files: Sequence[str | Source], settings: EvaluateSettings, command: str) -> Evaluation:
    """The same from the command line; prints the scores."""
    result = _evaluate(target, files, settings, command)
    for suite in result.report["suites"]:
        _print(result.report, suite)
    if "robustness" in result.report:
        show_robustness(result.report)
    console.say(f"Report: {result.page}")
    return result


def _evaluate(target: str, data: Data, settings: EvaluateSettings, command: str) -> Evaluation:
    if settings.out:
        folder = Path(settings.out)
    else:
        folder = Path(target) if is_run(target) else Path("runs") / f"{_plain_name(target)}-untuned"
    with report_folder(folder):
        return _report(target, data, settings, command, folder)


@contextmanager
def report_folder(folder: Path) -> Iterator[None]:
    """Make sure that the report can be written before hours go into it; new folders that stay empty are removed.

    Raises InputError where a file is in the way, EnvironmentFault where the folder can't be made or written to, or
    another process is at work in it.
    """
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"out: {folder} is a file, or inside one (want a folder)") from None
    except OSError as error:
        raise EnvironmentFault(f"out: {folder} can't be written to: {error.strerror}") from None
    lock = Lock(folder)
    lock.take()
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # it holds something, as it should
            for path in new:
                path.rmdir()


def _report(target: str, data: Data, settings: EvaluateSettings, command: str, folder: Path) -> Evaluation:
    import torch

    started = time.monotonic()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.robustness != "none":
        chosen(settings.perturbations, settings.robustness)  # what is wrong with it is said first
    suites = _suites(data, settings, folder)
    announce(target)
    loaded = open_target(
        target,
        precision=settings.precision,
        offline=settings.offline,
        template=settings.template,
        system=settings.system,
        strokes=settings.strokes,
        choosing=Choosing(labels_of([suite.records for suite in suites], settings.encoder), settings.encoder.head),
    )
    pool = _pool(loaded)
    arms, notes = choose_arms(settings.arms, loaded, pool)
    for note in notes:
        console.note(note)
    for note in loaded.notes:
        console.warn(note)
    notes += loaded.notes
    bench = Bench(loaded, pool, settings.shots, settings.seed, settings.batch_rows, settings.shots_by)
    asked = _ask(suites, bench, arms, settings.max_new_tokens)
    report = empty_report(loaded.run or _untuned(loaded, target), target) | {
        "command": command or f"evaluate({target!r}, …)",
        "arms": [{"name": arm, "label": ARMS[arm], "detail": _detail(arm, loaded, settings)} for arm in arms],
    }
    known = _Known.of(loaded)
    answers: list[dict[str, Any]] = []
    for suite, rows in zip(suites, asked, strict=True):
        entry, primary, samples = _measure(suite, bench, rows, loaded, settings.seed, known)
        if not report["suites"]:
            report["primary"] = primary
        entry["notes"] = notes + entry["notes"]
        report["suites"].append(entry)
        answers += samples
    if settings.robustness != "none" and arms != ["few_shot"]:  # whose examples depend on the row as it is
        report["robustness"] = _robustness(bench, suites[0], asked[0].budget, answers, settings)
    report["seconds"] = round(time.monotonic() - started, 1)
    write_text(folder / "answers.jsonl", "".join(_line(sample) for sample in answers))
    page = write_report(report, folder)
    if loaded.folder and folder == loaded.folder:
        write_card(report, report["run"], folder)
    return Evaluation(report, page)


def _robustness(
    bench: Bench, suite: _Suite, budget: int, answers: Sequence[Mapping[str, Any]], settings: EvaluateSettings
) -> dict[str, Any]:
    """The first suite again, damaged."""
    labels = bench.loaded.run.get("labels") or label_set([record.answer for record in suite.records])
    own = [sample["answers"] for sample in answers if sample["suite"] == suite.name]
    texts = {arm: [row[arm] for row in own] for arm in own[0]}
    metric = _primary(labels, suite.records, bench.loaded)
    return robustness(bench, Clean(suite.name, suite.records, texts, budget, labels, metric), settings)


def _ask(suites: Sequence[_Suite], bench: Bench, arms: Sequence[str], max_new_tokens: int | None) -> list[Asked]:
    """All suites rendered before the first is answered. Raises DataError with every row that can't be."""
    found = [bench.ask(suite.records, arms, max_new_tokens) for suite in suites]
    if problems := [problem for _, some in found for problem in some]:
        raise DataError(problems)
    return [asked for asked, _ in found]


@dataclass(frozen=True)
class _Suite:
    name: str
    file: str
    sha256: str
    records: list[Record]
    account: str  # where not every row that was read is measured


def _suites(data: Data, settings: EvaluateSettings, folder: Path) -> list[_Suite]:
    """One suite a file; rows without an answer can't be measured. Rejected rows are kept in `folder`."""
    several = isinstance(data, (list, tuple)) and data and isinstance(data[0], (str, os.PathLike, Source))
    suites: list[_Suite] = []
    for source in data if several else [data]:  # type: ignore[union-attr]
        name = _suite_name(source, {suite.name for suite in suites})
        if isinstance(source, (str, os.PathLike, Source)) and sources_of(source)[0].weight is not None:
            raise InputError(
                f"{source}: a weight means nothing here, each source is measured by itself (want the path)"
            )
        rows = read_rows(source, settings, folder / f"rejected-{name}.jsonl")  # type: ignore[arg-type]
        records = [record for record in rows if record.answer]
        if not records:
            raise InputError(f"{source}: no row has an answer to measure against")
        answered = len(records)
        if settings.rows and answered > settings.rows:
            order = np.random.default_rng(settings.seed).permutation(answered)[: settings.rows]
            records = [records[place] for place in sorted(order)]
        read = len(rows) + rows.rejected
        parts = [f"{rows.rejected:,} rejected", f"{len(rows) - answered:,} without an answer"]
        account = f"{read:,} rows read: {', '.join(parts)}, {len(records):,} measured" if read > len(records) else ""
        file, digest = next(iter(rows.files.items()), (MEMORY, ""))
        if len(rows.files) > 1:
            file, digest = str(source), hashlib.sha256("".join(rows.files.values()).encode()).hexdigest()
        suites.append(_Suite(name, file, digest, records, account))
    return suites


def _suite_name(source: Any, taken: set[str]) -> str:
    """The file's name without its ending, with a number where another suite has that name; rows of no file: `rows`."""
    stem = name_of(source)
    numbered = (f"{stem}-{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (stem, *numbered) if name not in taken)


@dataclass(frozen=True)
class _Known:
    """What a run saw of its own rows: keys of the prompts it was trained on and watched, tasks it only watched."""

    trained: frozenset[str] = frozenset()
    watched: frozenset[str] = frozenset()
    watched_tasks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, loaded: Loaded) -> _Known:
        if loaded.folder is None or not (loaded.folder / "split.json").is_file():
            return cls()
        parts = dict(read_json(loaded.folder / "split.json"))
        trained = frozenset(parts.pop("train"))
        tasks = frozenset(loaded.run["training"]["held_out_tasks"])
        return cls(trained, frozenset(key for keys in parts.values() for key in keys), tasks)

    def overlap(self, suite: _Suite) -> tuple[dict[str, int], list[str]]:
        """How many prompts of a suite the run has seen, and notes that say so; what spoils the scores is warned of."""
        keys = [record.prompt_key for record in suite.records]
        trained = sum(key in self.trained for key in keys)
        watched = sum(key in self.watched for key in keys)
        notes = []
        if trained:
            notes.append(f"{trained} of {len(keys)} prompts were also trained on")
            console.warn(f"{suite.file}: {trained} of {len(keys)} prompts are also in the training rows")
        if watched:
            notes.append(f"{watched} of {len(keys)} prompts also served to choose the checkpoint")
            console.warn(f"{suite.file}: {watched} of {len(keys)} prompts also served to choose the checkpoint")
        tasks = [record.task for record in suite.records if record.task in self.watched_tasks]
        if tasks:
            names = ", ".join(sorted(set(tasks)))
            plural = "row belongs" if len(tasks) == 1 else "rows belong"
            notes.append(f"{len(tasks)} {plural} to tasks that were kept out of training to watch ({names})")
        return {"with_training": trained, "with_watched": watched}, notes


def _measure(
    suite: _Suite, bench: Bench, asked: Asked, loaded: Loaded, seed: int, known: _Known
) -> tuple[dict[str, Any], str, list[dict[str, Any]]]:
    records, arms = suite.records, list(asked.rows)
    answered: dict[str, Answered] = {}
    with console.progress(len(records) * len(arms), f"Answering {suite.name}", unit="rows") as bar:
        for arm in arms:
            bar.advance(0, arm=arm)
            answered[arm] = bench.answer(arm, asked, bar.advance)
    known_labels = loaded.renderer.labels.labels if loaded.renderer.labels else loaded.run.get("labels")
    labels = known_labels or label_set([record.answer for record in records])
    references = [loaded.renderer.accepted(record.answers) for record in records]
    scores = {
        arm: score(result.texts, references, labels=labels, losses=result.losses) for arm, result in answered.items()
    }
    pairs = [("tuned", other) for other in ("base", "reread", "few_shot")] if "tuned" in arms else []
    tasks = _by_task(records)
    overlap, notes = known.overlap(suite)
    notes = [suite.account] * bool(suite.account) + notes
    notes += [f"{ARMS[arm]}: {result.ended:.0f}% of answers ended by themselves" for arm, result in answered.items()]
    if labels:
        notes += [f"{ARMS[arm]}: {entry.outside_share:.1f}% of answers are no label" for arm, entry in scores.items()]
    found_by = [found for entry in scores.values() for found in entry.statistics.values()]
    signatures = {f"sacrebleu {found.note}" for found in found_by if found.note}
    primary = _primary(labels, records, loaded)
    entry = {
        "name": suite.name,
        "file": suite.file,
        "sha256": suite.sha256,
        "rows": len(records),
        "overlap": overlap,
        "scores": {arm: _estimates(found, seed) for arm, found in scores.items()},
        "differences": {f"{a}-{b}": _differences(scores[a], scores[b], seed) for a, b in pairs if b in scores},
        "by_task": {
            task: {arm: _estimates(found.take(rows), seed) for arm, found in scores.items()}
            for task, rows in tasks.items()
        },
        "worst": _worst(records, answered, scores[arms[-1]], arms),
        "notes": notes + sorted(signatures),
    }
    samples = [
        {
            "suite": suite.name,
            "origin": str(record.origin),
            "row": record.key,
            "prompt": record.prompt_key,
            "task": record.task,
            "expected": record.answer,
            "answers": {arm: result.texts[place] for arm, result in answered.items()},
            "finish": {arm: result.finish[place] for arm, result in answered.items()},
            "nats": {arm: round(result.losses[place][0], 4) for arm, result in answered.items()},
            "tokens": answered[arms[-1]].losses[place][1],
        }
        for place, record in enumerate(records)
    ]
    return entry, primary, samples


def _primary(labels: Any, records: Sequence[Record], loaded: Loaded) -> str:
    """The metric that is shown first: accuracy for labels, exact match for short or fixed answers, chrF for texts."""
    if labels:
        return "accuracy"
    lengths = sorted(len(record.answer) for record in records)
    fixed = loaded.run.get("fixed_answers", False)
    return "exact_match" if fixed or lengths[len(lengths) // 2] <= 24 else "chrf"


def _by_task(records: Sequence[Record]) -> dict[str, list[int]]:
    tasks: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        if record.task:
            tasks.setdefault(record.task, []).append(place)
    return tasks if len(tasks) > 1 else {}


def _estimates(scores: RowScores, seed: int) -> dict[str, dict[str, float]]:
    found = scores.statistics.items()
    return {name: _entry(bootstrap(statistic, resamples=RESAMPLES, seed=seed)) for name, statistic in found}


def _differences(a: RowScores, b: RowScores, seed: int) -> dict[str, dict[str, float]]:
    shared = [name for name in a.statistics if name in b.statistics]
    return {
        name: _entry(paired_difference(a.statistics[name], b.statistics[name], resamples=RESAMPLES, seed=seed))
        for name in shared
    }


def _entry(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _worst(
    records: Sequence[Record], answered: Mapping[str, Answered], scores: RowScores, arms: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows that the last arm answered worst, by token F1, at most ten; wrong answers only."""
    values = scores.values("token_f1")
    exact = scores.values("exact_match")
    places = [place for place in np.argsort(values, kind="stable").tolist() if exact[place] < 100][:WORST]
    return [
        {
            "origin": str(records[place].origin),
            "task": records[place].task,
            "prompt": records[place].last_user.content,
            "expected": records[place].answer,
            "answers": {arm: answered[arm].texts[place] for arm in arms},
            "score": round(float(values[place]), 1),
        }
        for place in places
    ]


def _pool(loaded: Loaded) -> list[Record]:
    """Training rows that the run kept as examples for the few-shot model."""
    if loaded.folder is None or not (loaded.folder / "examples.json").is_file():
        return []
    rows = read_json(loaded.folder / "examples.json")
    return [Record.of(row["instruction"], row["output"], input=row["input"], task=row["task"]) for row in rows]


def _detail(arm: str, loaded: Loaded, settings: EvaluateSettings) -> str:
    if arm == "tuned":
        again = f", the instruction read {loaded.strokes} times" if loaded.strokes > 1 else ""
        return f"{loaded.backbone.name} tuned with {loaded.run['method']}{again}"
    if arm == "reread":
        return f"{loaded.backbone.name}, not tuned, the instruction read {loaded.strokes} times"
    if arm == "few_shot":
        how = "" if settings.shots_by == "random" else f", chosen by {settings.shots_by}"
        return f"{loaded.backbone.name} with up to {settings.shots} training rows in its prompt{how}"
    return f"{loaded.backbone.name}, not tuned"


def _untuned(loaded: Loaded, target: str) -> dict[str, Any]:
    total = sum(parameter.numel() for parameter in loaded.model.parameters())
    return {
        "backbone": {"name": target},
        "method": "none",
        "trained_parameters": 0,
        "parameters": total,
        "settings": {},
        "data": {"files": {}, "rows": 0, "parts": {}, "held_out": ""},
    }


def run_part(run: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """What report and model card say of a run; `run` is the content of run.json."""
    return {
        "folder": folder,
        "backbone": run["backbone"]["name"],
        "method": run["method"],
        "trained_parameters": run["trained_parameters"],
        "parameters": run["parameters"],
        "settings": run["settings"],
        "data": {key: run["data"][key] for key in ("files", "rows", "parts", "held_out")},
        "license": _license(run["backbone"]["name"]),
        "learning_curve": run.get("learning_curve"),
    }


def _license(backbone: str) -> str:
    """Licence of a built-in model as model hubs spell it; of others nothing is known."""
    if backbone not in embedded.MODELS:
        return "unknown"
    licence = embedded.MODELS[backbone].licence
    return {"Gemma Terms of Use": "gemma"}.get(licence, licence.lower())


def empty_report(run: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """A report in which nothing is measured yet; `run` is the content of run.json."""
    commit, dirty = commit_of_source()
    return {
        "format": 1,
        "command": f"instructrec evaluate {folder} FILE",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "version": __version__,
        "commit": commit,
        "dirty": dirty,
        "run": run_part(run, folder),
        "arms": [],
        "metrics": {
            name: {
                "label": metric.label,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
                "explanation": metric.explanation,
            }
            for name, metric in METRICS.items()
        },
        "primary": "exact_match",
        "interval": f"95% bootstrap over rows, {RESAMPLES:,} resamples",
        "suites": [],
        "training": run.get("training"),
    }


def _print(report: Mapping[str, Any], suite: Mapping[str, Any]) -> None:
    shown = [name for name in report["metrics"] if any(name in arm for arm in suite["scores"].values())]
    rows = []
    for name in shown:
        metric = report["metrics"][name]
        cells = [cell(suite["scores"][arm["name"]].get(name), metric["unit"]) for arm in report["arms"]]
        rows.append([metric["label"], *cells])
    headers = ["", *(arm["label"] for arm in report["arms"])]
    console.table(headers, rows, title=f"{suite['name']}: {suite['rows']} rows, 95% interval in brackets")


def _plain_name(target: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in Path(target).name) or "model"


def _line(sample: Mapping[str, Any]) -> str:
    return json.dumps(clean(sample), ensure_ascii=False, allow_nan=False) + "\n"
