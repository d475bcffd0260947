"""`instructrec estimate`, and the estimate beside what a run takes."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from run_files import load

from instructrec import cli
from instructrec.config import TuneSettings
from instructrec.models.footprint import Shape, architecture
from instructrec.prompts.template import Rendered
from instructrec.recipes import memory
from instructrec.recipes.estimate import estimate


@pytest.fixture(autouse=True)
def _first_run_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.Meter, "used", False)


def said(capsys: Any, *arguments: str) -> list[str]:
    assert cli.main(["estimate", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def test_from_the_settings_alone_without_torch(tiny_folder: Any) -> None:
    arguments = ["estimate", "--model", str(tiny_folder("qwen")), "--precision", "fp32", "--batch-tokens", "100"]
    code = f"import sys\nfrom instructrec.cli import main\nassert main({arguments}) == 0\nprint('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[-1] == "False"
    assert re.fullmatch(r".*qwen.*: [\d,]+ weights in fp32, [\d,]+ trained \(lora\)", lines[0])
    assert lines[1] == (
        "Largest micro-batch: 1 × 100 tokens, 50 of them answers (no rows were given: as many and as long as "
        "batch_tokens allows, half of them answers)"
    )
    parts = [line.split("  ")[0] for line in lines[2:-3]]
    assert parts[0] == "what for" and parts[-1] == "at most at once, above the program itself"
    assert (
        "activations kept for the backward pass" in parts and "a look at held-out rows (at another time)" not in parts
    )
    assert re.fullmatch(r"What would save most: --\S+.*: \d+ MB less", lines[-3])
    assert re.fullmatch(r"This machine has [\d.]+ [GM]B to give: enough .*", lines[-2])


def test_rows_tell_how_long_they_are(capsys: Any, base: Path, table: Path) -> None:
    lines = said(capsys, str(table), "--model", str(base), "--batch-rows", "4", "--held-out-share", "0.2")
    found = re.fullmatch(
        r"Largest micro-batch: (\d+) × (\d+) tokens, (\d+) of them answers \(beginnings .*\)", lines[1]
    )
    assert found and int(found[1]) == 4 and 5 < int(found[2]) < 120 and 4 < int(found[3]) < 4 * int(found[2])
    assert any(line.startswith("a look at held-out rows") for line in lines)


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"method": "full", "batch_tokens": 16}, "--method lora"),
        ({"precision": "bf16", "batch_tokens": 8192}, "--checkpointing (a third more time)"),
        ({"precision": "bf16", "batch_tokens": 8192, "checkpointing": True}, "--batch-tokens 4096 --accumulation 2"),
    ],
)
def test_the_largest_knob(tmp_path: Path, capsys: Any, settings: dict[str, Any], advice: str) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 30, "num_attention_heads": 4}
    config = {"model_type": "llama", "vocab_size": 1000, "max_position_embeddings": 512, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    estimate([], TuneSettings(model=str(tmp_path), **settings))
    assert f"What would save most: {advice}: " in capsys.readouterr().out


def test_a_row_that_stands_alone_is_shortened(base: Path, tmp_path: Path, capsys: Any) -> None:
    row = {"instruction": "the red house is cold " * 10, "output": "yes"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    settings = {"model": str(base), "batch_tokens": 16, "held_out": "none", "checkpointing": True, "precision": "bf16"}
    estimate([str(tmp_path / "rows.jsonl")], TuneSettings(**settings))
    assert "What would save most: --max-length " in capsys.readouterr().out


def test_a_model_that_is_not_here(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cli.main(["estimate", "--model", "gemma-3-270m"]) == 3
    message = "model: 'gemma-3-270m' is not here yet (instructrec models fetch gemma-3-270m)\n"
    assert capsys.readouterr().err == message
    assert cli.main(["estimate", "--model", str(tmp_path / "none")]) == 2


def test_a_run_measures_itself_beside_the_estimate(quick: Any, capsys: Any) -> None:
    found = load(quick(max_steps=2, held_out_share=0.2).folder / "run.json")["memory"]
    assert list(found) == ["estimated_first_step", "estimated", "measured_first_step", "measured"]
    assert found["estimated_first_step"] <= found["estimated"]
    assert 0 < found["measured_first_step"] <= found["measured"] < 1 << 30
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Memory: ")]
    assert re.fullmatch(r"Memory: \d+ MB so far \(estimated: \d+ MB\)", line)


def test_the_meter_counts_what_comes_after_it() -> None:
    gc.collect()  # what tests before this one left may be given back meanwhile: 9 MB were, once
    meter = memory.Meter()
    before = meter.peak
    block = bytearray(256 << 20)
    after = meter.peak
    assert before is not None and after is not None and abs(after - before - len(block)) < 32 << 20


def test_a_second_run_of_a_process_is_not_measured() -> None:
    assert memory.Meter().peak is not None and memory.Meter().peak is None


def test_no_meter_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, quick: Any, tmp_path: Path) -> None:
    for name in ("_STATUS", "_CLEAR"):
        monkeypatch.setattr(memory, name, tmp_path / "none" / "status")
    found = load(quick(max_steps=1).folder / "run.json")["memory"]
    assert found["measured"] is None is found["measured_first_step"] and found["estimated"] > 0


def test_shapes(base: Path) -> None:
    settings = TuneSettings(batch_tokens=100, batch_rows=2)
    assert memory.usual(settings, 30) == Shape(2, 30, 30)
    assert memory.usual(TuneSettings(batch_tokens=100), 30) == Shape(3, 30, 45)
    assert memory.usual(TuneSettings(batch_tokens=100), 1000) == Shape(1, 100, 50)
    model = architecture(load(base / "config.json"))
    tuned = memory.tuned_by(model, settings)
    assert memory.worst(model, tuned, [Shape(1, 50, 5), Shape(1, 90, 5), Shape(1, 40, 39)]) == Shape(1, 90, 5)
    assert [memory.look_tokens(tokens) for tokens in (100, 2000, 9000)] == [400, 4096, 9000]
    assert (memory.in_half("bf16"), memory.in_half("fp32")) == (True, False)
    assert (memory.shown(123_456_789), memory.shown(2_345_678_901)) == ("123 MB", "2.35 GB")


def test_beginnings_that_rows_share_count_once(
    base: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(ids: list[int]) -> Rendered:
        return Rendered(ids, [False] * (len(ids) - 1) + [True], 1, len(ids) - 1)

    # The first batch is larger until its eight tokens count once; the second has nothing to share.
    rows = [row([*range(8), 20 + number, 3, 4, 5]) for number in range(4)] + [
        row([number, *[9] * 8]) for number in range(4)
    ]
    lengths, batches = [len(one.ids) for one in rows], [[0, 1, 2, 3], [4, 5, 6, 7]]
    model = architecture(load(base / "config.json"))
    tuned = memory.tuned_by(model, TuneSettings())
    given = (model, tuned, rows, lengths, batches)
    assert memory.worst_of(*given, False) == Shape(4, 12, 4)
    assert memory.worst_of(*given, True) == Shape(4, 9, 4)
    assert memory.worst_of(*given[:4], batches[:1], True) == Shape(4, 12, 4, 1, 8)
    # Many of the same size that share all but a token, one behind them with more to learn, and no more than is looked at.
    many = [row([*range(11), 20 + number]) for number in range(40)]
    wide = [Rendered([*range(number, number + 11)], [True] * 11, 1, 2) for number in (20, 40)]
    rows = [*many, *wide]
    lengths, batches = [len(one.ids) for one in rows], [[2 * n, 2 * n + 1] for n in range(21)]
    assert memory.worst_of(model, tuned, rows, lengths, batches, True) == Shape(2, 11, 22)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "_LOOKED", 1)
        assert memory.worst_of(model, tuned, many, lengths[:40], batches[:20], True) == Shape(2, 12, 2, 1, 11)

    asked = "Say which of the two numbers is larger, and nothing else whatever you think of them."
    lines = [f"{asked}\t{number} {number + 7}\t{number + 7}" for number in range(40)]
    (tmp_path / "rows.tsv").write_text("instruction\tinput\toutput\n" + "\n".join(lines) + "\n")
    totals = [
        estimate([str(tmp_path / "rows.tsv")], TuneSettings(model=str(base), lora={"dropout": dropout})).activations
        for dropout in (0.0, 0.1)
    ]
    said = capsys.readouterr().out
    assert said.count("beginnings that rows share counted once") == 1 and totals[0] < 0.6 * totals[1]


def test_auto_is_the_precision_that_tuning_takes() -> None:
    import torch

    from instructrec.models.backbone import compute_dtype

    assert memory.in_half("auto") == (compute_dtype("auto") is torch.bfloat16)
