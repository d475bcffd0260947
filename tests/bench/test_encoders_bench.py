"""bench/encoders.py from rows to table, on a random encoder and toy rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import encoders  # noqa: E402


def test_from_rows_to_table(tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "kinds.md"
    page.write_text("before\n<!-- measured -->\nold\n<!-- /measured -->\nbehind\n", encoding="utf-8")
    places = {"build": tmp_path / "build", "results": tmp_path / "results", "page": page}
    options = [text for name, place in places.items() for text in (f"--{name}", str(place))]
    options += ["--size", "tiny", "--epochs", "3"]
    assert encoders.main(options) == 0
    files = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in tmp_path.glob("results/*.json")}
    assert set(files) == {f"toy-{arm}" for arm in encoders.TITLES}
    for one in files.values():
        assert one["rows"] == len(one["right"]) == 30 and one["labels"] == 3
        assert one["value"] == pytest.approx(100 * sum(one["right"]) / 30, abs=1e-3)
        assert "near the" not in json.dumps(one)  # no text of rows
    assert files["toy-logistic"]["value"] > 90 and files["toy-lora"]["trained_parameters"] > 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("behind\n") and "old" not in text
    assert f"| tuned (`--method lora`) | {files['toy-lora']['value']:.1f} (" in text
    capsys.readouterr()
    assert encoders.main(options) == 0  # nothing is done again
    assert capsys.readouterr().out.count("there already") == 4


def test_unknown_names_are_refused(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        encoders.main(["--only", "nearby"])
    assert "--only: unknown nearby (known: nearest," in capsys.readouterr().err
