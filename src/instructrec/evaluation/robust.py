"""What the page shows of the same rows clean and damaged: drops, curves over strength, tasks by damage, examples."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.evaluation import drawings
from instructrec.evaluation.numbers import (
    brief,
    cell,
    change,
    interval,
    known,
    number,
    side,
    visible,
    whole,
)
from instructrec.evaluation.summary import main_arm, title
from instructrec.evaluation.words import Words

EXAMPLES = 4  # shown before the others are folded away
TOPS = (10.0, 20.0, 40.0, 60.0, 80.0, 100.0)  # of a curve in percent
TASKS = 24  # likewise
COLUMNS = ("clean", "score", "lost", "difference", "flips")  # of the table of all numbers, for each arm
ABREAST = 7  # columns of a heat map beside each other on a phone
SHADES = (2.5, 8.0, 18.0, 35.0)  # points from which a cell of the heat map is one shade stronger
LONGEST = 3000  # pieces of text that are compared; longer ones are shown without marks
PIECES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+|\s+|.")


def view(report: Mapping[str, Any], series: Mapping[str, int], words: Words) -> dict[str, Any]:
    """What the template is given of report["robustness"]; labels of arms are in the language of `words`."""
    found = report["robustness"]
    arms = [arm for arm in report["arms"] if arm["name"] in found["clean"]]
    metric = report["metrics"].get(found["metric"], {"label": found["metric"], "unit": "%"})
    unit, label = metric["unit"], words.said(metric["label"])
    main = main_arm(report, found["clean"]) or ""
    suite = next((suite for suite in report["suites"] if suite["name"] == found["suite"]), {"name": found["suite"]})
    examples = [_example(entry, found, words) for entry in found.get("examples") or []]
    return {
        "intro": words(
            "robustness.intro",
            rows=words.count("rows", found["rows"]),
            suite=title(report, suite, words),
            metric=words.lower(label),
        ),
        "arms": arms,
        "over": words(f"results.clusters.{found['clusters']}") if found.get("clusters") else "",
        "kept": _kept(found, arms, unit, words),
        **_drops(found, arms, main, words),
        "table": _table(found, arms, unit, words),
        "heads": [words.told(arm["label"], words(f"robustness.{name}")) for arm in arms for name in COLUMNS],
        "metric": label,
        "curves": _curves(found, arms, unit, words),
        "heat": [heat for arm in arms if (heat := _heat(report, found, arm, main, words))],
        "examples": examples[:EXAMPLES],
        "more_examples": examples[EXAMPLES:],
        "adversarial": _adversarial(found, arms, unit, words),
    }


def tile(report: Mapping[str, Any], words: Words) -> list[dict[str, Any]]:
    """The worst case as one of the large numbers."""
    found = report.get("robustness")
    arm = main_arm(report, found["clean"]) if found else None
    lowest = (found.get("worst_case") or {}).get(arm) if found else None
    if not found or not arm or lowest is None or not known(lowest):
        return []
    unit = report["metrics"].get(found["metric"], {}).get("unit", "%")
    drops = [entry["drop"].get(arm) for entry in found["perturbations"]]
    lossy = sum(side(drop) > 0 for drop in drops)
    lines = [words("tile.worst_of", n=len(drops)), words("tile.clean", value=brief(found["clean"][arm]["value"], unit))]
    lines.append(words("tile.lossy", n=len(drops), lossy=lossy))
    return [
        {
            "label": words("tile.damage"),
            "value": brief(lowest["value"], unit),
            "interval": interval(lowest, unit),
            "what": "",
            "lines": lines,
            "verdict": "",
        }
    ]


def _kept(found: Any, arms: Sequence[Mapping[str, Any]], unit: str, words: Words) -> list[dict[str, Any]]:
    """Bars of each arm: undamaged, and with each row at its worst."""
    from markupsafe import Markup

    groups = []
    for key, name in (("clean", "robustness.undamaged"), ("worst_case", "robustness.worst")):
        scores = found.get(key) or {}
        rows = [
            {
                "label": arm["label"],
                "value": number(scores[arm["name"]]["value"], unit),
                "interval": interval(scores[arm["name"]], unit),
                "bar": Markup(drawings.bar(scores[arm["name"]], arm["series"], 100.0)),
            }
            for arm in arms
            if known(scores.get(arm["name"]))
        ]
        if rows:
            groups.append({"label": words(name), "rows": rows})
    return groups


def _drops(found: Any, arms: Sequence[Mapping[str, Any]], main: str, words: Words) -> dict[str, Any]:
    """Dots of the drop by perturbation, the one that costs the main arm most first."""
    from markupsafe import Markup

    entries = _by_drop(found, main)
    low, high, ticks = drawings.ends([entry["drop"].get(arm["name"]) for entry in entries for arm in arms])
    drops = []
    for entry in entries:
        lines = [(arm, entry["drop"].get(arm["name"])) for arm in arms]
        told = "; ".join(words.told(arm["label"], cell(drop, "%")) for arm, drop in lines if known(drop))
        shown = entry["drop"].get(main)
        drawn = [(arm["series"], drop) for arm, drop in lines if drop and known(drop)]
        drops.append(
            {
                "label": words.said(entry["label"]),
                "kind": words.listed(
                    [words.named("damage", entry["kind"])]
                    + [words.count("rows", entry["rows"])] * (entry["rows"] < found["rows"])
                ),
                "picture": Markup(drawings.dots(drawn, low, high, title=told)),
                "value": number(shown["value"], "%").replace("-", "−") if shown else number(None, "%"),
                "interval": interval(shown, "%") if shown else "",
                "sure": bool(side(shown)),
            }
        )
    axis = [(f"{drawings.across(tick, low, high):.2f}", f"{tick:g}%".replace("-", "−")) for tick in ticks]
    return {"drops": drops, "axis": axis}


def _by_drop(found: Any, arm: str) -> list[Any]:
    """The perturbations, the one that costs this arm most first."""
    return sorted(
        found["perturbations"],
        key=lambda entry: -(entry["drop"][arm]["value"] if known(entry["drop"].get(arm)) else float("-inf")),
    )


def _table(found: Any, arms: Sequence[Mapping[str, Any]], unit: str, words: Words) -> list[dict[str, Any]]:
    rows = []
    for entry in found["perturbations"]:
        cells = []
        for arm in arms:
            name = arm["name"]
            cells.append(cell((entry.get("clean") or found["clean"]).get(name), unit))
            cells += [cell(entry["scores"].get(name), unit), cell(entry["drop"].get(name), "%").replace("-", "−")]
            cells.append(change((entry.get("difference") or {}).get(name), unit, words("to")))
            cells.append(cell((entry.get("flips") or {}).get(name), "%"))
        rows.append({"label": words.said(entry["label"]), "n": f"{entry['rows']:,}", "cells": cells})
    return rows


def _curves(found: Any, arms: Sequence[Mapping[str, Any]], unit: str, words: Words) -> list[dict[str, Any]]:
    from markupsafe import Markup

    curves = []
    for entry in found.get("curves") or []:
        lines, said = [], []
        for arm in arms:
            points = [(point["strength"], point["scores"].get(arm["name"])) for point in entry["points"]]
            points = [(strength, score) for strength, score in points if known(score)]
            lines.append((arm["series"], points))
            told = words.listed([f"{strength:g}: {number(score['value'], unit)}" for strength, score in points])
            said.append(words.told(arm["label"], told))
        highest = max((score["high"] for _, points in lines for _, score in points), default=0)
        top = next((end for end in TOPS if highest <= end), 100.0) if unit == "%" else highest * 1.05
        strengths = [point["strength"] for point in entry["points"]]
        first, last = min(strengths, default=0), max(strengths, default=1)
        label = words.said(entry["label"])
        curves.append(
            {
                "label": label,
                "picture": Markup(drawings.curve(lines, top, words.told(label, "; ".join(said)))),
                "ticks": [(f"{drawings.across(one, first, last):.2f}", f"{one:g}") for one in strengths],
                "levels": [f"{top * part:.0f}%" if unit == "%" else number(top * part, unit) for part in (1, 0.5, 0)],
            }
        )
    return curves


def _heat(report: Any, found: Any, arm: Mapping[str, Any], main: str, words: Words) -> dict[str, Any] | None:
    """Tasks by perturbation: what is lost or gained on each, in points; the tasks that lose most come first."""
    name = arm["name"]
    labels = {entry["name"]: words.said(entry["label"]) for entry in found["perturbations"]}
    order = [entry["name"] for entry in _by_drop(found, main)]
    by_task = found.get("by_task") or {}
    columns = [one for one in order if any(name in (cells.get(one) or {}) for cells in by_task.values())]
    rows = []
    for task, cells in by_task.items():
        values = [(cells.get(column) or {}).get(name) for column in columns]
        measured = [value for value in values if value is not None]
        mean = sum(measured) / len(measured) if measured else 0.0
        rows.append({"task": task, "cells": [_cell(value) for value in values], "mean": mean})
    rows.sort(key=lambda row: (row["mean"], row["task"]))
    metric = report["metrics"].get(found["metric"], {"label": found["metric"]})
    if not columns:
        return None
    return {
        "hint": words(
            "robustness.heat_hint", metric=words.lower(words.said(metric["label"])), arm=words.lower(arm["label"])
        ),
        "arm": arm["label"],
        "main": name == main,
        "columns": [labels[column] for column in columns],
        "groups": _groups(len(columns)),
        "rows": rows[:TASKS],
        "more_rows": rows[TASKS:],
    }


def _groups(columns: int) -> list[tuple[int, int]]:
    """From which to which column each of the tables goes that stand below one another on a phone, alike in size."""
    tables = -(-columns // ABREAST)
    places = [round(columns * table / tables) for table in range(tables + 1)]
    return list(zip(places, places[1:], strict=False))


def _cell(value: float | None) -> dict[str, str]:
    """Text and shade of a change in points: `loss-3` is a strong loss, `gain-1` a slight gain."""
    if value is None:
        return {"text": number(None, ""), "shade": "missing"}
    strength = sum(abs(value) >= shade for shade in SHADES)
    shade = f"{'gain' if value > 0 else 'loss'}-{strength}" if strength else "none"
    return {"text": f"{value:+.0f}".replace("-", "−") if whole(value) != "0" else "0", "shade": shade}


def _example(entry: Mapping[str, Any], found: Any, words: Words) -> dict[str, Any]:
    labels = {one["name"]: one["label"] for one in found["perturbations"]}
    clean, damaged = marked(entry["clean"], entry["damaged"])
    return {
        **entry,
        "label": words.said(labels.get(entry.get("perturbation", ""), entry.get("perturbation", ""))),
        "clean": clean,
        "damaged": damaged,
    }


def _adversarial(found: Any, arms: Sequence[Mapping[str, Any]], unit: str, words: Words) -> dict[str, Any] | None:
    from markupsafe import Markup

    entry = found.get("adversarial")
    if not entry:
        return None
    scores = entry["scores"]
    return {
        "label": words.said(entry["label"]),
        "hint": words(
            "robustness.adversarial_hint", rows=words.count("rows", entry["rows"]), queries=f"{entry['queries']:,g}"
        ),
        "rows": [
            {
                "label": arm["label"],
                "value": number(scores[arm["name"]]["value"], unit),
                "interval": interval(scores[arm["name"]], unit),
                "bar": Markup(drawings.bar(scores[arm["name"]], arm["series"], 100.0)),
            }
            for arm in arms
            if known(scores.get(arm["name"]))
        ],
        "examples": [_example({"perturbation": "", **one}, found, words) for one in entry.get("examples") or []],
    }


def marked(clean: str, damaged: str) -> tuple[Any, Any]:
    """Both texts, safe for a page, with the words (Chinese: characters) marked in which they differ."""
    from markupsafe import Markup, escape

    before, after = (PIECES.findall(visible(text)) for text in (clean, damaged))
    if len(before) + len(after) > LONGEST:
        return escape(visible(clean)), escape(visible(damaged))
    sides: tuple[list[Any], list[Any]] = ([], [])
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for what, start, end, begin, stop in matcher.get_opcodes():
        for pieces, text in zip(sides, ("".join(before[start:end]), "".join(after[begin:stop])), strict=True):
            pieces.append(escape(text) if what == "equal" or not text else Markup("<mark>{}</mark>").format(text))
    left, right = (Markup("").join(pieces) for pieces in sides)
    return left, right
