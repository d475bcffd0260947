"""bench/prompting.py from rows to page, on a tiny random model and toy rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import prompting  # noqa: E402

TEXT = "the parcel of number {} is {}"


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    folder = tmp_path / "data" / "sentfin"
    folder.mkdir(parents=True)
    rows = [{"text": TEXT.format(number, word), "entities": {"parcel": label}} for number in range(16)
            for word, label in (("cold", "negative"), ("hot", "positive"))]  # fmt: skip
    for part, some in (("train", rows[:20]), ("test", rows[20:])):
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    model = tiny.folder("qwen", tmp_path / "toy")
    places = {"model": model, "data": tmp_path / "data", "results": tmp_path / "results", "build": tmp_path / "build"}
    given = [text for name, place in places.items() for text in (f"--{name}", str(place))]
    return [*given, "--sets", "sentfin", "--epochs", "1", "--only", "zero_shot,calibrated,searched,lora"]


def test_from_rows_to_page(options: list[str], tmp_path: Path, capsys: Any) -> None:
    assert prompting.main(options) == 0
    files = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("results/*.json")}
    assert set(files) == {f"toy-sentfin-{arm}" for arm in ("zero_shot", "calibrated", "searched", "lora")}
    for one in files.values():
        assert one["rows"] == len(one["right"]) == 12 and one["metric"] == "accuracy"
        assert one["value"] == pytest.approx(100 * sum(one["right"]) / 12, abs=1e-3)
        assert "parcel" not in json.dumps(one) and one["majority"] == one["chance"] == 50
    assert files["toy-sentfin-searched"]["tried"] > 20
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert f"| tuned (`--method lora`) | {files['toy-sentfin-lora']['value']:.1f} (" in page
    assert "- `sentfin`, of" in page
    capsys.readouterr()
    assert prompting.main(options) == 0  # nothing is done again
    assert capsys.readouterr().out.count("there already") == 4


def test_unknown_names_are_refused(options: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        prompting.main([*options, "--only", "zero"])
    assert "--only: unknown zero (known: zero_shot," in capsys.readouterr().err
