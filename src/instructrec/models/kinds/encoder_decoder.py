"""Encoder-decoders: the prompt goes to the encoder, the answer comes from the decoder.

    encoder: ids[:prompt_end]          decoder: [start] + answer without its end  ->  answer with its end

T5 (arXiv 1910.10683), BART (1910.13461), Marian (1804.00344) and their kin. Both stacks count positions from 0, so
rows are filled up on the right on both sides. Reading an instruction several times is writing it several times: the
encoder sees to both sides, so there is no memory and no order of readings to choose.

B rows, T tokens of the longest prompt, U of the longest answer, N supervised positions, R rows of a
branch, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import InputError
from ...prompts.template import Rendered
from . import Kind
from .batch import Batch, as_mask, fill
from .decoder import selected

if TYPE_CHECKING:
    from ..reading import ReadingPlan

_FED = ("input_ids", "decoder_input_ids", "encoder_outputs", "past_key_values")


class EncoderDecoder(Kind):
    """T5-like and translation models."""

    name = "encoder-decoder"
    auto = "AutoModelForSeq2SeqLM"
    task = "SEQ_2_SEQ_LM"
    template = "plain"
    closed = True
    kept = ("decoder_start_token_id", "forced_bos_token_id", "bos_token_id")

    def owns(self, config: Any) -> bool:
        """As the configuration says."""
        return bool(getattr(config, "is_encoder_decoder", False))

    def check(self, config: Any, name: str) -> None:
        """Raises InputError for encoder-decoders of sound or pictures, and for those with two vocabularies."""
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

        what = f"model: '{name}' is an encoder-decoder ({config.model_type})"
        if type(config) not in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
            raise InputError(f"{what} that is not from text to text; this version tunes no other")
        model_class: Any = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
        if set(_FED) - inspect.signature(model_class.forward).parameters.keys():
            raise InputError(f"{what} that is not from text to text; this version tunes no other")
        if getattr(config, "share_encoder_decoder_embeddings", True) is False or hasattr(config, "tgt_vocab_size"):
            raise InputError(f"{what} with a vocabulary for each side; this version tunes those with one for both")

    def tokenizer(self, config: Any, folder: Path, name: str) -> str:
        """Marian's own class segments with two SentencePiece models and is not fast; a tokenizer.json is."""
        if config.model_type != "marian":
            return "AutoTokenizer"
        if not (folder / "tokenizer.json").is_file():
            found = [file for file in ("source.spm", "target.spm") if (folder / file).is_file()]
            but = f", only {' and '.join(found)}" if found else ""
            raise InputError(
                f"model: '{name}' has no tokenizer.json{but} (a fast tokenizer is needed; docs/kinds.md says how to "
                "come by one)"
            )
        return "PreTrainedTokenizerFast"

    def check_model(self, model: Any, name: str) -> None:
        """Raises InputError where the settings do not say what a decoder starts with."""
        kept = model.generation_config
        if kept.decoder_start_token_id is None and kept.bos_token_id is None:
            raise InputError(f"model: '{name}' lacks decoder_start_token_id: nobody knows how an answer begins")

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Raises InputError for a tokenizer that puts more around a text than its start and end (language codes): the
        renderer would leave that away."""
        bare, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
        start, end = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
        if whole not in (bare, bare + end, start + bare, start + bare + end):
            shown = " ".join(tokenizer.convert_ids_to_tokens(whole))
            raise InputError(
                f"model: '{name}': the tokenizer puts more around a text than its start and end (it makes '{shown}' of "
                "'a'); this version does not know language codes"
            )

    def check_plan(self, plan: ReadingPlan) -> None:
        """Raises InputError unless reading again is writing the instruction again."""
        if not plan.sequence or plan.deep:
            raise InputError(
                "strokes: an encoder-decoder reads again by writing the instruction again "
                f"(got {plan.describe()}; want tuned, shared, causal, concat, memory=all, no slots and not deep)"
            )

    def size(self, prompt: Any, answer: Any) -> Any:
        """Each side has positions of its own."""
        return np.maximum(prompt, answer)

    def sides(self, tokens: Any, answer: Any) -> tuple[Any, ...]:
        """The prompt, as often as it is read, and the answer."""
        return tokens - answer, answer

    def room(self, limit: int, prompt: int) -> int:
        """All positions of the decoder, unless the encoder lacks some."""
        return limit if prompt <= limit else limit - prompt

    def collate(self, model: Any, rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch:
        """Prompts for the encoder and answers for the decoder, which is causal: what was filled up behind an answer is
        seen by no token of it, so only the prompts need a mask."""
        begin = starts(model)
        ids, mask = fill([row.ids[: row.prompt_end] for row in rows], pad_id)
        answers, _ = fill([begin + row.ids[row.prompt_end : -1] for row in rows], pad_id)
        positions, targets, owners = [], [], []
        for place, row in enumerate(rows):
            assert not any(row.supervised[: row.prompt_end]), "an encoder's tokens are never predicted"
            for offset in range(len(row.ids) - row.prompt_end):
                if row.supervised[row.prompt_end + offset]:
                    positions.append(place * answers.shape[1] + len(begin) - 1 + offset)
                    targets.append(row.ids[row.prompt_end + offset])
                    owners.append(place)
        where, what, whose = (torch.from_numpy(np.array(part, dtype=np.int64)) for part in (positions, targets, owners))
        fed = torch.from_numpy(answers)
        return Batch(torch.from_numpy(ids), as_mask(mask), where, what, whose, tuple(numbers), answers=fed)

    def body(self, model: Any) -> Any:
        """The encoder."""
        return model.get_encoder()

    def start(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> Encoded:
        """Prompts through the encoder, once."""
        return Encoded(model, prompts, pad_id)


def starts(model: Any) -> list[int]:
    """Ids with which every answer of a model begins and that are not part of it."""
    kept = model.generation_config
    first = kept.bos_token_id if kept.decoder_start_token_id is None else kept.decoder_start_token_id
    forced = kept.forced_bos_token_id
    return [int(first)] if forced is None else [int(first), int(forced)]


class Encoded:
    """Prompts filled up on the right, through the encoder once; then the decoder with its cache."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        device = next(model.parameters()).device
        ids, mask = fill(prompts, pad_id)
        self.model, self.mask, self.cache = model, torch.from_numpy(mask).long().to(device), None
        kept = model.generation_config
        ends = kept.eos_token_id if isinstance(kept.eos_token_id, list) else [kept.eos_token_id]
        # Marian was never taught not to answer with its padding; where that ends an answer too, it has to stay.
        self.never: Sequence[int] = (
            [] if kept.pad_token_id is None or kept.pad_token_id in ends else [kept.pad_token_id]
        )
        begin = torch.tensor([starts(model)] * len(prompts), device=device)
        out = self._call(input_ids=torch.from_numpy(ids).to(device), decoder_input_ids=begin)
        self.read = (out.encoder_last_hidden_state,)
        self.logits: torch.Tensor = out.logits[:, -1]

    def proceed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after tokens [B]."""
        fed = tokens.to(self.mask.device)[:, None]
        out = self._call(encoder_outputs=self.read, decoder_input_ids=fed, past_key_values=self.cache)
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def branch(self, rows: torch.Tensor) -> Encoded:
        """A reader that goes on from these rows [R]."""
        other = copy(self)
        other.mask, other.read = self.mask[rows], (self.read[0][rows],)
        other.cache = copy(self.cache)
        for name in ("self_attention_cache", "cross_attention_cache"):
            setattr(other.cache, name, selected(getattr(self.cache, name), rows))
        return other

    def _call(self, **given: Any) -> Any:
        out = self.model(attention_mask=self.mask, use_cache=True, **given)
        self.cache = out.past_key_values
        return out
