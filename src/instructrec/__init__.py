"""InstructRec: from a file of instructions and a pretrained model to a small model that follows them, with proof.

>>> from instructrec import read, tune, evaluate, Assistant
>>> run = tune("rows.tsv", out="runs/mine")
>>> evaluate("runs/mine", "test.tsv")
>>> Assistant("runs/mine")("Where is my parcel?")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Assistant", "Source", "__version__", "compare", "evaluate", "prompt", "read", "tune"]

if TYPE_CHECKING:
    from .config import Source
    from .data.readers import read
    from .inference.assistant import Assistant
    from .recipes.compare import compare
    from .recipes.measure import evaluate
    from .recipes.prompting import prompt
    from .recipes.tune import tune

_HOMES = {
    "Source": "config",
    "read": "data.readers",
    "tune": "recipes.tune",
    "compare": "recipes.compare",
    "evaluate": "recipes.measure",
    "prompt": "recipes.prompting",
    "Assistant": "inference.assistant",
}


# No library reports to anybody that it was used. They read this when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")


def __getattr__(name: str) -> Any:
    # Imported when first used: torch and transformers take seconds.
    if name not in _HOMES:
        raise AttributeError(f"module 'instructrec' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
