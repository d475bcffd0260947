"""Kinds of backbone: one file for each, which holds all that differs between them.

Rooms above ask `kind_of(model)` or `Backbone.kind` and never a model's type.

B rows, R rows of a branch, N supervised positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from ...errors import InputError
from ...prompts.template import Rendered
from .batch import Batch, fill, fine_logits, logits_at

if TYPE_CHECKING:
    from ..reading import ReadingPlan


class Reader(Protocol):
    """Prompts that were read, and answers that grow token by token.

    logits [B, V]: of each answer's first token.  never: ids that can't be part of an answer, however likely.
    """

    logits: torch.Tensor
    never: Sequence[int]

    def proceed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one token more of each answer, tokens [B]."""

    def branch(self, rows: torch.Tensor) -> Reader:
        """A reader that goes on from these rows [R] of this one, which stays as it is; rows may come several times."""


class Kind:
    """What differs between kinds of backbone; a model of this kind is what `auto` names, perhaps inside an adapter.

    name: in words.  auto: the `transformers` class that loads it.  task: PEFT's name for what it does.
    template: the prompt template of our own that is taken where the model brings none.
    closed: a prompt ends with the tokenizer's end token, as the texts that the model was pretrained on did.
    causal: one stack that sees what came before; every reading plan and the attention of ours work there only.
    one_answer: a row has one answer, its last; a conversation is cut into one row for each.
    chooses: it writes no text: an answer is one of a closed set of labels (`models/choosing.py`).
    masked: the answer's place in the prompt is a mask.
    kept: entries of a folder's generation settings that decide what the model is, not how answers are drawn.
    """

    name: ClassVar[str]
    auto: ClassVar[str]
    task: ClassVar[str]
    template: ClassVar[str] = "alpaca"
    closed: ClassVar[bool] = False
    causal: ClassVar[bool] = False
    one_answer: ClassVar[bool] = True
    chooses: ClassVar[bool] = False
    masked: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()

    def owns(self, config: Any) -> bool:
        """Whether a model of this configuration is of this kind. Quick: asked for each batch."""
        raise NotImplementedError

    def check(self, config: Any, name: str) -> None:
        """Raises InputError for a configuration of this kind that can't be tuned; `name` as the user gave it."""

    def settle(self, config: Any, folder: Path, head: str, name: str) -> tuple[str, ...]:
        """Write into the configuration what depends on the weights in `folder` and on the setting `encoder.head`;
        notes for the user. Raises InputError for a setting that does not go with the model."""
        if head != "auto":
            raise InputError(f"encoder.head: '{name}' is no masked encoder but {_a(self.name)} (leave it away)")
        return ()

    def weights(self, config: Any) -> tuple[str, dict[str, Any]]:
        """The `transformers` class that loads a model of this configuration, and what it is told besides."""
        return self.auto, {}

    def positions(self, config: Any, model: Any) -> int | None:
        """Tokens that a model can hold, None where there is no limit."""
        found = getattr(config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found else None

    def tokenizer(self, config: Any, folder: Path, name: str) -> str:
        """The `transformers` class that loads the tokenizer in `folder`. Raises InputError where there is none."""
        return "AutoTokenizer"

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Raises InputError where the tokenizer makes of a text what this kind can't be fed."""

    def check_model(self, model: Any, name: str) -> None:
        """Raises InputError for a loaded model that can't be used."""

    def check_plan(self, plan: ReadingPlan) -> None:
        """Raises InputError for a reading plan that this kind can't read by."""

    def check_cut_up(self) -> None:
        """Raises InputError where the weights can't lie in parts on several processes."""

    def size(self, prompt: Any, answer: Any) -> Any:
        """Positions that a prompt and its answer take, to be held against those that the model has; also of arrays."""
        return prompt + answer

    def sides(self, tokens: Any, answer: Any) -> tuple[Any, ...]:
        """What each stack reads of a row of so many tokens, its answer among them: each is filled up by itself.

        Also of arrays."""
        return (tokens,)

    def room(self, limit: int, prompt: int) -> int:
        """Tokens that an answer may have after so many of the prompt, where the model has `limit` positions."""
        return limit - prompt

    def collate(self, model: Any, rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch:
        """Rows of unequal length as one batch."""
        raise NotImplementedError

    def logits(self, model: Any, batch: Batch) -> torch.Tensor:
        """Logits [N, V] for the targets of a batch."""
        with logits_at(model, batch.positions):
            logits: torch.Tensor = model(**batch.inputs, use_cache=False).logits
        return logits[0]

    def body(self, model: Any) -> Any:
        """The part of a backbone that turns ids and their mask into hidden states."""
        return model.base_model

    def start(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> Reader:
        """Prompts read in one go, ready for their answers."""
        raise NotImplementedError


from .decoder import Decoder  # noqa: E402  the kinds need the base class above
from .encoder import Encoder, MaskedEncoder  # noqa: E402
from .encoder_decoder import EncoderDecoder  # noqa: E402

# In the order in which they are asked: the decoder owns what no other does.
KINDS: dict[str, Kind] = {kind.name: kind for kind in (EncoderDecoder(), Encoder(), MaskedEncoder(), Decoder())}


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def kind_of(model: Any) -> Kind:
    """The kind of a model, also inside an adapter or behind a reading plan."""
    return by_config(getattr(model, "config", None))


def by_config(config: Any) -> Kind:
    """The kind of a configuration."""
    return next(kind for kind in KINDS.values() if kind.owns(config))


__all__ = ["KINDS", "Batch", "Kind", "Reader", "by_config", "fill", "fine_logits", "kind_of", "logits_at"]
