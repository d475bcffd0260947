"""Opening what a user names: a run folder that `tune` left behind, or any pretrained model."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import read_json
from ..models import backbone as backbones
from ..models import methods
from ..models.backbone import Backbone
from ..models.loading import quiet
from ..prompts.choose import make_renderer
from ..prompts.template import Renderer

RUN_FILE, PROMPT_FILE = "run.json", "prompt.json"


@dataclass
class Loaded:
    """A model ready to answer, with the renderer it has to be asked through.

    run: contents of run.json, or {} for an untuned model.  method: None for an untuned model.
    """

    backbone: Backbone
    model: Any
    renderer: Renderer
    method: methods.Method | None
    run: dict[str, Any]
    folder: Path | None
    precision: str

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end an answer."""
        return self.renderer.stop_ids(self.backbone.stop_ids)

    def untuned(self) -> AbstractContextManager[Any]:
        """The pretrained model, for as long as the block lasts. Raises InputError where the method can't be undone."""
        return self.method.disabled(self.model) if self.method else nullcontext(self.model)


def is_run(target: str) -> bool:
    """True for a folder that `tune` left behind."""
    return Path(target, RUN_FILE).is_file()


def open_target(
    target: str,
    *,
    precision: str = "auto",
    offline: bool = False,
    template: str = "auto",
    system: str = "",
) -> Loaded:
    """Load a run folder, or a built-in name, model folder, GGUF file or hub id, for answering.

    A run brings its own prompt template: another one is refused, since the model was not tuned for it.
    """
    dtype = backbones.compute_dtype(precision)
    precision = "bf16" if dtype == torch.bfloat16 else "fp32"
    if not is_run(target):
        if Path(target, "checkpoints").is_dir():
            raise InputError(
                f"{target}: no {RUN_FILE}: the run has not finished (go on with `instructrec tune --resume`)"
            )
        base = backbones.load(target, dtype=dtype, offline=offline)
        return Loaded(base, base.model, make_renderer(base.tokenizer, template, system), None, {}, None, precision)
    folder = Path(target)
    run = _object(folder / RUN_FILE)
    if template != "auto":
        raise InputError(f"template: '{target}' was tuned with its own prompt (leave --template away)")
    base = backbones.load(run["backbone"]["name"], dtype=dtype, offline=offline)
    found = fingerprint(base.folder)
    if found and run["backbone"]["fingerprint"] not in (found, ""):
        raise InputError(
            f"{folder / RUN_FILE}: backbone: '{base.name}' is not the model this run was tuned on any more"
        )
    if not (folder / PROMPT_FILE).is_file():
        raise InputError(f"{folder}: no {PROMPT_FILE}: without it the model would be asked differently")
    renderer = Renderer.from_json(_object(folder / PROMPT_FILE), base.tokenizer, str(folder / PROMPT_FILE))
    method = methods.get(run["method"])
    with quiet():
        model = method.load(base.model, folder).to(dtype).eval()
    return Loaded(base, model, renderer.with_system(system) if system else renderer, method, run, folder, precision)


def _object(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except ValueError as error:
        raise InputError(f"{file}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: not a JSON object")
    return value


def fingerprint(folder: str) -> str:
    """16 hex digits over a model folder's configuration and its weights' sizes, first and last megabyte; '' for a hub
    id. Enough to tell two models apart, and quick for large ones. The same weights saved by another version of the
    library, or with other spacing, are the same model."""
    path = Path(folder)
    if not path.is_dir():
        return ""
    config = json.dumps(_without_version(_object(path / "config.json")), sort_keys=True)
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
