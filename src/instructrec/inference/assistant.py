"""A tuned or pretrained model as something to talk to."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..data.records import Record, Turn
from ..errors import InputError
from .engine import Sampling, generate, stream
from .loading import Loaded, open_target


class Assistant:
    """Answers instructions with a run folder or any pretrained model.

    >>> assistant = Assistant("runs/mine")
    >>> assistant("Translate to French: house")

    Options are those of `instructrec run`: precision, offline, threads, template, system, max_new_tokens, temperature,
    seed; and top_p.
    """

    def __init__(self, target: str, **options: Any) -> None:
        if threads := options.pop("threads", 0):
            torch.set_num_threads(threads)
        known = {name for name in inspect.signature(open_target).parameters if name != "target"}
        self.loaded: Loaded = open_target(str(target), **{key: options.pop(key) for key in known & options.keys()})
        try:
            self.sampling = Sampling(**options)
        except TypeError as error:
            raise InputError(f"Assistant: unknown option ({str(error).partition(' got ')[2]})") from error

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
        return [self.loaded.renderer.decode(result.ids) for result in results]

    def stream(self, instruction: str, input: str = "") -> Iterator[str]:
        """The answer to one instruction, piece by piece."""
        return self._stream(Record.of(instruction, input=input))

    def chat(self, messages: Sequence[tuple[str, str]]) -> Iterator[str]:
        """The next answer in a conversation of (role, text), piece by piece."""
        return self._stream(Record(tuple(Turn(role, text) for role, text in messages)))

    def _prompt(self, record: Record) -> list[int]:
        ids = self.loaded.renderer.prompt_ids(record)
        limit = self.loaded.backbone.max_positions
        if len(ids) + self.sampling.max_new_tokens > limit:
            raise InputError(
                f"{record.origin}: the prompt has {len(ids):,} tokens and the answer may have "
                f"{self.sampling.max_new_tokens:,}; this model can hold {limit:,} (--max-new-tokens)"
            )
        return ids

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
            if text.endswith("�") or not text.startswith(shown):
                continue
            yield text[len(shown) :]
            shown = text
        rest = loaded.renderer.decode(ids)
        if rest.startswith(shown):
            yield rest[len(shown) :]
