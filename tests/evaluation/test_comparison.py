"""Verdicts in words, the forest plot, and the page of a comparison, on made-up scores."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructrec.evaluation import comparison, forest, verdicts
from instructrec.files import read_json
from instructrec.measures.metrics import RowScores, score

NAMES = ("small", "<b>large</b>", "other")


def suite(name: str, rates: tuple[float, ...], seeds: int = 3, rows: int = 40, unit: str = "rows") -> verdicts.Suite:
    """Answers that are right at these rates, one rate a setting, and losses that go with them."""
    rng = np.random.default_rng(len(name))
    keys = [str(row) for _ in range(seeds) for row in range(rows)]
    luck = rng.random(len(keys))
    scores = {}
    for setting, rate in zip(NAMES, rates, strict=False):
        right = luck + rng.normal(0, 0.1, len(keys)) < rate
        texts = ["yes" if one else "no" for one in right]
        losses = [(2.0 - one + abs(rng.normal(0, 0.1)), 2) for one in right]
        scores[setting] = score(texts, [("yes",)] * len(keys), losses=losses)
    order = [seed for seed in range(seeds) for _ in range(rows)]
    return verdicts.Suite(name, scores, unit, keys, order, [None] * len(keys), {})


def report(*suites: verdicts.Suite, pairs: Any = ((NAMES[0], NAMES[1]),), **more: Any) -> dict[str, Any]:
    found = verdicts.judge(suites, list(pairs), "exact_match", 1.0)
    names = list(suites[0].scores)
    cost = {"trained_parameters": 1200, "parameters": 9999, "rows": 40, "training_seconds": 61.0, "test_seconds": 2.0}
    cost |= {"peak_memory_bytes": 1.5e9, "steps": 10.0, "best_step": 8.0}
    found |= {
        "command": "instructrec compare <a>.yaml b.yaml", "version": "0", "commit": None, "dirty": False, "folder": "cmp",
        "settings": {name: {"method": "lora", "model": "m", "cost": cost} for name in names},
        "differs": {"lora.rank": dict.fromkeys(names, "4") | {names[0]: "16"}},
        "seeds": sorted({seed for one in suites for seed in one.seeds}),
        "rows": {"told": ["Tested on rows."], "files": {}, "train": 40},
    } | more  # fmt: skip
    found["overview"] = verdicts.overview(found)
    return found


def entry(found: dict[str, Any], metric: str = "exact_match", place: int = 0) -> dict[str, Any]:
    return dict(found["suites"][0]["pairs"][place]["metrics"][metric])


def test_a_large_difference_is_real() -> None:
    found = report(suite("seen", (0.9, 0.3)))
    one = entry(found)
    assert (one["verdict"], one["winner"]) == ("better", "small") and one["p_adjusted"] < 0.01
    assert re.fullmatch(
        r"small is better than <b>large</b>: exact match higher by \d\d\.?\d? points \(\d\d\.\d to \d\d\.\d\)\.",
        one["sentence"],
    )
    assert one["advice"] and len(one["by_seed"]) == 3 and one["low"] <= one["value"] <= one["high"]
    loss = entry(found, "loss")
    assert (loss["verdict"], loss["winner"]) == ("better", "small") and loss["value"] < 0
    assert "loss lower by 0." in loss["sentence"] and " nats (0." in loss["sentence"]
    assert found["overview"] == [f"On seen, {one['sentence']}"] and found["claims"] == 2
    assert set(found["suites"][0]["pairs"][0]["metrics"]) >= {"token_f1", "chrf"}
    assert "verdict" not in entry(found, "chrf")


def test_what_loss_alone_shows_is_told() -> None:
    same, finer = suite("seen", (0.5, 0.5)), suite("seen", (0.9, 0.2))
    scores = {
        name: RowScores(one.statistics | {"loss": finer.scores[name].statistics["loss"]})
        for name, one in same.scores.items()
    }
    found = report(replace(same, scores=scores))
    assert entry(found)["verdict"] == "none" and entry(found, "loss")["verdict"] == "better"
    assert found["overview"][1:] == ["By loss alone, on seen, small is better than <b>large</b>."]


def test_no_difference_says_how_large_it_can_be_and_what_would_decide() -> None:
    found = report(suite("seen", (0.5, 0.5), seeds=1))
    one = entry(found)
    most = max(abs(one["low"]), abs(one["high"]))
    assert one["verdict"] == "none" and one["winner"] is None
    assert one["sentence"] == (
        f"small and <b>large</b>: no difference of exact match seen; at most {most:.1f} points either way."
    )
    rows = one["advice"]["units"]
    assert rows > 1000 and one["advice_sentence"] == (
        f"A true difference of 1 point would show, 4 times in 5, with {rows:,} rows instead of 40, as far as one seed can "
        "tell: how much seeds differ takes --seeds 3."
    )


def test_holm_over_all_claims_makes_a_hint_of_what_alone_would_be_real() -> None:
    pairs = [(NAMES[0], NAMES[1]), (NAMES[0], NAMES[2]), (NAMES[1], NAMES[2])]
    alone = entry(report(suite("seen", (0.56, 0.45), seeds=1)))
    many = report(*(suite(name, (0.56, 0.45, 0.5), seeds=1) for name in ("seen", "also", "more")), pairs=pairs)
    assert many["claims"] == 18
    ps = [m["p"] for s in many["suites"] for p in s["pairs"] for m in p["metrics"].values() if "verdict" in m]
    held = [
        m["p_adjusted"] for s in many["suites"] for p in s["pairs"] for m in p["metrics"].values() if "verdict" in m
    ]
    assert all(b >= a for a, b in zip(ps, held, strict=True)) and min(held) == pytest.approx(min(1, 18 * min(ps)))
    hints = [m for s in many["suites"] for p in s["pairs"] for m in p["metrics"].values() if m.get("verdict") == "hint"]
    assert hints and all("among 18 comparisons that is not certain" in one["sentence"] for one in hints)
    assert alone["p_adjusted"] >= alone["p"]


def test_advice_in_words() -> None:
    one = suite("seen", (0.5, 0.5))
    told = [
        verdicts._advised(one, "1 point", *given)
        for given in (
            (True, (40, 40), (3, 3)),
            (False, (40, 1300), (3, 9)),
            (False, (40, None), (3, 9)),
            (False, (40, 1300), (3, None)),
            (False, (40, None), (3, None)),
        )
    ]
    begin = "A true difference of 1 point would show, 4 times in 5, with "
    assert told == [
        "A true difference of 1 point would have shown, 4 times in 5.",
        f"{begin}1,300 rows instead of 40, or with 9 seeds instead of 3.",
        f"{begin}9 seeds instead of 3; more rows alone would not do, the seeds differ too much.",
        f"{begin}1,300 rows instead of 40; more seeds alone would not do.",
        "A true difference of 1 point would not show with more rows or seeds alone: it takes both.",
    ]
    assert [verdicts.amount(value, "accuracy") for value in (1, 0.04, 12.34)] == [
        "1 point",
        "0.04 points",
        "12.3 points",
    ]


def test_the_scale_holds_zero_and_every_end() -> None:
    one = {"value": 3.0, "low": 1.0, "high": 5.2, "by_seed": [2.0, 7.9]}
    scale = forest.Scale.of([one])
    assert scale.ticks == (0, 2, 4, 6, 8) and scale.across(0) == "5.00%" and scale.across(8) == "95.00%"
    below = forest.Scale.of([{"value": -0.02, "low": -0.031, "high": -0.01, "by_seed": [-0.02]}])
    assert below.ticks[0] <= -0.031 and below.ticks[-1] == 0
    nothing = forest.Scale.of([{"value": 0.0, "low": 0.0, "high": 0.0, "by_seed": [0.0]}])
    assert nothing.low < 0 < nothing.high
    drawn = forest.line(one | {"verdict": "better"}, scale, "a < b")
    assert "<title>a &lt; b</title>" in drawn and drawn.count('class="seed"') == 2 and 'class="mark better"' in drawn
    assert f'cx="{scale.across(3.0)}"' in drawn and f'x1="{scale.across(1.0)}" x2="{scale.across(5.2)}"' in drawn


class Tags(HTMLParser):
    """Names of all elements, and whether each is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_by_itself(tmp_path: Path) -> None:
    found = report(suite("seen_wordings", (0.9, 0.3)), suite("unseen_tasks", (0.5, 0.5)))
    page = comparison.write_comparison(found, tmp_path)
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open and "script" not in tags.seen and "img" not in tags.seen and "b" in tags.seen
    assert "&lt;b&gt;large&lt;/b&gt;" in text and "<b>large" not in text
    assert "http" not in re.sub(r'content="default-src[^"]*"|http-equiv', "", text)
    assert text.count('class="forest-line"') == 4 and text.count('class="forest-axis"') == 4
    assert "corrected after Holm for all 4 comparisons" in text and "What would decide" in text
    assert read_json(tmp_path / "comparison.json")["claims"] == 4
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert lines[0] == "# small and <b>large</b> compared" and "```sh" in lines
    assert any(line.startswith("| Exact match | small − <b>large</b> | +") for line in lines)
    for block in re.findall(r"(?:^\|.*\n)+", "\n".join(lines) + "\n", flags=re.M):
        assert len({row.count("|") for row in block.splitlines()}) == 1


def test_loss_of_other_tokens_is_left_out() -> None:
    one = suite("seen", (0.5, 0.5))
    found = report(replace(one, skipped={"loss": "the settings cut answers into other tokens"}))
    assert found["claims"] == 1 and "loss" not in found["suites"][0]["pairs"][0]["metrics"]
    assert "Loss is not compared: the settings cut answers into other tokens." in comparison.render(found)


def test_one_row_gives_no_interval() -> None:
    found = report(suite("seen", (0.9, 0.1), seeds=1, rows=1))
    one = entry(found, "loss")
    assert (
        one["verdict"] == "unknown"
        and one["advice"] is None
        and "no interval is known from so few rows" in one["sentence"]
    )
    comparison.render(found)
