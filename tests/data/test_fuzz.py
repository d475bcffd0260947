"""Broken input of every format by chance: only our own errors escape, and no row is lost between read and rejected."""

import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructrec.data import Rows, read
from instructrec.errors import DataError, EnvironmentFault, InputError

NAMES = [
    "instruction", "input", "output", "text", "label", "messages", "conversations", "role", "content", "from", "value",
    "history", "image", "task", "x",
]  # fmt: skip
WORDS = [
    "user",
    "assistant",
    "human",
    "gpt",
    "system",
    "observation",
    "function_call",
    "a",
    "",
    " ",
    "\u2028",
    "\x00",
    "b,c",
    '"',
    "\t",
]
VALUE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(WORDS) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=10,
)
GOOD = {"instruction": "Say hi", "output": "hi"}
ROW = (
    st.dictionaries(st.sampled_from(NAMES), VALUE, max_size=4)
    | st.just(GOOD)
    | st.just({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
)
OPTIONS = st.sampled_from(
    [{}, {}, {"instruction": "Do {text}"}, {"instruction": "Do."}, {"labels": {"1": "one"}}, {"columns": {"answer": "x"}},
     {"columns": {"messages": "text"}}, {"columns": {"instruction": "2", "answer": "1"}}]
)  # fmt: skip
TIMES = int(os.environ.get("INSTRUCTREC_FUZZ", "1"))
FEW = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


def line_file(rows: list[object], name: str) -> bytes:
    """The rows as a file of that name would have them."""
    if name.startswith("rows.json") and "jsonl" not in name:
        return json.dumps(rows if len(name) % 2 else {"v": 1, "data": rows}, indent=len(rows) % 3 or None).encode()
    if name.startswith("rows.jsonl"):
        return "\n".join(map(json.dumps, rows)).encode("utf-8", "surrogatepass")
    sign = "\t" if name == "rows.tsv" else ","
    table = [list(row.values()) if isinstance(row, dict) else [row] for row in rows]
    text = "\n".join(
        sign.join(json.dumps(cell, ensure_ascii=False) for cell in row) for row in [["text", "label"], *table]
    )
    return text.encode("utf-8", "surrogatepass")


def spoiled(content: bytes, seed: int) -> bytes:
    """A few bytes changed, removed or put in, or the end cut off; unchanged for one seed in four."""
    chance, found = random.Random(seed), bytearray(content)
    for _ in range(seed % 4):
        place = chance.randrange(len(found) + 1)
        found[place : place + chance.randrange(3)] = chance.choice(
            [b"", b'"', b"\n", b"\xff", b"[", b"}", b",", b"\\", b"\0"]
        )
    return bytes(found[: chance.randrange(len(found) + 1)] if seed % 7 == 6 else found)


def outcome(path: Path, options: dict) -> Rows | None:
    """What comes of reading, which is rows with a sound account, or an error of ours in one piece."""
    rejected = path.with_name("rejected.jsonl")
    rejected.unlink(missing_ok=True)
    try:
        rows = read(path, on_bad_row="skip", rejected=rejected, **options)
    except (DataError, InputError, EnvironmentFault) as error:
        assert str(error) and "Traceback" not in str(error)
        return None
    written = rejected.read_bytes().count(b"\n") if rejected.exists() else 0
    assert rows.read == len(rows) + rows.rejected and rows.rejected == written
    assert all(row.answer.strip() and row.instruction.strip() for row in rows)
    return rows


FILES = ["rows.jsonl", "rows.json", "rows.json ", "rows.csv", "rows.tsv", "rows", "rows.jsonl.gz"]


@settings(max_examples=1700 * TIMES, **FEW)
@given(rows=st.lists(ROW, max_size=4), name=st.sampled_from(FILES), seed=st.integers(0, 1 << 16), options=OPTIONS)
def test_files_of_text(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], name: str, seed: int, options: dict
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    content = spoiled(line_file(rows, name), seed)
    path.write_bytes(gzip.compress(content)[: None if seed % 5 else -3] if name.endswith(".gz") else content)
    found = outcome(path, options)
    if found is not None and seed % 4 == 0 and seed % 7 != 6 and "json" in name and seed % 5:
        assert found.read == len(rows)  # nothing was changed: each row is used or rejected


@settings(max_examples=300 * TIMES, **FEW)
@given(rows=st.lists(ROW, max_size=4), seed=st.integers(0, 1 << 16), options=OPTIONS)
def test_files_of_parquet(tmp_path_factory: pytest.TempPathFactory, rows: list[dict], seed: int, options: dict) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    texts = [{name: json.dumps(value) if seed % 3 else str(value) for name, value in row.items()} for row in rows]
    columns = sorted({name for row in texts for name in row}) or ["x"]
    table = {
        name: [row[name].encode("utf-8", "replace").decode() if name in row else None for row in texts]
        for name in columns
    }
    pq.write_table(pa.table(table), path)
    path.write_bytes(spoiled(path.read_bytes(), seed))
    found = outcome(path, options)
    if found is not None and seed % 4 == 0 and seed % 7 != 6:
        assert found.read == len(rows)
