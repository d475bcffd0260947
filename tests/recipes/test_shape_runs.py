"""`tune`, `evaluate` and `check` on every shape of data, and the account of a mix."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_files import TASKS, WORDS, load
from stops import counted, signalled

from instructrec import Source
from instructrec.config import TuneSettings
from instructrec.errors import InputError
from instructrec.recipes.check import check
from instructrec.recipes.measure import evaluate
from instructrec.recipes.tune import Interrupted

ROWS = [
    {"instruction": f"Please {task} it", "input": word, "output": make(word)}
    for task, make in TASKS.items()
    for word in WORDS
]


def written(folder: Path, shape: str, rows: list[dict] = ROWS) -> str:
    path = folder / f"rows.{shape}"
    if shape == "csv":
        with open(path, "w", newline="", encoding="utf-8") as handle:
            table = csv.DictWriter(handle, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif shape == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif shape == "json":
        talks = [[("human", f"{row['instruction']}\n\n{row['input']}"), ("gpt", row["output"])] for row in rows]
        named = [{"conversations": [{"from": who, "value": text} for who, text in talk]} for talk in talks]
        path.write_text(json.dumps(named), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_the_same_rows_in_another_shape_make_the_same_run(quick: Any, tmp_path: Path, undrawn: None) -> None:
    losses = {}
    for shape in ("jsonl", "csv", "parquet", "json"):
        # Sharegpt has no input apart from the instruction, so by wording it would hold out other rows.
        result = quick(written(tmp_path, shape), out=tmp_path / shape, max_steps=4, held_out="row")
        losses[shape] = [
            json.loads(line)["loss"]
            for line in (result.folder / "metrics.jsonl").open()
            if '"loss"' in line and "look" not in line
        ]
    assert losses["csv"] == losses["parquet"] == losses["jsonl"] and len(losses["csv"]) == 4
    assert len(losses["json"]) == 4


def test_a_mix_is_told_counted_and_part_of_the_run(quick: Any, tmp_path: Path, undrawn: None, capsys: Any) -> None:
    one = written(tmp_path, "jsonl", ROWS[:30])
    two = written(tmp_path, "csv", ROWS[30:])
    given = {"held_out": "none", "batch_rows": 4, "batch_tokens": 4096, "epochs": 2.0, "out": tmp_path / "run"}
    result = quick([Source(path=one, weight=1), Source(path=two, weight=3)], **given)
    out = capsys.readouterr().out
    assert f"{one} 10 rows (25.0%, of 30: 0.33 times each), {two} 30 rows (75.0%, of 10: 3.00 times each)" in out
    assert f"Rows of each source in 20 steps: {one} 20, {two} 60" in out
    assert load(result.folder / "run.json")["data"]["used_of_sources"] == {one: 20, two: 60}
    assert result.steps == 20
    with pytest.raises(InputError, match=r"sources: was .*'weight': 1.0.*, is .*'weight': 2.0"):
        quick([f"{one}:2", f"{two}:3"], **given, resume=True)
    assert quick([f"{one}:1", f"{two}:3"], **given, resume=True).steps == 20


def test_a_mix_goes_on_with_the_rows_that_were_to_come(quick: Any, tmp_path: Path, undrawn: None) -> None:
    data = [written(tmp_path, "jsonl", ROWS[:30]) + ":1", written(tmp_path, "csv", ROWS[30:]) + ":1"]
    given = {"held_out": "none", "epochs": 2.0, "save_steps": 1}
    with counted() as straight:
        quick(data, out=tmp_path / "straight", **given)
    with pytest.MonkeyPatch.context() as patch:
        signalled(patch, 13, signal.SIGTERM)  # in the second epoch, whose rows are others of the large source
        with counted() as first, pytest.raises(Interrupted):
            quick(data, out=tmp_path / "run", **given)
    with counted() as rest:
        quick(data, out=tmp_path / "run", resume=True, **given)
    assert [*first, *rest] == straight and len(first) == 13


def test_evaluate_takes_every_shape_and_no_weight(quick: Any, tmp_path: Path, undrawn: None) -> None:
    folder = quick(written(tmp_path, "jsonl"), max_steps=1).folder
    data = [written(tmp_path, shape, ROWS[:2]) for shape in ("csv", "parquet", "json")]
    (tmp_path / "many").mkdir()
    for number in range(2):
        Path(written(tmp_path, "jsonl", ROWS[:2])).rename(tmp_path / "many" / f"{number}.jsonl")
    options = {
        "arms": "tuned",
        "max_new_tokens": 2,
        "precision": "fp32",
        "threads": 1,
        "suites": "none",
        "training_rows": True,
    }
    report = evaluate(folder, [*data, tmp_path / "many"], **options).report
    rows: dict[str, int] = {}
    for suite in report["suites"]:  # a file's rows that were trained on are a suite of their own
        rows[suite["file"]] = rows.get(suite["file"], 0) + suite["rows"]
    assert list(rows.values()) == [2, 2, 2, 4]
    with pytest.raises(InputError) as error:
        evaluate(folder, f"{data[0]}:2", **options)
    assert (
        str(error.value)
        == f"{data[0]}:2: a weight means nothing here, each source is measured by itself (want the path)"
    )


def test_check_tells_the_mix_and_the_overlap_of_another_shape(tmp_path: Path, base: Path, capsys: Any) -> None:
    one, two = written(tmp_path, "jsonl", ROWS[:30]), written(tmp_path, "csv", ROWS[30:])
    test = written(tmp_path, "parquet", ROWS[28:32])
    check([one, two], [test], TuneSettings(model=str(base), held_out="none", mix_temperature=2.0))
    said = capsys.readouterr()
    assert f"4 of 4 test prompts are in the training rows too: {test}:1 = {one}:29, {test}:2 = {one}:30" in said.err
    assert f"2 sources, 40 rows an epoch: {one} 25 rows (63.4%, of 30: 0.83 times each), {two} 15 rows" in said.out
