"""Tiny models are slowed down by threads; a method is tested on the kinds of backbone that it tunes."""

from __future__ import annotations

import pytest
import torch

import tiny
from instructrec.models.methods import METHODS

torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of a method on a kind that it refuses: test_pairs.py has the refusals."""
    out = [item for item in items if not _tunes(item)]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in set(out)]


def _tunes(item: pytest.Item) -> bool:
    given = getattr(getattr(item, "callspec", None), "params", {})
    method = METHODS.get(str(given.get("method", given.get("case"))).partition("+")[0])
    return method is None or given.get("kind") not in tiny.PAIRS or "encoder-decoder" in method.kinds
