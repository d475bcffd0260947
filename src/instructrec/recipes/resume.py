"""Going on with a run: whether this is the same run, from which checkpoint, and whether it has ended already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import console
from ..config import TuneSettings
from ..data.records import Record, Rows
from ..environment import arithmetic_flags
from ..errors import InputError
from ..files import read_json
from .rows import MEMORY
from .runfolder import RUN_FILE, RunFolder, is_run

if TYPE_CHECKING:
    from ..training.processes import Processes

# Settings that may differ between a run and its resumption without changing the result.
FREE = ("resume", "out", "offline", "trackers", "threads", "ignore", "learning_curve")
DIGITS = "results can differ in the last digits"


class Start(NamedTuple):
    """Where a run goes on. best_lost: the best checkpoint before this one is damaged and can't be the result."""

    checkpoint: Path
    best_lost: bool


def identity(
    settings: TuneSettings, rows: Rows, watched_files: Mapping[str, str], backbone: Any, renderer: Any
) -> dict[str, Any]:
    """What makes a run the run it is, for `settings.json`: settings, and digests of rows, backbone and prompt.

    watched_files: name -> sha256 of the rows given to watch.
    """
    from ..inference.loading import fingerprint

    several = {"sources": [asdict(part) | {"files": list(part.files)} for part in rows.sources]} if rows.sources else {}
    return several | {
        "settings": settings.model_dump(mode="json", exclude=set(FREE)),
        "data": dict(rows.files) or {MEMORY: digest(rows.records)},
        "validation": dict(watched_files),
        "backbone": {"name": backbone.name, "fingerprint": fingerprint(backbone.folder)},
        "prompt": renderer.to_json()["sha256"],
    }


def same_everywhere(group: Processes, now: Mapping[str, Any]) -> None:
    """Raises InputError on all processes when one of them sees other rows, settings or weights than the first."""
    first, *others = group.exchange(now)
    for rank, other in enumerate(others, 1):
        if lines := differences(first, other, said="process 0 has {}, process " + str(rank) + " has {}"):
            raise InputError("the processes of this run differ:\n" + "\n".join(f"  {line}" for line in lines))


def digest(records: Sequence[Record]) -> str:
    """Hex sha256 of rows that came from no file."""
    return hashlib.sha256("".join(record.key for record in records).encode()).hexdigest()


def differences(before: Any, now: Any, name: str = "", said: str = "was {}, is {}") -> list[str]:
    """One line for each value that differs, `settings.lora.rank: was 16, is 4`, in the order of the names."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        names = {key: f"{name}.{key}".strip(".") for key in keys}
        return [line for key in keys for line in differences(before.get(key), now.get(key), names[key], said)]
    return [] if before == now else [f"{name}: " + said.format(repr(before), repr(now))]


def choose(folder: RunFolder, now: Mapping[str, Any], latest_valid: bool) -> Start:
    """The checkpoint to go on from, after making sure that it belongs to these settings and rows, and is whole.

    latest_valid: pass over damaged ones, and say so. Raises InputError.
    """
    from ..training.checkpoint import checkpoints, newest_valid, verify

    different = differences(_settings(folder.path / "settings.json"), now)
    if different:
        raise InputError("resume: this is another run:\n" + "\n".join(f"  {line}" for line in different))
    if latest_valid:
        found, reasons = newest_valid(folder.checkpoints)
        for reason in reasons:
            console.warn(reason)
        if reasons:
            console.warn(f"resume: going on from {found.name}, the newest checkpoint that is whole")
    else:
        all_of_them = checkpoints(folder.checkpoints)
        if not all_of_them:
            raise InputError(f"resume: {folder.checkpoints} holds no complete checkpoint")
        found = all_of_them[-1]
        try:
            verify(found)  # before its weights are read
        except InputError as error:
            raise InputError(f"{error}; --resume=latest-valid goes on from the newest one that is whole") from error
    state = read_json(found / "state.json")
    best = state["monitor"]["best_step"]
    if best in (0, state["step"]):
        return Start(found, False)
    try:
        verify(at_step(folder, best))
    except InputError as error:
        if not latest_valid:
            raise
        console.warn(f"{error}; it was the best so far: the best of the steps to come is kept instead")
        return Start(found, True)
    return Start(found, False)


def at_step(folder: RunFolder, step: int) -> Path:
    """The checkpoint of a step, or the path where it should be."""
    from ..training.checkpoint import checkpoints

    name = f"step-{step}"  # a crash while a checkpoint was written anew leaves the one before as step-N.old
    found = [path for path in checkpoints(folder.checkpoints) if path.name.removesuffix(".old") == name]
    return found[-1] if found else folder.checkpoints / name


def finished(folder: Path, checkpoint: Path) -> dict[str, Any] | None:
    """`best_step`, `steps` and `stopped` if the run ended with this checkpoint: going on would wipe its evaluation."""
    if not is_run(str(folder)):
        return None
    training = read_json(folder / RUN_FILE)["training"]
    last = training["steps"][-1]["step"]
    if checkpoint.name.removesuffix(".old") != f"step-{last}":
        return None
    return {"best_step": training["best_step"], "steps": last, "stopped": training["stopped"]}


def arithmetic(precision: str, processes: int = 1) -> dict[str, Any]:
    """What the last digits of a result depend on besides the run itself. Checkpoints keep it."""
    import torch

    from ..models.backbone import device

    return {
        "threads": torch.get_num_threads(),
        "processor": arithmetic_flags(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "device": device().type,
        "precision": precision,
        "torch": str(torch.__version__),
        "processes": processes,
    }


def other_arithmetic(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line for each entry of `arithmetic` that differs."""
    lines = []
    for name in sorted(now):
        old, new = before.get(name, now[name] if name == "processes" else None), now[name]  # older ones had but one
        if name == "processor":
            gone, come = (" ".join(sorted({*one} - {*other})) for one, other in ((old or [], new), (new, old or [])))
            what = "; ".join(filter(None, [gone and f"is without {gone}", come and f"has {come} in addition"]))
            lines += [f"the processor {what}: {DIGITS}"] if what else []
        elif old != new:
            was, is_now = ("were", "are") if name in ("threads", "vectors", "processes") else ("was", "is")
            effect = "results will differ" if name == "precision" else DIGITS
            effect += ", and dropout is drawn anew" if name == "processes" else ""
            lines.append(f"{name} {was} {old}, {is_now} {new}: {effect}")
    return [f"resume: {line}" for line in lines]


def _settings(file: Path) -> Any:
    try:
        return read_json(file)
    except FileNotFoundError as error:
        raise InputError(f"{file}: missing, so it can't be told which run this is") from error
    except ValueError as error:
        raise InputError(f"{file}: not JSON, so it can't be told which run this is: {error}") from error
