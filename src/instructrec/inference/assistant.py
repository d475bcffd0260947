"""A tuned or pretrained model as something to talk to."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch

from ..data.records import Record, Turn
from ..errors import InputError, did_you_mean
from ..prompts.template import Rendered
from .engine import Sampling, generate, stream
from .loading import Loaded, open_target

BROKEN = "�"  # what a tokenizer puts for bytes that are no character


class Assistant:
    """Answers instructions with a run folder or any pretrained model.

    >>> assistant = Assistant("runs/mine")
    >>> assistant("Translate to French: house")

    Options are those of `instructrec run`: precision, offline, threads, template, system, max_new_tokens, temperature,
    seed, strokes; and top_p.
    """

    def __init__(self, target: str, **options: Any) -> None:
        if threads := options.pop("threads", 0):
            torch.set_num_threads(threads)
        known = {name for name in inspect.signature(open_target).parameters if name != "target"}
        every = {"threads", *known, *(field.name for field in fields(Sampling))}
        for name in sorted(options.keys() - every):
            raise InputError(f"Assistant: unknown option '{name}', {did_you_mean(name, every)}")
        self.loaded: Loaded = open_target(str(target), **{key: options.pop(key) for key in known & options.keys()})
        self.sampling = Sampling(**options)

    def __call__(self, instruction: str, input: str = "") -> str:
        """The answer to one instruction."""
        return self.answer([Record.of(instruction, input=input)])[0]

    def answer(self, records: Sequence[Record]) -> list[str]:
        """Answers to many records at once, in batches."""
        prompts = [self._prompt(record) for record in records]
        results = generate(
            self.loaded.model,
            prompts,
            stop_ids=self.loaded.stop_ids,
            pad_id=self.loaded.backbone.pad_id,
            sampling=self.sampling,
        )
        return [self._whole(result.ids) for result in results]

    def stream(self, instruction: str, input: str = "") -> Iterator[str]:
        """The answer to one instruction, piece by piece."""
        return self._stream(Record.of(instruction, input=input))

    def chat(self, messages: Sequence[tuple[str, str]]) -> Iterator[str]:
        """The next answer in a conversation of (role, text), piece by piece."""
        return self._stream(Record(tuple(Turn(role, text) for role, text in messages)))

    def _prompt(self, record: Record) -> Rendered:
        prompt = self.loaded.renderer.prompt(record)
        limit, size = self.loaded.backbone.max_positions, self.loaded.positions(prompt)
        if self.sampling.max_new_tokens > self.loaded.room(prompt):
            strokes = self.loaded.strokes
            again = f", read {strokes} times {size:,}," if strokes > 1 else ""
            raise InputError(
                f"{record.origin}: the prompt has {len(prompt.ids):,} tokens{again} and the answer may have "
                f"{self.sampling.max_new_tokens:,}; this model can hold {limit:,} (--max-new-tokens"
                + (", --strokes)" if strokes > 1 else ")")
            )
        return prompt

    def _stream(self, record: Record) -> Iterator[str]:
        ids: list[int] = []
        shown = ""
        loaded = self.loaded
        tokens = stream(
            loaded.model,
            self._prompt(record),
            stop_ids=loaded.stop_ids,
            pad_id=loaded.backbone.pad_id,
            sampling=self.sampling,
        )
        for token in tokens:
            ids.append(token)
            text = loaded.renderer.decode(ids)
            # A character of several tokens is held back until it is whole; trailing spaces may still be stripped.
            if not text.endswith(BROKEN) and (piece := _after(shown, text)):
                yield piece
                shown = text
        if piece := _after(shown, self._whole(ids)):
            yield piece

    def _whole(self, ids: list[int]) -> str:
        """The text of an answer, without the half of a character that the length limit may have cut."""
        text = self.loaded.renderer.decode(ids)
        for cut in range(1, 4):  # a character has four bytes at most
            if not text.endswith(BROKEN):
                break
            shorter = self.loaded.renderer.decode(ids[:-cut])
            if not shorter.endswith(BROKEN):
                return shorter
        return text


def _after(shown: str, text: str) -> str:
    """What of `text` comes after what was shown. A stray byte can undo characters before it (byte fallback decodes a
    run of bytes as one); what was shown stays, and nothing after it is lost."""
    return text[len(os.path.commonprefix([shown, text])) :]
