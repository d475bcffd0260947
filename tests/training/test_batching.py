"""Which rows go together, and what becomes of their tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import learning
from instructrec.prompts.template import Rendered
from instructrec.training.batching import by_length, collate, padding_share, plan_epoch

DRAW = random.Random(5)
LENGTHS = [min(400, 8 + int(DRAW.expovariate(1 / 60))) for _ in range(1000)]
SIDES = [np.array(LENGTHS)]


def test_collate_by_hand() -> None:
    rows = [Rendered([5, 6, 7], [False, False, True], 2, 2), Rendered([8, 9], [True, True], 0, 0)]
    batch = collate(rows, 0, [11, 4])
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.mask is not None and batch.mask.tolist() == [[True] * 3, [True, True, False]]
    # 7 is predicted from place 1 of row 0; 9 from place 0 of row 1; 8 has nothing before it.
    assert batch.positions.tolist() == [1, 3] and batch.targets.tolist() == [7, 9]
    assert batch.rows == (11, 4)


def test_without_padding_there_is_no_mask() -> None:
    assert collate(learning.rows([6, 6], 50), 0).mask is None


def test_padding_equal_to_a_supervised_token_is_still_padding() -> None:
    rows = [Rendered([5, 2], [False, True], 1, 1), Rendered([5, 6, 2], [False, True, True], 1, 1)]
    batch = collate(rows, pad_id=2)
    assert batch.targets.tolist() == [2, 6, 2] and batch.positions.tolist() == [0, 3, 4]


@pytest.mark.parametrize(("tokens", "rows"), [(1024, None), (1024, 4), (100, None), (64, 1), (10**9, None)])
def test_an_epoch_has_each_row_once_within_the_budget(tokens: int, rows: int | None) -> None:
    batches = plan_epoch(LENGTHS, seed=1, epoch=0, tokens=tokens, rows=rows)
    assert sorted(number for batch in batches for number in batch) == list(range(len(LENGTHS)))
    for batch in batches:
        assert len(batch) <= (rows or len(LENGTHS))
        assert len(batch) == 1 or max(LENGTHS[number] for number in batch) * len(batch) <= tokens


def test_epochs_are_repeatable_and_differ() -> None:
    plan = {"tokens": 1024, "rows": None}
    one = plan_epoch(LENGTHS, seed=1, epoch=0, **plan)
    torch.manual_seed(9)
    random.seed(9)
    assert one == plan_epoch(LENGTHS, seed=1, epoch=0, **plan)
    assert one != plan_epoch(LENGTHS, seed=1, epoch=1, **plan)
    assert one != plan_epoch(LENGTHS, seed=2, epoch=0, **plan)
    together = {frozenset(batch) for batch in one}
    assert not together & {frozenset(batch) for batch in plan_epoch(LENGTHS, seed=1, epoch=1, **plan)}


def test_little_is_padding_and_the_lengths_stay_mixed() -> None:
    batches = plan_epoch(LENGTHS, seed=0, epoch=0, tokens=1024, rows=None)
    assert padding_share(SIDES, batches) < 0.07  # 0.056; rows in the order they come would waste half
    plain = by_length(LENGTHS, range(len(LENGTHS)), 1024, None)
    assert padding_share(SIDES, plain) > 0.45
    widths = [max(LENGTHS[number] for number in batch) for batch in batches]
    half = len(widths) // 2  # batches come in no order of length
    assert abs(sum(widths[:half]) / half - sum(widths[half:]) / (len(widths) - half)) < 15


def test_padding_share_by_hand() -> None:
    assert padding_share([np.array([2, 4, 3])], [[0, 1], [2]]) == pytest.approx(1 - 9 / 11)
    assert padding_share([], []) == 0.0


def test_no_rows_make_no_batches() -> None:
    assert plan_epoch([], seed=0, epoch=0, tokens=10, rows=None) == []
