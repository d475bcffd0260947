"""Which prompt template a backbone is tuned and asked with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import InputError, did_you_mean
from ..synonyms.templates import MARKS
from .builtin import BUILTIN
from .template import Renderer

# Makes an encoder's prompt end as the texts did that it was pretrained on. No block: it would eat spaces before it.
_CLOSE = "{{ eos_token if add_generation_prompt else '' }}"
_MASK = "{{ mask_token if add_generation_prompt else '' }}"


def make_renderer(
    tokenizer: Any,
    template: str = "auto",
    system: str = "",
    *,
    default: str = "alpaca",
    closed: bool = False,
    masked: bool = False,
) -> Renderer:
    """A renderer for `template`: auto (the model's chat template, else `default`), model, alpaca, plain, cloze, or the
    path of a Jinja file; `llama3` and the like are the model's own, if that is of this format. Raises InputError for
    an unknown name, naming the nearest, and for a cloze where nothing is masked.

    closed: the prompt goes to an encoder, so templates of ours and of the user end it with the tokenizer's end token.
    masked: the answer's place is a mask, at the end where a template does not say where.
    """
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several named templates: the default is the one for conversations
        own = own.get("default")
    if template == "model" and not own:
        raise InputError("template: this model brings no chat template (want alpaca, plain or a Jinja file)")
    if mark := MARKS.get(template):
        if mark not in (own or ""):
            got = "its own has no such mark" if own else "it brings none"
            raise InputError(
                f"template: {template}: this model does not mark turns with {mark} ({got}; want model, "
                "alpaca, plain or a Jinja file)"
            )
        template = "model"
    if template in ("auto", "model") and own:
        return Renderer(tokenizer, own, name="model", system=system)
    name = default if template == "auto" else template
    if name == "cloze" and not masked:
        raise InputError("template: cloze is for masked encoders that answer at a mask (want another template)")
    if name in BUILTIN:
        return Renderer(tokenizer, _closed(BUILTIN[name], closed, masked), name=name, system=system, own=False)
    path = Path(template)
    if path.is_file():
        try:
            source = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}") from error
        return Renderer(tokenizer, _closed(source, closed, masked), name=path.name, system=system, own=False)
    raise InputError(f"template: unknown template '{template}', {did_you_mean(name, ['auto', 'model', *BUILTIN])}")


def _closed(source: str, closed: bool, masked: bool) -> str:
    """Jinja drops the last line end of a template, so one that gets something behind it has to lose it here."""
    mask = _MASK if masked and "mask_token" not in source else ""
    return source.removesuffix("\n") + mask + _CLOSE if closed else source
