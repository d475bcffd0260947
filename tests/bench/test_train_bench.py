"""bench/train.py and bench/growth.py: our side from rows to page on a tiny random model, and pages from given figures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

import growth  # noqa: E402
import train  # noqa: E402
import train_page  # noqa: E402
import train_side  # noqa: E402


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Jobs that were measured, in this process instead of one each."""
    jobs: list[dict[str, Any]] = []

    def measure(job: dict[str, Any], python: str) -> dict[str, Any]:
        assert python == sys.executable
        jobs.append(job)
        versions = {"torch": str(torch.__version__)}
        return train_side.ours(job) | {"versions": versions, "threads": job["threads"]}

    monkeypatch.setattr(train, "measure", measure)
    monkeypatch.setattr(train_side, "product_rate", lambda device, dtype: 1e11)
    return jobs


def test_our_side_from_rows_to_page_and_what_is_there_is_not_measured_again(
    in_process: list[dict[str, Any]], tmp_path: Path
) -> None:
    given = ["--size", "tiny", "--arms", "ours,ours_checkpointing,ours_split,trl", "--threads", "1", "--out"]
    assert train.main([*given, str(tmp_path), "--rounds", "1"]) == 0
    names = sorted(file.stem for file in (tmp_path / "train").glob("*.json"))
    arms = ["ours", "ours_checkpointing", "ours_split"]  # without a Python that has trl its side is left out
    assert names == [f"short-{arm}-t1-r0" for arm in arms] and len(in_process) == 3
    found = [json.loads(file.read_text()) for file in sorted((tmp_path / "train").glob("*.json"))]
    job = in_process[0]
    assert all(one["steps"] == 3 and one["tokens"] > 0 for one in found)
    assert found[0]["tokens"] == found[1]["tokens"]  # the same rows in the same steps
    lengths = sorted(len(row["input_ids"]) for row in job["rows"])
    assert sum(lengths[:24]) <= found[0]["tokens"] <= sum(lengths[-24:])
    assert found[0]["supervised"] < found[0]["tokens"] and found[0]["seconds"] > 0 and found[0]["operations"] > 1e6
    # How the step is cut and whether activations are kept changes nothing of what is learned.
    assert [one["held_loss"] for one in found] == pytest.approx([found[0]["held_loss"]] * 3, rel=2e-2)
    start = train_side.held_loss(tiny_start(job), job["held"], "cpu", torch.float32)
    assert found[0]["held_loss"] < start
    page = (tmp_path / "train.md").read_text()
    assert "## toy rows, 8 to a step, 1 thread" in page and "| InstructRec, checkpointing | 1 |" in page
    assert (tmp_path / "train.png").read_bytes()[:4] == b"\x89PNG"
    assert train.main([*given, str(tmp_path), "--rounds", "2"]) == 0
    assert len(in_process) == 6 and "| InstructRec | 2 |" in (tmp_path / "train.md").read_text()
    text = json.dumps(found)
    assert all(str(row["input_ids"])[1:-1] not in text for row in job["rows"]), "a result holds no rows"


def test_where_the_time_goes(in_process: list[dict[str, Any]], tmp_path: Path) -> None:
    assert train.main(["--size", "tiny", "--profile", "--out", str(tmp_path)]) == 0
    shares = json.loads((tmp_path / "train" / "short-profile.json").read_text())["shares"]
    assert sum(shares.values()) == pytest.approx(1.0) and min(shares.values()) >= 0
    assert {"products with frozen weights", "LoRA's products", "products with the head", "attention"} < set(shares)
    page = (tmp_path / "train.md").read_text()
    assert "| | toy rows |" in page and "| LoRA's products | " in page


def test_operations_are_told_apart_by_name_and_shape() -> None:
    told = train_side.kind_of
    assert told("aten::mm", [[64, 576], [576, 1536]], 49152) == "products with frozen weights"
    assert told("aten::addmm_", [[64, 576], [64, 16], [16, 576]], 49152) == "LoRA's products"
    assert told("aten::mm", [[9, 576], [576, 49152]], 49152) == "products with the head"
    assert told("aten::_softmax", [[1, 9, 64, 64]], 49152) == "attention"
    assert told("aten::silu", [[64, 1536]], 49152) == "norms, activations, rotation, sums"
    assert told("torch::autograd::AccumulateGrad", [], 49152) == "the rest"


def tiny_start(job: dict[str, Any]) -> Any:
    """The model of a job before any step."""
    import tempfile

    from instructrec.models import backbone

    with tempfile.TemporaryDirectory() as folder:
        model = train.tiny_model(Path(folder) / "model", train.generated())
        return backbone.load(str(model), dtype=torch.float32, offline=True).model


def test_a_measurement_is_a_process_of_its_own(tmp_path: Path) -> None:
    model = train.tiny_model(tmp_path / "model", train.generated())
    row = {"input_ids": list(range(10, 30)), "completion_mask": [0] * 12 + [1] * 8}
    rows = [{**row, "input_ids": [(number + place) % 200 + 10 for place in range(20)]} for number in range(8)]
    how = {"arm": {"side": "ours"}, "device": "cpu", "threads": 1, "model": str(model), "seed": 0, "rate": 1e-3}
    told = train.measure(how | {"rows": rows, "held": rows[:1], "batch_rows": 4, "warm": 1, "steps": 2}, sys.executable)
    assert told["steps"] == 1 and told["tokens"] == 80 and told["supervised"] == 32 and told["memory"] > 0
    assert len(told["met"]) == 4 and told["threads"] == 1 and told["versions"]["torch"] and told["rate"] > 1e8


def test_bad_names_of_arms_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--size", "tiny", "--arms", "our", "--out", str(tmp_path)])
    assert "--arms: unknown our (known: ours, " in capsys.readouterr().err


def result(arm: str, number: int, seconds: float, **more: Any) -> dict[str, Any]:
    """A result file of 1,000 tokens."""
    base = {
        "set": "short",
        "arm": arm,
        "round": number,
        "batch_rows": 16,
        "device": "cpu",
        "commit": "abc",
        "dirty": False,
    }
    base |= {"seconds": seconds, "tokens": 1000, "supervised": 100, "memory": 5e8, "held_loss": 2.0 + number / 10}
    return (
        base
        | {"threads": 2, "operations": 4e11, "processor_seconds": 10.0, "rate": 2e11, "versions": {"torch": "2"}}
        | more
    )


def test_ratios_are_medians_over_rounds() -> None:
    found = [result("ours", n, s) for n, s in enumerate((4.0, 5.0, 8.0))]
    found += [result("trl", n, s, held_loss=2.1 + n / 10) for n, s in enumerate((8.0, 15.0, 12.0))]
    groups = train_page.by_arm(found)
    ours, other = groups["short", "cpu", 2, "ours"], groups["short", "cpu", 2, "trl"]
    assert train_page.ratio(ours, other) == 2.0 and train_page.ratio(ours, []) is None
    assert train_page.share(found[0]) == 0.2 and train_page.share(found[0] | {"device": "cuda"}) == 0.5
    lines = train_page.page(found, {"short": "short rows"}).splitlines()
    assert "## short rows, 16 to a step, 2 threads" in lines
    assert "| InstructRec | 3 | 20 | 200 | 100 | 20% | 100% | 500 | 2.100 (2.000 to 2.200) |  |  |" in lines
    assert any(
        line.endswith("| 8 | 83 | 100 | 20% | 100% | 500 | 2.200 (2.100 to 2.300) | +0.100 ± 0.000 | 2.00, 1.00 |")
        for line in lines
    )


def test_at_equal_memory_only_arms_that_fit_are_compared() -> None:
    found = [result("ours", 0, 2.0, memory=9e8), result("ours_split", 0, 4.0, memory=4e8)]
    found += [result("trl", 0, 10.0, memory=5e8), result("trl_grouped", 0, 5.0, memory=1e9)]
    groups = train_page.by_arm(found)
    told = train_page.at_equal_memory(groups, ("short", "cpu", 2))
    # 10 s against 4 s within 500 MB, 5 s against 2 s within a gigabyte
    assert "at least 2.50 times as fast" in told and "Less memory" not in told
    found.append(result("trl_grouped_checkpointing", 0, 1.0, memory=1e8))
    told = train_page.at_equal_memory(train_page.by_arm(found), ("short", "cpu", 2))
    assert told.endswith("Less memory than any of ours: TRL, bf16 weights, checkpointing, grouped by length.")
    assert train_page.at_equal_memory(train_page.by_arm(found[:2]), ("short", "cpu", 2)) == ""


def test_growth_of_a_known_power(tmp_path: Path) -> None:
    assert growth.exponent([(1, 3.0), (2, 12.0), (4, 48.0)]) == pytest.approx(2.0)
    points = [{"point": {"rows": n}, "seconds": 0.5 * n, "memory": 1e6 * n**0.5} for n in (1, 2, 4)]
    given = {"command": "c", "commit": "abc", "dirty": False, "base": {"rows": 8}, "points": {"rows": points}}
    assert "| rows of a step | 1 to 4 | 1.00 | 1.00 | 0.50 | 0.50 |" in growth.page(given)
    growth.draw(given, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_a_point_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "STEPS", 1)
    found = growth.take(growth.Point(rows=1, tokens=8, rank=2, strokes=2, width=192, layers=1))
    assert found["seconds"] > 0 and found["memory"] >= 0
    assert growth.weights(growth.Point(width=384)) > 3 * growth.weights(growth.Point(width=192))
