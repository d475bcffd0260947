"""Rows and lists of our own that every model can be measured with; each file says what it is for."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from ...yamlfile import tree

HERE = Path(__file__).parent


@lru_cache(maxsize=8)
def probe(name: str) -> dict[str, Any]:
    """The content of `general`, `options`, `names` or `constraints`; every scalar is text."""
    return dict(tree(HERE / f"{name}.yaml", "a probe set"))


__all__ = ["probe"]
