"""Rows, plans and a few steps of training on tiny models, for tests of several rooms."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from instructrec.config import TuneSettings
from instructrec.data.records import Origin
from instructrec.models.choosing import Chooser, Spelled, choose
from instructrec.models.kinds import kind_of
from instructrec.models.methods import Method, trained_parameters
from instructrec.prompts.template import Rendered
from instructrec.prompts.verbalizer import Verbalizer
from instructrec.training.loop import Plan, Training
from instructrec.training.processes import ALONE, Processes


def options_of(method: Method) -> dict[str, Any]:
    """A method's own settings as `tune` hands them over, at their defaults."""
    own = getattr(TuneSettings(), method.name, None)
    return own.model_dump() if own is not None else {}


def rows(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[Rendered]:
    """Random rows of these lengths; the second half of each is supervised."""
    draw = random.Random(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = [draw.randrange(3, vocabulary) for _ in range(length)]
        start = length // 2
        flags = [place >= start for place in range(length)]
        made.append(Rendered(ids, flags, start, start, 0, Origin("rows.tsv", number + 1)))
    return made


def plan(**changes: Any) -> Plan:
    """A plan with a constant rate, so that each step is visible in the weights."""
    values = {"epochs": 1.0, "batch_tokens": 4096, "learning_rate": 1e-2, "schedule": "constant"} | changes
    return Plan(**values)


def training(model: Any, data: Sequence[Rendered], how: Plan, group: Processes = ALONE) -> Training:
    """A `Training` on the processor, without mixed precision."""
    AcceleratorState._reset_state()
    return Training(model, data, how, Accelerator(cpu=True), group)


def take_steps(model: Any, steps: int, vocabulary: int, rate: float = 1e-2) -> None:
    """Some optimizer steps through the program's own loop."""
    data = rows([20, 7, 31, 12], vocabulary)
    whole = model
    if kind_of(model).chooses:
        whole = choosing(model, vocabulary)
        data = [labelled(row, number % 3, vocabulary) for number, row in enumerate(data)]
    run = training(whole, data, plan(epochs=float(steps), learning_rate=rate))
    assert len(run.steps) == steps
    for step in range(steps):
        run._step(step)
    model.eval()


MASK = 4


def choosing(model: Any, vocabulary: int) -> Chooser:
    """An encoder that chooses among three labels, one of them of two tokens."""
    words = ((7,), (8, 9), (10,))
    labels = Verbalizer({name: (name,) for name in "abc"})
    masked = kind_of(model).masked
    texts = tuple(([6, *word, 7],) for word in words)
    parts = ((), tuple((word,) for word in words)) if masked else ((), ())
    return choose(model, Spelled(labels, *parts, texts, MASK if masked else None, 3, vocabulary))


def labelled(row: Rendered, label: int, vocabulary: int) -> Rendered:
    """The prompt of a row with one mask in it, and a label."""
    ids = [5 if number == MASK else number for number in row.ids[: row.prompt_end]]
    ids[1:1] = [MASK]
    return replace(row, ids=[*ids, vocabulary + label], supervised=[False] * len(ids) + [True], prompt_end=len(ids))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Bit-equal weights under equal names."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tensors_in(folder: Path, but: Sequence[str] = ()) -> list[torch.Tensor]:
    """All tensors of all safetensors files of a folder, less those of some names."""
    files = [load_file(file) for file in sorted(folder.glob("*.safetensors"))]
    return [tensor for tensors in files for name, tensor in tensors.items() if name not in but]


__all__ = [
    "choosing",
    "labelled",
    "options_of",
    "plan",
    "rows",
    "same",
    "take_steps",
    "tensors_in",
    "trained_parameters",
    "training",
    "weights_of",
]
