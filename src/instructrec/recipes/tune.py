"""`instructrec tune`: from a file of rows to a run folder."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import console
from ..config import Settings, Source, TuneSettings
from ..data.facts import different_answers, take, tasks
from ..data.records import Record, Rows
from ..errors import InputError
from ..files import place, write_json
from ..models.methods import Method, get, narrowed
from ..settings import checked
from .curve import check_curve, draw_curve
from .known import keep_known
from .labels import how_to_load, labels_of
from .memory import Ledger, Meter, keeping_memory
from .reading import behind, check_positions, one_answer_each, plan_of
from .resume import arithmetic, at_step, choose, digest, finished, identity, other_arithmetic, same_everywhere
from .rows import MEMORY, Data, announce, mixture, name_of, read_rows, used
from .runfolder import RUN_FILE, OthersFolder, RunFolder, free_folder, last_folder, surroundings
from .signals import Interrupted, signals
from .trackers import check_trackers, make_trackers, start_trackers
from .watch import Parts, Watcher, check_watch, fewer, make_monitor, part_rows, worse

if TYPE_CHECKING:
    from ..training.processes import Processes

SHOTS_KEPT = 200


@dataclass(frozen=True)
class TuneResult:
    """What came of tuning. folder: the run folder, for `evaluate` and `Assistant`."""

    folder: Path
    best_step: int
    steps: int
    stopped: str

    def __fspath__(self) -> str:
        return str(self.folder)

    def __str__(self) -> str:
        return str(self.folder)


def tune(
    data: Data, *, validation: Any = None, out: str | os.PathLike[str] | None = None, **settings: Any
) -> TuneResult:
    """Tune a model on rows and leave a run folder.

    data: a file, several, a list of dicts, or what `read` returned.  validation: rows to watch, likewise.
    settings: those of `instructrec tune`, such as `method="full"`, `epochs=2`, `lora={"rank": 8}`.
    Raises InputError (bad rows or settings), EnvironmentFault (disk, network), NonFinite (the loss is not a number).
    """
    values = settings if out is None else settings | {"out": os.fspath(out)}
    return _tune(data, checked(TuneSettings, values), {}, validation)


def tune_files(files: Sequence[str | Source], settings: TuneSettings, origins: dict[str, str]) -> TuneResult:
    """The same from the command line; `origins` says where each setting came from."""
    return _tune(files, settings, origins, None)


def _tune(data: Data, settings: TuneSettings, origins: dict[str, str], validation: Any) -> TuneResult:
    plan_of(settings, get(settings.method))  # both refuse what they don't know
    check_watch(settings.watch)
    check_trackers(settings.trackers, settings.offline)
    from ..training.processes import together  # torch comes with it: settings are looked at before

    with together() as group:
        path = Path(group.of_main(str(_folder(data, settings))))
        with closing(RunFolder(path) if group.main else OthersFolder(path)) as folder:
            return _run(folder, data, settings, origins, validation, group)


def _run(
    folder: RunFolder, data: Data, settings: TuneSettings, origins: dict[str, str], validation: Any, group: Processes
) -> TuneResult:
    folder.check(bool(settings.resume))
    # A resumed run reads the rows it read before, and has written those it rejected.
    write_rejected = group.main and not settings.resume
    rows = read_rows(data, settings, folder.path / "rejected.jsonl" if write_rejected else None)
    watched = validation if validation is not None else settings.validation
    held = None if watched is None else read_rows(watched, settings)
    parts = part_rows(rows.records, None if held is None else held.records, settings)
    parts = fewer(parts, settings)
    if settings.learning_curve:
        check_curve(parts, group.count)
    console.say(parts.explanation)
    run = _Run(folder, settings, origins, get(settings.method), rows, parts, group)
    run.watched_files = {} if held is None else dict(held.files) or {MEMORY: digest(held.records)}
    from ..models.loading import quiet

    with _quiet(), quiet(), keeping_memory():  # the library's bars for files and advice on caches
        run.prepare()
        result = run.finished or run.train()
    if settings.learning_curve:
        parts = run.parts
        del run  # its model makes room for theirs
        draw_curve(folder.path, settings, parts, lambda other: _tune(rows, other, {}, held))
    return result


def _folder(data: Data, settings: TuneSettings) -> Path:
    if settings.out:
        return Path(settings.out)
    stem = name_of(data)
    return last_folder(stem) if settings.resume else free_folder(stem)


class _Run:
    """One tuning run: prepare (load, render, attach), train, leave the run folder."""

    def __init__(
        self,
        folder: RunFolder,
        settings: TuneSettings,
        origins: dict[str, str],
        method: Method,
        rows: Rows,
        parts: Parts,
        group: Processes,
    ) -> None:
        self.folder, self.settings, self.origins, self.group = folder, settings, origins, group
        self.method, self.rows, self.parts = method, rows, parts
        self.reading = plan_of(settings, method)
        if group.sharded:
            from ..training.sharding import check_sharded

            check_sharded(method, self.reading)
        self.watched_files: dict[str, str] = {}  # name -> sha256 of the rows given to watch
        self.finished: TuneResult | None = None  # where there is nothing left to do

    def _one_answer_each(self) -> None:
        parts = self.parts
        train = one_answer_each(parts.train)
        sets = {name: one_answer_each(records) for name, records in parts.sets.items()}
        self.parts = replace(parts, train=train, sets=sets)
        before, now = (sum(one.sizes().values()) for one in (parts, self.parts))
        if now != before:
            account = f"Each answer of a conversation is a row of its own: {before:,} rows became {now:,}."
            console.say(account)
            self.parts = replace(self.parts, explanation=f"{parts.explanation} {account}")

    def prepare(self) -> None:
        """Load the backbone, render the rows, attach the method: all that can fail before the first step."""
        import torch

        from ..inference.loading import renderer_for, seated
        from ..models import backbone as backbones
        from ..prompts.lengths import fit

        settings, method = self.settings, self.method
        self.memory = Ledger(Meter(backbones.device().type))
        if settings.threads:  # else torch's own choice: it heeds OMP_NUM_THREADS and the cores this process may use
            torch.set_num_threads(settings.threads)
        self.dtype = backbones.compute_dtype(settings.precision)
        announce(settings.model)
        # Weights that are to be cut up need not fit on one device.
        place = torch.device("cpu") if self.group.sharded else backbones.device()
        labels = labels_of(self.parts.all, settings.encoder)
        how = how_to_load(settings, method, self.reading, labels, self.group.sharded)
        self.backbone = backbones.load(settings.model, dtype=self.dtype, place=place, **how)
        for note in self.backbone.notes:
            console.note(note)
        kind = self.backbone.kind
        if kind.one_answer or not self.reading.plain:
            self._one_answer_each()
        own = getattr(settings, method.name, None)
        options = own.model_dump() if isinstance(own, Settings) else {}
        self.backbone = narrowed(self.backbone, method, taken := method.positions(options))
        self.renderer = renderer_for(self.backbone, settings.template, settings.system, labels)
        self.renderer.with_reading(self.reading.to_json())
        self.backbone = seated(self.backbone, self.renderer)
        self.max_length = settings.max_length or self.backbone.default_length
        if self.max_length > self.backbone.max_positions:
            wanted = f"want at most {self.backbone.max_positions}"
            if taken:
                wanted += f" beside the {taken} of {method.name}"
            raise InputError(f"max_length: more than this model can hold (got {self.max_length}, {wanted})")
        self.fitted = fit(
            self.parts.train,
            self.renderer,
            self.max_length,
            settings.on_long,
            track=lambda records: console.track(records, "Rendering rows", unit="rows"),
            size=kind.size,
        )
        console.say(f"Prompt template: {self.renderer.name}; {self.fitted.describe()}")
        if warning := self.fitted.warning(self.parts.train):
            console.warn(warning)
        self.fitted = check_positions(self.fitted, self.reading, self.backbone, settings.on_long)
        if not self.fitted.rendered:
            raise InputError("no rows are left to train on")
        self.mixture = mixture(self.rows, take(self.parts.train, self.fitted.kept), settings, settings.seed)
        self.identity = identity(settings, self.rows, self.watched_files, self.backbone, self.renderer)
        same_everywhere(self.group, self.identity)
        self.start = None
        if settings.resume:
            self.start = choose(self.folder, self.identity, settings.resume == "latest-valid")
        ended = finished(self.folder.path, self.start.checkpoint) if self.start else None
        self.finished = TuneResult(self.folder.path, **ended) if ended else None
        if self.finished:
            console.say(f"Nothing left to do: {self.folder.path} is a finished run ({self.finished.stopped})")
            return
        before = self.start.checkpoint if self.start else None
        if before:
            self.tuned = method.load(self.backbone.model, before, trainable=True)
        else:
            self.tuned = method.attach(self.backbone.model, options, settings.seed)
        given: dict[str, Any] = {"rows": self.fitted.rendered, "renderer": self.renderer, "checkpoint": before}
        self.model = behind(self.reading, self.tuned, method, options, settings.seed, **given)
        if not before:
            rows, words = self.fitted.rendered, self.backbone.tokenizer
            method.start(self.tuned, options, settings.seed, rows=rows, tokenizer=words)
        if settings.checkpointing:
            self.tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.tuned.enable_input_require_grads()
        self.surroundings = surroundings(torch.get_num_threads(), self.group.count)
        self.arithmetic = arithmetic(str(self.dtype).removeprefix("torch."), self.group.count)

    def train(self) -> TuneResult:
        """Run the loop and write what the run folder needs; returns when all is on disk."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from ..models import backbone as backbones
        from ..models.methods import trained_parameters
        from ..models.methods.through_peft import uncast
        from ..training.loop import Hooks, Training
        from ..training.sharding import shard

        started = time.monotonic()
        settings, folder = self.settings, self.folder
        AcceleratorState._reset_state()  # it would hold a second run of this process to the precision of the first
        accelerator = Accelerator(
            cpu=backbones.device().type == "cpu",  # it would take a Mac's mps, which has no float64
            mixed_precision="bf16" if "bfloat16" in str(self.dtype) else "no",
        )
        if self.group.sharded:
            shard(self.tuned, accelerator.device, self.group.count)
        self.model.to(accelerator.device)
        training = Training(self.model, self.fitted.rendered, self._plan(), accelerator, self.group)
        monitor = make_monitor(self.parts, settings)
        given = (self.backbone, self.renderer, self.parts, settings, accelerator.autocast, self.max_length)
        self.watcher = Watcher(self.model, *given, self.group)
        first = self._begin(training, monitor)
        config, half = self.backbone.model.config.to_dict(), "bfloat16" in str(self.dtype)
        self.memory.plan(config, settings, half, training, self.watcher.rendered, first)
        trackers = make_trackers(settings.trackers, folder.path, settings.offline)
        start_trackers(accelerator, trackers, settings.model_dump(mode="json"))
        trained = sum(parameter.numel() for parameter in trained_parameters(self.model).values())
        total = sum(parameter.numel() for parameter in self.model.parameters())
        self.counts = {"trained_parameters": trained, "parameters": total}
        console.say(
            f"Tuning {self.backbone.name} with {self.method.name}: {trained:,} of {total:,} parameters "
            f"({trained / total:.2%}), {len(training.steps)} steps, {training.outcome.padding_share:.1%} padding"
            + ("" if self.reading.plain else f"; instructions read {self.reading.describe()}")
        )

        with console.progress(len(training.steps), "Tuning", unit="steps", done=first) as bar, signals() as caught:

            def log(entry: dict[str, Any]) -> None:
                folder.log(entry)
                if trackers:
                    accelerator.log(_flat(entry), step=entry["step"])
                if "look" in entry:
                    losses = {name: figures["loss"] for name, figures in entry["look"].items()}
                    bar.advance(0, **losses)
                else:
                    bar.advance(1, loss=entry["loss"])
                    if line := self.memory.after_first_step():
                        console.note(line)

            look = self._look if self.parts.sets else None
            save = partial(self._save, training, monitor)
            hooks = Hooks(look=look, log=log, save=save, stop=lambda: caught.agreed(self.group))
            # Under autocast PEFT would cast what comes in to the adapter's fp32, and autocast straight back again.
            with uncast(self.tuned if accelerator.mixed_precision == "bf16" else None):
                outcome = training.run(monitor, hooks, first)
        for tracker in accelerator.trackers:  # `end_training` would part the processes too
            tracker.finish()
        if caught.agreed(self.group):
            raise Interrupted(
                f"{caught.reason}; step {outcome.steps} of {len(training.steps)} is in {folder.checkpoints}, "
                "go on with --resume",
                caught.exit_code,
            )
        best = monitor.best_step or outcome.steps
        self.used = used(self.rows, self.fitted.rendered, training.steps[: outcome.steps])
        if self.group.main:
            self._finish(best, outcome, monitor, time.monotonic() - started)
        self.group.exchange("finished")
        return TuneResult(folder.path, best, outcome.steps, outcome.stopped)

    def _look(self, step: int) -> Mapping[str, Mapping[str, float]]:
        """Figures on held-out rows; those before the first step are the untuned model's, whatever is attached to it."""
        untuned = step == 0 and not self.method.identity_at_start and self.method.switchable
        with self.method.disabled(self.tuned) if untuned else nullcontext():
            return self.watcher.look(step)

    def _save(self, training: Any, monitor: Any, step: int, state: dict[str, Any]) -> None:
        """A checkpoint, by the first process; nobody goes on, or ends, before it is on disk."""
        from ..training import checkpoint
        from ..training.sharding import writable

        folder = self.folder
        generators = self.group.exchange(checkpoint.generator_states())
        with writable(self.tuned, training.optimizer.optimizer) as optimizer:
            if self.group.main:
                folder.keep_log()
                checkpoint.save(
                    folder.checkpoints,
                    step,
                    write_weights=self._write_weights,
                    optimizer=optimizer,
                    names=training.names,
                    state=state | {"arithmetic": self.arithmetic},
                    generators=generators,
                )
                checkpoint.keep_only(folder.checkpoints, {step, monitor.best_step})
        self.group.exchange("saved")

    def _write_weights(self, folder: Path) -> None:
        self.method.save(self.tuned, folder, self.backbone.name)
        if self.model is not self.tuned:
            self.model.save_extra(folder)

    def _begin(self, training: Any, monitor: Any) -> int:
        """Make the folder, or put everything back as the checkpoint has it; returns the steps that are done.

        All that bad input can stop has passed: until here the folder is untouched.
        """
        from ..inference.loading import PROMPT_FILE
        from ..training import checkpoint

        folder = self.folder
        folder.make(bool(self.settings.resume))
        if self.start is None:
            if self.group.main:
                write_json(folder.path / "settings.json", self.identity)
                write_json(folder.path / PROMPT_FILE, self.renderer.to_json())
            return 0
        optimizer, names = training.optimizer.optimizer, training.names
        state = checkpoint.restore(self.start.checkpoint, optimizer, names, self.group.rank)
        for line in other_arithmetic(state["arithmetic"], self.arithmetic):
            console.note(line)
        monitor.restore(state["monitor"] | ({"best": None, "best_step": 0} if self.start.best_lost else {}))
        training.outcome.restore(state["outcome"])
        folder.forget_after(state["step"])
        console.say(f"Going on after step {state['step']} of {len(training.steps)}")
        return int(state["step"])

    def _plan(self) -> Any:
        from ..prompts.shelf import column as of_rows
        from ..training.loop import Plan, plan_steps, row_lengths

        settings = self.settings
        plan = Plan(
            epochs=settings.epochs,
            max_steps=settings.max_steps,
            batch_tokens=settings.batch_tokens,
            batch_rows=settings.batch_rows,
            accumulation=settings.accumulation,
            learning_rate=settings.learning_rate or self.method.learning_rate,
            schedule=settings.schedule,
            warmup=settings.warmup,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            seed=settings.seed,
            pad_id=self.backbone.pad_id,
            reading=self.reading,
            mixture=self.mixture,
        )
        rows = self.fitted.rendered
        total = len(plan_steps(row_lengths(rows, plan), plan, of_rows(rows, "size")))
        every = settings.eval_every or max(1, round(total / max(1.0, settings.epochs) / 2))
        return replace(plan, look_every=every if self.parts.sets else None, save_every=settings.save_steps or every)

    def _finish(self, best: int, outcome: Any, monitor: Any, seconds: float) -> None:
        """Put the best weights at the top of the folder, then everything that describes them; run.json comes last."""
        from ..evaluation.card import write_card
        from ..evaluation.pictures import save_loss_png
        from ..evaluation.report import write_report
        from ..measures.metrics import label_set
        from ..training import checkpoint
        from .measure import empty_report, run_part

        folder, entries = self.folder, self.folder.entries()
        kept = at_step(folder, best)
        checkpoint.verify(kept)
        for path in filter(Path.is_file, kept.rglob("*")):
            if path.name not in (checkpoint.OPTIMIZER, checkpoint.STATE, checkpoint.MANIFEST):
                target = folder.path / path.relative_to(kept)
                target.parent.mkdir(exist_ok=True)
                place(path, target)
        if not (folder.path / "adapter_config.json").is_file():  # a whole model is used elsewhere with its tokenizer
            self.backbone.tokenizer.save_pretrained(folder.path)
        looks = [entry for entry in entries if "look" in entry]
        training = {
            "steps": [entry for entry in entries if "look" not in entry],
            "looks": [{"step": entry["step"], "watched": entry["watched"], **entry["look"]} for entry in looks],
            "best_step": best,
            "stopped": outcome.stopped,
            "watch": monitor.describe() if looks else "nothing was held out: the last step is kept",
            "held_out_tasks": self.parts.held_out_tasks,
            "seconds": round(seconds, 1),
            "tokens_per_second": round(outcome.tokens_per_second, 1),
            "padding_share": round(outcome.padding_share, 4),
            "shared_share": round(outcome.shared_share, 4),
        }
        if looks and looks[0]["step"] == 0 and worse(monitor, looks[0]["watched"]):
            console.warn("no look at the held-out rows was better than the untuned model: do not rely on this run")
        settings = self.settings.model_dump(mode="json")
        run = {
            "format": 1,
            "method": self.method.name,
            "backbone": self.identity["backbone"],
            **self.counts,
            "settings": settings,
            "origins": self.origins,
            "data": {
                "files": self.identity["data"],
                "rows": len(self.rows),
                "read": self.rows.read,
                "rejected": self.rows.rejected,
                "used_of_sources": self.used,
                "parts": self.parts.sizes() | {"train": len(self.fitted.rendered)} | self.watcher.sizes,
                "held_out": self.parts.explanation,
            },
            "training": training,
            "memory": self.memory.close(),
            "surroundings": self.surroundings,
        }
        train = take(self.parts.train, self.fitted.kept)
        answers = different_answers(train)
        known = self.renderer.labels
        run["labels"] = known.labels if known else label_set(answers, of=len(train))
        run["fixed_answers"] = len(train) >= 2 * len(answers)  # set phrases: an answer is right or it is not
        keep_known(folder.path, train, self.parts.held_out, self.settings.seed)
        shots = _spread(train, SHOTS_KEPT, self.settings.seed)
        write_json(folder.path / "examples.json", [_shown(record) for record in shots])
        save_loss_png(training, folder.path / "loss.png")
        write_report(empty_report(run, str(folder.path)), folder.path)
        write_card(None, run_part(run, str(folder.path)), folder.path)
        folder.keep()
        write_json(folder.path / RUN_FILE, run)
        console.say(f"Stopped: {outcome.stopped}. Kept: step {best} ({training['watch']})")
        console.say(f"{outcome.tokens_per_second:,.0f} tokens/s; run folder: {folder.path}")


def _spread(records: Sequence[Record], most: int, seed: int) -> list[Record]:
    """Up to `most` records, the same number of each task, drawn by seed: a file is often sorted by label."""
    import numpy as np

    numbers, _ = tasks(records)
    order = np.argsort(numbers, kind="stable")
    found, first = np.unique(numbers, return_index=True)  # the tasks in the order of their first records
    ends = np.cumsum(np.bincount(numbers + 1)[found + 1])
    groups = dict(zip(found.tolist(), np.split(order, ends[:-1]), strict=True))
    draw, chosen = np.random.default_rng(seed), []
    share = max(1, most // len(groups))
    for task in found[np.argsort(first)].tolist():
        chosen += groups[task][np.sort(draw.permutation(len(groups[task]))[:share])].tolist()
    return list(take(records, chosen[:most]))


def _shown(record: Record) -> dict[str, Any]:
    last = record.last_user
    return {"task": record.task, "instruction": last.text, "input": last.input, "output": record.answer}


def _flat(entry: dict[str, Any]) -> dict[str, float]:
    if "look" in entry:
        return {f"{name}/{key}": value for name, part in entry["look"].items() for key, value in part.items()}
    return {f"train/{key}": value for key, value in entry.items() if key not in ("step", "seconds")}


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
