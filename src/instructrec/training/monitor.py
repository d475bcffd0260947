"""Which checkpoint is best, and when to stop: one watched number out of several held-out sets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Monitor:
    """Early stopping.

    weights: held-out set -> its weight in the watched mix.  metric: what is mixed.
    patience: looks without improvement before stopping, 0 for never.
    """

    weights: Mapping[str, float]
    metric: str = "loss"
    higher_is_better: bool = False
    patience: int = 4
    best: float = math.nan
    best_step: int = 0
    misses: int = 0
    last_look: int = 0

    def watched(self, look: Mapping[str, Mapping[str, float]]) -> float:
        """The weighted mean of the metric over the sets."""
        total = sum(self.weights.values())
        return sum(weight * look[name][self.metric] for name, weight in self.weights.items()) / total

    def update(self, step: int, look: Mapping[str, Mapping[str, float]]) -> bool:
        """Take note of a look; True if it is the best so far. A look that is not finite is never the best."""
        value, self.last_look = self.watched(look), step
        better = value > self.best if self.higher_is_better else value < self.best
        if math.isfinite(value) and (math.isnan(self.best) or better):
            self.best, self.best_step, self.misses = value, step, 0
            return True
        self.misses += 1
        return False

    @property
    def exhausted(self) -> bool:
        """True when patience has run out."""
        return bool(self.patience) and self.misses >= self.patience

    def describe(self) -> str:
        """What is watched, as a sentence."""
        mix = " + ".join(f"{weight:g} × {name}" for name, weight in self.weights.items())
        return f"{self.metric} on held-out rows ({mix}), {'highest' if self.higher_is_better else 'lowest'} is best"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        best = None if math.isnan(self.best) else self.best
        return {"best": best, "best_step": self.best_step, "misses": self.misses, "last_look": self.last_look}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The reverse of `state`."""
        self.best = math.nan if state["best"] is None else state["best"]
        self.best_step, self.misses, self.last_look = state["best_step"], state["misses"], state["last_look"]
