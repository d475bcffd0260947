"""Writes docs/matrix.md: what every tuning method does on every kind of backbone together with every option.

    python docs/make_matrix.py

Nothing is listed here by hand: methods and kinds come from their registries, and whether something is refused, and in
which words, from the checks that a run makes. `tests/recipes/test_matrix.py` compares the page with a fresh one, meets
every refusal where a user would, and does what every other cell promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from instructrec.config import TuneSettings
from instructrec.errors import InputError
from instructrec.export.merged import check_export
from instructrec.inference.together import check_shareable
from instructrec.models.kinds import KINDS, Kind
from instructrec.models.methods import METHODS, Method
from instructrec.models.reading import ReadingPlan
from instructrec.recipes.reading import plan_of
from instructrec.training.sharding import check_sharded

PAGE = Path(__file__).with_name("matrix.md")
RUN = "RUN"  # the run folder, in messages
HEAD = """\
# What goes together

This page is generated (`python docs/make_matrix.py`) from the registries of methods and kinds and from the checks that
a run makes, and tested: a *yes* is done in `tests/recipes/test_matrix.py` on a tiny model, a *no* is met there where a
user would meet it, before a model is loaded where that can be known. [methods.md](methods.md) tells what the methods
are, [kinds.md](kinds.md) what the kinds of backbone, [rrtransformer.md](rrtransformer.md) how instructions are read.
An *encoder* answers by a classification head (`--encoder.head mean` or `cls`), an *encoder with a mask* at the mask of
a cloze (`--encoder.head cloze`); both take label rows only.
"""


def _fine(method: Method, kind: Kind, plan: ReadingPlan) -> None:
    """Nothing is asked of the method, the kind or the plan."""


def _cut_up(method: Method, kind: Kind, plan: ReadingPlan) -> None:
    check_sharded(method, plan)
    kind.check_cut_up()


@dataclass(frozen=True)
class Option:
    """Something that a user may want of a run.

    how: as it is asked for.  settings: what of it stands in the settings of `tune`.  check(method, kind, plan): raises
    InputError where a run of the method on the kind can't do it.
    """

    title: str
    how: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Method, Kind, ReadingPlan], None] = _fine


OPTIONS = {
    "twice": Option("read twice", "`--strokes 2`", {"strokes": "2"}),
    "frozen": Option("first untuned", "`--strokes 2 --prior frozen`", {"strokes": "2", "prior": "frozen"}),
    "separate": Option(
        "weights each",
        "`--strokes 2 --stroke-adapters separate`",
        {"strokes": "2", "stroke_adapters": "separate"},
    ),
    "slots": Option("slots", "`--slots 4`", {"slots": 4}),
    "checkpointing": Option("recompute", "`--checkpointing`", {"checkpointing": True}),
    "bf16": Option("bf16", "`--precision bf16`", {"precision": "bf16"}),
    "resume": Option("resume", "`tune --resume`"),
    "processes": Option("processes", "`torchrun … -m instructrec tune`"),
    "fsdp": Option("FSDP", "`accelerate launch --use_fsdp …`", check=_cut_up),
    "ranking": Option("ranking", "`prompt row ROWS --model RUN --score rank`"),
    "streaming": Option("streaming", "`Assistant(RUN).stream(…)`, `instructrec run`"),
    "together": Option(
        "side by side", "`Assistant([RUN, OTHER])`", check=lambda method, _, plan: check_shareable(method, RUN)
    ),
    "export": Option(
        "export", "`export RUN`", check=lambda method, _, plan: check_export(method, plan, plan.most, RUN)
    ),
}


def verdict(method: Method, kind: Kind, *options: Option) -> str:
    """What is said where a method on a kind of backbone can't have these options, '' where it can.

    In the order in which a run asks: the plan with the method, the method with the kind, the kind with the plan.
    """
    settings: dict[str, Any] = {"method": method.name}
    for option in options:
        settings |= option.settings
    try:
        plan = plan_of(TuneSettings(**settings), method)
        method.check_kind(kind.name)
        kind.check_plan(plan)
        for option in options:
            option.check(method, kind, plan)
    except InputError as error:
        return str(error)
    return ""


def page() -> str:
    """The whole page as Markdown."""
    said: list[str] = []  # messages, numbered from 1

    def cell(text: str, method: Method) -> str:
        text = text.replace(f"'{method.name}'", "'METHOD'")
        if text and text not in said:
            said.append(text)
        return f"no ({said.index(text) + 1})" if text else "yes"

    lines = [HEAD, "| method | backbone | files | " + " | ".join(option.title for option in OPTIONS.values()) + " |"]
    lines.append("| --- |" + " --- |" * (2 + len(OPTIONS)))
    for method in METHODS.values():
        for kind in KINDS.values():
            if refused := verdict(method, kind):
                cells = [cell(refused, method)] + ["–"] * len(OPTIONS)
            else:
                cells = [method.library]
                cells += [cell(verdict(method, kind, option), method) for option in OPTIONS.values()]
            lines.append("| " + " | ".join([f"`{method.name}`", kind.name, *cells]) + " |")
    lines += [
        "",
        "*files*: whose `from_pretrained` loads what a run leaves (a classification head lies beside it).",
        "`METHOD` and `RUN` below stand for their names.",
        "",
        "| | asked for with |",
        "| --- | --- |",
    ]
    lines += [f"| {option.title} | {option.how} |" for option in OPTIONS.values()]
    lines += ["", "## Two options at once", "", "Each alone is possible; together they are refused:", ""]
    lines += ["| options | methods | |", "| --- | --- | --- |"]
    for (one, other), found in pairs().items():
        able = [name for name, method in METHODS.items() if _able(method, one, other)]
        for text, names in found.items():
            shown = "all that can" if names == able else ", ".join(f"`{name}`" for name in names)
            titles = f"{OPTIONS[one].title}, {OPTIONS[other].title}"
            lines.append(f"| {titles} | {shown} | {cell(text, METHODS[names[0]])} |")
    lines += ["", "## What is said", ""]
    return "\n".join([*lines, *(f"{number}. `{text}`" for number, text in enumerate(said, 1)), ""])


def _able(method: Method, *names: str) -> bool:
    """Whether there is a kind on which a method can have each of these options by itself."""
    return any(not any(verdict(method, kind, OPTIONS[name]) for name in names) for kind in KINDS.values())


def pairs() -> dict[tuple[str, str], dict[str, list[str]]]:
    """Two options that a method can have, but not at once -> what is said -> methods."""
    found: dict[tuple[str, str], dict[str, list[str]]] = {}
    for pair in combinations(OPTIONS, 2):
        one, other = (OPTIONS[name] for name in pair)
        if any(one.settings.get(key, value) != value for key, value in other.settings.items()):
            continue  # two values of one setting
        for method in METHODS.values():
            for kind in KINDS.values():
                text = verdict(method, kind, one, other)
                if text and not verdict(method, kind, one) and not verdict(method, kind, other):
                    names = found.setdefault(pair, {}).setdefault(text, [])
                    names += [] if method.name in names else [method.name]
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
