"""A tuned or pretrained model as something to talk to."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..data.records import Record, Turn
from ..errors import InputError, did_you_mean
from ..models.packing import hold
from ..prompts.template import Rendered
from .engine import Sampling, generate, stream
from .loading import Loaded, open_target
from .together import Place, Together, named

BROKEN = "�"  # what a tokenizer puts for bytes that are no character


class Assistant:
    """Answers instructions with a run folder or any pretrained model.

    >>> assistant = Assistant("runs/mine")
    >>> assistant("Translate to French: house")

    Several run folders over one backbone live together: the backbone is loaded once, and each answers as it does alone,
    in any order, from several threads too. They are called as their folders are, or as a dict says.

    >>> both = Assistant(["runs/calls", "runs/mails"])
    >>> both("Sum this up.", text, adapter="mails")
    >>> mails = both.using("mails")

    Options are those of `instructrec run`: precision, offline, threads, template, system, max_new_tokens, temperature,
    seed, strokes; and top_p.
    """

    def __init__(self, target: Place | Sequence[Place] | Mapping[str, Place], **options: Any) -> None:
        if threads := options.pop("threads", 0):
            torch.set_num_threads(threads)
        known = inspect.signature(open_target).parameters.keys() - {"target", "base", "choosing"}
        every = {"threads", *known, *(field.name for field in fields(Sampling))}
        for name in sorted(options.keys() - every):
            raise InputError(f"Assistant: unknown option '{name}', {did_you_mean(name, every)}")
        opening = {key: options.pop(key) for key in known & options.keys()}
        self.sampling = Sampling(**options)
        self._together: Together | None = None
        if isinstance(target, (str, os.PathLike)):
            self.name = Path(target).name
            self.loaded: Loaded = open_target(os.fspath(target), **opening)
        else:
            self._together = Together(target, opening)
            self.name, self.loaded = next(iter(self._together.loaded.items()))
        # For good: packing takes as long as a few tokens of an answer.
        hold(self.loaded.backbone.model)

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of what is loaded, for `using` and `adapter=`; the first is asked where none is named."""
        return tuple(self._together.loaded) if self._together else (self.name,)

    def using(self, adapter: str) -> Assistant:
        """An assistant that asks the one of this name; this one stays as it is. Raises InputError."""
        if self._together is None and adapter != self.name:
            raise InputError(f"adapter: none is called '{adapter}', {did_you_mean(adapter, [self.name])}")
        one = copy(self)
        one.name = adapter
        one.loaded = self._together.find(adapter) if self._together else self.loaded
        return one

    def load(self, target: Place, name: str = "") -> str:
        """One run folder more beside the others; its name. Raises InputError for one that can't share the backbone."""
        if self._together is None:
            raise InputError(f"Assistant: '{self.name}' was opened alone (want a list: Assistant(['{self.name}']))")
        name = name or next(iter(named([target])))
        self._together.load(name, os.fspath(target))
        return name

    def unload(self, name: str) -> None:
        """Let go of a run folder. Raises InputError for the one this assistant asks where none is named."""
        if self._together is None or name == self.name:
            raise InputError(f"adapter: '{name}' is the one that this assistant asks (want another to be unloaded)")
        self._together.unload(name)

    def __call__(self, instruction: str, input: str = "", *, adapter: str | None = None) -> str:
        """The answer to one instruction."""
        return self.answer([Record.of(instruction, input=input)], adapter=adapter)[0]

    def answer(self, records: Sequence[Record], *, adapter: str | None = None) -> list[str]:
        """Answers to many records at once, in batches."""
        asked = self._asked(adapter)
        prompts = [asked._prompt(record) for record in records]
        results = generate(
            asked.loaded.model,
            prompts,
            stop_ids=asked.loaded.stop_ids,
            pad_id=asked.loaded.backbone.pad_id,
            sampling=self.sampling,
        )
        return [asked._whole(result.ids) for result in results]

    def stream(self, instruction: str, input: str = "", *, adapter: str | None = None) -> Iterator[str]:
        """The answer to one instruction, piece by piece."""
        return self._asked(adapter)._stream(Record.of(instruction, input=input))

    def chat(self, messages: Sequence[tuple[str, str]], *, adapter: str | None = None) -> Iterator[str]:
        """The next answer in a conversation of (role, text), piece by piece."""
        return self._asked(adapter)._stream(Record(tuple(Turn(role, text) for role, text in messages)))

    def _asked(self, adapter: str | None) -> Assistant:
        return self if adapter is None else self.using(adapter)

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
