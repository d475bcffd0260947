"""The summary: a few sentences in plain words, made from the numbers of a report alone.

No sentence claims a difference whose interval holds zero, or one of which no interval is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructrec.evaluation.numbers import brief, interval, known, number, side
from instructrec.evaluation.words import LANGUAGES, Words

KINDS = ("seen", "unseen_wordings", "unseen_tasks", "other_domains", "other_language", "training")


def summaries(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sentences in every language."""
    return {language: summary(report, language) for language in LANGUAGES}


def summary(report: Mapping[str, Any], language: str = "en") -> list[str]:
    """What the tuned model does on each suite and what the others do, then damage, constraints, bias, forgetting.

    report: as in report.json, numbers that are not finite being None.
    """
    words = Words(language)
    parts = (_robustness, _constraints, _bias, _forgetting, _requirements)
    sentences = [_of_suite(report, suite, words) for suite in report["suites"]]
    return [*sentences, *filter(None, (part(report, words) for part in parts))]


def main_arm(report: Mapping[str, Any], among: Mapping[str, Any]) -> str | None:
    """The arm that a part is about: the tuned model, else the last that has something in this part."""
    names = [arm["name"] for arm in report["arms"] if arm["name"] in among]
    return "tuned" if "tuned" in among else (names or [*among] or [None])[-1]


def primary_of(report: Mapping[str, Any], suite: Mapping[str, Any]) -> str:
    """The metric shown first: the report's, or where a suite lacks it the first that it has."""
    found = [name for name in report["metrics"] if any(name in scores for scores in suite["scores"].values())]
    return str(report["primary"] if report["primary"] in found or not found else found[0])


def title(report: Mapping[str, Any], suite: Mapping[str, Any], words: Words) -> str:
    """What a suite is called: its kind, with the name where several are of that kind; else the name."""
    kind, name = suite.get("kind"), words.named("", suite["name"])
    if kind not in KINDS:
        return name
    same = sum(other.get("kind") == kind for other in report["suites"]) > 1
    return words("kind.several", kind=words(f"kind.{kind}"), name=name) if same else words(f"kind.{kind}")


def in_sentence(report: Mapping[str, Any], arm: str, words: Words) -> str:
    """`the tuned model`."""
    label = next((entry["label"] for entry in report["arms"] if entry["name"] == arm), arm)
    return words("summary.arm", arm=words.lower(words.said(label)))


def _of_suite(report: Mapping[str, Any], suite: Mapping[str, Any], words: Words) -> str:
    name = primary_of(report, suite)
    metric = report["metrics"][name]
    unit = metric["unit"]
    where = _where(report, suite, words)
    arms = [arm["name"] for arm in report["arms"] if name in suite["scores"].get(arm["name"], {})]
    if not arms:
        return words("summary.nothing", where=where, label=words.lower(words.said(metric["label"])))
    arms.sort(key=lambda arm: arm != "tuned")
    first = suite["scores"][arms[0]][name]
    share = name in ("exact_match", "accuracy")
    told = [
        words(
            "summary.share" if share else "summary.value",
            arm=in_sentence(report, arm, words),
            value=brief(suite["scores"][arm][name]["value"], unit),
        )
        for arm in arms[1:]
    ]
    blind = _blind(suite, name)
    told += [words("summary.blind", value=brief(blind, unit))] if blind is not None else []
    sentence = words(
        f"summary.{name}" if share else "summary.other",
        where=where,
        arm=in_sentence(report, arms[0], words),
        label=words.lower(words.said(metric["label"])),
        value=brief(first["value"], unit),
        rows=f"{first['n']:,}",
        interval=_bracketed(first, unit, words),
        others=words("summary.others", others=words.listed(told)) if told else "",
    )
    return words("space").join([sentence, *_verdicts(report, suite, name, words)])


def _where(report: Mapping[str, Any], suite: Mapping[str, Any], words: Words) -> str:
    kind = suite.get("kind")
    if kind not in KINDS:
        return words("on.suite", name=title(report, suite, words))
    same = sum(other.get("kind") == kind for other in report["suites"]) > 1
    on = words(f"on.{kind}")
    return words("kind.several", kind=on, name=words.named("", suite["name"])) if same else on


def _blind(suite: Mapping[str, Any], name: str) -> float | None:
    """The most that can be had without reading a row: by guessing, or by always giving the commonest answer."""
    references = suite.get("references") or {}
    found = [(references.get(mark) or {}).get(name) for mark in ("chance", "majority")]
    return max((value for value in found if value is not None), default=None)


def _verdicts(report: Mapping[str, Any], suite: Mapping[str, Any], name: str, words: Words) -> list[str]:
    metric, tuned = report["metrics"][name], suite["scores"].get("tuned", {}).get(name)
    sign = 1 if metric["higher_is_better"] else -1
    verdicts = []
    difference = suite["differences"].get("tuned-base", {}).get(name)
    if difference and known(difference) and difference["low"] != difference["high"]:
        found = side(difference) * sign
        verdicts.append(words({1: "summary.better", 0: "summary.same", -1: "summary.worse"}[found]))
    if side(suite["differences"].get("tuned-few_shot", {}).get(name)) * sign < 0:
        verdicts.append(words("summary.few_shot_better"))
    blind = _blind(suite, name)
    if tuned and known(tuned) and blind is not None and tuned["low"] <= blind:
        verdicts.append(words("summary.not_above"))
    return verdicts


def _bracketed(estimate: Mapping[str, Any], unit: str, words: Words) -> str:
    shown = interval(estimate, unit)
    return words("summary.interval", interval=shown) if shown else ""


def _robustness(report: Mapping[str, Any], words: Words) -> str:
    found = report.get("robustness")
    arm = main_arm(report, found["clean"]) if found else None
    if not found or not arm or not found["perturbations"]:
        return ""
    drops = [(entry, entry["drop"][arm]) for entry in found["perturbations"] if known(entry["drop"].get(arm))]
    lossy = sorted((pair for pair in drops if side(pair[1]) > 0), key=lambda pair: -pair[1]["value"])
    given = {"n": f"{len(drops):,}", "arm": in_sentence(report, arm, words)}
    if not drops:
        text = ""
    elif lossy:
        worst, drop = lossy[0]
        label = words.lower(words.said(worst["label"]))
        drop_said = f"{brief(drop['value'], '%')}{_bracketed(drop, '%', words)}"
        form = "summary.damage.one" if len(lossy) == 1 else "summary.damage.many"
        text = words(form, **given, lossy=f"{len(lossy):,}", label=label, drop=drop_said)
    else:
        text = words("summary.no_damage", **given)
    unit = report["metrics"].get(found["metric"], {}).get("unit", "%")
    lowest, clean = (found.get("worst_case") or {}).get(arm), found["clean"][arm]
    if lowest and known(lowest) and known(clean):
        ends = {"worst": brief(lowest["value"], unit), "clean": brief(clean["value"], unit)}
        text = words("space").join(filter(None, [text, words("summary.worst_case", **ends)]))
    return text


def _constraints(report: Mapping[str, Any], words: Words) -> str:
    found = report.get("constraints")
    arm = main_arm(report, found["scores"]) if found else None
    if not found or not arm or not known(found["scores"][arm].get("all")):
        return ""
    kept = found["scores"][arm]["all"]
    others = [
        words("summary.share", arm=in_sentence(report, other, words), value=brief(scores["all"]["value"], "%"))
        for other, scores in found["scores"].items()
        if other != arm and known(scores.get("all"))
    ]
    return words(
        "summary.constraints",
        arm=in_sentence(report, arm, words),
        value=brief(kept["value"], "%"),
        rows=f"{kept['n']:,}",
        interval=_bracketed(kept, "%", words),
        others=words("summary.others", others=words.listed(others)) if others else "",
    )


def _bias(report: Mapping[str, Any], words: Words) -> str:
    """The strongest three. Numbers alone: a distance is never below zero, so its interval can't hold zero either and
    says nothing about chance."""
    checks = []
    for entry in report.get("bias") or []:
        arm = main_arm(report, entry["arm"])
        if arm and entry["ideal"] == 0 and known(entry["arm"][arm]):
            checks.append((words.lower(words.said(entry["label"])), entry["arm"][arm]))
    checks.sort(key=lambda check: -check[1]["value"])
    told = [
        words("summary.bias_check", label=label, value=brief(one["value"], "%"), interval=_bracketed(one, "%", words))
        for label, one in checks[:3]
    ]
    return words("summary.bias", checks=words.listed(told)) if told else ""


def _forgetting(report: Mapping[str, Any], words: Words) -> str:
    found = report.get("forgetting")
    if not found or not known(found["loss"].get("difference")):
        return ""
    rise = found["loss"]["difference"]
    by = number(abs(rise["value"]), "nats")
    ends = (number(min(abs(rise["low"]), abs(rise["high"])), ""), number(max(abs(rise["low"]), abs(rise["high"])), ""))
    name = {1: "summary.forgot", 0: "summary.remembers", -1: "summary.learned"}[side(rise)]
    return words(name, by=by, low=ends[0], high=ends[1])


def _requirements(report: Mapping[str, Any], words: Words) -> str:
    asked: Sequence[Mapping[str, Any]] = report.get("requirements") or []
    unmet = [entry["text"] for entry in asked if not entry["met"]]
    if not asked:
        return ""
    if not unmet:
        return words("summary.all_met", n=len(asked))
    return words("summary.unmet", n=len(asked), unmet=len(unmet), texts=words.listed(unmet))
