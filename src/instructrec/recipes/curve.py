"""`tune --learning-curve`: the same run on a quarter and on half of the rows, and what more rows would do.

Those runs are ordinary ones, in `curve/25` and `curve/50` of the run folder: same settings, seed, held-out rows and
epochs, the rows drawn by seed so that the quarter is part of the half. Each is gone on with where it was stopped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import console
from ..config import TuneSettings
from ..data.records import Record
from ..errors import InputError
from ..files import read_json, write_json
from ..measures.curve import SHARES, Curve, learning_curve
from .runfolder import RUN_FILE
from .watch import Parts, drawn, make_monitor

CURVE = "curve"
FEWEST = 8  # rows to train on: a quarter of them is two
MOST = 500  # held-out rows of each set whose losses are compared


def check_curve(parts: Parts, processes: int) -> None:
    """Raises InputError where no curve could come of it."""
    if not parts.sets:
        raise InputError("learning_curve: no rows are held out to compare the runs on")
    if len(parts.train) < FEWEST:
        raise InputError(f"learning_curve: too few rows to train on (got {len(parts.train)}, want at least {FEWEST})")
    if processes > 1:
        raise InputError(
            f"learning_curve: for one process (got {processes}); tune with --train-share 0.25 and 0.5 instead"
        )


def share_settings(settings: TuneSettings, share: float, folder: Path, resume: bool) -> TuneSettings:
    """The settings of the run on a share of the rows: as many epochs, and as many looks in an epoch."""

    def scaled(steps: int | None) -> int | None:
        return None if steps is None else max(1, math.ceil(steps * share))

    return settings.model_copy(
        update={
            "out": str(folder),
            "train_share": settings.train_share * share,
            "learning_curve": False,
            "trackers": "none",
            "resume": (settings.resume or True) if resume else False,
            "max_steps": scaled(settings.max_steps),
            "eval_every": scaled(settings.eval_every),
            "save_steps": scaled(settings.save_steps),
        }
    )


def draw_curve(main: Path, settings: TuneSettings, parts: Parts, tune: Callable[[TuneSettings], Any]) -> None:
    """Tune on the smaller shares, compare all runs on the held-out rows, and write what came of it into the run folder.

    tune: runs the settings it is given on the same rows.  A curve that is there already is only told again.
    """
    done = read_json(main / RUN_FILE).get("learning_curve")
    if done:
        console.say(done["sentence"])
        return
    folders = []
    for share in SHARES[:-1]:
        folder = main / CURVE / f"{share:.0%}".rstrip("%")
        begun = any((folder / "checkpoints").glob("step-*"))
        console.say(f"Learning curve: {share:.0%} of the rows, in {folder}")
        tune(share_settings(settings, share, folder, begun))
        folders.append(folder)
    records, sets = _rows(parts, settings)
    losses, kept = _losses([*folders, main], settings, records)
    sets, records = [sets[number] for number in kept], [records[number] for number in kept]
    weights = make_monitor(parts, settings).weights
    clusters = [record.group or record.instruction for record in records]
    curve = learning_curve(losses, sets, weights, clusters=clusters, seed=settings.seed)
    _write(main, folders, curve)
    console.say(curve.sentence)


def _rows(parts: Parts, settings: TuneSettings) -> tuple[list[Record], list[str]]:
    """Held-out rows drawn by seed, and the set of each."""
    records: list[Record] = []
    sets: list[str] = []
    for name, found in parts.sets.items():
        chosen = drawn(found, MOST, settings.seed)
        records += chosen
        sets += [name] * len(chosen)
    return records, sets


def _losses(
    folders: Sequence[Path], settings: TuneSettings, records: Sequence[Record]
) -> tuple[list[list[tuple[float, int]]], Sequence[int]]:
    """(nats, tokens) of each row under each run, and the numbers of the rows: those too long are left out."""
    from ..inference.loading import open_target
    from ..prompts.lengths import fit
    from ..training.loss import row_losses
    from .memory import look_tokens

    losses: list[list[tuple[float, int]]] = []
    kept: Sequence[int] = []
    for folder in folders:
        loaded = open_target(str(folder), precision=settings.precision, offline=settings.offline)
        limit = settings.max_length or loaded.backbone.default_length
        fitted = fit(records, loaded.renderer, limit, "drop", size=loaded.backbone.kind.size)
        kept = fitted.kept
        given: dict[str, Any] = {"pad_id": loaded.backbone.pad_id, "batch_tokens": look_tokens(settings.batch_tokens)}
        losses.append(row_losses(loaded.model, fitted.rendered, **given))
    return losses, kept


def _write(main: Path, folders: Sequence[Path], curve: Curve) -> None:
    """Picture, run.json, report and model card."""
    from ..evaluation.card import write_card
    from ..evaluation.pictures import learning_curve as picture
    from ..evaluation.pictures import save_png
    from ..evaluation.report import write_report
    from .measure import empty_report, run_part

    rows = [read_json(folder / RUN_FILE)["data"]["parts"]["train"] for folder in (*folders, main)]
    run = read_json(main / RUN_FILE)
    run["learning_curve"] = {"rows": rows, "sentence": curve.sentence, **asdict(curve)}
    save_png(picture(run["learning_curve"]), main / "curve.png")
    file = main / "report.json"
    report = read_json(file) if file.is_file() else empty_report(run, str(main))
    report["run"] = run_part(run, str(main))
    write_report(report, main)
    write_card(report if report["suites"] else None, report["run"], main)
    write_json(main / RUN_FILE, run)
