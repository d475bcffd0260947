"""The one training loop. It is handed rendered rows, plain numbers, and callables for looking and keeping.

Loss of an optimizer step = sum over the supervised tokens of all its micro-batches, on all processes, divided by
their number: it does not depend on how the step is cut into micro-batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from ..data.mixing import Mixture
from ..errors import InstructRecError
from ..models.kinds import kind_of
from ..models.methods import trained_parameters
from ..models.reading import ReadingPlan
from ..prompts.shelf import column
from ..prompts.template import Rendered
from .batching import Layout, padding_share, plan_epoch
from .dealt import Batches, Steps
from .loss import token_losses
from .monitor import Monitor
from .prefixes import may_share
from .processes import ALONE, Processes, share
from .schedule import learning_rate
from .sharding import whole

Look = Mapping[str, Mapping[str, float]]  # held-out set -> metric -> value


class NonFinite(InstructRecError):
    """The loss or a gradient is not finite; weights are as before the step. Rows or settings are to blame: code 2."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to train: plain numbers, as in `config.TuneSettings`."""

    epochs: float
    batch_tokens: int
    learning_rate: float
    max_steps: int | None = None
    batch_rows: int | None = None
    accumulation: int = 1
    schedule: str = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    seed: int = 0
    look_every: int | None = None
    save_every: int | None = None
    pad_id: int = 0
    reading: ReadingPlan = ReadingPlan()
    mixture: Mixture | None = None


@dataclass
class Hooks:
    """What the loop calls besides training; each may be left out.

    look(step) -> figures on held-out sets.  log(entry): one object a step or look.  save(step, state): a checkpoint,
    also called whenever a look was the best so far.  stop() -> a reason to stop at the next step edge, or ''.
    """

    look: Callable[[int], Look] | None = None
    log: Callable[[dict[str, Any]], None] = lambda entry: None
    save: Callable[[int, dict[str, Any]], None] | None = None
    stop: Callable[[], str] = lambda: ""


@dataclass
class Outcome:
    """What training came to."""

    steps: int = 0
    stopped: str = ""
    seconds: float = 0.0  # spent in training steps, looks and saving left out
    tokens: int = 0
    supervised_tokens: int = 0
    shared_tokens: int = 0  # of these, not computed: another row of the batch begins with the same
    padding_share: float = 0.0
    row_log: list[tuple[int, ...]] = field(default_factory=list)  # rows of each step, as they were met

    @property
    def tokens_per_second(self) -> float:
        """Tokens of rows, padding left out."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def shared_share(self) -> float:
        """Share of the tokens of rows that were read for another row already."""
        return self.shared_tokens / self.tokens if self.tokens else 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, so that totals go on after a resume."""
        kept = ("seconds", "tokens", "supervised_tokens", "shared_tokens")
        return {name: getattr(self, name) for name in kept}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.seconds, self.tokens = state["seconds"], state["tokens"]
        self.supervised_tokens, self.shared_tokens = state["supervised_tokens"], state.get("shared_tokens", 0)


def row_lengths(rows: Sequence[Rendered], plan: Plan) -> NDArray[Any]:
    """Tokens of each row that go through the backbone, at the most strokes of the reading plan."""
    return Layout(plan.pad_id, plan.reading, plan.reading.most, plan.reading.deep).lengths(rows)


def plan_steps(
    lengths: Sequence[int] | NDArray[Any], plan: Plan, keys: Sequence[int] | NDArray[Any] | None = None
) -> Steps:
    """Micro-batches of every optimizer step of the whole run; the last step of an epoch may have fewer.

    lengths: as `row_lengths`, for `batch_tokens`.  keys: what rows are sorted by. With each row's own tokens (whatever
    the reading plan) and `batch_rows` alone, every plan meets the same rows in the same steps.
    """
    numbers, batch_ends, step_ends = [], [], []
    rows_before = batches_before = done = epoch = 0
    while epoch < plan.epochs:
        batches = plan_epoch(
            lengths,
            seed=plan.seed,
            epoch=epoch,
            tokens=plan.batch_tokens,
            rows=plan.batch_rows,
            keys=keys,
            chosen=plan.mixture.epoch(epoch) if plan.mixture else None,
        )
        ends = np.minimum(np.arange(0, len(batches), plan.accumulation) + plan.accumulation, len(batches))
        ends = ends[: max(1, round(len(ends) * min(1.0, plan.epochs - epoch)))]
        if plan.max_steps is not None:
            ends = ends[: plan.max_steps - done]
        part = batches[: int(ends[-1]) if len(ends) else 0]
        numbers.append(part.numbers)
        batch_ends.append(part.ends + rows_before)
        step_ends.append(ends + batches_before)
        rows_before += len(part.numbers)
        batches_before += len(part)
        done += len(ends)
        epoch += 1
        if plan.max_steps is not None and done >= plan.max_steps:
            break
    return Steps(Batches(np.concatenate(numbers), np.concatenate(batch_ends)), np.concatenate(step_ends))


def make_optimizer(model: Any, plan: Plan) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101); decay on matrices only, as is usual: biases and norms are left alone."""
    parameters = list(trained_parameters(model).values())
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = all(parameter.is_floating_point() and parameter.dtype != torch.float64 for parameter in parameters)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=plan.learning_rate, fused=fused)


def optimizer_names(model: Any) -> list[str]:
    """Names of the parameters in the order in which `make_optimizer` hands them over."""
    named = trained_parameters(model)
    matrices = [name for name, parameter in named.items() if parameter.ndim >= 2]
    return matrices + [name for name, parameter in named.items() if parameter.ndim < 2]


class Training:
    """Model, optimizer and rows on their way through the steps of a plan."""

    def __init__(
        self, model: Any, rows: Sequence[Rendered], plan: Plan, accelerator: Accelerator, group: Processes = ALONE
    ) -> None:
        self.model, self.rows, self.plan, self.accelerator, self.group = model, rows, plan, accelerator, group
        self.lengths = row_lengths(rows, plan)
        sizes = column(rows, "size")
        self.steps = plan_steps(self.lengths, plan, sizes)
        self.names = optimizer_names(model)
        self.parameters = list(trained_parameters(model).values())
        group.take_over(self.parameters)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(model, plan))
        sides = kind_of(model).sides(self.lengths, sizes - column(rows, "prompt_end"))
        self.outcome = Outcome(padding_share=padding_share(sides, self.steps.batches))
        # Last: a call brings weights together that are cut up, and the optimizer would be given those.
        with group.in_step():
            self.share = may_share(model, training=True, autocast=accelerator.autocast)

    def run(self, monitor: Monitor, hooks: Hooks, first_step: int = 0) -> Outcome:
        """Train from `first_step` to the end of the plan, or until the monitor's patience runs out."""
        plan, outcome, total = self.plan, self.outcome, len(self.steps)
        outcome.steps, outcome.stopped = first_step, f"all {total} steps done"
        if first_step == 0:
            # Dropout, another on each process; a resumed run brings its generators' states along.
            torch.manual_seed(plan.seed + self.group.rank)
            self._look(0, monitor, hooks)
        elif self._look_due(first_step) and monitor.last_look < first_step:
            self._look(first_step, monitor, hooks)  # a signal stopped the run before it could look
            self._save(first_step, monitor, hooks)
        if monitor.exhausted and first_step < total:
            outcome.stopped = self._no_improvement(monitor, first_step)
            return outcome
        for step in range(first_step, total):
            started = time.perf_counter()
            entry = self._step(step)
            seconds = time.perf_counter() - started
            done, outcome.steps, outcome.seconds = step + 1, step + 1, outcome.seconds + seconds
            hooks.log(entry | {"seconds": round(outcome.seconds, 3), "tokens_per_second": entry["tokens"] / seconds})
            last, reason, best = done == total, hooks.stop(), False
            if self._look_due(done) and not reason:
                best = self._look(done, monitor, hooks)
                if monitor.exhausted and not last:
                    reason = self._no_improvement(monitor, done)
            due = bool(plan.save_every) and done % (plan.save_every or 1) == 0
            if best or due or last or reason:
                self._save(done, monitor, hooks)
            if reason:
                outcome.stopped = reason
                break
        return outcome

    def _save(self, step: int, monitor: Monitor, hooks: Hooks) -> None:
        if hooks.save:
            hooks.save(step, {"monitor": monitor.state(), "outcome": self.outcome.state()})

    def _look_due(self, done: int) -> bool:
        every = self.plan.look_every
        return bool(every) and (done % (every or 1) == 0 or done == len(self.steps))

    def _no_improvement(self, monitor: Monitor, done: int) -> str:
        return f"no improvement in {monitor.misses} looks, stopped at step {done} of {len(self.steps)}"

    def _look(self, step: int, monitor: Monitor, hooks: Hooks) -> bool:
        """Measure on held-out rows; True if this is the best so far. The untuned model (step 0) is only a reference."""
        if hooks.look is None:
            return False
        with self.group.in_step():
            look = hooks.look(step)
        best = bool(step) and monitor.update(step, look)
        hooks.log({"step": step, "look": look, "watched": monitor.watched(look), "best": best})
        return best

    def _step(self, step: int) -> dict[str, Any]:
        """One optimizer step; raises NonFinite before any weight has changed."""
        plan, group, accelerator = self.plan, self.group, self.accelerator
        shares = share(self.steps[step], self.lengths, group.count)
        mine = shares[group.rank]
        reading = plan.reading
        strokes = reading.draw(step, len(self.steps), plan.seed)
        # Cut-up weights allow one pass: a beginning of rows laid out by a plan is one of its own.
        share_too = self.share and (not group.sharded or reading.as_rows(strokes))
        layout = Layout(plan.pad_id, reading, strokes, reading.deep, self.model, share_too)
        batches = [layout.batch([self.rows[n] for n in numbers], numbers) for numbers in mine]
        if group.sharded and len(mine) < len(shares[0]):  # every process calls the model equally often
            batches += [layout.batch([self.rows[n] for n in shares[0][0]], ())] * (len(shares[0]) - len(mine))
        tokens = sum(layout.length(self.rows[number]) for numbers in mine for number in numbers)
        real = [batch for batch in batches if batch.rows]
        saved = sum(batch.saved for batch in real)
        counts = group.exchange([sum(len(batch.targets) for batch in real), tokens, saved])
        targets, tokens, saved = (sum(one) for one in zip(*counts, strict=True))
        rate = learning_rate(step, len(self.steps), plan.learning_rate, plan.warmup, plan.schedule)
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = rate
        self.model.train()
        loss = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        bad: tuple[int, ...] = ()
        with group.in_step():
            for batch in batches:
                with accelerator.autocast():
                    part = token_losses(self.model, batch.to(accelerator.device)).sum() / targets
                if not torch.isfinite(part):
                    bad = batch.rows
                    if not group.sharded:
                        break
                accelerator.backward(part if batch.rows else part * 0)
                loss += part.detach().double() if batch.rows else 0
        told = group.exchange((float(loss), self._places(bad)))
        self._refuse(step, "loss", [places for _, places in told])
        group.add_gradients(self.parameters)
        norm = whole(accelerator.clip_grad_norm_(self.parameters, plan.clip))
        if not torch.isfinite(norm):
            rows = [number for batch in batches for number in batch.rows]
            self._refuse(step, "gradient", group.exchange(self._places(rows)))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.outcome.tokens += tokens
        self.outcome.supervised_tokens += targets
        self.outcome.shared_tokens += saved
        self.outcome.row_log.append(tuple(number for numbers in mine for number in numbers))
        drawn = {"strokes": strokes} if len(reading.strokes) > 1 else {}
        return drawn | {
            "step": step + 1,
            "loss": sum(part for part, _ in told),
            "learning_rate": rate,
            "grad_norm": float(norm),
            "tokens": tokens,
            "supervised_tokens": targets,
        }

    def _places(self, numbers: Sequence[int]) -> list[str]:
        return [str(self.rows[number].origin) for number in numbers]

    def _refuse(self, step: int, what: str, places: Sequence[Sequence[str]]) -> None:
        """Raise NonFinite if a process has rows to blame. All know them all, so all stop here."""
        blamed = [place for part in places for place in part]
        if blamed:
            self.optimizer.zero_grad(set_to_none=True)
            rows = ", ".join(blamed[:8])
            raise NonFinite(f"step {step + 1}: the {what} is not finite; stopped before the update. Rows: {rows}")
