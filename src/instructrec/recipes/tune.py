"""`instructrec tune`: from a file of rows to a run folder."""

from __future__ import annotations

import os
import shutil
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from .. import console
from ..config import TuneSettings
from ..data.records import Record, Rows
from ..errors import InputError, InstructRecError
from ..files import read_json, write_json
from ..models.methods import Method, get
from ..settings import checked
from .rows import MEMORY, Data, announce, read_rows
from .runfolder import RUN_FILE, RunFolder, free_folder, is_run, last_folder, surroundings
from .watch import Parts, Watcher, check_watch, make_monitor, part_rows

# Settings that may differ between a run and its resumption without changing the result.
_FREE = ("resume", "out", "offline", "tensorboard", "threads")
SHOTS_KEPT = 200


class Interrupted(InstructRecError):
    """Stopped by a signal, with a checkpoint; `exit_code` is what the shell expects of that signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


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


def tune_files(files: list[str], settings: TuneSettings, origins: dict[str, str]) -> TuneResult:
    """The same from the command line; `origins` says where each setting came from."""
    return _tune(files, settings, origins, None)


def _tune(data: Data, settings: TuneSettings, origins: dict[str, str], validation: Any) -> TuneResult:
    method = get(settings.method)
    check_watch(settings.watch)
    folder = RunFolder(_folder(data, settings))
    folder.check(settings.resume)
    # A resumed run reads the rows it read before, and has written those it rejected.
    rows = read_rows(data, settings, None if settings.resume else folder.path / "rejected.jsonl")
    watched = validation if validation is not None else settings.validation
    held = None if watched is None else read_rows(watched, settings)
    parts = part_rows(rows.records, None if held is None else held.records, settings)
    console.say(parts.explanation)
    run = _Run(folder, settings, origins, method, rows, parts)
    run.watched_files = {} if held is None else dict(held.files) or {MEMORY: _digest(held.records)}
    with _quiet():
        run.prepare()
        return run.finished or run.train()


def _folder(data: Data, settings: TuneSettings) -> Path:
    if settings.out:
        return Path(settings.out)
    first = next(iter(data), None) if isinstance(data, (list, tuple)) else data
    stem = Path(first).stem if isinstance(first, (str, os.PathLike)) else "rows"
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
    ) -> None:
        self.folder, self.settings, self.origins = folder, settings, origins
        self.method, self.rows, self.parts = method, rows, parts
        self.watched_files: dict[str, str] = {}  # name -> sha256 of the rows given to watch
        self.finished: TuneResult | None = None  # where there is nothing left to do

    def prepare(self) -> None:
        """Load the backbone, render the rows, attach the method: all that can fail before the first step."""
        import torch

        from ..models import backbone as backbones
        from ..prompts.choose import make_renderer
        from ..prompts.lengths import fit

        settings, method = self.settings, self.method
        if settings.threads:  # else torch's own choice: it heeds OMP_NUM_THREADS and the cores this process may use
            torch.set_num_threads(settings.threads)
        self.dtype = backbones.compute_dtype(settings.precision)
        announce(settings.model)
        self.backbone = backbones.load(settings.model, dtype=self.dtype, offline=settings.offline)
        for note in self.backbone.notes:
            console.note(note)
        self.renderer = make_renderer(self.backbone.tokenizer, settings.template, settings.system)
        self.max_length = settings.max_length or self.backbone.default_length
        if self.max_length > self.backbone.max_positions:
            limit = self.backbone.max_positions
            raise InputError(f"max_length: more than this model can hold (got {self.max_length}, want at most {limit})")
        self.fitted = fit(
            self.parts.train,
            self.renderer,
            self.max_length,
            settings.on_long,
            track=lambda records: console.track(records, "Rendering rows", unit="rows"),
        )
        console.say(f"Prompt template: {self.renderer.name}; {self.fitted.describe()}")
        if not self.fitted.rendered:
            raise InputError("no rows are left to train on")
        options = getattr(settings, method.name).model_dump() if hasattr(settings, method.name) else {}
        self.identity = self._identity()
        self.checkpoint = self._checkpoint() if settings.resume else None
        self.finished = self._finished(self.checkpoint) if self.checkpoint else None
        if self.finished:
            console.say(f"Nothing left to do: {self.folder.path} is a finished run ({self.finished.stopped})")
            return
        if self.checkpoint:
            self.model = method.load(self.backbone.model, self.checkpoint, trainable=True)
        else:
            self.model = method.attach(self.backbone.model, options, settings.seed)
        if settings.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.surroundings = surroundings(torch.get_num_threads())

    def _identity(self) -> dict[str, Any]:
        from ..inference.loading import fingerprint

        settings = self.settings.model_dump(mode="json", exclude=set(_FREE))
        return {
            "settings": settings,
            "data": dict(self.rows.files) or {MEMORY: _digest(self.rows.records)},
            "validation": self.watched_files,
            "backbone": {"name": self.backbone.name, "fingerprint": fingerprint(self.backbone.folder)},
            "prompt": self.renderer.to_json()["sha256"],
        }

    def _checkpoint(self) -> Path:
        """The newest checkpoint, after making sure that it belongs to these settings and rows."""
        from ..training.checkpoint import checkpoints, verify

        before = read_json(self.folder.path / "settings.json")
        different = _differences(before, self.identity)
        if different:
            raise InputError("resume: this is another run:\n" + "\n".join(f"  {line}" for line in different))
        found = checkpoints(self.folder.checkpoints)
        if not found:
            raise InputError(f"resume: {self.folder.checkpoints} holds no complete checkpoint")
        verify(found[-1])  # before its weights are read
        return found[-1]

    def _finished(self, checkpoint: Path) -> TuneResult | None:
        """What the run came to, if it ended with this checkpoint: going on would only wipe its evaluation."""
        if not is_run(str(self.folder.path)):
            return None
        training = read_json(self.folder.path / RUN_FILE)["training"]
        last = training["steps"][-1]["step"]
        if checkpoint.name != f"step-{last}":
            return None
        return TuneResult(self.folder.path, training["best_step"], last, training["stopped"])

    def train(self) -> TuneResult:
        """Run the loop and write what the run folder needs; returns when all is on disk."""
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        from ..models import backbone as backbones
        from ..models.methods import trained_parameters
        from ..training import checkpoint
        from ..training.loop import Hooks, Training

        started = time.time()
        settings, folder = self.settings, self.folder
        AcceleratorState._reset_state()  # it would hold a second run of this process to the precision of the first
        accelerator = Accelerator(
            cpu=backbones.device().type == "cpu",  # it would take a Mac's mps, which has no float64
            mixed_precision="bf16" if "bfloat16" in str(self.dtype) else "no",
            log_with="tensorboard" if settings.tensorboard else None,
            project_dir=str(folder.path),
        )
        self.model.to(accelerator.device)
        training = Training(self.model, self.fitted.rendered, self._plan(), accelerator)
        monitor = make_monitor(self.parts, settings)
        self.watcher = watcher = Watcher(
            self.model, self.backbone, self.renderer, self.parts, settings, accelerator.autocast, self.max_length
        )
        first = self._begin(training, monitor)
        if settings.tensorboard:
            accelerator.init_trackers("tensorboard")
        trained = sum(parameter.numel() for parameter in trained_parameters(self.model).values())
        total = sum(parameter.numel() for parameter in self.model.parameters())
        self.counts = {"trained_parameters": trained, "parameters": total}
        console.say(
            f"Tuning {self.backbone.name} with {self.method.name}: {trained:,} of {total:,} parameters "
            f"({trained / total:.2%}), {len(training.steps)} steps, {training.outcome.padding_share:.1%} padding"
        )

        def save(step: int, state: dict[str, Any]) -> None:
            checkpoint.save(
                folder.checkpoints,
                step,
                write_weights=lambda target: self.method.save(self.model, target, self.backbone.name),
                optimizer=training.optimizer.optimizer,
                names=training.names,
                state=state,
            )
            checkpoint.keep_only(folder.checkpoints, {step, monitor.best_step})

        with console.progress(len(training.steps), "Tuning", unit="steps", done=first) as bar, _signals() as signals:

            def log(entry: dict[str, Any]) -> None:
                folder.log(entry)
                if settings.tensorboard:
                    accelerator.log(_flat(entry), step=entry["step"])
                if "look" in entry:
                    losses = {name: figures["loss"] for name, figures in entry["look"].items()}
                    bar.advance(0, **losses)
                else:
                    bar.advance(1, loss=entry["loss"])

            look = watcher.look if self.parts.sets else None
            hooks = Hooks(look=look, log=log, save=save, stop=lambda: signals.reason)
            outcome = training.run(monitor, hooks, first)
        accelerator.end_training()
        if signals.reason:
            raise Interrupted(
                f"{signals.reason}; step {outcome.steps} of {len(training.steps)} is in {folder.checkpoints}, "
                "go on with --resume",
                signals.exit_code,
            )
        best = monitor.best_step or outcome.steps
        self._finish(best, outcome, monitor, time.time() - started)
        return TuneResult(folder.path, best, outcome.steps, outcome.stopped)

    def _begin(self, training: Any, monitor: Any) -> int:
        """Make the folder, or put everything back as the checkpoint has it; returns the steps that are done.

        All that bad input can stop has passed: until here the folder is untouched.
        """
        from ..inference.loading import PROMPT_FILE
        from ..training import checkpoint

        folder = self.folder
        folder.make(self.settings.resume)
        if self.checkpoint is None:
            write_json(folder.path / "settings.json", self.identity)
            write_json(folder.path / PROMPT_FILE, self.renderer.to_json())
            return 0
        state = checkpoint.restore(self.checkpoint, training.optimizer.optimizer, training.names)
        monitor.restore(state["monitor"])
        training.outcome.restore(state["outcome"])
        folder.forget_after(state["step"])
        console.say(f"Going on after step {state['step']} of {len(training.steps)}")
        return int(state["step"])

    def _plan(self) -> Any:
        from ..training.loop import Plan, plan_steps

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
        )
        total = len(plan_steps([len(row.ids) for row in self.fitted.rendered], plan))
        every = settings.eval_every or max(1, round(total / max(1.0, settings.epochs) / 2))
        return replace(plan, look_every=every if self.parts.sets else None, save_every=settings.save_steps or every)

    def _finish(self, best: int, outcome: Any, monitor: Any, seconds: float) -> None:
        """Put the best weights at the top of the folder, then everything that describes them; run.json comes last."""
        from ..evaluation.card import write_card
        from ..evaluation.pictures import save_loss_png
        from ..evaluation.report import write_report
        from ..measures.metrics import label_set
        from .measure import empty_report, run_part

        folder, entries = self.folder, self.folder.entries()
        for path in (folder.checkpoints / f"step-{best}").iterdir():
            if path.name not in ("optimizer.safetensors", "state.json", "manifest.json"):
                shutil.copyfile(path, folder.path / path.name)
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
        }
        if looks and looks[0]["step"] == 0 and _worse(monitor, looks[0]["watched"]):
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
                "parts": self.parts.sizes() | {"train": len(self.fitted.rendered)} | self.watcher.sizes,
                "held_out": self.parts.explanation,
            },
            "training": training,
            "surroundings": self.surroundings,
        }
        train = [self.parts.train[place] for place in self.fitted.kept]
        answers = [record.answer for record in train]
        run["labels"] = label_set(answers)
        run["fixed_answers"] = len(answers) >= 2 * len(set(answers))  # set phrases: an answer is right or it is not
        keys = {"train": [record.prompt_key for record in train]}
        keys |= {name: [record.prompt_key for record in records] for name, records in self.parts.sets.items()}
        write_json(folder.path / "split.json", keys)
        shots = _spread(train, SHOTS_KEPT, self.settings.seed)
        write_json(folder.path / "examples.json", [_shown(record) for record in shots])
        save_loss_png(training, folder.path / "loss.png")
        write_report(empty_report(run, str(folder.path)), folder.path)
        write_card(None, run_part(run, str(folder.path)), folder.path)
        write_json(folder.path / RUN_FILE, run)
        console.say(f"Stopped: {outcome.stopped}. Kept: step {best} ({training['watch']})")
        console.say(f"{outcome.tokens_per_second:,.0f} tokens/s; run folder: {folder.path}")


def _worse(monitor: Any, untuned: float) -> bool:
    return not (monitor.best > untuned if monitor.higher_is_better else monitor.best < untuned)


def _spread(records: Sequence[Record], most: int, seed: int) -> list[Record]:
    """Up to `most` records, the same number of each task, drawn by seed: a file is often sorted by label."""
    import numpy as np

    by_task: dict[str | None, list[Record]] = {}
    for record in records:
        by_task.setdefault(record.task, []).append(record)
    share = max(1, most // len(by_task))
    draw = np.random.default_rng(seed)
    return [
        group[place] for group in by_task.values() for place in sorted(draw.permutation(len(group))[:share].tolist())
    ][:most]


def _shown(record: Record) -> dict[str, Any]:
    last = record.last_user
    return {"task": record.task, "instruction": last.text, "input": last.input, "output": record.answer}


def _digest(records: Sequence[Record]) -> str:
    import hashlib

    return hashlib.sha256("".join(record.key for record in records).encode()).hexdigest()


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [
            line for key in keys for line in _differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if before == now else [f"{name}: was {before!r}, is {now!r}"]


def _flat(entry: dict[str, Any]) -> dict[str, float]:
    if "look" in entry:
        return {f"{name}/{key}": value for name, part in entry["look"].items() for key, value in part.items()}
    return {f"train/{key}": value for key, value in entry.items() if key not in ("step", "seconds")}


class _Signals:
    reason = ""
    exit_code = 0


@contextmanager
def _signals() -> Iterator[_Signals]:
    """Ctrl-C and SIGTERM stop at the next step edge with a checkpoint; a second one stops at once."""
    state = _Signals()

    def handle(number: int, _: FrameType | None) -> None:
        if state.reason:
            raise KeyboardInterrupt
        state.reason = f"stopped by {signal.Signals(number).name}"
        state.exit_code = 128 + number
        console.note("stopping after this step (again: at once, without a checkpoint)")

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are somebody else's
        before = {}
    try:
        yield state
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield
