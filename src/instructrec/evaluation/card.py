"""The model card, `README.md` of a run folder: what the model is, how good it is, how to use it, what is not known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instructrec import files
from instructrec.evaluation.numbers import clean, count, spoken
from instructrec.evaluation.tables import plain, scores
from instructrec.evaluation.words import Words
from instructrec.models.methods import get


def write_card(report: Mapping[str, Any] | None, run: Mapping[str, Any], folder: Path) -> Path:
    """Write README.md into `folder`; returns its path.

    `run` is the `run` part of a report (its `license`, if it has one, is taken over; else it says unknown); without
    a report the card says that nothing was measured yet.
    """
    path = folder / "README.md"
    files.write_text(path, card(clean(report), clean(run)))
    return path


def card(report: Mapping[str, Any] | None, run: Mapping[str, Any]) -> str:
    """The model card as Markdown with the YAML head that model hubs read."""
    import yaml

    data = run["data"]
    head = {
        "base_model": run["backbone"],
        "library_name": get(run["method"]).library,
        "pipeline_tag": "text-generation",
        "license": run.get("license") or "unknown",
        "datasets": [Path(name).name for name in data["files"]],
        "tags": ["instructrec", "instruction-tuning", run["method"]],
    }
    curve = run.get("learning_curve")
    share = 100 * run["trained_parameters"] / run["parameters"]
    parts = ", ".join(f"{size:,} {spoken(part)}" for part, size in data["parts"].items())
    place = str(run["folder"])
    quoted = place if re.fullmatch(r"[\w./-]+", place, flags=re.ASCII) else "'" + place.replace("'", "'\\''") + "'"
    sections = [
        "---\n" + yaml.safe_dump(head, sort_keys=False, allow_unicode=True).rstrip() + "\n---",
        f"# {plain(Path(place).name or place)}",
        f"{plain(str(run['backbone']))}, tuned with {run['method']} on {data['rows']:,} rows of instructions and "
        f"answers: {count(run['trained_parameters'])} of {count(run['parameters'])} parameters trained ({share:.2g}%).",
        "## Scores",
        *(
            scores(report, Words())
            if report
            else ["Nothing was measured yet: `instructrec evaluate` adds the scores here."]
        ),
        "## How to use",
        f'```sh\ninstructrec chat {quoted}\ninstructrec run {quoted} "Your instruction"\n```',
        "## Training data",
        "\n".join(f"- `{plain(name)}`, sha256 `{digest}`" for name, digest in data["files"].items()),
        f"Rows: {parts}. {plain(data['held_out'])}".rstrip(),
        *([f"{plain(curve['sentence'])}\n\n![Learning curve](curve.png)"] if curve else []),
        "## Limits",
        "\n".join(f"- {limit}" for limit in _limits(report)),
    ]
    return "\n\n".join(sections) + "\n"


def _limits(report: Mapping[str, Any] | None) -> list[str]:
    limits = [
        "The scores hold for rows like those of the test files; other instructions were not measured.",
        "Answers can be wrong, and the model does not say when it does not know. Safety was not measured.",
        "The licence of the base model and the rights in the training data apply.",
    ]
    if not report:
        return limits[1:]
    for suite in report["suites"]:
        if overlap := suite["overlap"].get("with_training", 0):
            limits.append(f"{overlap} of the rows of {plain(spoken(suite['name']))} are also in the training data.")
        if watched := suite["overlap"].get("with_watched", 0):
            limits.append(f"{watched} of the rows of {plain(spoken(suite['name']))} served to choose the checkpoint.")
    return limits
