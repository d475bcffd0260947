"""Tiny models are slowed down by threads; a method is tested on the kinds of backbone that it tunes."""

from __future__ import annotations

import pytest
import torch

import tiny
from instructrec.models.methods import METHODS

torch.set_num_threads(1)

WRITES = ("test_step_by_step_equals_one_pass",)  # nothing of an encoder's answer is written step by step


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of a method on a kind that it refuses: test_pairs.py and test_encoder_runs.py have the refusals."""
    out = [item for item in items if not _tunes(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in set(out)]


def _tunes(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    method = METHODS.get(str(given.get("method", given.get("case"))).partition("+")[0])
    kind = given.get("kind")
    if kind in tiny.ENCODERS and item.originalname in WRITES:  # type: ignore[attr-defined]
        return False
    wanted = "encoder-decoder" if kind in tiny.PAIRS else "encoder" if kind in tiny.ENCODERS else ""
    return method is None or not wanted or wanted in method.kinds
