"""Each part of the report there and not there; text that means harm, numbers that are none or huge; colours that can
be read."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sample

from instructrec.evaluation import report as room
from instructrec.evaluation.card import card
from instructrec.evaluation.numbers import clean
from instructrec.evaluation.report import render, write_report
from instructrec.evaluation.tables import markdown
from instructrec.evaluation.words import Words
from pagetext import Page

# Part -> what stands on the page for it. A dot leads into a part; "suites" means every suite.
PARTS = {
    "requirements": "Requirements",
    "robustness": "The same rows, clean and damaged",
    "bias": "Share of the labels chosen",
    "constraints": "each checked by a program",
    "forgetting": "General ability, before and after",
    "training": "Watched: loss on held-out rows",
    "robustness.worst_case": "Worst damage of each row",
    "robustness.curves": "More damage, less score",
    "robustness.by_task": "Which tasks suffer from what",
    "robustness.examples": "Clean beside damaged",
    "robustness.adversarial": "Words chosen against the model",
    "robustness.clusters": "",
    "constraints.by_kind": "By kind of constraint",
    "constraints.examples": "Examples of broken constraints",
    "forgetting.by_part": "knowledge",
    "suites.ranked": "labels ranked",
    "suites.calibration": "calibration error",
    "suites.references": "always the commonest answer",
    "suites.kind": "tasks that do not occur in training",
    "suites.clusters": "",
    "run.learning_curve": "Twice the rows would lower the loss",
}
# These are always there, and may be empty.
EMPTY = {
    "suites": "Results",
    "suites.by_task": "by task, weakest first",
    "suites.worst": "Worst answers of the",
    "suites.notes": "of answers ended by themselves",
    "suites.differences": "Tuned model − base model",
    "suites.overlap": "Nearly equal rows",
    "robustness.perturbations": "What each kind of damage costs",
    "training.looks": "Step 350:",
    "training.held_out_tasks": "Tasks kept out",
    "constraints.scores": "All constraints of an instruction kept",
    "bias": "Share of the labels chosen",
    "run.settings": "lora.rank",
}


def full() -> dict[str, Any]:
    report = sample.full()
    sentence = "Twice the rows would lower the loss on held-out rows by 0.1 [0.0, 0.2]; from half of the rows to all of them it fell by 0.2."
    report["run"]["learning_curve"] = {"sentence": sentence}  # as `tune --learning-curve` leaves it
    return report


def without(path: str, change: Callable[[dict[str, Any], str], Any]) -> dict[str, Any]:
    report = full()
    *way, last = path.split(".")
    owners: list[Any] = [report]
    for name in way:
        owners = [one for owner in owners for one in (owner[name] if isinstance(owner[name], list) else [owner[name]])]
    for owner in owners:
        change(owner, last)
    return report


def shown(report: dict[str, Any]) -> str:
    """All words of the page, and Markdown and card can be made as well."""
    markdown(report, Words("zh"))
    card(report, report["run"])
    return " ".join(Page(render(report)).words.split())


@pytest.fixture(scope="module", autouse=True)
def no_picture() -> Any:
    """The curve of the loss takes most of the time, and test_report.py looks at it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instructrec.evaluation.pictures.svg", lambda *_: "<svg></svg>")
        patch.setattr("instructrec.evaluation.pictures.loss_curve", lambda *_: None)
        yield


def empty(owner: dict[str, Any], name: str) -> None:
    owner[name] = type(owner[name])()


def test_the_sample_has_every_part() -> None:
    words = shown(full())
    assert [text for text in (*PARTS.values(), *EMPTY.values()) if text not in words] == []


@pytest.mark.parametrize("path", PARTS)
def test_a_part_may_be_missing(path: str) -> None:
    for change in (lambda owner, name: owner.pop(name), lambda owner, name: owner.update({name: None})):
        if path == "training" and change.__code__.co_names == ("pop",):
            continue  # every report says whether it knows of a training
        words = shown(without(path, change))
        assert not PARTS[path] or PARTS[path] not in words
        shown_there = ("run.learning_curve",) if path == "training" else ()
        others = {name: text for name, text in PARTS.items() if not name.startswith((path, *shown_there))}
        kept = [text for text in others.values() if text not in words]
        assert [text for text in kept if path != "suites.calibration" or "calibration" not in text] == []


@pytest.mark.parametrize("path", EMPTY)
def test_a_part_may_be_empty(path: str) -> None:
    assert EMPTY[path] not in shown(without(path, empty))


def test_a_report_of_nothing_but_one_part() -> None:
    bare = full() | dict.fromkeys(("robustness", "bias", "constraints", "forgetting", "training"))
    bare |= {"suites": [], "requirements": []}
    assert "Results" not in shown(bare)
    for part in ("robustness", "bias", "constraints", "forgetting", "training", "suites"):
        words = shown(bare | {part: full()[part]})
        assert part == "suites" or PARTS[part] in words
        assert not [text for name, text in PARTS.items() if "." not in name and name != part and text in words]


@pytest.mark.parametrize("arms", [["base"], ["tuned"], ["few_shot"], ["reread"], ["base", "tuned"]])
def test_any_arms(arms: list[str]) -> None:
    def only(value: Any) -> Any:
        if isinstance(value, list):
            return [only(one) for one in value]
        if not isinstance(value, dict):
            return value
        if {*value} & {*sample.ARM_NAMES}:
            first = next(iter(value.values()))
            return {arm: only(value.get(arm, first)) for arm in arms}
        return {key: only(one) for key, one in value.items()}

    report = only(full())
    report["arms"] = [{"name": arm, "label": f"The {arm}", "detail": ""} for arm in arms]
    report["robustness"]["arms"] = arms
    for suite in report["suites"]:
        suite["differences"] = {}
    words = shown(report)
    assert all(f"The {arm}" in words for arm in arms)
    assert not [arm for arm in sample.ARM_NAMES if arm not in arms and f"The {arm}" in words]


HARM = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></title></dd></bdi><h1>not ours</h1>",
    "{{ 3 * 41152263 }} {% raw %}",
    "\u202egnp.exe\u2066",
    "bell \x07 \x00 \x1b[31m",
    "half \ud83d",
    "long " * 400,
    "x" * 2_000,
    "| a | b |\n|---|---|\n```\n<b>",
    "",
)


def poisoned(value: Any, text: str, key: str = "") -> Any:
    """The report with every text that rows, models, files and commands can say replaced."""
    ours = {
        "name",
        "kind",
        "metric",
        "primary",
        "clusters",
        "unit",
        "format",
        "created",
        "arms",
        "suite",
        "language",
        "sha256",
        "commit",
        "version",
    }
    if isinstance(value, dict):
        if key == "files":
            return {text: next(iter(value.values()))}
        theirs = key in ("by_task", "settings", "parts")
        return {text if theirs and place == 0 else name: poisoned(one, text, name if isinstance(name, str) else "")
                for place, (name, one) in enumerate(value.items())}  # fmt: skip
    if isinstance(value, list):
        return [poisoned(one, text, key) for one in value]
    known = key in ours or key in sample.ARM_NAMES and len(str(value)) < 3
    return text if isinstance(value, str) and not known else value


@pytest.mark.parametrize("text", HARM, ids=range(len(HARM)))
def test_text_that_means_harm_stays_text(text: str, tmp_path: Path) -> None:
    report = poisoned(full(), text)
    report["run"]["method"] = "lora"  # a name of ours
    report["command"] = "instructrec evaluate"  # whose block of code test_report.py looks at
    for suite in report["suites"]:
        suite["name"] = report["robustness"]["suite"] = text
    page = write_report(report, tmp_path).read_text(encoding="utf-8")
    read = Page(page)  # which checks that tags end where they began
    assert {tag for tag, _ in read.tags} <= {tag for tag, _ in Page(render(full())).tags}
    assert not [name for _, attributes in read.tags for name in attributes if name.startswith("on") or name == "src"]
    assert sum(tag == "h1" for tag, _ in read.tags) == 1
    assert "123456789" not in read.words
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f]", page)
    if len(text) < 100 and text.isprintable() and text:
        assert read.words.count(text) > 50
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    outside = re.sub(r"`[^`\n]*`|\\.", "", "\n".join(line for line in lines if line != text.strip()))
    assert not re.search(r"<(script|img|h1|b)\b", re.sub("```+sh\n.*?\n```+", "", outside, flags=re.S))


def test_none_where_a_text_is_wanted_is_a_dash() -> None:
    report = full()
    suite = report["suites"][0]
    suite["worst"] = [
        {"origin": None, "task": None, "prompt": None, "expected": None, "answers": dict.fromkeys(sample.ARM_NAMES)}
    ]
    suite["file"] = suite["sha256"] = None
    report["robustness"]["examples"] = [
        dict.fromkeys(("origin", "task", "clean", "damaged", "expected", "clean_answer", "damaged_answer"))
        | {"perturbation": "typos"}
    ]
    report["robustness"]["adversarial"]["examples"] = copy.deepcopy(report["robustness"]["examples"])
    report["constraints"]["examples"] = [{"origin": None, "prompt": None, "answer": None, "broken": []}]
    report["suites"], report["run"]["settings"] = [suite], {"seed": 0, "held_out_tasks": None}
    words = shown(report).replace("held_out_tasks None", "")
    assert "None" not in words


def test_numbers_that_are_none_everywhere_are_dashes() -> None:
    def gone(value: Any) -> Any:
        if isinstance(value, dict):
            nan = {key: float("nan") for key in ("value", "low", "high") if key in value}
            return {key: gone(one) for key, one in value.items()} | nan
        return [gone(one) for one in value] if isinstance(value, list) else value

    words = shown(clean(gone(full())))
    assert "nan" not in words and "None" not in words and "–" in words


def test_huge_counts_fit() -> None:
    huge = 10**15

    def grown(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: grown(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [grown(one, key) for one in value]
        return huge if key in ("n", "rows", "near", "exact", "with_training", "with_watched", "queries") else value

    report = grown(full())
    report["run"] |= {"trained_parameters": huge, "parameters": 10 * huge}
    report["run"]["data"]["parts"] = {"train": huge, "test": 0}
    report["seconds"] = 1e9
    words = shown(report)
    assert "1,000,000,000,000,000 rows" in words and "1,000,000 B" in words and "277777 h" in words


def test_on_a_phone_each_number_of_a_table_has_its_name() -> None:
    text = render(full())
    tables = [table for table in re.findall(r"<table.*?</table>", text, flags=re.S) if 'class="settings"' not in table]
    plain = [table for table in tables if 'class="heat"' not in table]
    cells = [cell for table in plain for cell in re.findall(r"<td([^>]*)>", table)]
    assert len(cells) > 200 and all(re.fullmatch(r' data-label="[^"]{2,}"', cell) for cell in cells)
    heat = [table.count("<span>") for table in tables if table not in plain]
    assert heat == [12, 6, 6] * 2  # of each arm one for wide places, and two that hold the same columns for narrow ones


# -- colours ----------------------------------------------------------------------------------------------------------


def colours() -> dict[str, dict[str, str]]:
    """Scheme -> variable -> colour as #rrggbb."""
    style = (room.HERE / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{\n(.*?)\}", style, flags=re.S)[:2]
    found = [dict(re.findall(r"--([\w-]+): (#\w+);", text)) for text in (light, dark)]
    whole = [
        {name: f"#{''.join(2 * c for c in code[1:])}" if len(code) == 4 else code for name, code in one.items()}
        for one in found
    ]
    return {"light": whole[0], "dark": whole[0] | whole[1]}


def contrast(one: str, other: str) -> float:
    """Ratio of two colours by WCAG 2.2: 1 is none, 21 is black on white."""

    def luminance(code: str) -> float:
        parts = [int(code[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def cells() -> list[tuple[str, str]]:
    """What text and what ground the stylesheet gives to each shade of a heat map, as names of variables."""
    style = (room.HERE / "report.css").read_text(encoding="utf-8")
    grounds = {f"{side}-{n}": f"{side}-{n}" for side in ("loss", "gain") for n in range(1, 5)} | {"none": "track"}
    found = []
    for shade, ground in grounds.items():
        rules = [
            body
            for names, body in re.findall(r"^([^{}\n]+) \{([^}]*)\}", style, flags=re.M)
            + re.findall(r"(\.[\w-]+) \{ ([^}]*)\}", style)
            if f".{shade}" in re.split(r",\s*", names)
        ]
        assert any(f"background: var(--{ground})" in body for body in rules), shade
        inks = [ink for body in rules for ink in re.findall(r"(?<![\w-])color: var\(--([\w-]+)\)", body)]
        found.append((inks[-1] if inks else "ink", ground))
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str) -> None:
    known = colours()[scheme]
    pairs = cells() + [("soft", "card"), ("ink", "card"), ("soft", "paper"), ("ink", "paper"), ("warn-ink", "warn")]
    pairs += [("good", "card"), ("bad", "card"), ("ink", "mark"), ("ink", "track"), ("soft", "track")]
    faint = {pair: round(contrast(*(known[name] for name in pair)), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in faint.items() if ratio < 4.5} == {}
    # Lines, dots and bars: 3 against what they stand on, or against their whisker.
    shapes = [(f"line-{n}", "card") for n in range(5)] + [(f"series-{n}", "card") for n in range(5)]
    assert [pair for pair in shapes if contrast(*(known[name] for name in pair)) < 3] == []
    assert contrast("#000000", "#ffffff") == pytest.approx(21) and contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_can_be_told_apart_by_lightness_alone(scheme: str) -> None:
    known = colours()[scheme]
    for side in ("loss", "gain"):
        steps = [contrast(known[f"{side}-{n}"], known["card"]) for n in range(1, 5)]
        assert steps == sorted(steps) and all(
            after / before > 1.1 for before, after in zip(steps, steps[1:], strict=False)
        )
