"""FAULTS, inputs 14 and 15, as a user meets them: exit code 2 and one line for each fault, before any model is looked
for and before anything is written. What each kind of value is called is tested in tests/test_settings.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ANCHORS = "anchors (&) and aliases (*) are not allowed; quote the text if it starts like one"
WHOLE, POSITIVE = "a whole number from 1 upwards", "a number above 0"


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: 1e-4", "lr: unknown setting, did you mean 'learning_rate'?"),
        ("learning_rate: 1e-4x", f"learning_rate: not the right kind (got 1e-4x, want {POSITIVE} or none)"),
        ("\tseed: 1", "tab in the indentation (want spaces)"),
        ("a: &a [x, x]\nb: [*a, *a]", ANCHORS),
        ("system: a\nsystem: b", "system: given twice (first in line 12)"),
        ("system: !!python/object/apply:os.system [touch canary]", "tags (!) are not allowed; quote the text if it starts like one"),
        ("batch_tokens: 0", f"batch_tokens: out of range (got 0, want {WHOLE})"),
        ("accumulation: 0", f"accumulation: out of range (got 0, want {WHOLE})"),
        ("lora: {rank: -8}", f"lora.rank: out of range (got -8, want {WHOLE})"),
        ("lora: {alpha: 0}", f"lora.alpha: out of range (got 0, want {POSITIVE})"),
        ("learning_rate: .nan", f"learning_rate: not a finite number (got .nan, want {POSITIVE} or none)"),
        ("epochs: 0", f"epochs: out of range (got 0, want {POSITIVE})"),
    ],
)  # fmt: skip
def test_a_settings_file(command: Any, rows: Path, line: str, message: str) -> None:
    Path("config.yaml").write_text("# a run\n" * 10 + "seed: 1\n" + line + "\n")
    number = 13 if "twice" in message else 12
    ended = command("tune", str(rows), "config.yaml", "--out", "run")
    assert ended == (2, f"config.yaml:{number}: {message}\n")
    assert sorted(path.name for path in Path().iterdir()) == ["config.yaml", "rows.tsv"]


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch-tokens", "0"), f"batch_tokens: out of range (got 0, want {WHOLE})"),
        (("--accumulation", "0"), f"accumulation: out of range (got 0, want {WHOLE})"),
        (("--lora-rank", "-8"), f"lora.rank: out of range (got -8, want {WHOLE})"),
        (("--lora-alpha", "0"), f"lora.alpha: out of range (got 0, want {POSITIVE})"),
        (("--learning-rate", "nan"), f"learning_rate: not a finite number (got nan, want {POSITIVE} or none)"),
        (("--epochs", "0"), f"epochs: out of range (got 0, want {POSITIVE})"),
        (("batch_tokens=512,",), f"batch_tokens: not the right kind (got 512,, want {WHOLE})"),
    ],
)
def test_options(command: Any, rows: Path, options: tuple[str, ...], message: str) -> None:
    assert command("tune", str(rows), *options, "--out", "run") == (2, f"command line: {message}\n")
    assert not Path("run").exists()


def test_a_rank_above_the_width_of_the_model(command: Any, rows: Path, tiny_folder: Callable[[str], Path]) -> None:
    """Only the model knows its width: the run folder is not made, and no weight is touched."""
    ended = command("tune", str(rows), "--model", str(tiny_folder("llama")), "--lora-rank", "33", "--out", "run")
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == "lora.rank: more than this model's layers have (got 33, want at most 32)"
    assert not Path("run").exists()
