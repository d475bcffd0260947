"""What the page shows of a report: every number as text, every picture drawn; the template only places them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec.evaluation import drawings, pictures, proof, robust
from instructrec.evaluation.numbers import brief, change, count, interval, known, number, side, spoken, visible
from instructrec.evaluation.requirements import shown_value
from instructrec.evaluation.summary import KINDS, main_arm, primary_of, summary, title
from instructrec.evaluation.words import Words

FOLD = 24  # tasks shown before the others are folded away
ANSWERS = 2  # worst answers of a suite shown before the others are folded away
TILES = 5  # suites that have a tile
SERIES = {"base": 0, "few_shot": 1, "tuned": 2, "reread": 3}  # colours go with the arm, also where some are left out


def view(report: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """What the template is given. report: numbers that are not finite are None."""
    run = report["run"]
    series = series_of(report)
    arms = [
        {**arm, "label": words.said(arm["label"]), "detail": words.said(arm["detail"]), "series": series[arm["name"]]}
        for arm in report["arms"]
    ]
    said = {**report, "arms": arms}
    last = next((arm for arm in reversed(arms) if arm["name"] == "tuned"), arms[-1] if arms else {"label": ""})
    return {
        "report": report,
        "run": run,
        "title": visible(Path(run["folder"]).name or run["folder"]),
        "summary": summary({**report, "requirements": []}, words.language),  # they have a place of their own
        "requirements": [
            {**entry, "value": shown_value(entry) if entry["value"] is not None else ""}
            for entry in report.get("requirements") or []
        ],
        "tiles": _tiles(report, words),
        "chips": _chips(report, words),
        "arms": arms,
        "suites": [_suite(said, suite, series, words) for suite in report["suites"]],
        "marked": _marked(report),
        "ranked": any(suite.get("ranked") for suite in report["suites"]),
        "meanings": _meanings(report, words),
        "robustness": robust.view(said, series, words) if report.get("robustness") else None,
        "confidence": proof.confidence(said, series, words),
        "bias": proof.bias(said, series, words),
        "constraints": proof.constraints(said, series, words),
        "forgetting": proof.forgetting(report, words),
        "overlap": proof.overlap(report, words),
        "last_arm": words.lower(last["label"]),
        "training": _training(report["training"], words) if report["training"] else None,
        "hashes": {**run["data"]["files"], **{suite["file"]: suite["sha256"] for suite in report["suites"]}},
        "commit": _commit(report, words),
    }


def series_of(report: Mapping[str, Any]) -> dict[str, int]:
    """The colour of each arm, as the number of a series."""
    others = [arm["name"] for arm in report["arms"] if arm["name"] not in SERIES]
    free = {name: len(SERIES) + place % 2 for place, name in enumerate(others)}
    return {arm["name"]: (SERIES | free)[arm["name"]] for arm in report["arms"]}


def _commit(report: Mapping[str, Any], words: Words) -> str:
    commit = report["commit"] or words("repeat.unknown")
    return words("repeat.dirty", commit=commit) if report["dirty"] else commit


def _chips(report: Mapping[str, Any], words: Words) -> list[tuple[str, str]]:
    run = report["run"]
    sizes = {"trained": count(run["trained_parameters"]), "all": count(run["parameters"])}
    chips = [("model", run["backbone"]), ("method", run["method"]), ("trained", words("chip.parameters", **sizes))]
    chips.append(("rows", f"{run['data']['rows']:,}"))
    if report["training"]:
        chips.append(("tuning", words.duration(report["training"]["seconds"])))
    chips.append(("evaluation", words.duration(report["seconds"])))
    return [(words(f"chip.{name}"), value) for name, value in chips]


def _tiles(report: Mapping[str, Any], words: Words) -> list[dict[str, Any]]:
    """The main numbers, large: each suite, the worst damage, what was forgotten."""
    tiles = []
    for suite in report["suites"][:TILES]:
        name = primary_of(report, suite)
        metric = report["metrics"][name]
        arm = main_arm(report, {arm: 1 for arm, scores in suite["scores"].items() if known(scores.get(name))})
        if not arm:
            continue
        estimate, base = suite["scores"][arm][name], suite["scores"].get("base", {}).get(name)
        tile: dict[str, Any] = {
            "label": title(report, suite, words),
            "value": brief(estimate["value"], metric["unit"]),
            "interval": interval(estimate, metric["unit"]),
            "what": words.said(metric["label"]),
            "lines": [],
            "verdict": "",
        }
        if arm != "base" and known(base):
            tile["lines"].append(words("tile.base", value=brief(base["value"], metric["unit"])))
        difference = suite["differences"].get("tuned-base", {}).get(name)
        if arm == "tuned" and known(difference) and difference["low"] != difference["high"]:
            found = side(difference) * (1 if metric["higher_is_better"] else -1)
            tile["verdict"] = {1: "better", 0: "same", -1: "worse"}[found]
            tile["lines"].append(words(f"tile.{tile['verdict']}"))
        tiles.append(tile)
    return [*tiles, *robust.tile(report, words), *proof.tile(report, words)]


def _marked(report: Mapping[str, Any]) -> list[str]:
    """Which marks stand in the bars of a suite."""
    found = {
        mark
        for suite in report["suites"]
        for mark, values in (suite.get("references") or {}).items()
        if isinstance(values, dict) and any(value is not None for value in values.values())
    }
    return [mark for mark in ("chance", "majority") if mark in found]


def _suite(report: Mapping[str, Any], suite: Mapping[str, Any], series: Any, words: Words) -> dict[str, Any]:
    metrics = report["metrics"]
    primary = primary_of(report, suite)
    panels = []
    for name in sorted(metrics, key=lambda name: name != primary):  # the primary first, the rest as they are
        found = {arm: suite["scores"].get(arm, {}).get(name) for arm in series}
        if any(found.values()):
            panels.append(_panel(report, name, found, suite, words))
        ranked = {arm: (suite.get("ranked") or {}).get(arm, {}).get(name) for arm in series}
        if any(ranked.values()):
            panel = _panel(report, name, ranked, {**suite, "differences": {}}, words)
            panel["label"] = words("results.ranked", metric=panel["label"])
            panel["differences"] = [number(None, "")] * len(suite["differences"])
            panels.append(panel)
    tasks = _tasks(report, suite, primary, words)
    kind = suite.get("kind")
    return {
        **suite,
        "title": title(report, suite, words),
        "about": words(f"about.{kind}") if kind in KINDS else "",
        "panels": panels,
        "notes": [words.said(note) for note in suite["notes"]],
        "over": words(f"results.clusters.{suite['clusters']}") if suite.get("clusters") else "",
        "by": words.said(metrics[primary]["label"]),
        "tasks": tasks[:FOLD],
        "more_tasks": tasks[FOLD:],
        "compared": [_pair(pair, report["arms"], words) for pair in suite["differences"]],
        "trained": suite["overlap"].get("with_training", 0),
        "watched": suite["overlap"].get("with_watched", 0),
        "near": suite["overlap"].get("near", 0),
        "worst": suite["worst"][:ANSWERS],
        "more_worst": suite["worst"][ANSWERS:],
    }


def _pair(pair: str, arms: Sequence[Mapping[str, Any]], words: Words) -> str:
    labels = {arm["name"]: arm["label"] for arm in arms}
    first, _, second = pair.partition("-")
    return words("results.minus", first=labels.get(first, first), second=words.lower(labels.get(second, second)))


def _panel(
    report: Mapping[str, Any],
    name: str,
    found: Mapping[str, Mapping[str, Any] | None],
    suite: Mapping[str, Any],
    words: Words,
) -> dict[str, Any]:
    metric = report["metrics"][name]
    unit = metric["unit"]
    ends = [scores["high"] or 0 for scores in found.values() if scores]
    top = 100.0 if unit == "%" else max(ends) * 1.02
    references = suite.get("references") or {}
    found_marks = {mark: (references.get(mark) or {}).get(name) for mark in ("chance", "majority")}
    marks = {mark: float(value) for mark, value in found_marks.items() if value is not None}
    shown = (suite["differences"][pair].get(name) for pair in suite["differences"])
    return {
        "label": words.said(metric["label"]),
        "unit": unit,
        "higher_is_better": metric["higher_is_better"],
        "name": name,
        "rows": bar_rows(report, found, unit, top, marks),
        "marks": [words(f"results.{mark}", value=number(value, unit)) for mark, value in marks.items()],
        "differences": [change(entry, unit, words("to")) for entry in shown],
    }


def bar_rows(
    report: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any] | None],
    unit: str,
    top: float,
    marks: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row of bars for each arm; `top` is the number at full width, `marks` lines across the bars."""
    from markupsafe import Markup

    labels = {arm["name"]: arm["label"] for arm in report["arms"]}
    series = series_of(report)
    return [
        {
            "label": labels[arm],
            "value": number(estimate["value"], unit) if estimate else number(None, unit),
            "interval": interval(estimate, unit) if estimate else "",
            "bar": Markup(drawings.bar(estimate, series[arm], top, marks=marks))
            if estimate and known(estimate)
            else "",
        }
        for arm, estimate in found.items()
    ]


def _tasks(report: Mapping[str, Any], suite: Mapping[str, Any], name: str, words: Words) -> list[dict[str, Any]]:
    """Bars of the primary metric for each task, the weakest of the tuned model first."""
    from markupsafe import Markup

    unit = report["metrics"][name]["unit"]
    series = series_of(report)
    by_task = {
        task: {arm: scores.get(arm, {}).get(name) for arm in series} for task, scores in suite["by_task"].items()
    }
    highest = [entry["high"] or 0 for found in by_task.values() for entry in found.values() if entry]
    top = 100.0 if unit == "%" else max(highest, default=0) * 1.02

    def strength(task: str) -> float:
        entry = by_task[task].get("tuned") or next((one for one in by_task[task].values() if one), None)
        value = entry["value"] if entry and entry["value"] is not None else 0.0
        return value if report["metrics"][name]["higher_is_better"] else -value

    labels = {arm["name"]: arm["label"] for arm in report["arms"]}
    tasks = []
    for task in sorted(by_task, key=lambda task: (strength(task), task)):
        found = {arm: entry for arm, entry in by_task[task].items() if entry and None not in entry.values()}
        bars = [
            drawings.bar(entry, series[arm], top, height=10, title=_told(words, labels[arm], entry, unit))
            for arm, entry in found.items()
        ]
        shown = found.get("tuned") or next(reversed(found.values()), None)
        tasks.append(
            {
                "name": task,
                "n": shown["n"] if shown else 0,
                "bars": Markup("").join(map(Markup, bars)),
                "value": number(shown["value"] if shown else None, unit),
                "interval": interval(shown, unit) if shown else "",
            }
        )
    return tasks


def _told(words: Words, label: str, entry: Mapping[str, Any], unit: str) -> str:
    return words.told(label, f"{number(entry['value'], unit)} {interval(entry, unit)}")


def _meanings(report: Mapping[str, Any], words: Words) -> list[tuple[str, str]]:
    def measured(name: str) -> bool:
        return any(name in scores for suite in report["suites"] for scores in suite["scores"].values())

    meanings = [
        (
            words.said(metric["label"]),
            words.said(metric["explanation"]) + ("" if metric["higher_is_better"] else words("meanings.lower")),
        )
        for name, metric in report["metrics"].items()
        if measured(name)
    ]
    parts = ["interval"] if meanings else []
    parts += ["drop", "worst", "flips"] if report.get("robustness") else []
    parts += ["ece"] if any(suite.get("calibration") for suite in report["suites"]) else []
    return [*meanings, *((words(f"meanings.{part}"), words(f"meanings.{part}_text")) for part in parts)]


def _training(training: Mapping[str, Any], words: Words) -> dict[str, Any]:
    from markupsafe import Markup

    drawn = {
        size: Markup(pictures.svg(pictures.loss_curve(dict(training), width, words), f"loss-{size}"))
        for size, width in (("wide", 7.2), ("narrow", 3.6))
    }
    facts = [
        words("training.speed", n=f"{training['tokens_per_second']:,.0f}"),
        words("training.padding", n=f"{100 * training['padding_share']:.1f}"),
        *([words("training.shared", n=f"{100 * shared:.0f}")] if (shared := training.get("shared_share")) else []),
        words.duration(training["seconds"]),
    ]
    return {
        **training,
        "watch": words.said(training["watch"]),
        "stopped": words.said(training["stopped"]),
        "pictures": drawn,
        "facts": words.listed(facts),
        "looks_at": _looks(training, words),
    }


def _looks(training: Mapping[str, Any], words: Words) -> list[dict[str, Any]]:
    """First and kept look in numbers, for readers who cannot see the picture."""
    names = pictures.held_out_sets(dict(training))
    looks = training["looks"]
    wanted = [look for look in looks if look["step"] in (looks[0]["step"], training["best_step"])]
    return [
        {
            "step": f"{look['step']:,}",
            "losses": {words.named("set", name): number(look.get(name, {}).get("loss"), "") for name in names},
        }
        for look in wanted
    ]


__all__ = ["FOLD", "SERIES", "bar_rows", "series_of", "spoken", "view"]
