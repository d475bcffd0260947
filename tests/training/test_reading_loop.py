"""The one loop under reading plans: what a step's loss is, how a step may be cut, what is counted, what moves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import learning
import tiny
from instructrec.models.methods import METHODS, trained_parameters
from instructrec.models.reading import Reading, ReadingPlan, cut
from instructrec.training.batching import Layout
from instructrec.training.loop import Plan, Training
from instructrec.training.loss import mean_loss, row_losses

LENGTHS = [6, 30, 12, 25, 9, 18, 4, 40]  # the second half of each row is supervised
VOCABULARY = 290
LORA = METHODS["lora"]
PLANS = {
    "repeated": ReadingPlan(strokes=(2,)),
    "deep": ReadingPlan(strokes=(2,), deep=True),
    "consistent": ReadingPlan(strokes=(1, 2, 3), deep=True, consistency=1.0),
    "frozen": ReadingPlan(strokes=(2,), prior="frozen"),
    "gated": ReadingPlan(strokes=(2,), mix="gated", direction="bidirectional", memory="sink+last"),
    "separate": ReadingPlan(strokes=(2,), stroke_adapters="separate"),
    "separate, gated, slots": ReadingPlan(strokes=(2,), stroke_adapters="separate", mix="gated", slots=3),
    "slots": ReadingPlan(slots=3),
    "drawn": ReadingPlan(strokes=(1, 2, 3), deep=True),
}
NAMES = pytest.mark.parametrize("name", list(PLANS))


def reading(plan: ReadingPlan, *, dtype: Any = None, kind: str = "llama") -> Any:
    """A tiny model behind a plan; what is zero at the start is not, so that everything has a gradient."""
    options = learning.options_of(LORA) | {"rank": 4}
    model = LORA.attach(tiny.model(kind, dtype=dtype), options, 0)
    for number, adapter in enumerate(plan.adapters):
        LORA.add(model, adapter, options, number + 1)
    made = Reading(model, plan, LORA.using)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trained_parameters(made).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return made.to(dtype) if dtype else made


def training(model: Any, plan: ReadingPlan, **changes: Any) -> Training:
    return learning.training(model, learning.rows(LENGTHS, VOCABULARY), learning.plan(reading=plan, **changes))


@NAMES
def test_the_loss_of_a_step_is_what_asking_the_model_gives(name: str) -> None:
    plan = PLANS[name]
    model, data = reading(plan), learning.rows(LENGTHS, VOCABULARY)
    run = training(model, plan, batch_rows=8)
    assert len(run.steps) == 1
    drawn = plan.draw(0, 1, 0)
    asked = []
    for strokes in range(1, drawn + 1) if plan.deep else [drawn]:  # deep: an answer after every stroke
        model.strokes = strokes
        asked.append(mean_loss(row_losses(model, data, pad_id=0, batch_tokens=100)))
    assert run._step(0)["loss"] == pytest.approx(sum(asked) / len(asked), rel=1e-5)


def gradients(plan: ReadingPlan, batch_rows: int, accumulation: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one float64 step over all rows, cut into micro-batches."""
    model = reading(plan, dtype=torch.float64)
    run = training(model, plan, batch_rows=batch_rows, accumulation=accumulation, clip=1e9)
    assert [len(batch) for batch in run.steps[0]] == [batch_rows] * accumulation
    found: dict[str, torch.Tensor] = {}
    parameters = trained_parameters(model)
    with pytest.MonkeyPatch.context() as patch:
        given = lambda: {name: part.grad.clone() for name, part in parameters.items() if part.grad is not None}  # noqa: E731
        patch.setattr(run.optimizer, "step", lambda: found.update(given()))
        return run._step(0)["loss"], found


@pytest.mark.parametrize("name", ["deep", "gated", "separate, gated, slots"])
def test_a_step_does_not_depend_on_its_cutting(name: str) -> None:
    loss, want = gradients(PLANS[name], 8, 1)
    for batch_rows, accumulation in ((4, 2), (1, 8)):
        cut_loss, got = gradients(PLANS[name], batch_rows, accumulation)
        assert cut_loss == pytest.approx(loss, abs=1e-6)
        assert want.keys() == got.keys() and len(want) >= 28
        assert max(float((want[key] - got[key]).abs().max()) for key in want) <= 1e-6
    assert min(float(gradient.abs().max()) for gradient in want.values()) > 1e-6


@NAMES
def test_everything_of_a_plan_moves_and_nothing_else(name: str) -> None:
    """With a look before each step: what is asked without gradients must not stay in the model."""
    plan = PLANS[name]
    model, data = reading(plan), learning.rows(LENGTHS, VOCABULARY)
    own, before = set(trained_parameters(model)), learning.weights_of(model)
    assert all(any(f".{adapter}." in key for key in own) for adapter in ("default", *plan.adapters))
    assert ("gates" in own, "slots" in own) == (plan.mix == "gated", plan.slots > 0)
    run = training(model, plan, batch_rows=8, epochs=3.0)
    for step in range(3):
        row_losses(model, data, pad_id=0, batch_tokens=1000)
        assert model.training or step == 0
        run._step(step)
    after = learning.weights_of(model)
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    # Of an earlier reading only keys and values are used: what comes after them in its last layer has no effect.
    dead = {key for key in own - moved if ".stroke_1." in key and "layers.1." in key}
    assert moved == own - dead and not any("k_proj" in key or "v_proj" in key for key in dead)
    assert len(dead) == (2 * 5 if plan.adapters else 0)
    assert set(trained_parameters(model)) == own


@NAMES
def test_tokens_are_counted_as_often_as_they_are_read(name: str) -> None:
    plan = PLANS[name]
    run = training(reading(plan), plan, batch_rows=8, epochs=4.0)
    seen = []
    for step in range(4):
        entry = run._step(step)
        strokes = plan.draw(step, 4, 0)
        answers = strokes if plan.deep else 1
        assert entry.get("strokes") == (strokes if len(plan.strokes) > 1 else None)
        ends = [cut(row) for row in run.rows]
        assert entry["tokens"] == sum(
            strokes * end + answers * (length - end) for end, length in zip(ends, LENGTHS, strict=True)
        )
        assert entry["supervised_tokens"] == answers * sum(length - length // 2 for length in LENGTHS)
        assert sorted(run.outcome.row_log[-1]) == list(range(8))
        seen.append(strokes)
    assert run.outcome.tokens > 0 and (name != "drawn" or len(set(seen)) > 1)


def test_batches_are_cut_by_what_is_read_and_rows_alone_cut_all_plans_alike() -> None:
    data = learning.rows(LENGTHS * 4, VOCABULARY)

    def steps(plan: ReadingPlan, **changes: Any) -> Training:
        how: Plan = learning.plan(reading=plan, **changes)
        return learning.training(model, data, how)

    model = reading(ReadingPlan())
    once, deep = (steps(plan, batch_tokens=120) for plan in (ReadingPlan(), PLANS["deep"]))
    assert len(once.steps) < len(deep.steps)
    layout = Layout(0, PLANS["deep"], 2, True)
    for (numbers,) in deep.steps:
        longest = max(layout.length(data[number]) for number in numbers)
        assert longest * len(numbers) <= 120 or len(numbers) == 1
    used = sum(layout.length(data[number]) for (numbers,) in deep.steps for number in numbers)
    held = sum(len(numbers) * max(layout.length(data[number]) for number in numbers) for (numbers,) in deep.steps)
    assert deep.outcome.padding_share == pytest.approx(1 - used / held)
    alike = [steps(plan, batch_tokens=10**6, batch_rows=4).steps for plan in (ReadingPlan(), *PLANS.values())]
    assert all(other == alike[0] for other in alike)
