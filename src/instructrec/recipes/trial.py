"""One run of a comparison: a setting with a seed, tuned, tested, and written down as one result file.

A result that is there with the same identity is not made again; a run that was stopped goes on from its checkpoint.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__, console
from ..config import TuneSettings
from ..data.records import Record
from ..environment import commit_of_source
from ..errors import DataError
from ..files import discard, read_json, sha256_of, write_json
from .contestants import Contestant, plain
from .memory import _CLEAR, _status
from .resume import differences
from .rows import Data
from .runfolder import RUN_FILE
from .testrows import SeedRows

FORMAT = 2  # 1 scored all that was written


@dataclass(frozen=True)
class Trial:
    """A setting, a seed, its rows, and where things lie: folder/results/NAME-sSEED.json, folder/runs/NAME-sSEED."""

    contestant: Contestant
    seed: int
    rows: SeedRows
    folder: Path
    max_new_tokens: int | None

    @property
    def title(self) -> str:
        """What the terminal calls it."""
        return f"{self.contestant.name}, seed {self.seed}"

    @property
    def file(self) -> Path:
        """The result."""
        return self.folder / "results" / f"{self.contestant.slug}-s{self.seed}.json"

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder / "runs" / f"{self.contestant.slug}-s{self.seed}"

    @property
    def settings(self) -> TuneSettings:
        """Those of `tune`."""
        return self.contestant.of_seed(self.seed, self.run)

    def identity(self) -> dict[str, Any]:
        """What makes a result the result it is: settings, rows, the files that settings name, how answers are asked."""
        from ..inference.loading import fingerprint

        settings = self.settings
        named = {"template": settings.template, "validation": settings.validation, "model": settings.model}
        files = {key: _print(Path(value)) for key, value in named.items() if value and Path(value).is_file()}
        return {
            "format": FORMAT,
            "settings": plain(settings) | {"seed": self.seed},
            "rows": self.rows.digests,
            "files": files | ({"model": fingerprint(settings.model)} if Path(settings.model).is_dir() else {}),
            "max_new_tokens": self.max_new_tokens,
        }

    def known(self) -> dict[str, Any] | None:
        """The result that is there, if it is this one; why an older one is made anew is told."""
        if not self.file.is_file():
            return None
        result: dict[str, Any] = read_json(self.file)
        changed = differences(result["identity"], self.identity())
        if not changed:
            return result
        console.note(f"{self.title}: made anew, it was another run:")
        for line in changed[:8]:
            console.note(f"  {line}")
        return None

    def make(self, command: str, labels: Sequence[str] | None) -> dict[str, Any]:
        """Tune (or go on), test, and write the result. Raises what `tune` and `evaluate` raise."""
        identity = self.identity()
        note = tuned(self.rows.train, self.settings, identity)
        started = time.perf_counter()
        suites = _tested(self.run, self.rows.suites, self.settings, self.max_new_tokens, labels)
        run = read_json(self.run / RUN_FILE)
        commit, dirty = commit_of_source()
        result = {
            "name": self.contestant.name,
            "seed": self.seed,
            "command": command,
            "version": __version__,
            "commit": commit,
            "dirty": dirty,
            "tuned_by": {key: note[key] for key in ("commit", "dirty")},
            "hash": hash_of(identity),
            "identity": identity,
            "method": run["method"],
            "trained_parameters": run["trained_parameters"],
            "parameters": run["parameters"],
            "rows": run["data"]["parts"]["train"],
            "steps": run["training"]["steps"][-1]["step"],
            "best_step": run["training"]["best_step"],
            "stopped": run["training"]["stopped"],
            "training_seconds": round(run["training"]["steps"][-1]["seconds"], 1),
            "peak_memory_bytes": note["peak_memory_bytes"],
            "test_seconds": round(time.perf_counter() - started, 1),
            "surroundings": run["surroundings"],
            "suites": suites,
        }
        write_json(self.file, result)
        return result


def hash_of(identity: Mapping[str, Any]) -> str:
    """16 hex digits of an identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _print(path: Path) -> str:
    """A digest of a small file; of a large one (a GGUF model) its size is enough."""
    size = path.stat().st_size
    return sha256_of(path)[:16] if size < 1 << 26 else f"{size} bytes"


def tuned(rows: Data, settings: TuneSettings, identity: Any) -> dict[str, Any]:
    """Tune into `settings.out`, go on where a killed run stopped, or do nothing if it has ended.

    Returns identity, commit and peak memory of the tuning, which also stand in a file beside the run folder. What lies
    in the folder from another identity is deleted.  identity: what JSON can hold.
    """
    from .tune import tune_files

    folder = Path(str(settings.out))
    file = folder.with_name(f"{folder.name}.json")
    note = dict(read_json(file)) if file.is_file() else {}
    same = note.get("identity") == identity
    if same and (folder / RUN_FILE).is_file() and "peak_memory_bytes" in note:
        return note
    goes_on = same and any((folder / "checkpoints").glob("step-*"))
    if not goes_on:
        commit, dirty = commit_of_source()
        note = {"identity": identity, "commit": commit, "dirty": dirty}
        if folder.exists():
            discard(folder)
        write_json(file, note)  # after the old run is gone: a kill in between must not make it the new one's
    memory = Peak()
    again = settings.model_copy(update={"resume": "latest-valid" if goes_on else False})
    tune_files(rows, again, {})  # type: ignore[arg-type]  # it takes what `tune` takes
    note["peak_memory_bytes"] = memory.bytes
    write_json(file, note)
    return note


class Peak:
    """The most memory of this process since this was made: on a GPU its tensors, else all that it holds.

    What an earlier run has left behind counts too, so that of settings which take about the same the first looks
    smallest.
    """

    def __init__(self) -> None:
        import torch

        gc.collect()
        self._cuda = torch.cuda if torch.cuda.is_available() else None
        if self._cuda:
            self._cuda.empty_cache()
            self._cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            _CLEAR.write_text("5")

    @property
    def bytes(self) -> int | None:
        """So far; None where the system does not tell."""
        return int(self._cuda.max_memory_allocated()) if self._cuda else _status("VmHWM")


def _tested(
    folder: Path,
    suites: Mapping[str, Sequence[Record]],
    settings: TuneSettings,
    max_new_tokens: int | None,
    labels: Sequence[str] | None,
) -> dict[str, Any]:
    """Answers, scores and losses of each row of each suite."""
    from ..evaluation.arms import Bench
    from ..inference.loading import open_target
    from ..measures.extraction import extracted
    from ..measures.metrics import METRICS, score

    loaded = open_target(str(folder), precision=settings.precision, offline=settings.offline)
    bench = Bench(loaded, [], 0, settings.seed, 32)
    asked = {name: bench.ask(records, ["tuned"], max_new_tokens) for name, records in suites.items()}
    if problems := [problem for _, some in asked.values() for problem in some]:
        raise DataError(problems)
    found: dict[str, Any] = {}
    for name, records in suites.items():
        with console.progress(len(records), f"Answering {name}", unit="rows") as bar:
            answered = bench.answer("tuned", asked[name][0], bar.advance)
        right = [one.answers for one in records]
        scores = score(extracted(answered.texts, right, labels), right, labels=labels, losses=answered.losses)
        by_row = [metric for metric in scores.statistics if METRICS[metric].per_row]
        found[name] = {
            "rows": [record.key for record in records],
            "tasks": [record.task for record in records],
            "nats": [round(nats, 5) for nats, _ in answered.losses],
            "tokens": [count for _, count in answered.losses],
            "scores": {metric: [round(value, 3) for value in scores.values(metric).tolist()] for metric in by_row},
            "answers": [text.encode("utf-8", "replace").decode() for text in answered.texts],
        }
    return found
