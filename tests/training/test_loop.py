"""The one loop: the same step however it is cut up, the planned number of steps, and no update from a bad number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

import learning
import tiny
from instructrec.models.methods import METHODS, trained_parameters
from instructrec.training.loop import Hooks, NonFinite, optimizer_names, plan_steps
from instructrec.training.monitor import Monitor
from instructrec.training.schedule import learning_rate

UNEQUAL = [4, 90, 12, 55, 7, 31, 100, 3]  # supervised: 2 to 50 tokens
VOCABULARY = 290


def attached(kind: str = "llama", method: str = "lora", dtype: Any = None, **options: Any) -> Any:
    model = tiny.model(kind, dtype=dtype)
    chosen = METHODS[method]
    model = chosen.attach(model, learning.options_of(chosen) | options, 0)
    return model.to(dtype) if dtype else model


def recorded(training: Any, monitor: Monitor | None = None, first: int = 0, **hooks: Any) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    training.run(monitor or Monitor({}), Hooks(log=entries.append, **hooks), first)
    return entries


# -- a step is a step ------------------------------------------------------------------------------------------------


def step_of(batch_rows: int, accumulation: int, monkeypatch: pytest.MonkeyPatch) -> tuple[float, dict[str, Any]]:
    """Loss and gradients of one float64 step over all rows, cut into micro-batches."""
    model = attached(dtype=torch.float64)
    for name, weight in trained_parameters(model).items():
        if "lora_B" in name:  # zero at the start: A would get no gradient
            torch.manual_seed(len(name))
            weight.data.normal_(0, 0.1)
    how = learning.plan(batch_rows=batch_rows, accumulation=accumulation, clip=1e9)
    run = learning.training(model, learning.rows(UNEQUAL, VOCABULARY), how)
    assert [len(batch) for batch in run.steps[0]] == [batch_rows] * accumulation and len(run.steps) == 1
    gradients: dict[str, Any] = {}
    monkeypatch.setattr(
        run.optimizer,
        "step",
        lambda: gradients.update({n: p.grad.clone() for n, p in trained_parameters(model).items()}),
    )
    return run._step(0)["loss"], gradients


@pytest.mark.parametrize(("batch_rows", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_a_step_does_not_depend_on_its_cutting(
    batch_rows: int, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, want = step_of(8, 1, monkeypatch)
    cut_loss, got = step_of(batch_rows, accumulation, monkeypatch)
    assert cut_loss == pytest.approx(loss, abs=1e-6)
    assert want.keys() == got.keys() and len(want) == 28
    assert max(float((want[name] - got[name]).abs().max()) for name in want) <= 1e-6
    assert min(float(gradient.abs().max()) for gradient in want.values()) > 1e-4


def test_the_loss_of_a_step_is_the_mean_over_its_supervised_tokens() -> None:
    model, data = attached(dtype=torch.float64), learning.rows(UNEQUAL, VOCABULARY)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in data:
            logs = torch.log_softmax(model(torch.tensor([row.ids])).logits[0], -1)
            for place in range(max(1, len(row.ids) // 2), len(row.ids)):
                total, count = total - float(logs[place - 1, row.ids[place]]), count + 1
    run = learning.training(model, data, learning.plan(batch_rows=2, accumulation=4))
    entry = run._step(0)
    assert entry["loss"] == pytest.approx(total / count, abs=1e-9)
    assert (entry["tokens"], entry["supervised_tokens"]) == (sum(UNEQUAL), count)


def test_gradients_start_from_nothing_at_each_step() -> None:
    how = learning.plan(epochs=3.0, learning_rate=1e-12, clip=1e9)  # as good as no update: three times the same step
    run = learning.training(attached(), learning.rows(UNEQUAL, VOCABULARY), how)
    norms = [entry["grad_norm"] for entry in recorded(run)]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_recomputed_activations_give_the_same_step(method: str) -> None:
    losses, norms = [], []
    for on in (False, True):
        model = attached(method=method)
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        run = learning.training(model, learning.rows(UNEQUAL, VOCABULARY), learning.plan(epochs=2.0))
        entries = [run._step(0), run._step(1)]
        losses.append([entry["loss"] for entry in entries])
        norms.append([entry["grad_norm"] for entry in entries])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and norms[0] == pytest.approx(norms[1], rel=1e-4)


# -- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"epochs": 1.0}, [3, 3, 1]),
        ({"epochs": 2.5}, [3, 3, 1, 3, 3, 1, 3, 3]),  # round(1.5) of the third epoch's steps
        ({"epochs": 0.01}, [3]),
        ({"epochs": 3.0, "max_steps": 4}, [3, 3, 1, 3]),
        ({"epochs": 1.0, "max_steps": 99}, [3, 3, 1]),
    ],
)
def test_planned_steps(changes: dict[str, Any], sizes: list[int]) -> None:
    steps = plan_steps([10] * 14, learning.plan(batch_rows=2, accumulation=3, **changes))
    assert [len(step) for step in steps] == sizes
    if changes["epochs"] == 1.0:  # the last, shorter window is taken too
        assert sorted(row for step in steps for batch in step for row in batch) == list(range(14))


def test_as_many_updates_as_planned_each_with_its_rate() -> None:
    model, data = attached(), learning.rows([10] * 14, VOCABULARY)
    how = learning.plan(epochs=2.0, batch_rows=2, accumulation=3, schedule="cosine", warmup=0.4, learning_rate=3e-3)
    run = learning.training(model, data, how)
    entries = recorded(run)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    want = [learning_rate(step, 6, 3e-3, 0.4, "cosine") for step in range(6)]
    assert [entry["learning_rate"] for entry in entries] == want
    for state in run.optimizer.state.values():
        assert float(state["step"]) == 6
    assert [len(rows) for rows in run.outcome.row_log] == [6, 6, 2] * 2
    assert sorted(row for rows in run.outcome.row_log for row in rows) == sorted([*range(14), *range(14)])
    assert run.outcome.stopped == "all 6 steps done" and run.outcome.steps == 6
    assert run.outcome.tokens == 280 == sum(entry["tokens"] for entry in entries)
    assert run.outcome.tokens_per_second > 0 and entries[0]["tokens_per_second"] > 0


def test_training_lowers_the_loss(kind: str) -> None:
    model = attached(kind)
    entries = recorded(learning.training(model, learning.rows([12, 9], VOCABULARY), learning.plan(epochs=20.0)))
    assert entries[-1]["loss"] < 0.5 * entries[0]["loss"]


def test_decay_is_for_matrices_only() -> None:
    model = attached("gpt2", "full")
    data = learning.rows([12, 9], VOCABULARY)
    run = learning.training(model, data, learning.plan(weight_decay=0.1, batch_rows=1))
    groups = {len(group["params"][0].shape) >= 2: group for group in run.optimizer.param_groups}
    assert groups[True]["weight_decay"] == 0.1 and groups[False]["weight_decay"] == 0.0
    assert all(weight.ndim >= 2 for weight in groups[True]["params"])
    assert all(weight.ndim < 2 for weight in groups[False]["params"])
    by_id = {id(weight): name for name, weight in trained_parameters(model).items()}
    handed = [by_id[id(weight)] for group in run.optimizer.param_groups for weight in group["params"]]
    assert handed == optimizer_names(model) and len(handed) == len(by_id)


@pytest.mark.parametrize("clip", [1e-3, 1e9])
def test_gradients_are_clipped(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = attached(method="full")
    run = learning.training(model, learning.rows(UNEQUAL, VOCABULARY), learning.plan(clip=clip))
    seen: list[float] = []

    def norm() -> None:
        seen.append(math.sqrt(sum(float(weight.grad.pow(2).sum()) for weight in model.parameters())))

    monkeypatch.setattr(run.optimizer, "step", norm)
    entry = run._step(0)
    assert entry["grad_norm"] > 0.1  # the norm before clipping is what is logged
    assert seen[0] == pytest.approx(min(clip, entry["grad_norm"]), rel=1e-3)


def test_dropout_is_seeded() -> None:
    def losses(seed: int, noise: int) -> list[float]:
        model = attached(dropout=0.5)
        torch.manual_seed(noise)
        run = learning.training(model, learning.rows(UNEQUAL, VOCABULARY), learning.plan(epochs=3.0, seed=seed))
        return [entry["loss"] for entry in recorded(run)]

    assert losses(1, 10) == losses(1, 20) != losses(2, 10)


# -- bad numbers -----------------------------------------------------------------------------------------------------


def poisoned(token: int) -> tuple[Any, list[Any]]:
    """Embedding row `token` is not a number, and only the fourth row of data holds that token."""
    model = attached()
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    data = [row for row in learning.rows(UNEQUAL, VOCABULARY)]
    for number, row in enumerate(data):
        row.ids[:] = [token if number == 3 and place == 1 else max(token + 1, id) for place, id in enumerate(row.ids)]
    return model, data


@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_a_loss_that_is_no_number_stops_before_the_update(accumulation: int) -> None:
    model, data = poisoned(5)
    run = learning.training(model, data, learning.plan(batch_rows=1, accumulation=accumulation))
    before = learning.weights_of(model)
    bad = next(number for number, step in enumerate(run.steps) if [3] in step)
    for step in range(bad):
        run._step(step)
        before = learning.weights_of(model)
    with pytest.raises(NonFinite) as caught:
        run._step(bad)
    want = f"step {bad + 1}: the loss is not finite; stopped before the update. Rows: rows.tsv:4"
    assert str(caught.value) == want
    after = learning.weights_of(model)
    assert all(torch.equal(after[name].nan_to_num(7.0), before[name].nan_to_num(7.0)) for name in before)
    assert all(weight.grad is None for weight in model.parameters())


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    model, data = attached(), learning.rows(UNEQUAL[:3], VOCABULARY)
    run = learning.training(model, data, learning.plan())
    weight = next(iter(trained_parameters(model).values()))
    weight.register_hook(lambda gradient: gradient + float("inf"))
    before = learning.weights_of(model)
    with pytest.raises(NonFinite) as caught:
        recorded(run)
    order = ", ".join(str(data[number].origin) for batch in run.steps[0] for number in batch)
    assert str(caught.value) == f"step 1: the gradient is not finite; stopped before the update. Rows: {order}"
    assert learning.same(learning.weights_of(model), before)
    assert caught.value.exit_code != 0


# -- looks, stopping, saving -----------------------------------------------------------------------------------------


def canned(values: list[float], **changes: Any) -> tuple[Any, list[int], list[dict[str, Any]], Monitor]:
    """A run of ten steps whose looks give these values: outcome, saved steps, log entries, monitor."""
    how = learning.plan(epochs=10.0, **({"look_every": 1} | changes))
    run = learning.training(attached(), learning.rows([6, 8], VOCABULARY), how)
    monitor, saved, given = Monitor({"rows": 1.0}, patience=3), [], iter(values)
    look = lambda step: {"rows": {"loss": next(given)}}  # noqa: E731
    entries = recorded(run, monitor, look=look, save=lambda step, state: saved.append(step))
    return run.outcome, saved, entries, monitor


def test_early_stopping_on_a_canned_sequence() -> None:
    outcome, saved, entries, monitor = canned([1.0, 5.0, 4.0, 4.5, 3.0, 3.0, 3.1, 9.0])
    assert outcome.stopped == "no improvement in 3 looks, stopped at step 7 of 10" and outcome.steps == 7
    assert (monitor.best_step, monitor.best) == (4, 3.0)  # the untuned model's 1.0 is only a reference
    assert saved == [1, 2, 4, 7]
    looks = [entry for entry in entries if "look" in entry]
    assert [entry["step"] for entry in looks] == list(range(8))
    assert [entry["best"] for entry in looks] == [False, True, True, False, True, False, False, False]
    assert [entry["watched"] for entry in looks] == [1.0, 5.0, 4.0, 4.5, 3.0, 3.0, 3.1, 9.0]


def test_looks_and_saves_come_when_they_are_due() -> None:
    outcome, saved, entries, _ = canned([9.0, 5.0, 6.0, 7.0], look_every=4, save_every=3)
    assert [entry["step"] for entry in entries if "look" in entry] == [0, 4, 8, 10]
    assert saved == [3, 4, 6, 9, 10]
    assert outcome.stopped == "all 10 steps done"


def stopping(monitor: Monitor, **state: Any) -> Any:
    run = learning.training(attached(), learning.rows([6, 8], VOCABULARY), learning.plan(epochs=6.0, look_every=2))
    looks, saved = [], {}

    def look(step: int) -> Any:
        looks.append(step)
        return {"rows": {"loss": 1.0 / (1 + step)}}

    hooks = {"look": look, "save": lambda step, kept: saved.update({step: kept})}
    first = state.pop("first", 0)
    recorded(run, monitor, first, **hooks, **state)
    return run, looks, saved


def test_a_reason_to_stop_is_heeded_at_the_step_edge_and_its_look_is_made_up_for() -> None:
    reasons = iter(["", "", "", "told to", ""])
    monitor = Monitor({"rows": 1.0})
    run, looks, saved = stopping(monitor, stop=lambda: next(reasons))
    assert (run.outcome.stopped, run.outcome.steps, looks) == ("told to", 4, [0, 2])
    assert sorted(saved) == [2, 4]
    again = Monitor({"rows": 1.0})
    again.restore(saved[4]["monitor"])
    run, looks, _ = stopping(again, first=4)
    assert looks == [4, 6] and run.outcome.row_log and len(run.outcome.row_log) == 2
    assert again.best_step == 6


def test_a_run_that_had_stopped_early_does_not_go_on() -> None:
    monitor = Monitor({"rows": 1.0}, patience=2, best=0.1, best_step=2, misses=2, last_look=4)
    run, looks, _ = stopping(monitor, first=4)
    assert run.outcome.stopped == "no improvement in 2 looks, stopped at step 4 of 6"
    assert looks == [] and run.outcome.row_log == []


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Any:
    yield
    AcceleratorState._reset_state()
