"""docs/robustness.md shows what the program does: the samples are generated, and every way of damage is in the table."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from instructrec.measures.perturbations import PERTURBATIONS

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", ["robustness.md", "robustness.zh-CN.md"])
def test_the_samples_on_the_page_are_what_the_program_makes(name: str) -> None:
    spec = importlib.util.spec_from_file_location("make_perturbations", DOCS / "make_perturbations.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shown = re.findall(r"^```text\n(.*?)^```$", (DOCS / name).read_text(encoding="utf-8"), flags=re.M | re.S)
    assert shown == list(module.samples()), "paste what `python docs/make_perturbations.py` prints"
    assert {line.split()[0] for block in shown for line in block.splitlines()[1:]} == {*PERTURBATIONS} - {"template"}


@pytest.mark.parametrize("name", ["robustness.md", "robustness.zh-CN.md"])
def test_every_perturbation_is_explained(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert {way for line in rows for way in re.findall(r"`(\w+)`", line.split("|")[1])} == {*PERTURBATIONS}
