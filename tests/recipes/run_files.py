"""What tests of `tune` share: the words and tasks of their rows, and reading what a run left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instructrec.errors import InputError

WORDS = "red blue green house lamp order parcel noon hot cold".split()
TASKS = {"upper": str.upper, "title": str.title, "double": lambda word: word + word, "first": lambda word: word[0]}


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def entries(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def refused(run: Callable[..., Any], *data: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        run(*data, **settings)
    return str(caught.value)
