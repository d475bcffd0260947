"""The scores as Markdown: `report.md`, and the same tables for the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from instructrec.evaluation.numbers import cell, change, number
from instructrec.evaluation.requirements import shown_value
from instructrec.evaluation.summary import summary, title
from instructrec.evaluation.words import Words


def markdown(report: Mapping[str, Any], words: Words) -> str:
    """report.md: summary, requirements, tables, how to repeat it."""
    run = report["run"]
    name = Path(run["folder"]).name or run["folder"]
    commit = report["commit"] or words("repeat.unknown")
    if report["dirty"]:
        commit = words("repeat.dirty", commit=commit)
    sections = [f"# {plain(words('markdown.title', title=name))}", *scores(report, words)]
    sections += [f"## {words('repeat.title')}", _fenced(report["command"])]
    sections.append(plain(words("repeat.version", version=report["version"], commit=commit)))
    hashes = {**run["data"]["files"], **{suite["file"]: suite["sha256"] for suite in report["suites"] if suite["file"]}}
    sections.append("\n".join(f"- {plain(file)}: sha256 `{digest}`" for file, digest in hashes.items()))
    return "\n\n".join(section for section in sections if section) + "\n"


def scores(report: Mapping[str, Any], words: Words) -> list[str]:
    """Sections of Markdown: the summary, and a table for each part that was measured."""
    said = summary({**report, "requirements": []}, words.language)  # they have a place of their own
    sections = [plain(sentence) for sentence in said]
    sections += _requirements(report, words)
    for suite in report["suites"]:
        sections += _suite(report, suite, words)
    for part in (_robustness, _constraints, _bias, _forgetting):
        sections += part(report, words)
    end = words("markdown.brackets", interval="\0")  # the file name in it keeps its code marks
    return [*sections, end.replace("\0", plain(words.said(report["interval"])))]


def _requirements(report: Mapping[str, Any], words: Words) -> list[str]:
    lines = [
        f"- {words('requirements.met' if entry['met'] else 'requirements.unmet')}: `{_code(entry['text'])}`, "
        + (
            words("requirements.missing")
            if entry["value"] is None
            else words("requirements.value", value=shown_value(entry))
        )
        for entry in report.get("requirements") or []
    ]
    return [f"### {words('requirements.title')}", "\n".join(lines)] if lines else []


def _suite(report: Mapping[str, Any], suite: Mapping[str, Any], words: Words) -> list[str]:
    arms = [arm for arm in report["arms"] if arm["name"] in suite["scores"]]
    pairs = list(suite["differences"])
    head = [words("results.metric"), *(words.said(arm["label"]) for arm in arms)]
    head += [pair.replace("-", " − ") for pair in pairs]
    marks = [mark for mark in ("chance", "majority") if any((suite.get("references") or {}).get(mark, {}).values())]
    head += [words(f"markdown.{mark}") for mark in marks]
    rows = []
    for name, metric in report["metrics"].items():
        for source, form in ((suite["scores"], "{metric}"), (suite.get("ranked") or {}, words("results.ranked"))):
            found = [source.get(arm["name"], {}).get(name) for arm in arms]
            if not any(found):
                continue
            label = form.format(metric=words.said(metric["label"]))
            label = label if metric["higher_is_better"] else words("markdown.lower", metric=label)
            cells = [cell(estimate, metric["unit"]) for estimate in found]
            plainly = source is suite["scores"]  # differences are between generated answers
            shown = [suite["differences"][pair].get(name) if plainly else None for pair in pairs]
            cells += [change(entry, metric["unit"], words("to")) for entry in shown]
            cells += [number(suite["references"][mark].get(name), metric["unit"]) for mark in marks]
            rows.append([label, *cells])
    name = f"### {plain(title(report, suite, words))} ({words.count('rows', suite['rows'])})"
    return [name, table(head, rows)]


def _robustness(report: Mapping[str, Any], words: Words) -> list[str]:
    found = report.get("robustness")
    if not found:
        return []
    unit = report["metrics"].get(found["metric"], {}).get("unit", "%")
    arms = [arm for arm in report["arms"] if arm["name"] in found["clean"]]
    rows = [[words("robustness.undamaged"), *_pairs(arms, found["clean"], {}, unit)]]
    for entry in found["perturbations"]:
        rows.append([words.said(entry["label"]), *_pairs(arms, entry["scores"], entry["drop"], unit)])
    if found.get("worst_case"):
        rows.append([words("robustness.worst"), *_pairs(arms, found["worst_case"], {}, unit)])
    head = [words("robustness.damage")]
    for arm in arms:
        head += [words.said(arm["label"]), words("robustness.lost")]
    return [f"### {words('robustness.title')} ({words.count('rows', found['rows'])})", table(head, rows)]


def _pairs(arms: Sequence[Any], scores: Mapping[str, Any], drops: Mapping[str, Any], unit: str) -> list[str]:
    return [
        text
        for arm in arms
        for text in (cell(scores.get(arm["name"]), unit), cell(drops.get(arm["name"]), "%").replace("-", "−"))
    ]


def _constraints(report: Mapping[str, Any], words: Words) -> list[str]:
    found = report.get("constraints")
    if not found:
        return []
    arms = [arm for arm in report["arms"] if arm["name"] in found["scores"]]
    rows = [
        [words(f"constraints.{key}"), *(cell(found["scores"][arm["name"]].get(key), "%") for arm in arms)]
        for key in ("all", "each")
    ]
    head = [words("constraints.kind"), *(words.said(arm["label"]) for arm in arms)]
    return [f"### {words('constraints.title')} ({words.count('rows', found['rows'])})", table(head, rows)]


def _bias(report: Mapping[str, Any], words: Words) -> list[str]:
    checks = report.get("bias") or []
    arms = [arm for arm in report["arms"] if any(arm["name"] in entry["arm"] for entry in checks)]
    rows = []
    for entry in checks:
        unit = entry.get("unit", "%")
        cells = [cell(entry["arm"].get(arm["name"]), unit) for arm in arms]
        rows.append([words.said(entry["label"]), *cells, number(entry["ideal"], unit)])
    head = [words("bias.title"), *(words.said(arm["label"]) for arm in arms), words("bias.without")]
    return [f"### {words('bias.title')}", table(head, rows)] if rows else []


def _forgetting(report: Mapping[str, Any], words: Words) -> list[str]:
    found = report.get("forgetting")
    if not found:
        return []
    loss = found["loss"]
    cells = [cell(loss.get("before"), "nats"), cell(loss.get("after"), "nats")]
    row = [words("results.nats"), *cells, change(loss.get("difference"), "nats", words("to"))]
    head = ["", *(words(f"forgetting.{name}") for name in ("before", "after", "change"))]
    return [f"### {words('forgetting.title')} ({words.count('rows', found['rows'])})", table(head, [row])]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right. The texts are made harmless here."""
    lines = [_row(map(plain, head)), _row(["---", *["---:"] * (len(head) - 1)])]
    return "\n".join([*lines, *(_row(map(plain, row)) for row in rows)])


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def plain(text: str) -> str:
    """Text that Markdown leaves alone: on one line, no tags, no table borders, no links or emphasis."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _fenced(text: str) -> str:
    """A command as a block of code, with a fence longer than any in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}sh\n{text}\n{fence}"
