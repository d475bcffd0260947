"""How far the answers after several readings are apart, as a part of the loss.

N' supervised positions, V vocabulary, K pairs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

import learning
import tiny
from instructrec.models.methods import METHODS
from instructrec.models.reading import Reading, ReadingPlan
from instructrec.training.batching import Layout
from instructrec.training.loss import _Apart, token_losses

ROWS = learning.rows([20, 9, 34, 12, 27], 290)


def slowly(logits: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    """The definition, by the library's own functions."""
    first, second = (functional.log_softmax(logits[part], dim=-1) for part in pairs)
    both = [
        functional.kl_div(a, b, log_target=True, reduction="none").sum(-1)
        for a, b in ((first, second), (second, first))
    ]
    return 0.5 * (both[0] + both[1])


def reading(plan: ReadingPlan, kind: str = "llama") -> Reading:
    """A tiny model whose readings differ, in fp64."""
    method = METHODS["lora"]
    model = method.attach(tiny.model(kind, dtype=torch.float64), learning.options_of(method) | {"rank": 4}, 0)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in learning.trained_parameters(model).values():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=draw))
    return Reading(model, plan, method.using).to(torch.float64)


def batch_of(plan: ReadingPlan, strokes: int, made: Any) -> Any:
    return Layout(0, plan, strokes, plan.deep, made).batch(ROWS)


def test_the_distance_and_its_gradient_are_those_of_the_definition() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(50, 37, generator=draw, dtype=torch.float64)
    pairs = torch.stack(
        [torch.arange(0, 30), torch.arange(20, 50)]
    )  # a place may be first in one and second in another
    weights = torch.rand(30, generator=draw, dtype=torch.float64)
    found = []
    for how in (_Apart.apply, slowly):
        own = logits.clone().requires_grad_()
        apart = how(own, pairs)
        (apart * weights).sum().backward()
        found.append((apart.detach(), own.grad))
    for got, want in zip(*found, strict=True):
        assert torch.allclose(got, want, atol=1e-12, rtol=1e-9)
    assert float(found[0][0].min()) > 0.1


@pytest.mark.parametrize("strokes", [2, 3])
def test_the_loss_is_that_of_the_answers_and_their_distance(strokes: int) -> None:
    plan = ReadingPlan(strokes=(strokes,), deep=True, consistency=0.7)
    made = reading(plan)
    batch = batch_of(plan, strokes, made)
    loss = token_losses(made, batch).mean()
    loss.backward()
    mine = {name: one.grad.clone() for name, one in learning.trained_parameters(made).items()}
    made.zero_grad()
    answers = []  # after each reading, from layouts that know of one answer only
    for after in range(1, strokes + 1):
        alone = Layout(0, ReadingPlan(strokes=(after,), slots=0), after, False, made).batch(ROWS)
        answers.append((made.model(**alone.inputs).logits.flatten(0, 1)[alone.positions], alone.targets))
    likelihood = torch.stack([functional.cross_entropy(logits, targets) for logits, targets in answers]).mean()
    apart = []
    for (one, _), (other, _) in zip(answers, answers[1:], strict=False):
        size = len(one)
        apart.append(slowly(torch.cat([one, other]), torch.arange(2 * size).reshape(2, size)).mean())
    want = likelihood + 0.7 * torch.stack(apart).mean()
    assert float(loss - want) == pytest.approx(0, abs=1e-6) and float(apart[0]) > 0.01
    want.backward()
    scale = max(float(one.grad.abs().max()) for one in learning.trained_parameters(made).values())
    for name, one in learning.trained_parameters(made).items():
        assert float((one.grad - mine[name]).abs().max()) <= 1e-5 * scale, name


def test_pairs_are_the_same_token_of_the_same_row() -> None:
    for plan in (
        ReadingPlan(strokes=(3,), deep=True, consistency=1.0),
        ReadingPlan(strokes=(2,), deep=True, consistency=1.0, prior="frozen", slots=2),
        ReadingPlan(strokes=(2,), deep=True, consistency=1.0, mix="gated", direction="bidirectional"),
    ):
        for share in (False, True):
            batch = Layout(0, plan, plan.most, True, None, share).batch(ROWS)
            first, second = batch.pairs
            assert torch.equal(batch.targets[first], batch.targets[second])
            assert torch.equal(batch.owners[first], batch.owners[second])
            assert batch.pairs.shape[1] == (plan.most - 1) * sum(row.targets for row in ROWS)
            assert len(set(first.tolist())) == len(first) and bool((first < second).all())


def test_a_single_reading_has_nothing_to_compare() -> None:
    plan = ReadingPlan(strokes=(1, 2), deep=True, consistency=1.0)
    made = reading(plan)
    batch = batch_of(plan, 1, made)
    assert batch.pairs is not None and batch.pairs.shape == (2, 0) or not batch.passes
    plain = reading(ReadingPlan(strokes=(1, 2), deep=True))
    assert torch.equal(token_losses(made, batch), token_losses(plain, batch))


def test_in_bf16_the_distance_is_worked_out_in_fp32() -> None:
    logits = torch.randn(40, 500, generator=torch.Generator().manual_seed(2)).bfloat16()
    pairs = torch.arange(40).reshape(2, 20)
    own = logits.clone().requires_grad_()
    apart = _Apart.apply(own, pairs)
    assert apart.dtype == torch.float32
    assert torch.allclose(apart, slowly(logits.float(), pairs), rtol=1e-5)
    apart.sum().backward()
    assert own.grad is not None and own.grad.dtype == torch.bfloat16 and float(own.grad.abs().max()) > 0
