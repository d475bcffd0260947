"""Fixtures that all tests share. Nothing here or in tiny.py asks the network for anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported anywhere
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))  # `import tiny` from any test folder

import tiny

# The same examples in every run, so that a red test means a change; `make fuzz` tries others each time.
settings.register_profile("repeatable", derandomize=True)
if "INSTRUCTREC_FUZZ" not in os.environ:
    settings.load_profile("repeatable")


@pytest.fixture(params=tiny.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each of the four kinds of model in turn."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function of the kind: the folder of a saved tiny model, made once per session. Do not write into it."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.folder(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return get
