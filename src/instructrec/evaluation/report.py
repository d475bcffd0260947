"""The report of an evaluation: `report.json`, and the same as one self-contained page, `report.html`.

The page asks nothing of the network and runs no script (its own policy forbids both); every text that came from
rows or models is escaped. All numbers are formatted here, the template only places them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec import files
from instructrec.evaluation import pictures

HERE = Path(__file__).parent
FOLD = 24  # tasks shown before the others are folded away

# How the summary says the main number; others are named by their label.
SAID = {
    "exact_match": "gives exactly the expected answer in {value} of {rows} rows ({interval})",
    "accuracy": "gives the right label in {value} of {rows} rows ({interval})",
}
DASH = "–"


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write report.json and report.html into `folder`; returns the path of the page.

    Numbers that are not finite (the perplexity of a broken model) become null, shown as a dash; half characters
    (lone surrogates) become U+FFFD, since neither file could be written with them.
    """
    report = clean(report)
    files.write_json(folder / "report.json", report)
    page = folder / "report.html"
    files.write_text(page, render(report))
    return page


def render(report: Mapping[str, Any]) -> str:
    """The page as text. Raises jinja2.UndefinedError or KeyError if the report lacks a part."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = visible
    environment.filters["spoken"] = pictures.spoken
    style = Markup((HERE / "report.css").read_text(encoding="utf-8"))
    return environment.get_template("report.html.jinja").render(style=style, **_view(clean(report)))


def visible(text: object) -> str:
    """Text with its control characters as signs that can be seen (a bell as ␇), newlines and tabs left."""
    signs = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    return str(text).translate(signs | {127: "␡"})


def number(value: float | None, unit: str) -> str:
    """`61.3%`, `0.482 nats`, `12.4`; a dash for a number that is not there."""
    if value is None:
        return DASH
    if unit == "%":
        return f"{value:.1f}%"
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def interval(estimate: Mapping[str, Any], unit: str) -> str:
    """`49–72%`, or '' where no interval is known."""
    low, high = estimate["low"], estimate["high"]
    if low is None or high is None or low == high:
        return ""
    if unit == "%":
        return f"{_whole(low)}{DASH}{_whole(high)}%"
    return f"{number(low, unit)}{DASH}{number(high, unit)}"


def cell(estimate: Mapping[str, Any] | None, unit: str) -> str:
    """Number and interval: `61.3% (49–72%)`; a dash for a metric that was not measured."""
    if not estimate:
        return DASH
    known = interval(estimate, unit)
    return f"{number(estimate['value'], unit)} ({known})" if known else number(estimate["value"], unit)


def _whole(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 0.5 else "0"  # never "-0"


def change(estimate: Mapping[str, Any], unit: str) -> str:
    """A difference with its sign and interval: `+61.3 (49 to 72)`; the unit is that of the row it stands in."""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        return DASH
    digits = ".1f" if unit == "%" else ".3g"
    shown = f"{value:+{digits}}".replace("-", "−")
    if low is None or high is None or low == high:
        return shown
    ends = (_whole(end) if unit == "%" else f"{end:.2g}" for end in (low, high))
    return f"{shown} ({' to '.join(end.replace('-', '−') for end in ends)})"


def duration(seconds: float) -> str:
    """`45 s`, `6 min 42 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(amount: int) -> str:
    """`135 M`, `4.88 M`, `12,800`."""
    for size, name in ((10**9, "B"), (10**6, "M")):
        if amount >= size:
            return f"{number(amount / size, '')} {name}"
    return f"{amount:,}"


def summary(report: Mapping[str, Any]) -> list[str]:
    """One or two plain sentences for each suite: what the tuned model does, what the others do, how sure that is."""
    return [_summary_of(report, suite) for suite in report["suites"]]


def _summary_of(report: Mapping[str, Any], suite: Mapping[str, Any]) -> str:
    name = report["primary"]
    metric = report["metrics"][name]
    unit = metric["unit"]
    arms = [arm for arm in report["arms"] if name in suite["scores"].get(arm["name"], {})]
    if not arms:
        return f"On {pictures.spoken(suite['name'])}, {metric['label']} was not measured."
    arms.sort(key=lambda arm: arm["name"] != "tuned")
    told: list[str] = []
    for arm in arms:
        estimate = suite["scores"][arm["name"]][name]
        value = (
            f"{_whole(estimate['value'])}%"
            if unit == "%" and estimate["value"] is not None
            else number(estimate["value"], unit)
        )
        if told:
            told.append(f"the {_lower(arm['label'])} {'in' if name in SAID else 'has'} {value}")
            continue
        said = SAID.get(name, "has {label} {value} on {rows} rows ({interval})")
        sentence = said.format(
            label=metric["label"], value=value, rows=f"{estimate['n']:,}", interval=interval(estimate, unit)
        )
        told.append(f"the {_lower(arm['label'])} {sentence.replace(' ()', '')}")
    others = f"; {', '.join(told[1:])}" if told[1:] else ""
    text = f"On {pictures.spoken(suite['name'])}, {told[0]}{others}."
    return f"{text} {_verdict(suite['differences'].get('tuned-base', {}).get(name), metric)}".strip()


def _verdict(difference: Mapping[str, Any] | None, metric: Mapping[str, Any]) -> str:
    if not difference or difference["low"] is None or difference["high"] is None:
        return ""
    if difference["low"] <= 0 <= difference["high"]:
        return "The difference to the base model is within chance."
    better = (difference["value"] > 0) == metric["higher_is_better"]
    return f"Tuning made it {'better' if better else 'worse'} by more than chance."


def _lower(label: str) -> str:
    return label[:1].lower() + label[1:] if label[1:2].islower() else label  # GPT stays GPT


def clean(value: Any) -> Any:
    """The value with null for numbers that are not finite and U+FFFD for lone surrogates, all the way down."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(entry) for key, entry in value.items()}
    return [clean(entry) for entry in value] if isinstance(value, list | tuple) else value


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    run = report["run"]
    series = {arm["name"]: place for place, arm in enumerate(report["arms"])}
    return {
        "report": report,
        "run": run,
        "title": Path(run["folder"]).name or run["folder"],
        "summary": summary(report),
        "chips": _chips(report),
        "arms": [{**arm, "series": series[arm["name"]]} for arm in report["arms"]],
        "suites": [_suite(report, suite, series) for suite in report["suites"]],
        "measured": {name: metric for name, metric in report["metrics"].items() if _measured(report, name)},
        "training": _training(report["training"]) if report["training"] else None,
        "hashes": {**run["data"]["files"], **{suite["file"]: suite["sha256"] for suite in report["suites"]}},
        "commit": (report["commit"] or "unknown") + (", with changes not committed" if report["dirty"] else ""),
    }


def _measured(report: Mapping[str, Any], name: str) -> bool:
    return any(name in scores for suite in report["suites"] for scores in suite["scores"].values())


def _chips(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    run = report["run"]
    trained = f"{count(run['trained_parameters'])} of {count(run['parameters'])} parameters"
    chips = [("Model", run["backbone"]), ("Method", run["method"]), ("Trained", trained)]
    chips.append(("Rows", f"{run['data']['rows']:,}"))
    if report["training"]:
        chips.append(("Tuning took", duration(report["training"]["seconds"])))
    return [*chips, ("Evaluation took", duration(report["seconds"]))]


def _suite(report: Mapping[str, Any], suite: Mapping[str, Any], series: Mapping[str, int]) -> dict[str, Any]:
    metrics = report["metrics"]
    panels = []
    for name in sorted(metrics, key=lambda name: name != report["primary"]):  # the primary first, the rest as they are
        found = {arm: suite["scores"].get(arm, {}).get(name) for arm in series}
        if any(found.values()):
            panels.append(_panel(report, name, found, series, suite["differences"]))
    tasks = _tasks(report, suite, series)
    return {
        **suite,
        "panels": panels,
        "tasks": tasks[:FOLD],
        "more_tasks": tasks[FOLD:],
        "compared": [_pair(pair, report["arms"]) for pair in suite["differences"]],
        "overlap": suite["overlap"].get("with_training", 0),
        "watched": suite["overlap"].get("with_watched", 0),
    }


def _pair(pair: str, arms: Sequence[Mapping[str, Any]]) -> str:
    labels = {arm["name"]: arm["label"] for arm in arms}
    first, _, second = pair.partition("-")
    return f"{labels.get(first, first)} − {_lower(labels.get(second, second))}"


def _panel(
    report: Mapping[str, Any],
    name: str,
    found: Mapping[str, Mapping[str, Any] | None],
    series: Mapping[str, int],
    differences: Mapping[str, Any],
) -> dict[str, Any]:
    metric = report["metrics"][name]
    ends = [scores["high"] or 0 for scores in found.values() if scores]
    top = 100.0 if metric["unit"] == "%" else max(ends) * 1.02
    shown = (differences[pair].get(name) for pair in differences)
    return {
        **metric,
        "name": name,
        "rows": _rows(report, found, series, (metric["unit"], top)),
        "differences": [change(entry, metric["unit"]) if entry else DASH for entry in shown],
    }


def _rows(
    report: Mapping[str, Any],
    found: Mapping[str, Mapping[str, Any] | None],
    series: Mapping[str, int],
    scale: tuple[str, float],
) -> list[dict[str, Any]]:
    """One row of bars for each arm that has a score; `scale` is the unit and the number at full width."""
    from markupsafe import Markup

    unit, top = scale
    labels = {arm["name"]: arm["label"] for arm in report["arms"]}
    rows = []
    for arm, estimate in found.items():
        whole = estimate is not None and None not in (estimate["value"], estimate["low"], estimate["high"])
        rows.append(
            {
                "label": labels[arm],
                "value": number(estimate["value"], unit) if estimate else DASH,
                "interval": interval(estimate, unit) if estimate else "",
                "bar": Markup(pictures.bar(dict(estimate), series[arm], top)) if estimate and whole else "",
            }
        )
    return rows


def _tasks(report: Mapping[str, Any], suite: Mapping[str, Any], series: Mapping[str, int]) -> list[dict[str, Any]]:
    """Bars of the primary metric for each task, the weakest of the tuned model first."""
    from markupsafe import Markup

    name = report["primary"]
    unit = report["metrics"][name]["unit"]
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
            pictures.bar(
                dict(entry),
                series[arm],
                top,
                height=10,
                title=f"{labels[arm]}: {number(entry['value'], unit)} {interval(entry, unit)}",
            )
            for arm, entry in found.items()
        ]
        shown = found.get("tuned") or next(reversed(found.values()), None)
        tasks.append(
            {
                "name": task,
                "n": shown["n"] if shown else 0,
                "bars": Markup("").join(map(Markup, bars)),
                "value": number(shown["value"], unit) if shown else DASH,
                "interval": interval(shown, unit) if shown else "",
            }
        )
    return tasks


def _training(training: Mapping[str, Any]) -> dict[str, Any]:
    from markupsafe import Markup

    drawn = {
        size: Markup(pictures.svg(pictures.loss_curve(dict(training), width), f"loss-{size}"))
        for size, width in (("wide", 7.2), ("narrow", 3.6))
    }
    facts = [
        f"{training['tokens_per_second']:,.0f} tokens a second",
        f"{100 * training['padding_share']:.1f}% padding",
        duration(training["seconds"]),
    ]
    return {**training, "pictures": drawn, "facts": facts, "looks_at": _looks(training)}


def _looks(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """First and kept look in numbers, for readers who cannot see the picture."""
    names = pictures.held_out_sets(dict(training))
    looks = training["looks"]
    wanted = [look for look in looks if look["step"] in (looks[0]["step"], training["best_step"])]
    return [
        {
            "step": look["step"],
            "losses": {pictures.spoken(name): number(look.get(name, {}).get("loss"), "") for name in names},
        }
        for look in wanted
    ]
