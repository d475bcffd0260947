"""What tuning looks at besides its own loss: held-out rows, by loss or by a metric of generated answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .. import console
from ..config import TuneSettings
from ..data.facts import different_answers, files_of, take
from ..data.records import Record
from ..data.splits import SEEN, UNSEEN, plan_held_out, plan_test
from ..errors import InputError, did_you_mean
from ..inference.engine import Sampling, generate
from ..inference.loading import positions
from ..measures.extraction import extracted
from ..measures.metrics import METRICS, label_set, score
from ..models.backbone import Backbone
from ..models.reading import Reading
from ..prompts.lengths import fit
from ..prompts.template import Rendered, Renderer
from ..training.loss import mean_loss, row_losses
from ..training.monitor import Monitor
from ..training.processes import ALONE, Processes
from .memory import look_tokens
from .reading import check_positions

TEST = "test"  # the part that only `evaluate` sees


@dataclass(frozen=True)
class Parts:
    """Records to train on and to watch, with a sentence that says how they were parted.

    test: rows for `evaluate` alone.
    """

    train: Sequence[Record]
    sets: dict[str, Sequence[Record]]
    explanation: str
    held_out_tasks: list[str]
    test: Sequence[Record] = ()

    @property
    def held_out(self) -> dict[str, Sequence[Record]]:
        """All that is not trained on."""
        return self.sets | ({TEST: self.test} if len(self.test) else {})

    @property
    def all(self) -> list[Sequence[Record]]:
        """Every part."""
        return [self.train, *self.sets.values()]

    def sizes(self) -> dict[str, int]:
        """Rows of each part."""
        return {"train": len(self.train)} | {name: len(rows) for name, rows in self.held_out.items()}


def part_rows(records: Sequence[Record], validation: Sequence[Record] | None, settings: TuneSettings) -> Parts:
    """Keep rows for testing, then rows to watch out of training, by the settings; or watch the validation file's."""
    if settings.test_share:
        aside = plan_test(records, share=settings.test_share, seed=settings.seed)
        stays = np.ones(len(records), dtype=bool)
        stays[aside] = False
        test, rest = take(records, aside), take(records, np.flatnonzero(stays))
        parts = part_rows(rest, validation, settings.model_copy(update={"test_share": 0.0}))
        told = f"{len(test):,} row{'s' * (len(test) != 1)} kept for testing alone. {parts.explanation}"
        return replace(parts, test=test, explanation=told)
    if validation is not None:
        given = f"rows of {settings.validation}" if settings.validation else "rows given to watch"
        sentence = f"Held out: the {len(validation):,} {given}; {len(records):,} rows to train on."
        return Parts(records, {"validation": validation}, sentence, [])
    plan = plan_held_out(
        records,
        held_out=settings.held_out,
        share=settings.held_out_share,
        tasks=settings.held_out_tasks,
        seed=settings.seed,
    )
    sets = {name: take(records, rows) for name, rows in plan.sets.items()}
    return Parts(take(records, plan.train), sets, plan.explanation, list(plan.held_out_tasks))


def fewer(parts: Parts, settings: TuneSettings) -> Parts:
    """The rows to train on that `max_rows` (of each file) and `train_share` leave, drawn by seed: fewer are among more.

    Held-out rows stay.
    """
    most, share = settings.max_rows, settings.train_share
    if most is None and share == 1:
        return parts
    kept = np.random.default_rng(settings.seed).permutation(len(parts.train))
    if most is not None:  # the first ones of each file
        owners = files_of(parts.train)[0][kept]
        first = [np.flatnonzero(owners == owner)[:most] for owner in np.unique(owners)]
        kept = kept[np.sort(np.concatenate(first))]
    kept = kept[: max(1, round(share * len(kept)))]
    if len(kept) == len(parts.train):
        return parts
    names = " and ".join(name for name, used in (("max_rows", most), ("train_share", share < 1)) if used)
    sentence = f"{parts.explanation} Of these, {len(kept):,} drawn by seed ({names})."
    return replace(parts, train=take(parts.train, np.sort(kept)), explanation=sentence)


def drawn(records: Sequence[Record], most: int, seed: int) -> list[Record]:
    """At most so many of them, drawn by seed, in their order."""
    order = np.random.default_rng(seed).permutation(len(records))[:most]
    return list(take(records, np.sort(order)))


def check_watch(watch: str) -> None:
    """Raises InputError for a metric that does not exist."""
    if watch != "loss" and watch not in METRICS:
        raise InputError(f"watch: unknown metric '{watch}', {did_you_mean(watch, ['loss', *METRICS])}")


def make_monitor(parts: Parts, settings: TuneSettings) -> Monitor:
    """The stated mix of the sets: unseen tasks weigh `unseen_weight`, the others share the rest."""
    others = [name for name in parts.sets if name != UNSEEN]
    weights = {UNSEEN: settings.unseen_weight} if UNSEEN in parts.sets else {}
    rest = 1 - settings.unseen_weight if weights else 1.0
    weights |= {name: rest / len(others) for name in others}
    if not others:
        weights = dict.fromkeys(weights, 1.0)
    return Monitor(
        weights={name: weight for name, weight in weights.items() if weight} or dict.fromkeys(weights, 1.0),
        metric=settings.watch,
        higher_is_better=settings.watch != "loss" and METRICS[settings.watch].higher_is_better,
        patience=settings.patience,
    )


def worse(monitor: Monitor, untuned: float) -> bool:
    """Whether no look was better than the untuned model's."""
    return not (monitor.best > untuned if monitor.higher_is_better else monitor.best < untuned)


class Watcher:
    """Looks at the held-out sets; `look` is what the training loop is handed.

    sizes: held-out set -> its rows, less those found too long.  Raises InputError for a set with no row to look at.
    """

    def __init__(
        self,
        model: Any,
        backbone: Backbone,
        renderer: Renderer,
        parts: Parts,
        settings: TuneSettings,
        autocast: Callable[[], AbstractContextManager],
        max_length: int,
        group: Processes = ALONE,
    ) -> None:
        self.model, self.backbone, self.renderer, self.group = model, backbone, renderer, group
        self.settings, self.autocast = settings, autocast
        self.rendered: dict[str, Sequence[Rendered]] = {}
        self.records: dict[str, list[Record]] = {}
        self.sizes: dict[str, int] = {}
        for name, records in parts.sets.items():
            chosen = drawn(records, settings.eval_rows, settings.seed)
            fitted = fit(chosen, renderer, max_length, settings.on_long, size=backbone.kind.size)
            long = len(fitted.dropped)
            if isinstance(model, Reading):
                fitted = check_positions(fitted, model.plan, backbone, settings.on_long)
            if not fitted.rendered:
                got = f"{len(chosen)} rows, {long} of them over max_length {max_length:,}"
                if more := len(fitted.dropped) - long:
                    got += f", {more} over the model's {backbone.max_positions:,} positions"
                raise InputError(f"no rows are left to watch in '{name}' (got {got})")
            if fitted.dropped or fitted.trimmed:
                console.say(f"Held-out rows, {name}: {fitted.describe()}")
            self.sizes[name] = len(records) - len(fitted.dropped)
            self.rendered[name] = fitted.rendered
            self.records[name] = [chosen[place] for place in fitted.kept]
        known = renderer.labels
        self.labels = known.labels if known else label_set(different_answers(parts.train), of=len(parts.train))

    def look(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """Held-out set -> metric -> value."""
        return {name: self._look(name) for name in self.rendered}

    def _look(self, name: str) -> dict[str, float]:
        losses = row_losses(
            self.model,
            self.rendered[name],
            pad_id=self.backbone.pad_id,
            batch_tokens=look_tokens(self.settings.batch_tokens),
            autocast=self.autocast,
            group=self.group,
        )
        figures = {"loss": mean_loss(losses)}
        if self.settings.watch != "loss":
            figures[self.settings.watch] = self._metric(name, losses)
        return figures

    def _metric(self, name: str, losses: list[tuple[float, int]]) -> float:
        rows, records = self.rendered[name], self.records[name]
        longest = max(len(row.ids) - row.prompt_end for row in rows)
        limit = self.backbone.max_positions  # a long row has room for its right answer, perhaps not for the longest
        left = self.backbone.kind.room
        rooms = [min(longest + 8, left(limit, positions(self.model, row))) for row in rows]
        answers: dict[int, list[int]] = {}
        was_training = self.model.training
        self.model.eval()
        try:
            with self.autocast(), console.progress(len(rows), f"Answering {name}", unit="rows") as bar:
                for room in sorted(set(rooms)):
                    numbers = self.group.mine([number for number, found in enumerate(rooms) if found == room])
                    given = generate(
                        self.model,
                        [rows[number] for number in numbers],
                        stop_ids=self.renderer.stop_ids(self.backbone.stop_ids),
                        pad_id=self.backbone.pad_id,
                        sampling=Sampling(max_new_tokens=room),
                        done=bar.advance,
                    )
                    answers |= {number: one.ids for number, one in zip(numbers, given, strict=True)}
        finally:
            self.model.train(was_training)
        answers = {number: ids for part in self.group.exchange(list(answers.items())) for number, ids in part}
        texts = [self.renderer.decode(answers[number]) for number in range(len(rows))]
        accepted = [self.renderer.accepted(record.answers) for record in records]
        scores = score(extracted(texts, accepted, self.labels), accepted, labels=self.labels, losses=losses)
        watch = self.settings.watch
        if watch not in scores.statistics:
            why = " (no closed set of labels)" if watch in ("accuracy", "macro_f1") else ""
            raise InputError(f"watch: {watch} can't be computed on these rows{why}")
        return scores.statistics[watch].value


__all__ = ["SEEN", "UNSEEN", "Parts", "Watcher", "check_watch", "drawn", "fewer", "make_monitor", "part_rows", "worse"]
