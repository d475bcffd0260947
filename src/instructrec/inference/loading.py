"""Opening what a user names: a run folder that `tune` left behind, or any pretrained model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, path_problem
from ..models import backbone as backbones
from ..models import methods
from ..models.backbone import Backbone
from ..models.choosing import LABELS, Chooser, choose, read_labels, spell
from ..models.kinds import Kind, kind_of
from ..models.kinds.encoder import CLOZE, MARK, TIED
from ..models.loading import json_object, quiet
from ..models.reading import Reading, ReadingPlan, cut, install
from ..models.sharing import Resident, turn_of
from ..prompts.choose import make_renderer
from ..prompts.template import Rendered, Renderer
from ..prompts.verbalizer import Verbalizer

RUN_FILE, PROMPT_FILE = "run.json", "prompt.json"


@dataclass(frozen=True)
class Choosing:
    """What an encoder is told that was not tuned. labels: those it chooses from, None where the rows have no closed
    set of them.  head: by what it answers."""

    labels: Verbalizer | None = None
    head: str = "auto"

    def check(self, kind: Kind, name: str) -> None:
        """Raises InputError for a model that only chooses, where there is nothing to choose from."""
        if kind.chooses and self.labels is None:
            raise InputError(
                f"model: '{name}' is an encoder: it chooses among labels and writes no text, and no closed set of "
                "labels is known here (want label rows, words of the labels, or a run that was tuned on them)"
            )


@dataclass
class Loaded:
    """A model ready to answer, with the renderer it has to be asked through.

    model: what answers: a `Reading` where an instruction is read by a plan, a `Chooser` where labels are chosen, else
    the backbone itself.
    run: contents of run.json, or {} for an untuned model.  method: None for an untuned model.
    notes: what a reader of its figures has to know.
    """

    backbone: Backbone
    model: Any
    renderer: Renderer
    method: methods.Method | None
    run: dict[str, Any]
    folder: Path | None
    precision: str
    notes: tuple[str, ...] = ()

    @property
    def decoder(self) -> Any:
        """The model without its reading plan or its labels."""
        return self.model.model if isinstance(self.model, (Reading, Resident, Chooser)) else self.model

    @property
    def strokes(self) -> int:
        """How often an instruction is read."""
        return self.model.strokes if isinstance(self.model, Reading) else 1

    def positions(self, prompt: Rendered) -> int:
        """Positions that a prompt takes before its answer begins."""
        return positions(self.model, prompt)

    def room(self, prompt: Rendered) -> int:
        """Tokens that the answer to a prompt may have; none are left where this is below 1."""
        return self.backbone.kind.room(self.backbone.max_positions, self.positions(prompt))

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer."""
        return self.renderer.stop_ids(self.backbone.stop_ids)

    @contextmanager
    def untuned(self) -> Iterator[Any]:
        """The pretrained model reading once, for as long as the block lasts. Raises InputError where the method can't
        be undone."""
        plain = self.method.disabled(self.decoder) if self.method else nullcontext(self.decoder)
        with turn_of(self.model), plain as model:
            yield self.as_asked(model)

    def as_asked(self, model: Any) -> Any:
        """The model that a method was taken from, choosing among the same labels where this one chooses."""
        if not isinstance(self.model, Chooser):
            return model
        return self.model.over(model) if self.method else self.model

    def choosing(self, labels: Verbalizer) -> Loaded:
        """The same model choosing among these, as it does without being tuned to any; this one where it knows them all.
        Raises InputError for a model that was tuned to others."""
        if isinstance(self.model, Chooser) and self.renderer.labels:
            known, words = self.renderer.labels, [word for _, word in labels.candidates]
            if self.model.tuned or all(known.knows(word) for word in words):
                if len({known.number(word) for word in words}) == len(words):
                    return self
                if self.model.tuned:
                    raise InputError("verbalizer: this model was tuned to one answer a label (want one word each)")
        renderer = self.renderer.with_labels(labels)
        model = chooser(self.decoder, renderer).eval()
        return replace(self, backbone=seated(self.backbone, renderer), renderer=renderer, model=model)


def renderer_for(base: Backbone, template: str, system: str, labels: Verbalizer | None = None) -> Renderer:
    """The renderer that a backbone is asked through, as `make_renderer` finds it for its kind. labels: what it chooses
    from, if its kind does."""
    kind = base.kind
    given: dict[str, Any] = {"default": kind.template, "closed": kind.closed, "masked": kind.masked}
    return make_renderer(base.tokenizer, template, system, **given).with_labels(labels if kind.chooses else None)


def seated(base: Backbone, renderer: Renderer) -> Backbone:
    """The backbone with the positions that are left beside the words of the renderer's labels. Raises InputError for
    labels that can't be asked so."""
    if not base.kind.chooses or renderer.labels is None:
        return base
    return replace(base, max_positions=base.max_positions - spell(renderer, masked=base.kind.masked).extra)


def chooser(model: Any, renderer: Renderer) -> Any:
    """What chooses among the renderer's labels with a model of a kind that does so, else the model itself."""
    kind = kind_of(model)
    return choose(model, spell(renderer, masked=kind.masked)) if kind.chooses and renderer.labels else model


def positions(model: Any, prompt: Rendered) -> int:
    """Positions that a prompt takes before its answer begins, where `model` reads it."""
    if not isinstance(model, Reading):
        return prompt.prompt_end
    end = cut(prompt)
    return model.plan.last_position(end, prompt.prompt_end - end, model.strokes)


def is_run(target: str) -> bool:
    """True for a folder that `tune` left behind. Raises InputError for what can't be a name at all."""
    if problem := path_problem(target):
        raise InputError(f"model: {problem}")
    return Path(target, RUN_FILE).is_file()


def open_target(
    target: str,
    *,
    precision: str = "auto",
    offline: bool = False,
    template: str = "auto",
    system: str = "",
    strokes: int | None = None,
    base: Backbone | None = None,
    choosing: Choosing = Choosing(),
) -> Loaded:
    """Load a run folder, or a built-in name, model folder, GGUF file or hub id, for answering.

    strokes: how often an instruction is read; None for as often as in tuning, or once.
    base: the backbone, where it is loaded already.  choosing: what an encoder is told that was not tuned.
    A run brings its own prompt template: another one is refused, since the model was not tuned for it.
    """
    if strokes is not None:
        ReadingPlan().check_dial(strokes)  # before a model is loaded: the plan of a run may allow less
    dtype = backbones.compute_dtype(precision)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    if not is_run(target):
        if Path(target, "checkpoints").is_dir():
            raise InputError(
                f"{target}: no {RUN_FILE}: the run has not finished (go on with `instructrec tune --resume`)"
            )
        if Path(target, LABELS).is_file():
            return _open_exported(Path(target), dtype, precision, system)
        how: dict[str, Any] = {"head": choosing.head, "accepts": lambda kind: choosing.check(kind, target)}
        base = base or backbones.load(target, dtype=dtype, offline=offline, **how)
        choosing.check(base.kind, target)
        model = base.model
        install(model)
        if strokes and strokes > 1:
            model = Reading(model, ReadingPlan(strokes=(strokes,))).eval()
        renderer = renderer_for(base, template, system)
        told = base.notes if base.kind.chooses else ()
        plain = Loaded(base, model, renderer, None, {}, None, precision, told)
        return plain.choosing(choosing.labels) if base.kind.chooses and choosing.labels else plain
    folder = Path(target)
    run = run_of(folder)
    if template != "auto":
        raise InputError(f"template: '{target}' was tuned with its own prompt (leave --template away)")
    method = methods.get(run["method"])
    base = base or backbones.load(run["backbone"]["name"], dtype=dtype, offline=offline, head=head_of(folder))
    method.check_kind(base.kind.name)
    labels = _labels_of(folder, base)
    install(base.model)
    found = fingerprint(base.folder)
    if found and run["backbone"]["fingerprint"] not in (found, ""):
        raise InputError(
            f"{folder / RUN_FILE}: backbone: '{base.name}' is not the model this run was tuned on any more"
        )
    if not (folder / PROMPT_FILE).is_file():
        raise InputError(f"{folder}: no {PROMPT_FILE}: without it the model would be asked differently")
    renderer = Renderer.from_json(json_object(folder / PROMPT_FILE), base.tokenizer, str(folder / PROMPT_FILE))
    plan = ReadingPlan.from_json(renderer.reading, str(folder / PROMPT_FILE))
    dial = strokes or plan.most
    plan.check_dial(dial)
    with quiet():
        model = method.load(base.model, folder)
        for name in plan.adapters:
            method.load_more(model, folder, name)
        model = model.to(dtype).eval()
    base = methods.narrowed(base, method, method.positions_of(model))
    asked = renderer.with_system(system) if system else renderer
    if labels:
        _check_same(folder, labels, renderer)
        base = seated(base, asked)
        model = chooser(model, asked).eval()
        model.load_extra(folder)
    if plan.plain and dial == 1:
        return Loaded(base, model, asked, method, run, folder, precision)
    reading = Reading(model, plan, method.using).eval()
    reading.load_extra(folder)
    reading.strokes = dial
    note = f"tuned to read {plan.describe()}, asked to read {'once' if dial == 1 else f'{dial} times'}"
    notes = () if dial in plan.strokes else (note,)
    return Loaded(base, reading, asked, method, run, folder, precision, notes)


def _labels_of(folder: Path, base: Backbone) -> Verbalizer | None:
    """What a run's model chooses from, if it does. Raises InputError where that is missing, or was for another way of
    answering."""
    if not base.kind.chooses:
        return None
    labels, head = read_labels(folder)
    if head != (got := getattr(base.model.config, MARK)):
        raise InputError(f"{folder / LABELS}: head: the backbone answers otherwise (got {got}, want {head})")
    return labels


def _check_same(folder: Path, labels: Verbalizer | None, renderer: Renderer) -> None:
    given, kept = ([*one.words.items()] if one else [] for one in (labels, renderer.labels))  # in their order
    if given != kept:
        raise InputError(f"{folder / LABELS}: labels: others than {PROMPT_FILE} has, which the model was tuned with")


def head_of(folder: Path) -> str:
    """The setting `encoder.head` that leads to the way in which a tuned or exported model answers."""
    if not (folder / LABELS).is_file():
        return "auto"
    _, mark = read_labels(folder)
    return CLOZE if mark == TIED else mark


def _open_exported(folder: Path, dtype: torch.dtype, precision: str, system: str) -> Loaded:
    """An encoder that `export` left, with its labels."""
    base = backbones.load(str(folder), dtype=dtype, offline=True, head=head_of(folder))
    labels = _labels_of(folder, base)
    file = folder / PROMPT_FILE
    renderer = Renderer.from_json(json_object(file), base.tokenizer, str(file))
    _check_same(folder, labels, renderer)
    asked = renderer.with_system(system) if system else renderer
    base = seated(base, asked)
    model = chooser(base.model, asked).eval()
    model.load_extra(folder)
    return Loaded(base, model, asked, None, {}, None, precision)


def run_of(folder: Path) -> dict[str, Any]:
    """What run.json says. Raises InputError where it does not even name a method and a backbone."""
    run = json_object(folder / RUN_FILE)
    backbone = run.get("backbone")
    given = [backbone.get("name"), backbone.get("fingerprint"), run.get("method")] if isinstance(backbone, dict) else []
    if not given or not all(isinstance(value, str) for value in given):
        raise InputError(f"{folder / RUN_FILE}: want the names of a method and a backbone, and its fingerprint")
    return run


def fingerprint(folder: str) -> str:
    """16 hex digits over a model folder's configuration and its weights' sizes, first and last megabyte; '' for a hub
    id. Enough to tell two models apart, and quick for large ones. The same weights saved by another version of the
    library, or with other spacing, are the same model."""
    path = Path(folder)
    if not path.is_dir():
        return ""
    config = json.dumps(_without_version(json_object(path / "config.json")), sort_keys=True)
    digest = hashlib.sha256(config.encode())
    for weights in sorted(path.glob("*.safetensors")):
        size = weights.stat().st_size
        digest.update(f"{weights.name}:{size}".encode())
        with open(weights, "rb") as handle:
            digest.update(handle.read(1 << 20))
            handle.seek(max(0, size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()[:16]


def _without_version(config: Any) -> Any:
    """A configuration less the `transformers_version` that wrote it, also in those nested in it."""
    if not isinstance(config, dict):
        return config
    return {key: _without_version(value) for key, value in config.items() if key != "transformers_version"}
