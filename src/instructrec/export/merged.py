"""`instructrec export`: a tuned model as an ordinary model folder that any engine with chat templates can serve.

The adapter is merged into the weights, and a reading plan that is one causal pass over [x; ..; x; a] becomes a chat
template that writes x several times. Both are checked before the folder is there: prompts have the ids that the run
was tuned with, and right answers the likelihood that the adapter gives them. An encoder has no chat template: its
prompt, its labels and its head lie beside the weights, where `instructrec` finds them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import console
from ..config import ExportSettings
from ..data.records import Record
from ..errors import InputError
from ..files import disk_faults, new_directory, read_json, write_json
from ..inference.loading import PROMPT_FILE, Loaded, is_run, open_target
from ..models.methods import Method
from ..models.reading import ReadingPlan, cut, repeat
from ..prompts.template import Renderer
from ..training.loss import row_losses

PROBES = 100
_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}  # nats a token, on average over the probe rows


def export_run(target: str, out: str, settings: ExportSettings) -> Path:
    """Merge the run folder `target` into an ordinary model at `out`.

    Raises InputError where that can't be had: a plan that no engine reads by, a method that can't be merged, a prompt
    that can't be written as a chat template.
    """
    folder = Path(out)
    if folder.exists():
        raise InputError(f"export: {out} is there already (want a new folder)")
    if not is_run(target):
        raise InputError(f"export: {target} is not the folder of a finished run")
    loaded = open_target(target, precision=settings.precision, offline=settings.offline, strokes=settings.strokes)
    assert loaded.method is not None
    check_export(loaded.method, ReadingPlan.from_json(loaded.renderer.reading, target), loaded.strokes, target)
    chooses = loaded.backbone.kind.chooses
    rows = [Record.of(one["instruction"], one["output"], input=one["input"]) for one in _examples(loaded)]
    tokenizer = loaded.backbone.tokenizer
    if not chooses:
        source = chat_template(loaded.renderer, loaded.strokes)
        _check_prompts(tokenizer, source, loaded, rows)
        tokenizer.chat_template = source
    rendered = [loaded.renderer.render(record) for record in rows]
    how: dict[str, Any] = {"pad_id": loaded.backbone.pad_id, "batch_tokens": 4096}
    before = row_losses(loaded.model, rendered, **how)
    merged = loaded.method.merge(loaded.decoder)
    if loaded.precision == "bf16":
        merged = merged.bfloat16()
    again = rendered if chooses else [repeat(row, loaded.strokes) for row in rendered]
    if chooses:
        loaded.model.model = merged
    after = row_losses(loaded.model if chooses else merged, again, **how)
    tokens = sum(count for _, count in after)
    apart = sum(abs(a - b) for (a, _), (b, _) in zip(before, after, strict=True)) / max(1, tokens)
    if not apart <= _TOLERANCE[loaded.precision]:
        raise InputError(f"export: the merged model differs ({apart:.2g} nats a token); try --precision fp32")
    if not chooses:  # elsewhere nobody knows which token ends a turn of this template, unless the model says so
        merged.generation_config.eos_token_id = loaded.stop_ids
        merged.config._attn_implementation = "sdpa"  # ours is known here only
    with disk_faults(f"export: {out} could not be written"), new_directory(folder) as temporary:
        merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if chooses:
            write_json(temporary / PROMPT_FILE, loaded.renderer.to_json())
            loaded.model.save_extra(temporary)
    console.say(f"{folder}: checked on {len(rows)} rows, {apart:.1g} nats a token from the adapter")
    return folder


def check_export(method: Method, plan: ReadingPlan, strokes: int, target: str) -> None:
    """Raises InputError for a method or a reading plan that an ordinary model folder can't have."""
    if not method.switchable:
        raise InputError(f"export: method '{method.name}' has nothing to merge: {target} is a model folder")
    if not method.mergeable:
        raise InputError(f"export: what method '{method.name}' adds has no place in a plain model's weights")
    if not plan.one_pass(strokes):
        raise InputError(
            f"export: no other program reads by this plan (read {plan.describe()}); want tuned, shared, causal, "
            "concat, memory=all and no slots, or --strokes 1"
        )


def chat_template(renderer: Renderer, strokes: int) -> str:
    """Jinja text that asks as `renderer` does and writes the instruction `strokes` times.

    It is rendered without and with the header of the answer, which stands behind the last reading only.
    """
    parts = [f"{{%- set {name} = {json.dumps(value)} -%}}" for name, value in renderer.variant.items()]
    if not renderer.own:  # templates of ours know an instruction and its input apart
        parts.append(
            "{%- set ns = namespace(all=[]) -%}{%- for m in messages -%}"
            "{%- set ns.all = ns.all + [{'role': m.role, 'content': m.content, "
            "'instruction': m.instruction if m.instruction is defined else m.content, "
            "'input': m.input if m.input is defined else ''}] -%}"
            "{%- endfor -%}{%- set messages = ns.all -%}"
        )
    if renderer.system:
        system = json.dumps(renderer.system, ensure_ascii=False)
        parts.append(
            "{%- if messages[0].role != 'system' -%}{%- set messages = [{'role': 'system', 'content': "
            f"{system}}}] + messages -%}}{{%- endif -%}}"
        )
    # The template has to begin at the start of a line, as it does in its own file: blocks there take the spaces before
    # them away. Jinja drops the first line end after a block and the last one of a file. '' at the end: a space next to
    # a block would be taken for the block's own.
    inner = "\n" + renderer.source.removesuffix("\n") + "{{ '' }}"
    parts.append("{%- set asked = add_generation_prompt -%}")
    parts.append(f"{{%- set add_generation_prompt = false -%}}{{% set once %}}{inner}{{% endset %}}")
    parts.append(f"{{%- set add_generation_prompt = true -%}}{{% set whole %}}{inner}{{% endset %}}")
    bos = "bos_token ~ " if renderer.adds_bos else ""
    lead = f" ~ {json.dumps(renderer.lead, ensure_ascii=False)}" if renderer.lead else ""
    again = " ~ ".join([f"{bos}once"] * (strokes - 1) + [f"{bos}whole{lead}"])
    return "".join(parts) + f"{{{{- ({again}) if asked else ({bos}once) -}}}}"


def _examples(loaded: Loaded) -> list[dict[str, Any]]:
    """Rows that the run was tuned on, as it keeps some to show."""
    file = (loaded.folder or Path()) / "examples.json"
    if not file.is_file():
        raise InputError(f"{file}: missing: without rows the exported model could not be checked")
    return list(read_json(file))[:PROBES]


def _check_prompts(tokenizer: Any, source: str, loaded: Loaded, rows: Sequence[Record]) -> None:
    """Raises InputError when the chat template would ask in other ids than the run was tuned with."""
    for record in rows:
        prompt = loaded.renderer.prompt(record)
        if loaded.strokes > 1 and cut(prompt) < prompt.instruction_end:
            raise InputError(
                "export: this prompt template puts nothing between instruction and answer, so reading again can't be "
                "written as a chat template (want --strokes 1)"
            )
        wanted = repeat(prompt, loaded.strokes).ids
        turns = [
            {"role": turn.role, "content": turn.content, "instruction": turn.text, "input": turn.input}
            for turn in record.prompt.turns
        ]
        given = {"add_generation_prompt": True, "tokenize": False, "chat_template": source}
        text = tokenizer.apply_chat_template(turns, **given)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != wanted:
            raise InputError("export: this prompt can't be written as a chat template (its ids would differ)")
