"""Rows on disk: whatever is done with them gives what rows in memory give, and little is kept in memory."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from stops import figures

from instructrec.config import TuneSettings
from instructrec.data import Rows, readers
from instructrec.data.consistency import examine
from instructrec.data.facts import column, different_answers, files_of, take, tasks
from instructrec.data.index import Stored
from instructrec.data.splits import plan_held_out
from instructrec.errors import DataError, InputError
from instructrec.files import cache_dir
from instructrec.recipes.known import TEST_ROWS, Known, kept_rows
from instructrec.training.batching import by_length
from instructrec.training.dealt import Batches, Steps, greedy

ROWS = 120


def read(path: Path, on_disk: bool | None = None, on_bad_row: str = "stop", rejected: Path | None = None) -> Rows:
    how = readers.How.of("auto", {}, "", {}, on_bad_row)
    return readers.read_as(path, how, rejected=rejected, on_disk=on_disk)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(number: int) -> dict[str, Any]:
    draw = random.Random(number)
    task = f"t{number % 5}"
    row: dict[str, Any] = {"instruction": f"{task}: wording {number % 9}", "task": task}
    row |= {"input": " ".join(draw.choices(["甲乙", "ab", "c d", '"q"', "x,y"], k=draw.randrange(1, 8)))}
    return row | {"output": draw.choice(["yes", "no", f"maybe {number % 13}", "也许"])}


def put(folder: Path, form: str, rows: int = ROWS) -> Path:
    found = [made(number) for number in range(rows)]
    path = folder / f"rows.{form}"
    if form.startswith("jsonl"):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in found)
        path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else b"\xef\xbb\xbf" + text.encode())
    elif form == "json":
        path.write_text(json.dumps(found, ensure_ascii=False, indent=1))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(found), path, row_group_size=50)
    elif form == "csv":
        quoted = [[f'"{text.replace(chr(34), chr(34) * 2)}"' for text in row.values()] for row in found]
        path.write_text("\r\n".join(",".join(fields) for fields in [list(found[0]), *quoted]), newline="")
    else:
        path.write_text("\n".join("\t".join(fields) for fields in [list(found[0]), *(row.values() for row in found)]))
    return path


FORMS = ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz"]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_rows_in_every_shape(tmp_path: Path, form: str) -> None:
    path = put(tmp_path, form)
    memory, disk = read(path, on_disk=False), read(path, on_disk=True)
    assert isinstance(disk.records, Stored) and not isinstance(memory.records, Stored)
    again = read(path, on_disk=True)  # from the index
    for rows in (disk, again):
        assert (rows.files, rows.read, rows.rejected, rows.notes) == (memory.files, ROWS, 0, memory.notes)
        assert list(rows) == list(memory) and [rows[place] for place in (0, 57, -1)] == [
            memory[0],
            memory[57],
            memory[-1],
        ]
        assert list(rows[10:13]) == list(memory[10:13])
    order = np.random.default_rng(0).permutation(ROWS)
    assert list(take(disk.records, order)) == [memory[place] for place in order]
    for name in ("key", "prompt", "wording", "answer", "answers"):
        assert column(disk.records, name).tolist() == column(memory.records, name).tolist()
    assert [f"{key:016x}" for key in column(disk.records, "prompt").tolist()] == [row.prompt_key for row in memory]
    assert [f"{key:016x}" for key in column(disk.records, "key").tolist()] == [row.key for row in memory]
    assert tasks(disk.records)[1] == tasks(memory.records)[1]
    assert tasks(disk.records)[0].tolist() == tasks(memory.records)[0].tolist()
    for some in (order[:3], order[::-1], np.flatnonzero(tasks(memory.records)[0] != 1), order[:0]):
        pair = [tasks(take(rows.records, some)) for rows in (disk, memory)]
        assert pair[0][1] == pair[1][1] and pair[0][0].tolist() == pair[1][0].tolist()
    assert set(different_answers(disk.records)) == set(different_answers(memory.records))


def test_several_files_are_counted_through(tmp_path: Path) -> None:
    for number, rows in enumerate((3, 50, 7)):
        (tmp_path / "many").mkdir(exist_ok=True)
        put(tmp_path / "many", "tsv", rows).rename(tmp_path / "many" / f"{number}.tsv")
    memory, disk = (read(tmp_path / "many", on_disk=where) for where in (False, True))
    assert list(disk) == list(memory) and len(disk) == 60
    assert files_of(disk.records)[0].tolist() == [0] * 3 + [1] * 50 + [2] * 7
    part = take(disk.records, [59, 2, 3, 55])
    assert list(part) == [memory[place] for place in (59, 2, 3, 55)]
    assert [str(row.origin) for row in part] == [str(memory[place].origin) for place in (59, 2, 3, 55)]


def test_findings_and_splits_are_the_same(tmp_path: Path) -> None:
    path = put(tmp_path, "jsonl", 300)
    memory, disk = (read(path, on_disk=where).records for where in (False, True))
    found = examine(memory, memory[:20])
    assert {"duplicates", "overlap"} <= {finding.kind for finding in found}
    assert examine(disk, disk[:20]) == found
    for held_out in ("auto", "row", "wording", "task"):
        plans = [plan_held_out(records, held_out=held_out, share=0.2, seed=4) for records in (memory, disk)]
        assert plans[0] == plans[1] and plans[0].sets


def test_an_index_is_made_anew_when_its_file_was_changed(tmp_path: Path) -> None:
    path = put(tmp_path, "tsv")
    before = read(path, on_disk=True)
    homes = {entry.name: entry.stat().st_mtime_ns for entry in (cache_dir() / "rows").iterdir()}
    assert len(homes) == 1 and read(path, on_disk=True).files == before.files
    assert {entry.name: entry.stat().st_mtime_ns for entry in (cache_dir() / "rows").iterdir()} == homes
    text = path.read_text()
    path.write_text(text.replace("wording 3", "wording x"))
    with pytest.raises(InputError, match=r"rows.tsv:\d+: the file was changed while it was used"):
        list(before)
    after = read(path, on_disk=True)
    rows = list(after)
    assert after.files != before.files and any("wording x" in row.instruction for row in rows)
    (next((cache_dir() / "rows").iterdir()) / "key").write_bytes(b"short")
    assert list(read(path, on_disk=True)) == rows


def test_bad_rows_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(made(1)) + "\n{broken\n" + json.dumps(made(2)))
    with pytest.raises(DataError, match=r"rows.jsonl:2: not JSON at column 2"):
        read(path, on_disk=True)
    assert not list((cache_dir() / "rows").iterdir())
    for _ in range(2):  # the second time from the index
        rejected = tmp_path / "rejected.jsonl"
        rows = read(path, on_disk=True, on_bad_row="skip", rejected=rejected)
        assert (len(rows), rows.read, rows.rejected) == (2, 3, 1)
        assert json.loads(rejected.read_text())["line"] == 2
        rejected.unlink()


def test_the_size_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, "tsv")
    assert not isinstance(read(path).records, Stored)
    monkeypatch.setenv("INSTRUCTREC_LARGE_FILE", str(path.stat().st_size))
    assert isinstance(read(path).records, Stored)
    monkeypatch.setenv("INSTRUCTREC_LARGE_FILE", "1 GB")
    with pytest.raises(InputError, match=r"^INSTRUCTREC_LARGE_FILE: not a number of bytes \(got '1 GB'\)$"):
        read(path)


def test_pools_side_by_side_are_cut_as_one_by_one() -> None:
    draw = np.random.default_rng(0)
    for tokens, rows in ((100, None), (100, 4), (37, 1), (10**6, 7), (60, None)):
        sizes = draw.integers(1, 90, (12, 40))
        begins = greedy(sizes, tokens, rows)
        for pool, starts in zip(sizes, begins, strict=True):
            want = [batch[0] for batch in by_length(pool.tolist(), range(40), tokens, rows)]
            assert np.flatnonzero(starts).tolist() == want


def test_batches_and_steps_are_sequences() -> None:
    lists = [[3, 1], [2], [0, 5, 4], [6]]
    batches = Batches.of(lists)
    assert list(batches) == lists and batches == lists and batches[-1] == [6] and batches[1:3] == lists[1:3]
    assert batches[3:1] == [] and batches[2:].most(np.arange(7)).tolist() == [5, 6]
    assert batches.total(np.arange(7)).tolist() == [4, 2, 9, 6]
    steps = Steps(batches, np.array([2, 3, 4]))
    assert list(steps) == [lists[:2], [lists[2]], [lists[3]]] and steps[1:][0] == [lists[2]] and len(steps[1:]) == 2
    with pytest.raises(IndexError):
        steps[3]


SIDE = {"learning_rate": 1e-2, "max_length": 200}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"strokes": "2", "on_long": "drop", "max_length": 60},
        {"on_long": "trim-input", "method": "full", "max_length": 60},
        {"method": "prefix_tuning", "train_share": 0.5},
    ],
    ids=["lora", "twice", "trimmed", "prefix"],
)
def test_a_run_on_disk_is_the_run_in_memory(
    quick: Any, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    path = put(tmp_path, "jsonl", 60)
    given = SIDE | more
    quick(str(path), out=tmp_path / "memory", **given)
    monkeypatch.setenv("INSTRUCTREC_LARGE_FILE", "1")
    monkeypatch.setattr("instructrec.prompts.shelf.FEW", 20)  # also by several processes
    for name in ("disk", "again"):
        quick(str(path), out=tmp_path / name, **given)
        assert figures(tmp_path / name) == figures(tmp_path / "memory")
        files = sorted(file.name for file in (tmp_path / "memory").glob("*.safetensors"))
        for file in files:
            want, got = load_file(tmp_path / "memory" / file), load_file(tmp_path / name / file)
            assert want.keys() == got.keys() and all((want[key] == got[key]).all() for key in want)
        assert files
        for file in ("split.json", "examples.json", "settings.json", "prompt.json"):
            assert json.loads((tmp_path / name / file).read_text()) == json.loads(
                (tmp_path / "memory" / file).read_text()
            )


@pytest.mark.parametrize("held_out", ["auto", "row"])
def test_rows_kept_for_testing_are_those_kept_in_memory(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_out: str
) -> None:
    rows = [made(number) | {"task": f"t{number % 6}"} for number in range(96)]
    rows[7]["input"] = "a line\u2028and\x85another"  # ends of lines to some, not in a file of lines
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    given = SIDE | {"test_share": 0.4, "held_out": held_out, "max_steps": 3}
    quick(str(path), out=tmp_path / "memory", **given)
    monkeypatch.setenv("INSTRUCTREC_LARGE_FILE", "1")
    for name in ("disk", "again"):  # the second time from the index
        quick(str(path), out=tmp_path / name, **given)
    (memory, disk, again) = (tmp_path / name for name in ("memory", "disk", "again"))
    kept = list(kept_rows(memory) or ())
    assert {rows[number - 1]["input"] for number in (int(str(row.origin).split(":")[-1]) for row in kept)} == {
        row.input for row in kept
    }
    assert 12 <= len(kept) <= 60 and any("\u2028" in row.input for row in kept)
    for folder in (disk, again):
        assert list(kept_rows(folder) or ()) == kept and figures(folder) == figures(memory)
        for file in (TEST_ROWS, "split.json", "examples.json"):
            assert (folder / file).read_bytes() == (memory / file).read_bytes()
        parts = [json.loads((run / "run.json").read_text())["data"]["parts"] for run in (folder, memory)]
        assert parts[0] == parts[1] and parts[0]["test"] == len(kept)
        known = [Known.of(run, json.loads((run / "run.json").read_text())) for run in (folder, memory)]
        assert known[0].traits == known[1].traits and known[0].trained == known[1].trained
        assert not known[0].trained & {row.prompt_key for row in kept}


def test_rows_too_long_are_named_from_the_shelf_too(
    quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, "jsonl", 30)
    messages = []
    for where in ("", "1", "1"):
        monkeypatch.setenv("INSTRUCTREC_LARGE_FILE", where)
        with pytest.raises(DataError) as error:
            quick(str(path), out=tmp_path / "run", **(SIDE | {"max_length": 30}))
        messages.append(str(error.value))
    assert messages[0] == messages[1] == messages[2] and "over max_length 30" in messages[0]
    assert TuneSettings().on_long == "stop"
