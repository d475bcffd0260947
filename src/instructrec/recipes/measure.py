"""`instructrec evaluate`: answers on held-out rows, scored, with intervals, beside the base model; and the report."""

from __future__ import annotations

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

from .. import __version__, console
from ..config import EvaluateSettings, Source
from ..data.records import Record
from ..environment import commit_of_source
from ..errors import DataError, EnvironmentFault, InputError
from ..evaluation.arms import ARMS, Asked, Bench, choose_arms
from ..evaluation.card import write_card
from ..evaluation.report import cell, change, clean, number, write_report
from ..evaluation.requirements import check, parse, unmet
from ..evaluation.summary import summaries
from ..files import read_json, write_text
from ..inference.loading import Choosing, Loaded, is_run, open_target, run_of
from ..measures.metrics import METRICS
from ..models import embedded
from ..settings import checked
from .bias import NAMES as bias_checks
from .bias import bias
from .known import Known
from .labels import labels_of
from .proofs import constraints, forgetting, languages_of, sides
from .robustness import NAMES as DAMAGE
from .robustness import Clean, chosen, robustness
from .robustness import show as show_robustness
from .rows import Data, announce
from .runfolder import Lock
from .scoring import RESAMPLES, Measured, closed_set, measure
from .suites import Suite, data_of, read_suites, sort_suites


@dataclass(frozen=True)
class Evaluation:
    """report: everything that was measured, as in report.json.  page: the report to look at."""

    report: dict[str, Any]
    page: Path

    def scores(self, suite: str | None = None) -> dict[str, dict[str, dict[str, float]]]:
        """arm -> metric -> value, low, high, n of one suite (default: the first)."""
        suites = {entry["name"]: entry["scores"] for entry in self.report["suites"]}
        return suites[suite or next(iter(suites))]


def evaluate(target: str | os.PathLike[str], data: Data | None = None, **settings: Any) -> Evaluation:
    """Measure a run folder or any pretrained model on rows it was not tuned on, and write the report.

    data: a file, several, a list of dicts, or what `read` returned; None: the rows that the run kept for testing
    (`tune --test-share`). Rows of a file become suites by what they test.  settings: those of `instructrec evaluate`,
    such as `arms="tuned"`, `rows=100`, `out="reports/mine"`.
    """
    return _evaluate(os.fspath(target), data, checked(EvaluateSettings, settings), "")


def evaluate_files(target: str, files: Sequence[str | Source], settings: EvaluateSettings, command: str) -> Evaluation:
    """The same from the command line; prints the scores."""
    result = _evaluate(target, files, settings, command)
    for suite in result.report["suites"]:
        _print(result.report, suite)
    _print_further(result.report)
    if "robustness" in result.report:
        show_robustness(result.report)
    console.say(f"Report: {result.page}")
    if error := unmet(result.report):
        raise error
    return result


def _evaluate(target: str, data: Data | None, settings: EvaluateSettings, command: str) -> Evaluation:
    data = data_of(target, data)
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
    files = read_suites(data, settings, folder)
    known = Known.of(Path(target), run_of(Path(target))) if is_run(target) else Known()
    suites = sort_suites(files, known, settings)
    required = parse(settings.require, [suite.name for suite in suites], DAMAGE, bias_checks)
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
    measured = [measure(suite, bench, rows, known, settings) for suite, rows in zip(suites, asked, strict=True)]
    for found in measured:
        found.entry["notes"] = notes + found.entry["notes"]
    report |= {"primary": measured[0].primary, "suites": [found.entry for found in measured]}
    report |= _further(bench, suites, measured, arms, settings)
    if settings.robustness != "none" and arms != ["few_shot"]:  # whose examples depend on the row as it is
        report["robustness"] = _robustness(bench, suites[0], asked[0].budget, measured[0], settings)
    report |= {"language": settings.language, "requirements": check(required, clean(report))}
    report["summary"] = summaries(clean(report))
    answers = [sample for found in measured for sample in found.samples]
    report["seconds"] = round(time.monotonic() - started, 1)
    write_text(folder / "answers.jsonl", "".join(_line(sample) for sample in answers))
    page = write_report(report, folder)
    if loaded.folder and folder == loaded.folder:
        write_card(report, report["run"], folder)
    return Evaluation(report, page)


def _robustness(
    bench: Bench, suite: Suite, budget: int, measured: Measured, settings: EvaluateSettings
) -> dict[str, Any]:
    """The first suite again, damaged."""
    texts = {arm: found.texts for arm, found in measured.answered.items()}
    clean = Clean(
        suite=suite.name,
        records=suite.records,
        answers=texts,
        references=measured.references,
        extract=measured.extract,
        budget=budget,
        labels=closed_set(bench, suite.records),
        metric=measured.primary,
        clusters=measured.entry["clusters"],
        owners=measured.owners,
    )
    return robustness(bench, clean, settings)


def _further(
    bench: Bench, suites: Sequence[Suite], measured: Sequence[Measured], arms: Sequence[str], settings: EvaluateSettings
) -> dict[str, Any]:
    """What is measured on rows of our own, and beside the suites."""
    wanted = settings.suites.split(",")
    if bench.loaded.backbone.kind.chooses:  # it can't answer what has no labels
        wanted = [name for name in wanted if name not in ("forgetting", "constraints")]
    found: dict[str, Any] = {}
    if "forgetting" in wanted and {"base", "tuned"} <= {*arms}:
        found["forgetting"] = forgetting(bench, settings.seed)
    if "constraints" in wanted:
        languages = languages_of([record for suite in suites for record in suite.records])
        found["constraints"] = constraints(bench, sides(arms), languages, settings.seed)
    if "bias" in wanted and (checks := bias(bench, suites, measured, sides(arms), settings.seed)):
        found["bias"] = checks
    return found


def _ask(suites: Sequence[Suite], bench: Bench, arms: Sequence[str], max_new_tokens: int | None) -> list[Asked]:
    """All suites rendered before the first is answered. Raises DataError with every row that can't be."""
    found = [bench.ask(suite.records, arms, max_new_tokens) for suite in suites]
    if problems := [problem for _, some in found for problem in some]:
        raise DataError(problems)
    return [asked for asked, _ in found]


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
        "format": 2,
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
        "interval": f"95% bootstrap, {RESAMPLES:,} resamples, over what each suite names: rows, wordings or tasks",
        "suites": [],
        "training": run.get("training"),
    }


def _print(report: Mapping[str, Any], suite: Mapping[str, Any]) -> None:
    shown = [name for name in report["metrics"] if any(name in arm for arm in suite["scores"].values())]
    references = suite.get("references")
    rows = []
    for name in shown:
        metric = report["metrics"][name]
        cells = [cell(suite["scores"][arm["name"]].get(name), metric["unit"]) for arm in report["arms"]]
        if references:
            cells += [number(references[kind].get(name), metric["unit"]) for kind in ("chance", "majority")]
        rows.append([metric["label"], *cells])
    for name in ("accuracy", "macro_f1") if "ranked" in suite else ():
        cells = [cell(suite["ranked"][arm["name"]][name], "%") for arm in report["arms"]]
        rows.append([f"{report['metrics'][name]['label']}, labels ranked", *cells])
    if "calibration" in suite:
        cells = [cell(suite["calibration"][arm["name"]]["ece"], "%") for arm in report["arms"]]
        rows.append(["Calibration error", *cells])
    headers = ["", *(arm["label"] for arm in report["arms"]), *(["Chance", "Majority"] if references else [])]
    rows = [row + [""] * (len(headers) - len(row)) for row in rows]
    kind = f", {suite['kind'].replace('_', ' ')}" if suite["kind"] != "all" else ""
    title = f"{suite['name']}: {suite['rows']} rows{kind}, 95% interval over {suite['clusters']} in brackets"
    console.table(headers, rows, title=title)


def _print_further(report: Mapping[str, Any]) -> None:
    labels = {arm["name"]: arm["label"] for arm in report["arms"]}
    tables: list[tuple[str, list[tuple[str, Mapping[str, Any]]]]] = []
    if checks := report.get("bias"):
        rows = [(f"{check['label']} ({check['rows']} rows)", check["arm"]) for check in checks]
        tables.append(("Bias: 0% is without", rows))
    if kept := report.get("constraints"):
        names = {"all": "All constraints kept", "each": "Each constraint"}
        rows = [(said, {arm: one[name] for arm, one in kept["scores"].items()}) for name, said in names.items()]
        tables.append((f"Constraints: {kept['rows']} instructions", rows))
    for title, rows in tables:
        arms = list(rows[0][1])
        cells = [[name, *(cell(found[arm], "%") for arm in arms)] for name, found in rows]
        console.table(["", *(labels[arm] for arm in arms)], cells, title=f"{title}, 95% interval in brackets")
    if lost := report.get("forgetting"):
        parts = {"all": lost["loss"]} | lost["by_part"]
        cells = [
            [name, cell(one["before"], "nats"), cell(one["after"], "nats"), change(one["difference"], "nats")]
            for name, one in parts.items()
        ]
        console.table(["", "Before", "After", "Change"], cells, title=f"General probe set: loss on {lost['rows']} rows")


def _plain_name(target: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in Path(target).name) or "model"


def _line(sample: Mapping[str, Any]) -> str:
    return json.dumps(clean(sample), ensure_ascii=False, allow_nan=False) + "\n"
