"""bench/cost.py: steps of every plan and the page, on a tiny random model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import tiny

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import cost  # noqa: E402


def test_every_plan_takes_its_steps(tiny_folder: Any) -> None:
    shape = cost.Shape(2, 12, 6)
    found = cost.training(str(tiny_folder("llama")), 1, {"toy": shape})["toy"]
    assert set(found) == set(cost.PLANS) and all(entry["seconds"] > 0 for entry in found.values())
    ratios = {name: entry["operations_ratio"] for name, entry in found.items()}
    assert ratios["single"] == 1.0 and 1.0 < ratios["frozen"] < ratios["repeat"] < ratios["deep"]


def test_operations_by_hand() -> None:
    model = tiny.model("llama").requires_grad_(False)
    config = model.config
    head = model.get_output_embeddings().weight.numel()
    linear = sum(one.numel() for one in model.parameters()) - head
    linear -= 0 if config.tie_word_embeddings else head
    wide = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    # Ten tokens of instruction and six after them, two of which are supervised; attention sees half of what is there.
    products = 2 * linear * 16 + 2 * head * 2
    attention = 4 * wide * (10 * 5 + 6 * (10 + 3))
    wanted = 2 * products + 3 * attention
    assert cost.operations(model, cost.Shape(1, 10, 6), cost.PLANS["single"]) == pytest.approx(wanted)


def test_answers_and_the_page(tiny_folder: Any) -> None:
    answering = cost.answering(str(tiny_folder("llama")), 1, [9], 4)
    assert set(answering["9"]) == set(cost.READINGS)
    assert answering["9"]["repeat"]["cache_mb"] == 2 * answering["9"]["single"]["cache_mb"] > 0
    entry = {"seconds": 1.0, "ratio": 2.5, "operations": 1.0, "operations_ratio": 2.25}
    result = {
        "command": "python bench/cost.py", "commit": "abc", "dirty": False, "model": "toy", "threads": 1,
        "precision": "float32", "rounds": 1, "shapes": {"toy": [2, 12, 6]}, "training": {"toy": {"repeat": entry}},
        "memory": {"toy": {"repeat": 1234}}, "answering": answering,
    }  # fmt: skip
    assert "| repeat | 1.00 | 2.50 | 2.25 | 1,234 |" in cost.table(result)
