"""Rows and settings with which `tune` takes seconds. Tiny models are slowed down by threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import TASKS, WORDS
from stops import EXACT, STEPS, counted

from instructrec.recipes import measure  # noqa: F401  takes `write_report` for good: before a test replaces it
from instructrec.recipes.tune import tune

torch.set_num_threads(1)


@pytest.fixture
def base(tiny_folder: Any) -> Path:
    return tiny_folder("qwen")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 rows of four tasks."""
    lines = ["instruction\tinput\toutput\ttask"]
    lines += [f"Please {task} it\t{word}\t{make(word)}\t{task}" for task, make in TASKS.items() for word in WORDS]
    (tmp_path / "rows.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "rows.tsv"


@pytest.fixture
def quick(base: Path, table: Path, tmp_path: Path) -> Callable[..., Any]:
    """`tune` with settings for seconds; the run folder is tmp_path/run unless said."""

    def run(data: Any = table, **settings: Any) -> Any:
        given = {"model": str(base), "precision": "fp32", "threads": 1, "tensorboard": False, "batch_rows": 4}
        return tune(data, **({"out": tmp_path / "run", "epochs": 1.0, "seed": 3} | given | settings))

    return run


@pytest.fixture
def straight(quick: Any, tmp_path: Path) -> tuple[Any, list[Any]]:
    """The run of EXACT that nobody stops, and its steps."""
    with counted() as taken:
        result = quick(out=tmp_path / "straight", **EXACT)
    assert [number for number, *_ in taken] == list(range(1, STEPS + 1)) and result.steps == STEPS
    return result, taken


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and the report take most of the time of a short run."""
    from instructrec.evaluation import pictures, report

    monkeypatch.setattr(pictures, "save_loss_png", lambda *_: None)
    monkeypatch.setattr(report, "write_report", lambda *_: None)
