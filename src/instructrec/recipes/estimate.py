"""`instructrec estimate`: how much memory a run will need, before any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import console
from ..config import Source, TuneSettings
from ..errors import EnvironmentFault
from ..files import read_json
from ..models import embedded
from ..models.footprint import Architecture, Footprint, Shape, architecture
from .memory import available, estimated, in_half, look_batches, look_tokens, shown, tuned_by, usual, worst, worst_of

_LIMIT = 2048  # tokens of a row where nobody says, as in models/backbone.py
_WORDS = {
    "weights": "the model's weights",
    "trained": "trained weights, in fp32",
    "gradients": "gradients (where activations have gone)",
    "optimizer": "AdamW's two averages",
    "activations": "activations kept for the backward pass",
    "logits": "logits, their logarithms and gradient",
    "look": "a look at held-out rows (at another time)",
    "allocator": "holes that the allocator keeps",
    "libraries": "libraries and their buffers",
}


def estimate(files: Sequence[str | Source], settings: TuneSettings) -> Footprint:
    """Say what the settings need, what each part takes, and what would save most; rows tell how long they are.

    Raises InputError for a model that is not there or not estimated, DataError for bad rows.
    """
    folder = folder_of(settings)
    model = architecture(read_json(folder / "config.json"))
    usually = (usual(settings, _limit(settings, model)), None, False)
    shape, look, share = _of_rows(files, settings, model) if files else usually
    found = estimated(model, settings, shape, look)
    half = "bf16" if in_half(settings.precision) else "fp32"
    console.say(
        f"{settings.model}: {model.parameters():,} weights in {half}, "
        f"{tuned_by(model, settings).parameters:,} trained ({settings.method})"
    )
    console.say(
        f"Largest micro-batch: {shape.rows:,} × {shape.tokens:,} tokens, {shape.targets:,} of them answers"
        + (" (beginnings that rows share counted once)" if share else "")
        + ("" if files else " (no rows were given: as many and as long as batch_tokens allows, half of them answers)")
    )
    rows = [(_WORDS[name], shown(getattr(found, name))) for name in _WORDS if getattr(found, name)]
    console.table(("what for", "memory"), [*rows, ("at most at once, above the program itself", shown(found.total))])
    _advise(model, settings, shape, look, found, known=bool(files))
    return found


def folder_of(settings: TuneSettings) -> Path:
    """Where the model's configuration lies; torch is only imported for a GGUF file or a hub id."""
    name = settings.model
    if name in embedded.MODELS:
        if not embedded.cached(name):
            raise EnvironmentFault(f"model: '{name}' is not here yet (instructrec models fetch {name})")
        return embedded.folder_of(name)
    if (Path(name) / "config.json").is_file():
        return Path(name)
    from ..models.backbone import find

    return Path(find(name, settings.offline))


def _limit(settings: TuneSettings, model: Architecture) -> int:
    return settings.max_length or min(model.positions, _LIMIT)


def _of_rows(
    files: Sequence[str | Source], settings: TuneSettings, model: Architecture
) -> tuple[Shape, Shape | None, bool]:
    """The largest micro-batch of these rows, the largest look at the held-out ones, and whether their beginnings are
    shared."""
    from ..models.backbone import load_tokenizer
    from ..models.methods import get
    from ..prompts.choose import make_renderer
    from ..prompts.lengths import fit
    from ..prompts.shelf import column
    from ..training.loop import Plan, plan_steps, row_lengths
    from .reading import plan_of
    from .rows import read_rows
    from .watch import drawn, fewer, part_rows

    rows = read_rows(list(files), settings)
    watched = None if settings.validation is None else read_rows(settings.validation, settings).records
    parts = fewer(part_rows(rows.records, watched, settings), settings)
    tokenizer, limit, kind = load_tokenizer(settings.model, offline=settings.offline, head=settings.encoder.head)
    renderer = make_renderer(tokenizer, settings.template, settings.system, default=kind.template, closed=kind.closed)
    plan = Plan(
        epochs=1.0,
        batch_tokens=settings.batch_tokens,
        batch_rows=settings.batch_rows,
        learning_rate=1.0,
        reading=plan_of(settings, get(settings.method)),
    )

    def rendered(records: Any) -> Any:
        limits = (settings.max_length or limit, settings.on_long)
        return fit(records, renderer, *limits, size=kind.size).rendered

    train = rendered(parts.train)
    lengths = row_lengths(train, plan)
    steps = plan_steps(lengths, plan, column(train, "size"))
    tuned = tuned_by(model, settings)
    share = kind.causal and plan.reading.as_rows(plan.reading.most) and _shares(settings)
    shape = worst_of(model, tuned, train, lengths, steps.batches, share)
    looks: list[Shape] = []
    for records in parts.sets.values():
        held = rendered(drawn(records, settings.eval_rows, settings.seed))
        if len(found := row_lengths(held, plan)):
            batches = look_batches(found, look_tokens(settings.batch_tokens))
            looks.append(worst_of(model, tuned, held, found, batches, share))
    return shape, worst(model, tuned, looks) if looks else None, share


def _shares(settings: TuneSettings) -> bool:
    """Whether rows will share their beginnings, as far as a configuration tells: with an attention that ours stands in
    for, and nothing drawn in training (`training.prefixes` tries it out once there are weights)."""
    import torch
    import transformers

    from ..models.loading import BROKEN

    folder = folder_of(settings)
    own = getattr(settings, settings.method, None)
    named = [*_numbers(read_json(folder / "config.json")), ("dropout of the method", getattr(own, "dropout", 0))]
    heads = ("summary", "classifier")  # of parts that a language model does not have
    if any(value > 0 and re.search("drop|noise|jitter", name) and not name.startswith(heads) for name, value in named):
        return False
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model: Any = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except BROKEN:
        return False
    return bool(model.config.get_text_config()._attn_implementation == "sdpa")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield name, value


def _advise(
    model: Architecture, settings: TuneSettings, shape: Shape, look: Shape | None, found: Footprint, *, known: bool
) -> None:
    """What would save most, and whether the machine has as much as is needed. known: `shape` is that of real rows."""
    if shape.rows > 1 or not known:
        rows = max(1, shape.rows // 2)
        beginnings = min(rows, shape.beginnings)
        fewer_rows = Shape(rows, shape.tokens, shape.targets // 2, beginnings, shape.length)
        half = fewer_rows if shape.rows > 1 else Shape(1, max(1, shape.tokens // 2), shape.targets // 2)
        words = f"--batch-tokens {settings.batch_tokens // 2} --accumulation {settings.accumulation * 2}"
    else:  # a row stands alone, however few tokens a batch may have
        half = Shape(1, max(1, shape.tokens // 2), shape.targets // 2)
        words = f"--max-length {half.tokens}"
    ways: list[tuple[str, TuneSettings, Shape]] = [(words, settings, half)]
    if not settings.checkpointing:
        ways.append(("--checkpointing (a third more time)", settings.model_copy(update={"checkpointing": True}), shape))
    if not in_half(settings.precision):
        ways.append(("--precision bf16", settings.model_copy(update={"precision": "bf16"}), shape))
    if settings.method == "full":
        ways.append(("--method lora", settings.model_copy(update={"method": "lora"}), shape))
    saved = {words: found.total - estimated(model, other, smaller, look).total for words, other, smaller in ways}
    best = max(saved, key=saved.__getitem__)
    if saved[best] > 0:
        console.say(f"What would save most: {best}: {shown(saved[best])} less")
    free = available()
    if free is not None:
        fits = "enough" if free > found.total else "NOT enough"
        console.say(f"This machine has {shown(free)} to give: {fits} (a GPU's own memory is not looked at)")
