"""Which prompt template a backbone is tuned and asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from .builtin import BUILTIN
from .template import Renderer


def make_renderer(tokenizer: Any, template: str = "auto", system: str = "") -> Renderer:
    """A renderer for `template`: auto (the model's chat template, else alpaca), model, alpaca, plain, or the path of
    a Jinja file. Raises InputError for an unknown name, naming the nearest."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several named templates: the default is the one for conversations
        own = own.get("default")
    if template == "model" and not own:
        raise InputError("template: this model brings no chat template (want alpaca, plain or a Jinja file)")
    if template in ("auto", "model") and own:
        return Renderer(tokenizer, own, name="model", system=system)
    name = "alpaca" if template == "auto" else template
    if name in BUILTIN:
        return Renderer(tokenizer, BUILTIN[name], name=name, system=system, own=False)
    path = Path(template)
    if path.is_file():
        try:
            source = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error
        return Renderer(tokenizer, source, name=path.name, system=system, own=False)
    raise InputError(f"template: unknown template '{template}', {did_you_mean(name, ['auto', 'model', *BUILTIN])}")
