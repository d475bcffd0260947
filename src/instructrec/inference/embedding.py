"""A text as one vector: the mean of the backbone's last hidden states, for finding examples that are near.

B texts of a batch, T tokens of the longest, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..data.records import Record
from ..prompts.fewshot import Vectors
from .engine import batches_of
from .loading import Loaded

LONGEST = 256  # tokens of a text that are read


def mean_states(loaded: Loaded, texts: Sequence[str], batch_tokens: int = 8192) -> NDArray[np.float64]:
    """[number of texts, D], by the pretrained model alone, whatever it was tuned to."""
    tokenizer, pad = loaded.backbone.tokenizer, loaded.backbone.pad_id
    longest = min(LONGEST, loaded.backbone.max_positions)
    writes = not loaded.backbone.kind.chooses  # else the encoder was pretrained on texts with their start and end
    rows = [tokenizer(text, add_special_tokens=not writes)["input_ids"][:longest] or [pad] for text in texts]
    more = {"use_cache": False} if writes else {}
    found: dict[int, NDArray[np.float64]] = {}
    switchable = loaded.method is None or loaded.method.switchable
    with torch.inference_mode(), loaded.untuned() if switchable else torch.inference_mode():
        body = loaded.backbone.kind.body(loaded.backbone.model)
        device = next(body.parameters()).device
        for numbers in batches_of([len(row) for row in rows], 32, batch_tokens):
            width = len(rows[numbers[0]])
            ids = torch.full((len(numbers), width), pad)
            mask = torch.zeros((len(numbers), width), dtype=torch.long)
            for place, number in enumerate(numbers):
                ids[place, : len(rows[number])] = torch.tensor(rows[number])
                mask[place, : len(rows[number])] = 1
            states = body(input_ids=ids.to(device), attention_mask=mask.to(device), **more).last_hidden_state
            weight = mask.to(device)[:, :, None].double()
            means = ((states.double() * weight).sum(1) / weight.sum(1)).cpu().numpy()  # [B, D]
            found |= dict(zip(numbers, means, strict=True))
    return np.stack([found[number] for number in range(len(rows))])


def embedder(loaded: Loaded) -> Vectors:
    """Vectors of records, each text read once."""
    known: dict[str, NDArray[np.float64]] = {}

    def vectors(records: Sequence[Record]) -> NDArray[np.float64]:
        texts = [record.last_user.content for record in records]
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            known.update(zip(new, mean_states(loaded, new), strict=True))
        return np.stack([known[text] for text in texts])

    return vectors
