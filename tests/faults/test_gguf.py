"""GGUF files that were cut short or damaged: one line that names the file, or a model; nothing is left in the cache."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiny_gguf
import torch

from instructrec.errors import InputError
from instructrec.models import backbone


def test_files_that_are_cut_short_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write(file)
    raw, draw, refused = file.read_bytes(), random.Random(3), 0
    mutants = [raw[:length] for length in (0, 4, 20, 100, 1000, len(raw) // 2, len(raw) - 1)]
    mutants += [raw[: draw.randrange(len(raw))] for _ in range(20)]
    for _ in range(40):
        damaged = bytearray(raw)
        for _ in range(3):
            damaged[draw.randrange(600)] = draw.randrange(256)
        mutants.append(bytes(damaged))
    for mutant in mutants:
        file.write_bytes(mutant)
        try:
            backbone.load(str(file), dtype=torch.float32)
        except InputError as error:
            refused += 1
            text = str(error)
            assert "tiny.gguf" in text and "\n" not in text
            assert not any(path.name.startswith(".") for path in (tmp_path / "cache").rglob("*"))
    assert refused > 50
