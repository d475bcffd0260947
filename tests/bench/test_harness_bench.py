"""bench/harness.py: our side and the plain loops on a tiny random model, and its comparison on planted differences."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import harness  # noqa: E402

PLAIN: dict[str, tuple[str, ...]] = {"ranked": ("passes",), "written": ("loop",)}


def test_our_side_and_the_loops_agree_and_the_page_says_so(tmp_path: Path) -> None:
    assert harness.main(["--size", "tiny", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "harness.json").read_text())
    assert list(result["tasks"]) == ["ranked", "written"] and result["threads"] == 1
    for kind, (plain,) in PLAIN.items():
        one = result["tasks"][kind]
        assert one["rows"] == 8 and one["differences"] == {plain: []}
        assert one["accuracy"]["ours"] == one["accuracy"][plain]
        assert all(len(one[clock][side]) == 2 for clock in ("seconds", "processor_seconds") for side in ("ours", plain))
        assert one["ratio_of_seconds"][plain] > 0 and one["accuracy_said_by_the_harness"] == {}
    assert result["tasks"]["ranked"]["furthest_apart_nats"]["passes"] < harness.TOLERANCE
    text = (tmp_path / "harness.md").read_text()
    assert text.count("0 rows differ (none)") == 2 and "harness, batch" not in text
    assert harness.main(["--page", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "harness.md").read_text() == text


def ranked(**other: Any) -> dict[str, Any]:
    return {"id": 7, "scores": [-1.0, -2.0, -3.0], "tokens": [[[1, 2], [3]]] * 3, "right": True} | other


def written(**other: Any) -> dict[str, Any]:
    return {"id": 7, "text": "card lost", "tokens": [4, 5, 6], "prompt": [1, 2], "right": True} | other


@pytest.mark.parametrize(
    ("planted", "cause"),
    [
        ({"scores": [-1.0, -2.0, -3.002]}, "unexplained"),
        ({"scores": [-2.5, -2.0, -3.0]}, "unexplained"),
        ({"scores": [-1.5, -2.0, -3.0], "tokens": [[[1], [2, 3]]] * 3}, "tokens"),
    ],
)
def test_a_planted_score_is_found_and_its_cause_told(planted: dict[str, Any], cause: str) -> None:
    other = {"id": 8, **{key: value for key, value in ranked().items() if key != "id"}}
    assert harness.differences("ranked", [other, ranked()], [ranked(), deepcopy(other)]) == []
    (found,) = harness.differences("ranked", [other, ranked()], [ranked(**planted), deepcopy(other)])
    assert found["id"] == 7 and found["cause"] == cause
    assert found["nats_apart"] == pytest.approx(
        max(abs(a - b) for a, b in zip(planted["scores"], [-1, -2, -3], strict=True))
    )


def test_labels_closer_than_the_tolerance_are_a_near_tie() -> None:
    near = ranked(scores=[-1.0, -1.0004, -3.0])
    (found,) = harness.differences("ranked", [near], [ranked(scores=[-1.0005, -1.0, -3.0])])
    assert found["picked"] == [0, 1] and found["cause"] == "near tie"
    assert harness.differences("ranked", [near], [ranked(scores=[-1.0, -1.0005, -3.0])]) == []


def test_a_planted_text_is_found_with_the_token_where_it_parts() -> None:
    assert harness.differences("written", [written()], [written(text=" card lost ")]) == []
    other = written(text="card stolen", tokens=[4, 9, 6], right=False)
    asked: list[tuple[list[int], list[int]]] = []

    def margin(prompt: list[int], answer: list[int]) -> float:
        asked.append((prompt, answer))
        return 1e-5

    (found,) = harness.differences("written", [written()], [other], margin)
    assert asked == [([1, 2], [4])] and found == {
        "id": 7, "right": [True, False], "token": 1, "ahead": 1e-5, "cause": "near tie",
    }  # fmt: skip
    (found,) = harness.differences("written", [written()], [other])
    assert found["cause"] == "unexplained"
    (found,) = harness.differences("written", [written()], [other | {"prompt": [1, 2, 3]}])
    assert found["cause"] == "tokens"


def test_other_rows_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="other rows"):
        harness.differences("ranked", [ranked()], [ranked(id=8)])
