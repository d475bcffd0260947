"""`check`: what it reads, keeps and says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from instructrec.config import TuneSettings
from instructrec.recipes.check import check

ROWS = [{"instruction": f"Say {word}", "output": word} for word in "red blue green house lamp order".split()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


def settings(tiny_folder: Any, **more: Any) -> TuneSettings:
    return TuneSettings(model=str(tiny_folder("qwen")), **more)


def test_rejected_rows_of_each_file_are_kept(place: Path, tiny_folder: Any, capsys: Any) -> None:
    bad = {"instruction": "", "output": "x"}
    files = {name: put(f"{name}.jsonl", [*ROWS[:3], bad]) for name in ("rows", "test", "watched")}
    given = settings(tiny_folder, on_bad_row="skip", validation=files["watched"])
    check([files["rows"]], [files["test"]], given)
    kept = {path.name: json.loads(path.read_text())["file"] for path in place.glob("rejected*.jsonl")}
    assert kept == {
        "rejected.jsonl": "rows.jsonl",
        "rejected-test.jsonl": "test.jsonl",
        "rejected-validation.jsonl": "watched.jsonl",
    }
    shown = "".join(capsys.readouterr())
    assert [shown.count(f"written to {name}") for name in kept] == [1, 1, 1]
    assert "Rejected rows are" not in shown


def test_the_validation_file_is_what_is_held_out(place: Path, tiny_folder: Any, capsys: Any) -> None:
    rows, watched = (
        put("rows.jsonl", ROWS),
        put("watched.jsonl", [ROWS[0], {"instruction": "Say hot", "output": "hot"}]),
    )
    check([rows], [], settings(tiny_folder, validation=watched))
    out, err = capsys.readouterr()
    assert "2 validation rows read" in out
    assert "Held out: the 2 rows of watched.jsonl; 6 rows to train on." in out
    assert "1 of 2 test prompts are in the training rows too: watched.jsonl:1 = rows.jsonl:1" in err
