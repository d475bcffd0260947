"""The report of an evaluation: `report.json`, the same as one self-contained page, `report.html`, and as `report.md`.

The page asks nothing of the network and runs no script (its own policy forbids both); every text that came from
rows or models is escaped. All numbers are formatted in Python, the templates only place them. report["language"] says
in which language page and Markdown are written (default: en).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructrec import files
from instructrec.evaluation.numbers import cell, change, clean, count, interval, number, spoken, visible
from instructrec.evaluation.page import FOLD, view
from instructrec.evaluation.summary import summaries, summary
from instructrec.evaluation.tables import markdown
from instructrec.evaluation.words import Words

HERE = Path(__file__).parent


def write_report(report: Mapping[str, Any], folder: Path) -> Path:
    """Write report.json, report.html and, where something was measured, report.md into `folder`; returns the path of
    the page.

    Numbers that are not finite (the perplexity of a broken model) become null, shown as a dash; half characters
    (lone surrogates) become U+FFFD, since no file could be written with them.
    """
    report = clean(report)
    files.write_json(folder / "report.json", report)
    page = folder / "report.html"
    files.write_text(page, render(report))
    if report["suites"]:
        files.write_text(folder / "report.md", markdown(report, Words(report.get("language", "en"))))
    return page


def render(report: Mapping[str, Any]) -> str:
    """The page as text. Raises jinja2.UndefinedError or KeyError if the report lacks a part that all reports have."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever text comes from rows, models and settings: control characters become signs everywhere.
        finalize=lambda value: visible(value) if value is None or type(value) is str else value,
    )
    environment.filters["visible"] = visible
    environment.filters["spoken"] = spoken
    style = Markup((HERE / "report.css").read_text(encoding="utf-8"))
    report = clean(report)
    words = Words(report.get("language", "en"))
    environment.globals["say"] = words
    return environment.get_template("report.html.jinja").render(style=style, **view(report, words))


def duration(seconds: float) -> str:
    """`45 s`, `6 min 42 s`, `2 h 5 min`."""
    return Words().duration(seconds)


__all__ = [
    "FOLD",
    "cell",
    "change",
    "clean",
    "count",
    "duration",
    "interval",
    "number",
    "render",
    "summaries",
    "summary",
    "write_report",
]
