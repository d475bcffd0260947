"""What the page shows beside the scores: confidence, bias, constraints, forgetting, overlap with the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instructrec.evaluation import drawings
from instructrec.evaluation.numbers import cell, change, interval, known, number, side
from instructrec.evaluation.summary import title
from instructrec.evaluation.words import Words

EXAMPLES = 4


def tile(report: Mapping[str, Any], words: Words) -> list[dict[str, Any]]:
    """What was forgotten, as one of the large numbers."""
    rise = (report.get("forgetting") or {"loss": {}})["loss"].get("difference")
    if not known(rise):
        return []
    lost = side(rise) > 0
    ends = words("to").join(f"{rise[end]:+.2f}" for end in ("low", "high")).replace("-", "−")
    return [
        {
            "label": words("tile.forgetting"),
            "value": f"{rise['value']:+.2f}".replace("-", "−"),
            "interval": ends,
            "what": "",
            "lines": [words("tile.loss_change"), words("tile.forgot" if lost else "tile.remembers")],
            "verdict": "worse" if lost else "same",
        }
    ]


def confidence(report: Mapping[str, Any], series: Mapping[str, int], words: Words) -> list[dict[str, Any]]:
    """For each suite with calibration a picture for each arm."""
    from markupsafe import Markup

    suites = []
    for suite in report["suites"]:
        pictures = []
        for arm in report["arms"]:
            found = (suite.get("calibration") or {}).get(arm["name"])
            if not found:
                continue
            bins = [one for one in found["bins"] if one["n"] and None not in (one["confidence"], one["accuracy"])]
            told = [
                words(
                    "confidence.told",
                    confidence=number(one["confidence"], "%"),
                    accuracy=number(one["accuracy"], "%"),
                    rows=words.count("rows", one["n"]),
                )
                for one in bins
            ]
            pictures.append(
                {
                    "label": arm["label"],
                    "picture": Markup(drawings.reliability(bins, series[arm["name"]], told)),
                    "ece": words("confidence.ece", value=cell(found.get("ece"), "%")),
                }
            )
        if pictures:
            suites.append({"title": title(report, suite, words), "pictures": pictures})
    return suites


def bias(report: Mapping[str, Any], series: Mapping[str, int], words: Words) -> list[dict[str, Any]]:
    """For each check a bar for each arm, with a mark where a model without bias would stand."""
    from markupsafe import Markup

    checks = []
    for entry in report.get("bias") or []:
        unit = entry.get("unit", "%")
        found = [(arm, entry["arm"].get(arm["name"])) for arm in report["arms"]]
        ends = [estimate["high"] for _, estimate in found if known(estimate)]
        top = 100.0 if unit == "%" else max([*ends, entry["ideal"], 1e-9]) * 1.05
        rows = [
            {
                "label": arm["label"],
                "value": number(estimate["value"], unit),
                "interval": interval(estimate, unit),
                "bar": Markup(drawings.bar(estimate, series[arm["name"]], top, marks={"ideal": entry["ideal"]}))
                if known(estimate)
                else "",
            }
            for arm, estimate in found
            if estimate
        ]
        checks.append(
            {
                "label": words.said(entry["label"]),
                "explanation": words.said(entry["explanation"]),
                "ideal": words("bias.ideal", value=number(entry["ideal"], unit)),
                "n": words.count("rows", entry["rows"]),
                "rows": rows,
            }
        )
    return checks


def constraints(report: Mapping[str, Any], series: Mapping[str, int], words: Words) -> dict[str, Any] | None:
    """Bars of what is kept, a table by kind of constraint, examples."""
    from markupsafe import Markup

    found = report.get("constraints")
    if not found:
        return None
    arms = [arm for arm in report["arms"] if arm["name"] in found["scores"]]
    groups = []
    for key in ("all", "each"):
        rows = [
            {
                "label": arm["label"],
                "value": number(estimate["value"], "%"),
                "interval": interval(estimate, "%"),
                "bar": Markup(drawings.bar(estimate, series[arm["name"]], 100.0)),
            }
            for arm in arms
            if known(estimate := found["scores"][arm["name"]].get(key))
        ]
        groups.append({"label": words(f"constraints.{key}"), "rows": rows})
    kinds = {
        words.said(kind.replace("_", " ")): [cell(scores.get(arm["name"]), "%") for arm in arms]
        for kind, scores in (found.get("by_kind") or {}).items()
    }
    examples = found.get("examples") or []
    return {
        "intro": words("constraints.intro", rows=words.count("rows", found["rows"])),
        "arms": arms,
        "groups": [group for group in groups if group["rows"]],
        "kinds": kinds,
        "examples": examples[:EXAMPLES],
        "more_examples": examples[EXAMPLES:],
    }


def forgetting(report: Mapping[str, Any], words: Words) -> dict[str, Any] | None:
    """Loss before, after, and its change, for all and by part."""
    found = report.get("forgetting")
    if not found:
        return None
    parts = {words("forgetting.all"): found["loss"]} | {
        words.said(name.replace("_", " ")): part.get("loss", part)
        for name, part in (found.get("by_part") or {}).items()
    }
    rows = [
        {
            "label": label,
            "cells": [cell(part.get("before"), "nats"), cell(part.get("after"), "nats")],
            "change": change(part.get("difference"), "nats", words("to")),
            "lost": side(part.get("difference")) > 0,
        }
        for label, part in parts.items()
    ]
    intro = words("forgetting.intro", rows=words.count("rows", found["rows"]), set=words.said(found["set"]))
    return {"intro": intro, "rows": rows}


def overlap(report: Mapping[str, Any], words: Words) -> list[dict[str, Any]]:
    """How many rows of each suite were trained on, exactly or nearly; [] where that was not counted."""
    suites = [suite for suite in report["suites"] if "near" in suite["overlap"] or "exact" in suite["overlap"]]
    return [
        {
            "title": title(report, suite, words),
            "rows": f"{suite['rows']:,}",
            "exact": f"{suite['overlap'].get('exact', suite['overlap'].get('with_training', 0)):,}",
            "near": f"{suite['overlap'].get('near', 0):,}",
            "watched": f"{suite['overlap'].get('with_watched', 0):,}",
            "examples": suite["overlap"].get("near_examples") or [],
        }
        for suite in suites
    ]
