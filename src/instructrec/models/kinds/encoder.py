"""Masked encoders (BERT, arXiv 1810.04805, and its kin): they see to both sides and write nothing, so they answer by
choosing among labels (`models/choosing.py`). There are two ways, and each is a kind:

    encoder with a mask    [CLS] prompt with one [MASK] [SEP]   the label whose words fit best there (PET, 2001.07676)
    encoder                [CLS] prompt [SEP]                   a classification head over the mean or the first state

Which one a model goes by stands in its configuration (`label_head`), where loading puts it: 'cloze'; 'tied', a cloze
without an output layer in the file; 'mean' or 'cls'.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ...prompts.template import Rendered
from ..loading import BROKEN, first_line, tensor_names
from . import Kind, Reader
from .batch import Batch

if TYPE_CHECKING:
    from ..reading import ReadingPlan

MARK = "label_head"
CLOZE, TIED, MEAN, CLS = "cloze", "tied", "mean", "cls"
_FED = ("input_ids", "attention_mask")


class Encoder(Kind):
    """What both ways share; this one answers by a classification head."""

    name = "encoder"
    auto = "AutoModel"
    task = "FEATURE_EXTRACTION"
    template = "plain"
    closed = True
    chooses = True

    def owns(self, config: Any) -> bool:
        """Where loading has chosen a classification head."""
        return getattr(config, MARK, None) in (MEAN, CLS)

    def check(self, config: Any, name: str) -> None:
        """Raises InputError for encoders of something else than text."""
        from transformers import MODEL_FOR_MASKED_LM_MAPPING

        made: Any = MODEL_FOR_MASKED_LM_MAPPING[type(config)]
        if not set(_FED) <= inspect.signature(made.forward).parameters.keys():
            raise InputError(f"model: '{name}' is an encoder ({config.model_type}) that is not fed text alone")

    def settle(self, config: Any, folder: Path, head: str, name: str) -> tuple[str, ...]:
        """Choose between the two ways, by what the weights in `folder` have, and write it into the configuration."""
        found = _has_head(config, folder, name)
        if head == "auto":
            head = CLOZE if found else MEAN
            setattr(config, MARK, head)
            told = f"'{name}' has no masked-LM head: a classification head over its mean state answers (--encoder.head)"
            return () if found else (told,)
        if head != CLOZE or found:
            setattr(config, MARK, head)
            return ()
        width, inner = _widths(config)
        if width != inner:
            raise InputError(
                f"encoder.head: '{name}' has no masked-LM head, and its states can't be compared with its word "
                f"embeddings (got {width} and {inner} numbers; want mean or cls)"
            )
        setattr(config, MARK, TIED)
        return (f"'{name}' has no masked-LM head: its word embeddings stand in for one, untrained for that",)

    def weights(self, config: Any) -> tuple[str, dict[str, Any]]:
        """The encoder alone, without a pooling layer where the class can leave it away: nothing reads it here."""
        from transformers import MODEL_MAPPING

        made: Any = MODEL_MAPPING[type(config)]
        made = made[0] if isinstance(made, (list, tuple)) else made
        has = "add_pooling_layer" in inspect.signature(made).parameters
        return "AutoModel", {"add_pooling_layer": False} if has else {}

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Names what stands around a text as its start and end, which BERT calls [CLS] and [SEP]. Raises InputError
        for a tokenizer that puts more around a text: the renderer would leave that away."""
        bare, whole = (tokenizer("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
        place = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), len(whole))
        before, after = whole[:place], whole[place + len(bare) :]
        if len(before) > 1 or len(after) > 1:
            shown = " ".join(tokenizer.convert_ids_to_tokens(whole))
            raise InputError(
                f"model: '{name}': the tokenizer puts more around a text than its start and end (it makes '{shown}' "
                "of 'a')"
            )
        if before:
            tokenizer.bos_token = tokenizer.convert_ids_to_tokens(before[0])
        if after or tokenizer.sep_token:
            tokenizer.eos_token = tokenizer.convert_ids_to_tokens(after[0]) if after else tokenizer.sep_token

    def check_plan(self, plan: ReadingPlan) -> None:
        """Raises InputError for every reading plan but the plain one."""
        if not plan.plain:
            raise InputError(
                f"strokes: an encoder sees its whole text at once (got {plan.describe()}; want strokes=1 and nothing "
                "else of the RRTransformer)"
            )

    def check_cut_up(self) -> None:
        """Raises InputError always: a head, and embeddings that answer, are read outside the layers that are cut up."""
        raise InputError(f"launcher: --use_fsdp can't cut up an {self.name} (want plain processes, without --use_fsdp)")

    def size(self, prompt: int, answer: int) -> int:
        """A label takes no position; further masks are taken off the model's positions beforehand."""
        return prompt

    def sides(self, tokens: int, answer: int) -> tuple[int, ...]:
        """The prompt."""
        return (tokens - answer,)

    def room(self, limit: int, prompt: int) -> int:
        """An answer takes no position."""
        return 2**30 if prompt <= limit else limit - prompt

    def positions(self, config: Any, model: Any) -> int | None:
        """RoBERTa and its kin count positions from behind their padding's, so that some rows of the table are never
        used."""
        found = [getattr(config.get_text_config(), "max_position_embeddings", None)]
        for name, module in model.named_modules():
            table: Any = getattr(module, "weight", None)
            if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
                found.append(int(table.shape[0]) - int(module.padding_idx) - 1)
        return min((int(one) for one in found if one), default=None)

    def collate(self, model: Any, rows: Sequence[Rendered], pad_id: int, numbers: Sequence[int] = ()) -> Batch:
        """Prompts, and for each row the number of its label."""
        batch: Batch = choosing(model).collate(rows, pad_id, numbers)
        return batch

    def logits(self, model: Any, batch: Batch) -> Any:
        """Scores of the labels, one row each."""
        return choosing(model).scores(batch)

    def start(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int) -> Reader:
        """Prompts read, and an answer of one token: the label."""
        reader: Reader = choosing(model).start(prompts, pad_id)
        return reader


class MaskedEncoder(Encoder):
    """Encoders that answer at a mask."""

    name = "encoder with a mask"
    auto = "AutoModelForMaskedLM"
    template = "cloze"
    masked = True

    def owns(self, config: Any) -> bool:
        """Everything of the library's masked language models, unless its configuration makes a decoder of it."""
        from transformers import MODEL_FOR_MASKED_LM_MAPPING

        return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)

    def weights(self, config: Any) -> tuple[str, dict[str, Any]]:
        """With the output layer, where the file has one."""
        return super().weights(config) if getattr(config, MARK, CLOZE) == TIED else (self.auto, {})

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Raises InputError also where there is no mask."""
        super().check_tokenizer(tokenizer, name)
        if tokenizer.mask_token_id is None:
            raise InputError(f"encoder.head: the tokenizer of '{name}' has no mask token (want mean or cls)")


def choosing(model: Any) -> Any:
    """A model that knows its labels. Raises InputError for an encoder that was not told any."""
    if not hasattr(model, "scores"):
        raise InputError("model: an encoder chooses among labels, and none are known here")
    return model


def _has_head(config: Any, folder: Path, name: str) -> bool:
    """Whether the files in `folder` hold the head of a masked language model: each matrix of it before the output
    layer, which is mostly one with the embeddings and then in no file; where there is none, anything of that layer."""
    import torch
    import transformers

    try:
        with torch.device("meta"):
            made = transformers.AutoModelForMaskedLM.from_config(config)
    except BROKEN as error:
        raise InputError(f"model: '{name}' could not be loaded: {first_line(error)}") from error
    if (output := made.get_output_embeddings()) is None:
        return False
    inner, last = f"{made.base_model_prefix}.", {id(part) for part in output.parameters()}
    own = {name: part for name, part in made.named_parameters() if not name.startswith(inner)}
    wanted = {name for name, part in own.items() if part.dim() > 1 and id(part) not in last}
    there = tensor_names(folder)
    return wanted <= there if wanted else bool(own.keys() & there)


def _widths(config: Any) -> tuple[int, int]:
    """Width of the states and of the word embeddings."""
    import torch
    import transformers

    with torch.device("meta"):
        made = transformers.AutoModel.from_config(config)
    return int(config.get_text_config().hidden_size), int(made.get_input_embeddings().weight.shape[1])
