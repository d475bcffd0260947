"""The page of `bench/suites.py` comes from its files alone, and its rows are drawn as it says."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import suites  # noqa: E402


def test_the_page_is_that_of_the_files() -> None:
    files = sorted((suites.OUT / "suites").glob("*.json"))
    assert files and {file.stem for file in files} <= suites.SETS.keys()
    text = suites.page(suites.OUT / "suites")
    assert (suites.OUT / "suites.md").read_text(encoding="utf-8") == text
    assert all(f"## {file.stem}" in text for file in files) and "None" not in text


@pytest.mark.skipif(not suites.DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("name", suites.SETS)
def test_rows(name: str) -> None:
    make, _ = suites.SETS[name]
    train, test = make()
    assert (train, test) == make() and len(train) >= 400 and len(test) >= 100
    asked = {(row["instruction"], row["input"]) for row in train}
    shared = sum((row["instruction"], row["input"]) in asked for row in test)
    assert shared < len(test) / 5 and (name == "banking77" or shared > 0)
    if name == "instruction_induction":
        assert not {row["task"] for row in train} & {*suites.UNSEEN}
        assert {*suites.UNSEEN} < {row.get("task") for row in test}
