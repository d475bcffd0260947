"""Memory of a run: estimated from the settings before anything is loaded, and measured beside it while tuning."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..config import Settings, TuneSettings
from ..errors import InputError
from ..models.footprint import Architecture, Footprint, Method, Shape, architecture, footprint, method, per_layer

if TYPE_CHECKING:
    from ..prompts.template import Rendered
    from ..training.loop import Training

LOOK_TOKENS = 4096  # tokens looked at together at most, unless a micro-batch has more
_LOOKED = 1 << 21  # tokens of rows that are compared, a second or two
_TRIM, _MAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Meter:
    """Bytes this process holds above what it held when the meter was made, at the most so far.

    On a CUDA device: those of its tensors.  Nothing is known where the system does not tell (no Linux), or in a process
    that had a meter before: what came before has left memory that is used again.
    """

    used = False

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._before: int | None = None
        if Meter.used:
            return
        Meter.used = True
        try:
            _CLEAR.write_text("5")  # forgets the peak of what came before
            self._before = _status("VmRSS")
        except OSError:
            pass

    @property
    def peak(self) -> int | None:
        """Bytes, or None."""
        if self.device == "cuda":
            import torch

            return int(torch.cuda.max_memory_allocated())  # since the process began
        now = _status("VmHWM")
        return None if now is None or self._before is None else max(0, now - self._before)


@contextmanager
def keeping_memory() -> Iterator[None]:
    """While this lasts, the C library keeps what is given back to it, for the next step: asking the system for the same
    pages in every step, and having them zeroed, takes a thirtieth of it. Nothing happens where it is not glibc."""
    try:
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_TRIM, 2**31 - 1)
        library.mallopt(_MAP, 2**30)
    except (OSError, AttributeError):
        yield
        return
    try:
        yield
    finally:
        library.malloc_trim(0)


def _status(key: str) -> int | None:
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def available() -> int | None:
    """Bytes of memory that programs could still take, or None where the system does not tell."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def in_half(precision: str) -> bool:
    """Whether weights and activations will be bf16; `auto` as `backbone.compute_dtype` has it, without torch."""
    if precision != "auto":
        return precision == "bf16"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        flags = ""
    return shutil.which("nvidia-smi") is not None or any(
        f" {flag}" in flags for flag in ("avx512_bf16", "amx_bf16", "bf16")
    )


def tuned_by(model: Architecture, settings: TuneSettings) -> Method:
    """What the settings train. Raises InputError for a method that brings no settings of its own."""
    own = getattr(settings, settings.method, None)
    if not isinstance(own, Settings):
        raise InputError(f"method: the memory of '{settings.method}' is not estimated")
    return method(model, settings.method, own.model_dump())


def _cost(model: Architecture, tuned: Method, shape: Shape) -> int:
    return model.layers * per_layer(model, tuned, shape, False) + shape.targets * model.vocabulary * 12


def worst(model: Architecture, tuned: Method, shapes: Iterable[Shape]) -> Shape:
    """The micro-batch that takes most."""
    return max(shapes, key=lambda shape: _cost(model, tuned, shape))


def worst_of(
    model: Architecture,
    tuned: Method,
    rows: Sequence[Rendered],
    lengths: Sequence[int] | NDArray[Any],
    batches: Sequence[Sequence[int]],
    share: bool,
) -> Shape:
    """The shape of the micro-batch that takes most. batches: numbers of rows of each, which share their beginnings if
    `share` says so: those that would be largest without are looked at until no other can be larger, or until _LOOKED
    tokens were; then the next is taken as it would be without.
    """
    from ..prompts.shelf import targets
    from ..training.dealt import Batches

    shapes = shapes_of(rows, lengths, batches)
    if not share:
        return worst(model, tuned, shapes)
    dealt = Batches.of(batches)
    sizes, most, wanted = dealt.sizes, dealt.most(np.asarray(lengths)), dealt.total(targets(rows))
    best, looked = Shape(0, 0, 0), 0
    for shape in sorted(shapes, key=lambda shape: _cost(model, tuned, shape), reverse=True):
        if _cost(model, tuned, best) >= _cost(model, tuned, shape):
            break
        places = np.flatnonzero((sizes == shape.rows) & (most == shape.tokens))
        looked += len(places) * shape.rows * shape.tokens
        if looked > _LOOKED and best.rows:
            return worst(model, tuned, [best, shape])
        found = (_shared(rows, dealt[place], replace(shape, targets=int(wanted[place]))) for place in places.tolist())
        best = worst(model, tuned, [best, *found])
    return best


def _shared(rows: Sequence[Rendered], numbers: Sequence[int], shape: Shape) -> Shape:
    """The shape of a batch once the beginnings that its rows share are there once."""
    from ..models.shared_prefix import common

    length, whose = common([rows[number].ids for number in numbers])
    return replace(shape, beginnings=int(whose.max()) + 1, length=length) if length else shape


def shapes_of(
    rows: Sequence[Rendered], lengths: Sequence[int] | NDArray[Any], batches: Sequence[Sequence[int]]
) -> list[Shape]:
    """The different shapes of micro-batches, given as numbers of rows; of those that differ in targets, the largest."""
    from ..prompts.shelf import targets
    from ..training.dealt import Batches

    dealt = Batches.of(batches)
    found = np.stack([dealt.sizes, dealt.most(np.asarray(lengths)), dealt.total(targets(rows))], axis=1)
    order = np.lexsort(found.T[::-1])
    last = np.ones(len(order), dtype=bool)
    last[:-1] = (found[order[1:], :2] != found[order[:-1], :2]).any(axis=1)
    return [Shape(*map(int, shape)) for shape in found[order[last]]]


def usual(settings: TuneSettings, limit: int) -> Shape:
    """The largest micro-batch where no rows are known: filled up with rows as long as it takes, half of them answers.

    limit: tokens a row may have.
    """
    tokens = min(limit, settings.batch_tokens)
    rows = settings.batch_tokens // tokens
    rows = min(rows, settings.batch_rows or rows)
    return Shape(rows, tokens, rows * tokens // 2)


def look_tokens(batch_tokens: int) -> int:
    """Tokens of held-out rows that are looked at together: no backward pass has to fit."""
    return max(batch_tokens, min(4 * batch_tokens, LOOK_TOKENS))


def look_batches(lengths: Sequence[int] | NDArray[Any], most: int) -> list[list[int]]:
    """The batches in which held-out rows are looked at, `most` tokens together."""
    from ..training.batching import by_length

    return by_length(lengths, sorted(range(len(lengths)), key=lengths.__getitem__), most, None)


def estimated(model: Architecture, settings: TuneSettings, shape: Shape, look: Shape | None, **more: Any) -> Footprint:
    """What the settings take with micro-batches of `shape`."""
    half = more.pop("half", None)
    if settings.deep:  # an answer after each reading; comparing them keeps one more gradient
        answers = max(map(int, settings.strokes.split(","))) * (1.5 if settings.consistency else 1)
        shape = replace(shape, targets=int(answers * shape.targets))
    return footprint(
        model,
        tuned_by(model, settings),
        shape,
        half=in_half(settings.precision) if half is None else half,
        checkpointing=settings.checkpointing,
        look=look,
        **more,
    )


class Ledger:
    """The estimate of a run beside what it takes: made before the first step, asked after it and at the end."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.entry: dict[str, Any] = {}

    def plan(
        self,
        config: Mapping[str, Any],
        settings: TuneSettings,
        half: bool,
        training: Training,
        watched: Mapping[str, Sequence[Rendered]],
        done: int = 0,
    ) -> None:
        """Estimate the steps of `training` after the first `done`, and the looks at `watched`.

        half: computed in bf16.  A model or method that is not estimated leaves no entry.
        """
        from ..training.loop import row_lengths

        try:
            tuned = tuned_by(model := architecture(config), settings)
        except InputError:
            return
        rows, reading = training.rows, training.plan.reading
        share = training.share and reading.as_rows(reading.most)
        first, run = (
            worst_of(model, tuned, rows, training.lengths, steps.batches, share)
            for steps in (training.steps[min(done, len(training.steps) - 1) :][:1], training.steps)
        )
        most = look_tokens(settings.batch_tokens)
        looks = [
            worst_of(model, tuned, held, held_lengths, look_batches(held_lengths, most), share)
            for held in watched.values()
            if len(held_lengths := row_lengths(held, training.plan))
        ]
        look = worst(model, tuned, looks) if looks else None
        given: dict[str, Any] = {"half": half, "processor": self.meter.device == "cpu"}
        self.entry = {
            "estimated_first_step": estimated(model, settings, first, look, **given).first,
            "estimated": estimated(model, settings, run, look, **given).total,
        }

    def after_first_step(self) -> str:
        """One line for the terminal, or '' where nothing is known; called again it says nothing."""
        if not self.entry or "measured_first_step" in self.entry:
            return ""
        self.entry["measured_first_step"] = peak = self.meter.peak
        if not peak:
            return ""
        return f"Memory: {shown(peak)} so far (estimated: {shown(self.entry['estimated_first_step'])})"

    def close(self) -> dict[str, Any]:
        """What `run.json` keeps: bytes above those of the program itself."""
        return self.entry | {"measured": self.meter.peak} if self.entry else {}


def shown(size: float) -> str:
    """`640 MB` or `2.31 GB`."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
