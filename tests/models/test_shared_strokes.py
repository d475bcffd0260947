"""Beginnings that instructions share, read once in the first stroke of every plan that keeps strokes apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from reading_cases import close, plans, reading, row
from torch.nn import functional

from instructrec.models import methods
from instructrec.models.reading import Reading, ReadingPlan, lay, layout
from instructrec.prompts.template import Rendered
from instructrec.training.batching import Layout

CONCAT = [plan for plan in plans() if plan.mix == "concat"]
TWICE = [plan for plan in CONCAT if plan.most < 3]
SHARES = {"llama": CONCAT, "gemma": TWICE, "gpt2": TWICE[::3], "qwen": TWICE[1::3]}
PAIRS = [(kind, plan) for kind, share in SHARES.items() for plan in share]


def begun(heads: Sequence[int], rests: Sequence[tuple[int, int, int]], length: int) -> list[Rendered]:
    """Rows of which number n begins with `length` tokens of beginning heads[n]."""
    made = []
    for number, (head, (rest, header, answer)) in enumerate(zip(heads, rests, strict=True)):
        first, own = row(length, 0, 1, seed=50 + head).ids[:length], row(rest, header, answer, seed=number)
        flags = [False] * length + own.supervised
        made.append(Rendered(first + own.ids, flags, length + own.instruction_end, length + own.prompt_end))
    return made


# Two beginnings of 18 tokens, longer than the windows of the tiny Gemma; the rests are unequal, one of a single token.
ROWS = begun((0, 1, 0, 0, 1, 0), ((7, 2, 4), (1, 1, 3), (12, 0, 6), (3, 2, 1), (5, 1, 2), (2, 3, 2)), 18)


def found(made: Reading, share: bool, deep: bool) -> tuple[Any, torch.Tensor, dict[str, torch.Tensor]]:
    """How the rows were laid out, their logits, and the gradients of all that is trained."""
    laid = lay(ROWS, made.plan, made.plan.most, pad_id=0, deep=deep, share=share)
    logits = made(laid.passes, laid.positions)[0]
    made.zero_grad()
    functional.cross_entropy(logits, laid.targets).backward()
    trained = methods.trained_parameters(made)
    return laid, logits, {name: one.grad.clone() for name, one in trained.items() if one.grad is not None}


@pytest.mark.parametrize(
    ("kind", "plan"), PAIRS, ids=lambda value: value if isinstance(value, str) else value.describe()
)
def test_what_is_read_once_is_what_each_row_reads(
    kind: str, plan: ReadingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "WORTH", 0.01)
    made = reading(kind, plan)
    deep = plan.most > 1
    (alone, wanted, slopes), (laid, got, own) = (found(made, share, deep) for share in (False, True))
    assert alone.passes[0].whose is None and laid.passes[0].whose is not None
    assert laid.passes[0].ids.shape == (2, 18) and laid.passes[0].saved == 4 * 18
    assert laid.passes[0].weights == plan.weights(1, plan.most)
    assert torch.equal(alone.targets, laid.targets) and torch.equal(alone.owners, laid.owners)
    close(got, wanted)
    assert own.keys() == slopes.keys() and len(own) > 3
    for name, slope in slopes.items():
        close(own[name], slope, name)


def test_every_token_is_read_as_often_as_without_sharing_but_for_what_is_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layout, "WORTH", 0.01)
    for plan in CONCAT:
        alone, laid = (lay(ROWS, plan, plan.most, pad_id=0, share=share) for share in (False, True))
        counts = [sum(int(one.tags.valid.sum()) for one in each.passes) for each in (alone, laid)]
        assert counts[0] - counts[1] == sum(one.saved for one in laid.passes) == 72


def test_gated_readings_are_not_shared() -> None:
    plan = ReadingPlan(strokes=(2,), mix="gated", direction="bidirectional")
    assert len(lay(ROWS, plan, 2, pad_id=0, share=True).passes) == 3


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        (begun((0, 1, 2), ((7, 2, 4), (3, 1, 3), (12, 1, 6)), 18), "nothing in common"),
        (begun((0, 0), ((90, 2, 80), (95, 1, 90)), 18), "too little"),
        (begun((0,), ((7, 2, 4),), 18), "a row by itself"),
        ([row(0, 2, 3), row(0, 2, 3)], "no instruction"),
    ],
)
def test_where_it_is_not_worth_it_nothing_changes(rows: list[Rendered], why: str) -> None:
    plan = ReadingPlan(strokes=(2,), prior="frozen")
    alone, laid = (lay(rows, plan, 2, pad_id=0, share=share) for share in (False, True))
    assert all(one.whose is None for one in laid.passes), why
    assert all(torch.equal(one.ids, other.ids) for one, other in zip(alone.passes, laid.passes, strict=True))


def test_a_reading_without_gradient_has_to_save_twice_as_much() -> None:
    """Its tokens are a forward pass only, half the work of the others."""
    rows = begun((0, 0, 0, 0), ((22, 2, 4),) * 4, 18)
    for prior, shared in (("tuned", True), ("frozen", False)):
        plan = ReadingPlan(strokes=(3,), prior=prior)
        assert (lay(rows, plan, 3, pad_id=0, share=True).passes[0].whose is not None) == shared, prior


def test_an_instruction_that_several_rows_have_whole() -> None:
    """A token of each is left for the passes behind."""
    rows = begun((0, 0, 0), ((0, 2, 4), (0, 1, 3), (4, 1, 2)), 18)
    plan = ReadingPlan(strokes=(2,), prior="frozen", slots=3)
    made = reading("llama", plan)
    alone, laid = (lay(rows, plan, 2, pad_id=0, share=share) for share in (False, True))
    assert laid.passes[0].ids.shape == (1, 17)
    close(made(laid.passes, laid.positions), made(alone.passes, alone.positions))


def test_a_batch_says_what_it_saves() -> None:
    """As it is counted in run.json; a plan that is read as rows has its own way of sharing."""
    model = reading("llama", ReadingPlan(strokes=(2,), deep=True))
    deep = Layout(0, model.plan, 2, True, model, share=True)
    assert deep.batch(ROWS).saved == 72 and Layout(0, model.plan, 2, True, model).batch(ROWS).saved == 0
    rows = Layout(0, ReadingPlan(strokes=(2,)), 2, False, model, share=True).batch(ROWS)
    assert rows.shared is not None and rows.saved == 72 and not rows.passes
    moved = deep.batch(ROWS).to(torch.device("cpu"))
    assert moved.saved == 72 and torch.equal(moved.passes[0].whose, deep.batch(ROWS).passes[0].whose)


def test_shared_beginnings_and_checkpointing() -> None:
    """A layer that is recomputed gets the same memory again."""
    plan = ReadingPlan(strokes=(2,), slots=3)
    plain, less = (reading("llama", plan) for _ in range(2))
    base = less.model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    less.train()
    _, wanted, slopes = found(plain, True, True)
    _, got, own = found(less, True, True)
    assert torch.equal(got, wanted) and own.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert torch.equal(own[name], slope), name
