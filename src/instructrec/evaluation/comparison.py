"""A comparison written down: comparison.json, comparison.md, and one self-contained page, comparison.html.

Like the report, the page asks nothing of the network and runs no script, and every text from files or models is
escaped. All numbers are formatted here, the template only places them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import files
from .forest import Scale, axis, line
from .report import cell, clean, duration, visible
from .verdicts import amount

HERE = Path(__file__).parent
WORDS = {"better": "real", "hint": "not certain", "none": "no difference seen", "unknown": "not known"}
Table = tuple[str, list[str], list[list[str]]]


def write_comparison(report: Mapping[str, Any], folder: Path) -> Path:
    """Write the three files into `folder`; returns the path of the page."""
    report = clean(report)
    files.write_json(folder / "comparison.json", report)
    files.write_text(folder / "comparison.md", markdown(report))
    page = folder / "comparison.html"
    files.write_text(page, render(report))
    return page


def claimed(report: Mapping[str, Any], suite: Mapping[str, Any]) -> list[str]:
    """The metrics of a suite with verdicts: the main one and loss."""
    return [name for name in (report["primary"], "loss") if any(name in pair["metrics"] for pair in suite["pairs"])]


def spoken(name: str) -> str:
    """A suite's name as a reader would say it."""
    return name.replace("_", " ").strip()


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Title, headers and rows, for terminal and Markdown: scores, differences, cost, and what differs."""
    for suite in report["suites"]:
        metrics = claimed(report, suite)
        others = [name for name in _measured(suite) if name not in metrics]
        shown = [*metrics, *others]
        title = f"{spoken(suite['name'])}: {_size(suite)}; 95% intervals"
        rows = [
            [name, *(cell(found.get(one), report["metrics"][one]["unit"]) for one in shown)]
            for name, found in suite["scores"].items()
        ]
        yield title, ["setting", *(report["metrics"][one]["label"] for one in shown)], rows
        rows = []
        for name in metrics:
            for pair in suite["pairs"]:
                found = pair["metrics"][name]
                words = WORDS[found["verdict"]]
                better = f"{found['winner']} better" if found["winner"] else ""
                told = f"{better} ({words})" if better else words
                rows.append(
                    [
                        report["metrics"][name]["label"],
                        f"{pair['a']} − {pair['b']}",
                        signed(found, name),
                        chance(found["p_adjusted"]),
                        told,
                        found["advice_sentence"] if found["verdict"] != "better" else "",
                    ]
                )
        yield (
            f"{spoken(suite['name'])}: differences",
            ["metric", "difference", "value (95%)", "p, corrected", "verdict", "what would decide"],
            rows,
        )
    yield "Cost, mean over seeds", *_costs(report)
    if report["differs"]:
        names = list(report["settings"])
        rows = [[key, *(by_name[name] for name in names)] for key, by_name in report["differs"].items()]
        yield "What differs", ["setting", *names], rows


def _measured(suite: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(name for found in suite["scores"].values() for name in found))


def _costs(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    headers = ["setting", "trained weights", "rows", "steps", "training", "testing", "memory"]
    rows = []
    for name, entry in report["settings"].items():
        cost = entry["cost"]
        memory = cost["peak_memory_bytes"]
        rows.append(
            [
                name,
                f"{cost['trained_parameters']:,}",
                f"{cost['rows']:,}",
                f"{cost['steps']:.0f}",
                duration(cost["training_seconds"]),
                duration(cost["test_seconds"]),
                f"{memory / 1e9:.2f} GB" if memory else "–",
            ]
        )
    return headers, rows


def _size(suite: Mapping[str, Any]) -> str:
    seeds = len(suite["seeds"])
    tasks = f" of {suite['tasks']} tasks" if suite["tasks"] > 1 else ""
    rows = f"{suite['rows']:,} answers{tasks}, {seeds} seed{'s' * (seeds != 1)}"
    return f"{rows}, over {suite['units']:,} {suite['unit']}"


def signed(found: Mapping[str, Any], metric: str) -> str:
    """`+3.2 (1.2 to 5.1)`, in points or nats."""
    digits = 3 if metric == "loss" else 1
    value = f"{found['value']:+.{digits}f}"
    if found["low"] < found["high"]:
        value += f" ({found['low']:+.{digits}f} to {found['high']:+.{digits}f})"
    return value.replace("-", "−")


def chance(p: float) -> str:
    """`0.031`, `<0.001`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.0995 else f"{p:.2f}"


def markdown(report: Mapping[str, Any]) -> str:
    """The comparison for a model card or a lab book."""
    lines = [f"# {title(report)}", "", *(f"- {sentence}" for sentence in report["overview"]), ""]
    lines += [*report["rows"]["told"], "", *(f"{sentence}\n" for sentence in meaning(report))]
    for name, headers, rows in tables(report):
        lines += [f"## {name}", "", _row(headers), _row(["---"] * len(headers)), *map(_row, rows), ""]
    lines += ["## How to repeat it", "", "```sh", report["command"], "```", "", _made(report), ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in cells) + " |"


def _made(report: Mapping[str, Any]) -> str:
    changed = " with uncommitted changes" if report["dirty"] else ""
    return f"InstructRec {report['version']}, commit {report['commit'] or 'unknown'}{changed}."


def title(report: Mapping[str, Any]) -> str:
    """`lora and ia3 compared`; many by number."""
    names = list(report["settings"])
    if len(names) > 3:
        return f"{len(names)} settings compared"
    return f"{', '.join(names[:-1])} and {names[-1]} compared"


def meaning(report: Mapping[str, Any]) -> list[str]:
    """What an interval is over, and what the words mean."""
    kinds = {suite["unit"] for suite in report["suites"]}
    many = len(report["seeds"]) > 1
    over = "tasks and rows" if len(kinds) > 1 else f"{next(iter(kinds))}"
    what = f"Intervals of differences are over {over}" + (
        ", and over seeds of training as far as they scatter by more than that."
        if many
        else " of one seed: another seed of training may say otherwise (want --seeds 3)."
    )
    claims = report["claims"]
    real = (
        f"Real: p below {report['alpha']:g} by a paired test, corrected after Holm for all {claims} comparisons that "
        "have a verdict. Not certain: the interval alone is beside zero, the corrected test is not. No difference seen "
        "does not mean that there is none: the interval says how large it can be."
    )
    tasks = [suite for suite in report["suites"] if suite["unit"] == "rows" and suite["tasks"] > 1]
    few = ["Where tasks are few, what is said holds for these tasks, not for others."] if tasks else []
    return [what, real, *few]


def render(report: Mapping[str, Any]) -> str:
    """The page as text. Raises jinja2.UndefinedError or KeyError if the report lacks a part."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["visible"] = visible
    style = Markup("\n".join((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "comparison.css")))
    view = _view(report)
    return environment.get_template("comparison.html.jinja").render(style=style, report=report, **view)


def _view(report: Mapping[str, Any]) -> dict[str, Any]:
    every = list(tables(report))
    by_suite = [
        {
            "name": spoken(suite["name"]),
            "size": _size(suite),
            "forests": [_forest(report, suite, name) for name in claimed(report, suite)],
            "scores": every[2 * place],
            "others": _others(report, suite),
            "skipped": sorted(set(suite["skipped"].values())),
        }
        for place, suite in enumerate(report["suites"])
    ]
    rest = every[2 * len(report["suites"]) :]
    chips = [
        ("settings", str(len(report["settings"]))),
        ("seeds", ", ".join(map(str, report["seeds"]))),
        ("model", ", ".join(dict.fromkeys(one["model"] for one in report["settings"].values()))),
        ("rows to tune on", f"{report['rows']['train']:,}"),
    ]
    return {
        "title": title(report),
        "chips": chips,
        "suites": by_suite,
        "cost": rest[0],
        "differs": rest[1] if len(rest) > 1 else None,
        "meaning": meaning(report),
        "made": _made(report),
    }


def _forest(report: Mapping[str, Any], suite: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """One plot: a line for each pair, best known first, and what would decide the open ones."""
    from markupsafe import Markup

    unit, higher = report["metrics"][metric]["unit"], report["metrics"][metric]["higher"]
    pairs = [pair for pair in suite["pairs"] if metric in pair["metrics"]]
    scale = Scale.of([pair["metrics"][metric] for pair in pairs])
    lines = []
    for pair in pairs:
        found = pair["metrics"][metric]
        lines.append(
            {
                "a": pair["a"],
                "b": pair["b"],
                "svg": Markup(line(found, scale, found["sentence"])),
                "value": signed(found, metric).partition(" ")[0],
                "interval": signed(found, metric).partition(" ")[2],
                "verdict": found["verdict"],
                "words": WORDS[found["verdict"]],
                "winner": found["winner"],
                "p": chance(found["p_adjusted"]),
                "sentence": found["sentence"],
                "advice": found["advice_sentence"] if found["verdict"] != "better" else "",
                "detectable": amount(found["detectable"], metric) if found["detectable"] is not None else "–",
            }
        )
    return {
        "label": report["metrics"][metric]["label"],
        "unit": "points" if unit == "%" else "nats a token" if unit == "nats" else "",
        "lines": lines,
        "axis": Markup(axis(scale, unit)),
        "left": "second is better" if higher else "first is better",
        "right": "first is better" if higher else "second is better",
    }


def _others(report: Mapping[str, Any], suite: Mapping[str, Any]) -> dict[str, Any]:
    """Differences of the metrics that nothing is claimed of."""
    known = claimed(report, suite)
    names = [name for name in _measured(suite) if name not in known]
    names = [name for name in names if any(name in pair["metrics"] for pair in suite["pairs"])]
    rows = [
        [f"{pair['a']} − {pair['b']}", *(_other(pair["metrics"].get(name), name) for name in names)]
        for pair in suite["pairs"]
    ]
    return {
        "headers": ["difference", *(report["metrics"][name]["label"] for name in names)],
        "rows": rows if names else [],
    }


def _other(found: Mapping[str, Any] | None, metric: str) -> str:
    return signed(found, "loss" if metric == "perplexity" else metric) if found else "–"
