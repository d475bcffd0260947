"""Learning rate as a closed formula of the step: linear warm-up, then cosine, linear or no decay."""

from __future__ import annotations

import math

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate(step: int, total: int, peak: float, warmup: float, schedule: str) -> float:
    """Rate of optimizer step `step` (from 0) of `total`.

    The first ceil(warmup * total) steps rise in equal parts to `peak`; the last step of a decay is above zero, so that
    no step is wasted: cosine 0.5 (1 + cos(pi * p)), linear 1 - p, with p the share of decay steps already taken.
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    progress = (step - rising) / max(1, total - rising)
    if schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return peak * (1 - progress)
    return peak
