"""Several processes are one: the same loss, weights and rows, and they end together."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import learning
import tiny
from instructrec.models.methods import METHODS
from instructrec.models.reading import Reading, ReadingPlan
from instructrec.training.batching import by_length
from instructrec.training.loop import Hooks
from instructrec.training.loss import row_losses
from instructrec.training.monitor import Monitor
from instructrec.training.processes import share, together
from instructrec.training.sharding import is_cut, shard, whole
from ranks import Ranks

LENGTHS = [4, 90, 12, 55, 7, 31, 100, 3, 21, 64, 9]
# method, strokes and other parts of the plan; 11 rows: the last step of an epoch has fewer micro-batches.
CASES: dict[str, tuple[str, ReadingPlan, dict[str, Any]]] = {
    "lora": ("lora", ReadingPlan(), {"batch_rows": 4, "accumulation": 1, "epochs": 2.0}),
    "full": ("full", ReadingPlan(), {"batch_rows": 2, "accumulation": 3, "epochs": 2.0, "weight_decay": 0.1}),
    "prefix": ("prefix_tuning", ReadingPlan(), {"batch_rows": 4, "accumulation": 2, "epochs": 2.0}),
    "one row": ("lora", ReadingPlan(), {"batch_rows": 1, "accumulation": 1}),  # the second process has none
    "deep": ("lora", ReadingPlan(strokes=(2,), deep=True), {"batch_rows": 3, "accumulation": 1}),
    # Rows that begin alike: a beginning is a pass of its own, which cut-up weights do not allow.
    "deep, alike": ("lora", ReadingPlan(strokes=(2,), deep=True), {"batch_rows": 6, "accumulation": 1, "epochs": 2.0}),
    "separate": (
        "lora",
        ReadingPlan(strokes=(2,), stroke_adapters="separate"),
        {"batch_rows": 2, "accumulation": 3, "epochs": 2.0, "weight_decay": 0.1},
    ),
    "drawn": (
        "lora",
        ReadingPlan(strokes=(1, 2), slots=2, mix="gated", prior="frozen"),
        {"batch_rows": 2, "accumulation": 3, "epochs": 2.0, "weight_decay": 0.1},
    ),
}


def made(case: str) -> tuple[Any, list[Any], Any]:
    """Model, rows and plan of a case, in float64; LoRA's B is not zero, so that A gets gradients."""
    name, reading, changes = CASES[case]
    method, base = METHODS[name], tiny.model("llama", dtype=torch.float64)
    options = learning.options_of(method)
    model = method.attach(base, options, 0).to(torch.float64)
    for place, adapter in enumerate(reading.adapters):
        method.add(model, adapter, options, 1 + place)
    model = model.to(torch.float64)
    for key, weight in learning.trained_parameters(model).items():
        if "lora_B" in key:
            torch.manual_seed(len(key))
            weight.data.normal_(0, 0.1)
    rows = learning.rows([length % 10 + 31 for length in LENGTHS] if "alike" in case else LENGTHS, 290)
    if "alike" in case:
        rows = [replace(one, ids=rows[0].ids[:14] + one.ids[14:]) for one in rows]
    if not reading.plain:
        model = Reading(model, reading, method.using).to(torch.float64)
        if reading.slots:
            model.start_slots(rows)
    return model, rows, learning.plan(reading=reading, **changes)


def trained(case: str, file: str, skewed: bool = False) -> dict[str, Any]:
    """Train a case in this process or with others; the weights go to a file. skewed: others start elsewhere."""
    with together() as group:
        model, rows, how = made(case)
        if skewed and not group.main:
            for weight in learning.trained_parameters(model).values():
                weight.data.add_(1.0)
        if group.sharded:
            shard(model.model if isinstance(model, Reading) else model, torch.device("cpu"), group.count)
        run = learning.training(model, rows, how, group)
        entries: list[dict[str, Any]] = []
        outcome = run.run(Monitor({}), Hooks(log=entries.append))
        losses = row_losses(model, rows, pad_id=0, batch_tokens=150, group=group)
        weights = {name: whole(weight) for name, weight in learning.weights_of(model).items()}
        save_file(weights, f"{file}-{group.rank}.safetensors")
        cut = sum(is_cut(parameter) for parameter in run.parameters)
    kept = [{key: value for key, value in entry.items() if "second" not in key} for entry in entries]
    totals = {"tokens": outcome.tokens, "cut": cut, "parameters": len(run.names), "shared": outcome.shared_tokens}
    totals |= {"sharded": group.sharded}
    return totals | {"entries": kept, "rows": outcome.row_log, "losses": losses}


def all_cases(folder: str) -> dict[str, Any]:
    sharded = os.environ.get("ACCELERATE_USE_FSDP")
    cases = [case for case in CASES if not sharded or CASES[case][1].one_pass(2)]
    return {case: trained(case, f"{folder}/two {case}", skewed=not sharded) for case in cases}


@pytest.fixture(scope="module", params=["whole", "cut up"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """What two processes made of all cases, each with all weights or with its part of them (FSDP)."""
    folder = tmp_path_factory.mktemp("pair")
    env = {"ACCELERATE_USE_FSDP": "true"} if request.param == "cut up" else {}
    return folder, Ranks(folder / "out", all_cases, str(folder), **env).results()


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one(case: str, pair: tuple[Path, list[Any]], tmp_path: Path) -> None:
    folder, both = pair
    if case not in both[0]:  # `tune` refuses to cut up what reads in several passes
        assert not CASES[case][1].one_pass(2)
        return
    first, second = (one[case] for one in both)
    alone = trained(case, str(tmp_path / "one"))
    # Sharing sums in another order for other rows beside a row, and the model's norms are in fp32.
    bound = 1e-5 if "alike" in case else 1e-8
    for mine, theirs in ((first, alone), (second, alone)):
        assert len(mine["entries"]) == len(theirs["entries"]) >= 3
        for entry, want in zip(mine["entries"], theirs["entries"], strict=True):
            assert entry == pytest.approx(want, abs=bound)
        assert mine["tokens"] == theirs["tokens"]
        assert (theirs["shared"] > 0) == ("alike" in case)
        assert (mine["shared"] > 0) == ("alike" in case and not mine["sharded"])
        assert [tuple(one) for one in mine["losses"]] == [
            (pytest.approx(total, abs=bound), count) for total, count in theirs["losses"]
        ]
        # Only full fine-tuning has much to cut up besides the frozen weights.
        assert mine["cut"] in (0, mine["parameters"] if case == "full" else 0)
    # Each row of a step in one of the processes, and in one only.
    for one, other, want in zip(first["rows"], second["rows"], alone["rows"], strict=True):
        assert sorted([*one, *other]) == sorted(want) and one
    assert any(other for other in second["rows"]) != (case == "one row")
    want = load_file(tmp_path / "one-0.safetensors")
    start = learning.weights_of(made(case)[0])
    moved = max(float((want[name] - start[name]).abs().max()) for name in want)
    assert moved > 1e-3
    for rank in (0, 1):
        got = load_file(folder / f"two {case}-{rank}.safetensors")
        assert got.keys() == want.keys()
        assert max(float((got[name] - want[name]).abs().max()) for name in want) <= bound
    assert learning.same(*(load_file(folder / f"two {case}-{rank}.safetensors") for rank in (0, 1)))


def test_the_held_out_rows_are_measured_bit_by_bit_alike(pair: tuple[Path, list[Any]], tmp_path: Path) -> None:
    """Batches are dealt, not cut anew: with equal weights, figures do not depend on the number of processes."""
    folder, (first, second) = pair
    model, rows, _ = made("lora")
    model.load_state_dict(load_file(folder / "two lora-0.safetensors"))
    want = row_losses(model, rows, pad_id=0, batch_tokens=150)
    assert first["lora"]["losses"] == second["lora"]["losses"] == [list(one) for one in want]


# -- sharing a step --------------------------------------------------------------------------------------------------


def test_a_step_is_shared_without_losing_a_row() -> None:
    lengths = [5 + number * 7 % 31 for number in range(40)]
    for count in (1, 2, 3, 4, 7):
        for rows in (1, 2, 3, 5, 12, 40):
            for width in (1, 3, 64):
                batches = by_length(lengths, range(rows), 200, width)
                shares = share(batches, lengths, count)
                assert len(shares) == count
                assert sorted(row for part in shares for batch in part for row in batch) == list(range(rows))
                longest, shortest = (pick(len(part) for part in shares) for pick in (max, min))
                assert longest == shortest or (longest == math.ceil(rows / count) and shortest == longest - 1)
                if count == 1:
                    assert shares == [batches]


def test_the_largest_micro_batch_is_halved() -> None:
    lengths = [10, 10, 10, 50, 50, 5]
    assert share([[0, 1, 2], [3, 4], [5]], lengths, 2) == [[[0, 1, 2], [4]], [[3], [5]]]
    assert share([[0, 1, 2]], lengths, 2) == [[[0, 1]], [[2]]]
    assert share([[5]], lengths, 2) == [[[5]], []]
