"""How likely answers that are given are, behind prompts that were read already: for those who have an answer generated
and the right one measured, so that a prompt is read once and not twice.

B prompts of a batch, R rows of a call, K tokens of the longest answer but its last, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..models.kinds import Reader, fill
from ..models.reading.beside import beside

LOGITS = 2**25  # numbers of logits that one call makes at most: 128 MiB in fp32


@torch.inference_mode()
def told(reader: Reader, answers: Sequence[Sequence[int]]) -> list[tuple[float, int]] | None:
    """(summed negative log-likelihood in nats, tokens) of an answer to each prompt [B] of a reader, left as it is.

    None where the model can't be asked so; `row_losses` reads prompt and answer together.
    """
    device = reader.logits.device
    first = torch.tensor([answer[0] for answer in answers], device=device)
    sums = _losses(reader.logits, first)
    longest = max(map(len, answers)) - 1
    step = max(1, LOGITS // (reader.logits.shape[1] * max(1, longest)))
    places = torch.arange(longest, device=device)
    for begin in range(0, len(answers) if longest else 0, step):
        part = answers[begin : begin + step]
        ids, _ = (torch.from_numpy(one).to(device) for one in fill([answer[:-1] for answer in part], 0))
        targets, own = (torch.from_numpy(one).to(device) for one in fill([answer[1:] for answer in part], 0))
        if not own.any():  # answers of one token each
            continue
        size = ids.shape[1]
        seen = torch.ones(1, size, size, dtype=torch.bool, device=device).tril()
        logits = beside(reader, torch.arange(begin, begin + len(part), device=device), ids, places[None, :size], seen)
        if logits is None:
            return None
        sums[begin : begin + len(part)] += (_losses(logits.flatten(0, 1), targets.flatten()).view(ids.shape) * own).sum(
            1
        )
    return [(float(nats), len(answer)) for nats, answer in zip(sums, answers, strict=True)]


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    fine = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return functional.cross_entropy(fine, targets, reduction="none").double()


__all__ = ["told"]
