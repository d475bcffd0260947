"""What a model must reach: `unseen_tasks.accuracy>=0.6` as a condition that a report meets or does not.

A condition is a place in the report, a comparison and a bound. Places:

    SUITE.METRIC             of the tuned model (else the last arm); SUITE is the name or the kind of a suite;
                             where several are of a kind all have to meet it
    SUITE.METRIC.low, .high  the end of its 95% interval
    SUITE.METRIC.gain        the difference to the base model; also .gain.low, .gain.high
    SUITE.ece                calibration error
    robustness.worst_case    also .low, .high
    robustness.NAME.drop     of a perturbation; also .score, .flips, each with .low, .high; `template` is every template
    bias.NAME, constraints.all, constraints.each
    forgetting.loss          rise of the loss in nats a token; also .low, .high

Bounds of shares are given as a share or with a percent sign: `0.6` and `60%` are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instructrec.errors import InputError, InstructRecError, did_you_mean
from instructrec.evaluation.numbers import number
from instructrec.evaluation.summary import KINDS, main_arm
from instructrec.measures.metrics import METRICS
from instructrec.measures.perturbations import TEMPLATE

FORM = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|>|<)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(%?)\s*")
WANT = "want such as unseen_tasks.accuracy>=0.6"
GROUPS = ("robustness", "bias", "constraints", "forgetting")
ENDS = {"low": "low", "high": "high"}
OF_PERTURBATION = {"drop": "drop", "score": "scores", "flips": "flips"}
COMPARE = {
    ">=": lambda value, bound: value >= bound,
    "<=": lambda value, bound: value <= bound,
    ">": lambda value, bound: value > bound,
    "<": lambda value, bound: value < bound,
}


class Unmet(InstructRecError):
    """A report was written, and the model does not reach what was required."""

    exit_code = 4


@dataclass(frozen=True)
class Requirement:
    """text: as given.  path: the names between the dots.  bound: in the unit of the report, percent for shares."""

    text: str
    path: tuple[str, ...]
    sign: str
    bound: float
    unit: str


def parse(
    given: str | Sequence[str], suites: Iterable[str], perturbations: Iterable[str] = (), checks: Iterable[str] = ()
) -> list[Requirement]:
    """Conditions from their texts (several in one text are separated by commas), before anything is measured.

    suites: names of the suites as far as they are known; perturbations, checks: names that can follow `robustness.` and
    `bias.`, any where none are given. Raises InputError with every condition that can't be understood, one a line.
    """
    texts = given.split(",") if isinstance(given, str) else [part for text in given for part in text.split(",")]
    known = ([*suites], [*perturbations], [*checks])
    found: list[Requirement] = []
    problems: list[str] = []
    for text in (text.strip() for text in texts if text.strip()):
        try:
            found.append(_parsed(text, known))
        except InputError as error:
            problems.append(f"require: {error}")
    if problems:
        raise InputError("\n".join(problems))
    return found


def _parsed(text: str, known: tuple[list[str], list[str], list[str]]) -> Requirement:
    match = FORM.fullmatch(text)
    if not match:
        raise InputError(f"not understood (got '{text}', {WANT})")
    name, sign, figure, percent = match.groups()
    path = _path(name, known[0])
    unit = _check(path, known, text)
    bound = float(figure)
    if unit != "%" and percent:
        raise InputError(f"'{name}' is no share (got '{figure}%', want a number without %)")
    if unit == "%" and not percent and abs(bound) > 1:
        raise InputError(f"a share is at most 1 (got '{text}', want {name}{sign}{bound / 100:g} or {figure}%)")
    return Requirement(text, path, sign, bound * 100 if unit == "%" and not percent else bound, unit)


def _path(name: str, suites: Sequence[str]) -> tuple[str, ...]:
    """The parts of a name; the name of a suite may have dots of its own."""
    suite = max((one for one in suites if name.startswith(one + ".")), key=len, default="")
    first = [suite] if suite else []
    return (*first, *name[len(suite) + 1 if suite else 0 :].split("."))


def _check(path: tuple[str, ...], known: tuple[list[str], list[str], list[str]], text: str) -> str:
    """The unit of what a path names. Raises InputError for one that no report has."""
    suites, perturbations, checks = known
    first, rest = path[0], path[1:]
    if first not in {*suites, *KINDS, "all", *GROUPS}:
        names = [*suites, *KINDS, *GROUPS]
        raise InputError(f"'{text}': unknown part '{first}', {did_you_mean(first, names)}")
    if rest and rest[-1] in ENDS and len(rest) > 1:
        rest = rest[:-1]
    if first == "robustness":
        return _check_robustness(rest, perturbations, text)
    if first == "bias":
        return _known(rest, checks, text) if len(rest) == 1 else _incomplete(text, "bias.NAME")
    if first == "constraints":
        return _known(rest, ("all", "each"), text) if len(rest) == 1 else _incomplete(text, "constraints.all")
    if first == "forgetting":
        _known(rest, ("loss",), text) if len(rest) == 1 else _incomplete(text, "forgetting.loss")
        return "nats"
    if not rest:
        _incomplete(text, f"{first}.accuracy")
    _known(rest[:1], (*METRICS, "ece"), text)
    if rest[1:] not in ((), ("gain",)):
        raise InputError(f"'{text}': unknown '{rest[1]}', {did_you_mean(rest[1], ('low', 'high', 'gain'))}")
    return METRICS[rest[0]].unit if rest[0] in METRICS else "%"


def _check_robustness(rest: tuple[str, ...], perturbations: Sequence[str], text: str) -> str:
    if rest == ("worst_case",):
        return "%"
    if len(rest) != 2:
        if rest and perturbations and rest[0] not in perturbations:
            _known(rest[:1], (*perturbations, "worst_case"), text)
        _incomplete(text, "robustness.worst_case or robustness.NAME.drop")
    _known(rest[:1], perturbations, text)
    return _known(rest[1:], OF_PERTURBATION, text)


def _known(rest: Sequence[str], names: Iterable[str], text: str) -> str:
    names = [*names]
    if names and rest[0] not in names:
        raise InputError(f"'{text}': unknown '{rest[0]}', {did_you_mean(rest[0], names)}")
    return "%"


def _incomplete(text: str, want: str) -> str:
    raise InputError(f"'{text}': names no number (want {want})")


def check(wanted: Sequence[Requirement], report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each condition with what was measured, for report["requirements"]; what was not measured is not met.

    Where several suites are of the kind named, the value is that of the suite which is furthest from meeting it.
    """
    results = []
    for one in wanted:
        values = [value for value in _values(one.path, report) if value is not None]
        worst = (min if one.sign.startswith(">") else max)(values, default=None)
        met = worst is not None and COMPARE[one.sign](worst, one.bound)
        results.append({"text": one.text, "value": worst, "met": met, "unit": one.unit})
    return results


def unmet(report: Mapping[str, Any]) -> Unmet | None:
    """What the command line ends with where a requirement is not met: a line for each."""
    lines = [
        f"require: {entry['text']}: not met (got {shown_value(entry)})"
        for entry in report.get("requirements") or []
        if not entry["met"]
    ]
    return Unmet("\n".join(lines)) if lines else None


def shown_value(entry: Mapping[str, Any]) -> str:
    """`58.3%`, `0.12`; `nothing measured` where there is no number."""
    if entry["value"] is None:
        return "nothing measured"
    unit = entry.get("unit", "%")
    return number(entry["value"], unit)


def _values(path: tuple[str, ...], report: Mapping[str, Any]) -> list[float | None]:
    first, rest = path[0], path[1:]
    end = rest[-1] if len(rest) > 1 and rest[-1] in ENDS else "value"
    rest = rest[:-1] if end != "value" else rest
    estimates: list[Any]
    if first == "robustness":
        found = report.get("robustness") or {}
        if rest == ("worst_case",):
            estimates = [_of_arm(report, found.get("worst_case"))]
        else:
            every = found.get("perturbations", ())
            entries = [entry for entry in every if entry["name"] == rest[0]]
            if rest[0] == TEMPLATE:
                entries = [entry for entry in every if entry["kind"] == TEMPLATE]
            estimates = [_of_arm(report, entry.get(OF_PERTURBATION[rest[1]])) for entry in entries]
    elif first == "bias":
        estimates = [_of_arm(report, one["arm"]) for one in report.get("bias") or [] if one["name"] == rest[0]]
    elif first == "constraints":
        scores = _of_arm(report, (report.get("constraints") or {}).get("scores")) or {}
        estimates = [scores.get(rest[0])]
    elif first == "forgetting":
        estimates = [(report.get("forgetting") or {"loss": {}})["loss"].get("difference")]
    else:
        estimates = [_of_suite(report, suite, rest) for suite in _suites(first, report)]
    return [estimate[end] if estimate else None for estimate in estimates]


def _suites(name: str, report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The suite of that name, else all of that kind."""
    named = [suite for suite in report["suites"] if suite["name"] == name]
    return named or [suite for suite in report["suites"] if suite.get("kind") == name]


def _of_suite(report: Mapping[str, Any], suite: Mapping[str, Any], rest: tuple[str, ...]) -> Any:
    if rest[0] == "ece":
        return (_of_arm(report, suite.get("calibration")) or {}).get("ece")
    if rest[1:] == ("gain",):
        return suite["differences"].get("tuned-base", {}).get(rest[0])
    return (_of_arm(report, suite["scores"]) or {}).get(rest[0])


def _of_arm(report: Mapping[str, Any], found: Mapping[str, Any] | None) -> Any:
    return found.get(main_arm(report, found) or "") if found else None


__all__ = ["Requirement", "Unmet", "check", "parse", "shown_value", "unmet"]
