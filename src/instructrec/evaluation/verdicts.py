"""What a comparison comes to: for each suite and pair the paired difference, whether it is real, and what would decide.

Numbers come from `measures.comparing`; here are the words, and the content of comparison.json. A claim is a pair on a
suite by the main metric or by loss; Holm's correction is over all claims of a comparison. Other metrics are shown with
their intervals, and nothing is claimed of them.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..measures.comparing import ALPHA, POWER, Contrast, advise, contrast, holm
from ..measures.metrics import METRICS, RowScores
from ..measures.statistics import bootstrap, paired_difference

RESAMPLES = 1000
FEW_TASKS = 5  # with fewer, what is said is about these tasks and not about others


@dataclass(frozen=True)
class Suite:
    """One suite over all seeds: the rows of the first seed, then those of the next.

    scores: of each setting, over the same rows.  units: `tasks` or `rows`, with the unit of each row.  seeds: the seed
    of each row.  skipped: metric -> why it is not compared.
    """

    name: str
    scores: Mapping[str, RowScores]
    unit: str
    units: Sequence[Hashable]
    seeds: Sequence[int]
    tasks: Sequence[str | None]
    skipped: Mapping[str, str]

    @property
    def cells(self) -> list[tuple[Hashable, int]]:
        """(unit, seed) of each row."""
        return list(zip(self.units, self.seeds, strict=True))


def judge(suites: Sequence[Suite], pairs: Sequence[tuple[str, str]], primary: str, smallest: float) -> dict[str, Any]:
    """All differences with their verdicts. smallest: the difference that matters, in points."""
    claims: list[tuple[Suite, tuple[str, str], str, Contrast]] = []
    entries: list[dict[str, Any]] = []
    for suite in suites:
        entry: dict[str, Any] = {
            "name": suite.name,
            "rows": len(suite.seeds),
            "unit": suite.unit,
            "units": len(set(suite.units)),
            "seeds": sorted(set(suite.seeds)),
            "tasks": len(set(suite.tasks) - {None}),
            "scores": {name: _scores(found, suite) for name, found in suite.scores.items()},
            "skipped": dict(suite.skipped),
            "pairs": [],
        }
        for pair in pairs:
            one, other = (suite.scores[name].statistics for name in pair)
            metrics = {}
            for metric in (metric for metric in one if metric in other and metric not in suite.skipped):
                if one[metric].sums.shape != other[metric].sums.shape:
                    continue  # macro F1 where answers count as right by an alternative: its sums are by label
                found = contrast(one[metric], other[metric], suite.units, suite.seeds)
                metrics[metric] = _entry(found)
                if metric in (primary, "loss"):
                    drawn = paired_difference(one[metric], other[metric], resamples=RESAMPLES, clusters=suite.cells)
                    metrics[metric]["bootstrap"] = {"low": drawn.low, "high": drawn.high}
                    claims.append((suite, pair, metric, found))
            entry["pairs"].append({"a": pair[0], "b": pair[1], "metrics": metrics})
        entries.append(entry)
    by_suite = {entry["name"]: entry for entry in entries}
    adjusted = holm([found.p for *_, found in claims])
    for (suite, pair, metric, found), p in zip(claims, adjusted, strict=True):
        place = pairs.index(pair)
        target = by_suite[suite.name]["pairs"][place]["metrics"][metric]
        target |= _verdict(suite, pair, metric, found, p, len(claims), smallest)
    return {
        "primary": primary,
        "claims": len(claims),
        "alpha": ALPHA,
        "power": POWER,
        "smallest": smallest,
        "suites": entries,
        "metrics": {
            name: {"label": METRICS[name].label, "unit": METRICS[name].unit, "higher": METRICS[name].higher_is_better}
            for name in METRICS
        },
    }


def _scores(found: RowScores, suite: Suite) -> dict[str, dict[str, float]]:
    """Each metric with its interval over units, and over the seeds' rows of one unit together."""
    result = {}
    for metric, statistic in found.statistics.items():
        drawn = bootstrap(statistic, resamples=RESAMPLES, clusters=suite.units)
        result[metric] = {"value": drawn.value, "low": drawn.low, "high": drawn.high, "n": drawn.n}
    return result


def _entry(found: Contrast) -> dict[str, Any]:
    spread = found.spread
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "df": found.df,
        "n": found.n,
        "differing_units": found.differing,
        "by_seed": list(found.by_seed),
        "variance": {"units": spread.units, "seeds": spread.seeds, "rest": spread.rest} if spread else None,
    }


def _verdict(
    suite: Suite, pair: tuple[str, str], metric: str, found: Contrast, p: float, claims: int, smallest: float
) -> dict[str, Any]:
    """verdict: better, hint, none or unknown; winner; sentence; advice."""
    higher = METRICS[metric].higher_is_better
    winner = pair[0] if (found.value > 0) == higher else pair[1]
    loser = pair[1] if winner == pair[0] else pair[0]
    if found.spread is None and found.low == found.high:
        verdict = "unknown"
    elif p < ALPHA:
        verdict = "better"
    else:
        verdict = "hint" if found.low > 0 or found.high < 0 else "none"
    how_far = f"{amount(abs(found.value), metric)} ({ends(found, metric)})"
    label = lower(METRICS[metric].label)
    words = {
        "better": f"{winner} is better than {loser}: {label} {'higher' if higher else 'lower'} by {how_far}.",
        "hint": f"{winner} may be better than {loser}: {label} {'higher' if higher else 'lower'} by {how_far}; among "
        f"{claims} comparisons that is not certain.",
        "none": f"{pair[0]} and {pair[1]}: no difference of {label} seen; at most "
        f"{amount(max(abs(found.low), abs(found.high)), metric)} either way.",
        "unknown": f"{pair[0]} and {pair[1]}: no interval is known from so few {suite.unit}.",
    }
    effect = smallest if METRICS[metric].unit == "%" else smallest / 100
    advice = _advice(suite, found, metric, max(abs(found.value), effect) if verdict == "hint" else effect, claims)
    return {
        "p_adjusted": p,
        "verdict": verdict,
        "winner": winner if verdict in ("better", "hint") else None,
        "sentence": words[verdict],
        **advice,
    }


def _advice(suite: Suite, found: Contrast, metric: str, effect: float, claims: int) -> dict[str, Any]:
    """What this comparison could have seen, and what it would take to see `effect`, corrected for all claims."""
    level = ALPHA / claims
    plan = advise(found, effect, level)
    if plan is None or found.spread is None:
        return {"detectable": None, "advice": None, "advice_sentence": ""}
    spread, now = found.spread, len(set(suite.units))
    units = None if plan.units is None else max(now, math.ceil(now * plan.units))
    seeds = None if plan.seeds is None else max(spread.num_seeds, math.ceil(spread.num_seeds * plan.seeds))
    return {
        "detectable": found.detectable(level),
        "advice": {"effect": effect, "units": units, "seeds": seeds, "enough": plan.enough},
        "advice_sentence": _advised(
            suite, amount(effect, metric), plan.enough, (now, units), (spread.num_seeds, seeds)
        ),
    }


def _advised(
    suite: Suite, effect: str, enough: bool, units: tuple[int, int | None], seeds: tuple[int, int | None]
) -> str:
    """`A true difference of 1 point would show (4 times in 5) with 1,240 rows instead of 300.`"""
    if enough:
        return f"A true difference of {effect} would have shown, 4 times in 5."
    many = f"{units[1]:,} {suite.unit} instead of {units[0]:,}" if units[1] is not None else ""
    more = f"{seeds[1]:,} seeds instead of {seeds[0]}" if seeds[1] is not None else ""
    begin = f"A true difference of {effect} would show, 4 times in 5, with "
    if many and more:
        return f"{begin}{many}, or with {more}."
    if many and seeds[0] == 1:
        return f"{begin}{many}, as far as one seed can tell: how much seeds differ takes --seeds 3."
    if many:
        return f"{begin}{many}; more seeds alone would not do."
    if more:
        return f"{begin}{more}; more {suite.unit} alone would not do, the seeds differ too much."
    return f"A true difference of {effect} would not show with more {suite.unit} or seeds alone: it takes both."


def lower(label: str) -> str:
    """A label inside a sentence: `exact match`; BLEU, ROUGE-L and chrF as they are."""
    return label if label[1:].lower() != label[1:] else label.lower()


def amount(value: float, metric: str) -> str:
    """`3.2 points`, `0.041 nats`."""
    unit = METRICS[metric].unit
    if unit == "%":
        shown = f"{value:.1f}" if value >= 0.095 or not value else f"{value:.2g}"
        return f"{shown.removesuffix('.0')} point{'s' * (shown not in ('1', '1.0'))}"
    return f"{value:.3f} nats" if unit == "nats" else f"{value:.3g}"


def ends(found: Contrast | Mapping[str, Any], metric: str) -> str:
    """The interval of how far apart they are: `1.2 to 5.1`."""
    low, high = (found.low, found.high) if isinstance(found, Contrast) else (found["low"], found["high"])
    if (low + high) < 0:
        low, high = -high, -low
    digits = ".1f" if METRICS[metric].unit == "%" else ".3f"
    return f"{low:{digits}} to {high:{digits}}".replace("-", "−")


def overview(report: Mapping[str, Any]) -> list[str]:
    """What a reader is told first: the verdicts by the main metric for each suite, and what loss alone shows."""
    lines = []
    primary = report["primary"]
    for suite in report["suites"]:
        found = [pair["metrics"].get(primary) for pair in suite["pairs"]]
        told = [entry["sentence"] for entry in found if entry and entry["verdict"] in ("better", "hint")]
        equal = [entry for entry in found if entry and entry["verdict"] in ("none", "unknown")]
        name = suite["name"].replace("_", " ")
        if told:
            lines += [f"On {name}, {sentence}" for sentence in told]
        if equal and len(found) > len(equal):
            lines.append(f"On {name}, {len(equal)} of {len(found)} pairs show no difference.")
        elif equal:
            lines.append(f"On {name}, {equal[0]['sentence']}" if len(equal) == 1 else _all_equal(name, equal, primary))
        if finer := [words for pair in suite["pairs"] if (words := _by_loss(pair["metrics"], primary, pair))]:
            lines.append(f"By loss alone, on {name}, {' and '.join(finer)}.")
    return lines


def _by_loss(metrics: Mapping[str, Any], primary: str, pair: Mapping[str, Any]) -> str:
    """`a is better than b`, where loss shows what the main metric does not."""
    main, loss = metrics.get(primary), metrics.get("loss")
    if not main or not loss or main["verdict"] == "better" or loss["verdict"] != "better":
        return ""
    winner = loss["winner"]
    return f"{winner} is better than {pair['b'] if winner == pair['a'] else pair['a']}"


def _all_equal(name: str, equal: Sequence[Mapping[str, Any]], primary: str) -> str:
    most = max(max(abs(entry["low"]), abs(entry["high"])) for entry in equal)
    return (
        f"On {name}, no difference of {lower(METRICS[primary].label)} was seen between any of the settings; at most "
        f"{amount(most, primary)} either way."
    )
