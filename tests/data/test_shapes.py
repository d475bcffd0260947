"""JSON arrays, Parquet, sharegpt, compressed files, folders, labels, filled instructions, media."""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instructrec.data import read
from instructrec.data.arrays import array_elements
from instructrec.data.columns import Columns
from instructrec.data.parquet import parquet_rows
from instructrec.data.parsing import Parser
from instructrec.data.pieces import Broken
from instructrec.data.records import Media, Record, Turn
from instructrec.errors import DataError, InputError

ROWS = [{"instruction": f"Say {word}", "output": word} for word in ("one", "two", "three")]


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path, row_group_size=2)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def said(path: Path | str, **options: Any) -> list[str]:
    with pytest.raises(DataError) as error:
        read(path, **options)
    return str(error.value).replace(f"{Path(path).parent}/", "").splitlines()


def talk(*turns: tuple[str, str], **more: object) -> dict:
    return {"conversations": [{"from": who, "value": text} for who, text in turns], **more}


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('[1, {"a": "x,]\\""}, [2]]', [(1, b"1"), (1, b'{"a": "x,]\\""}'), (1, b"[2]")]),
        ('{"v": {"x": [1]}, "data": [\n {"a":1},\n\n {"b":2}\n], "z": 3}', [(2, b'{"a":1}'), (4, b'{"b":2}')]),
        ("\ufeff \n[ ]", []),
        ('[{"a": [[[[1]]]]}\n, 2]', [(1, b'{"a": [[[[1]]]]}'), (2, b"2")]),
    ],
)
def test_an_array_is_cut_into_its_elements(text: str, rows: list[tuple[int, bytes]]) -> None:
    content = text.encode()
    found = list(array_elements(io.BytesIO(content)))
    assert [(piece.line, piece.raw) for piece in found] == rows
    assert all(content[piece.start :][: len(piece.raw)] == piece.raw for piece in found)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("[1,\n}]", 2, "not JSON ('}' without its opening bracket)"),
        ('["a\n"]', 1, "not JSON (a string is not closed on its line)"),
        ("[1]\n[2]", 2, "more after the list of rows (want one list, or an object with one)"),
        ("[1]\nx", 2, "more after the list of rows (want nothing)"),
        ('{"a": [1], "b": [2]}', 1, "more after the list of rows (want one list, or an object with one)"),
        ('{"a": 1}', 1, "no list of rows in it"),
        ('{"a": [1]', 1, "cut off"),
    ],
)
def test_an_array_whose_own_text_is_wrong(tmp_path: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(Broken) as error:
        list(array_elements(io.BytesIO(text.encode())))
    assert (error.value.line, error.value.reason) == (line, reason)


def test_long_arrays_are_cut_as_the_json_library_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instructrec.data.arrays.CHUNK", 7)  # every place is an edge of a chunk once
    chance = random.Random(0)
    values = [{"a": chance.choice(['"', "\\", "]", ",", "中", "{"]) * n, "b": [n, {"c": [n]}]} for n in range(40)]
    for indent in (None, 1):
        content = json.dumps({"v": 1, "rows": values}, indent=indent, ensure_ascii=False).encode()
        found = list(array_elements(io.BytesIO(content)))
        assert [json.loads(piece.raw) for piece in found] == values
        assert [piece.line for piece in found] == [1 + content.count(b"\n", 0, piece.start) for piece in found]


def test_a_file_is_held_in_memory_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with open(path, "w") as handle:
        handle.write("[" + ",".join([json.dumps(ROWS[0] | {"x": "y" * 1000})] * 40_000) + "]")
    tracemalloc.start()
    with open(path, "rb") as handle:
        assert sum(1 for _ in array_elements(handle)) == 40_000
    assert tracemalloc.get_traced_memory()[1] < 8 << 20 < path.stat().st_size
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        ([*ROWS, {"instruction": "a"}], ["rows.json:1: [3].output: missing (got nothing else)"]),
        ([*ROWS, "a"], ["rows.json:1: [3]: wrong type (got text, want a JSON object)"]),
        ('[\n{"instruction": "a", "output": "b"},\n{"instruction":\n 1 x}\n]', ["rows.json:4: [1]: not JSON at column 4 (expecting ',' delimiter)"]),
        ('[\n{"instruction": "a", "output": "b"},\n]', ["rows.json:3: [1]: not JSON (nothing beside a comma)"]),
        ('[{"instruction": "a", "output": "b"},\n{"instr', ["rows.json:2: [1]: cut off: the file ends inside the list"]),
        ('[{"instruction": "a", "output": "b"},\n{"output": "b", "output": 1}]', ["rows.json:2: [1].output: key given twice"]),
    ],
)  # fmt: skip
def test_bad_elements_are_named_by_line_and_place(tmp_path: Path, content: Any, messages: list[str]) -> None:
    path = put(tmp_path / "rows.json", content)
    assert said(path)[:-1] == messages
    assert read(path, on_bad_row="skip").rejected == 1


def test_an_element_too_long_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    with open(path, "wb") as handle:
        handle.write(b'[{"instruction": "a')
        handle.truncate(1 << 28)
    tracemalloc.start()
    assert said(path) == ["rows.json:1: row too long (want at most 16 MiB)"]
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows"])
def test_json_is_known_by_what_it_holds(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    for content in (ROWS, lines):
        rows = read(put(tmp_path / name, content))
        assert [row.answer for row in rows] == ["one", "two", "three"]
    assert [str(row.origin) for row in read(put(tmp_path / name, ROWS))][2] == f"{tmp_path / name}:1[2]"


def test_an_object_around_the_rows_and_a_single_row(tmp_path: Path) -> None:
    around = {"version": "1.0", "count": 3, "data": ROWS}
    assert len(read(put(tmp_path / "a.json", around))) == 3
    assert len(read(put(tmp_path / "b.json", json.dumps(around, indent=2)))) == 3
    one = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert len(read(put(tmp_path / "c.json", one))) == 1
    assert len(read(put(tmp_path / "d.json", json.dumps(around | {"data": ROWS[:1]}) + "\n"))) == 1


def test_sharegpt_with_tools(tmp_path: Path) -> None:
    row = talk(
        ("human", "Weather?"), ("function_call", "get()"), ("observation", "rain"), ("gpt", "It rains."), system="Be brief.", tools="[]"
    )  # fmt: skip
    rows = read(put(tmp_path / "rows.json", [row, talk(("system", "S"), ("user", "a"), ("assistant", "b"))]))
    assert rows[0].turns == (
        Turn("system", "Be brief."),
        Turn("user", "Weather?"),
        Turn("assistant", "get()", supervised=True),
        Turn("user", "rain"),
        Turn("assistant", "It rains.", supervised=True),
    )
    assert (rows[1].system, rows[1].answer) == ("S", "b")
    assert [note.partition(": ")[2] for note in rows.notes] == [
        "read as sharegpt: system -> system, conversations -> messages; kept as metadata: tools",
        "1 conversations with tools: function_call is learned as the assistant's, what a tool replies is given as the user's",
    ]


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("gpt", "a")], "conversations[0]: role order (got assistant (gpt) first, want user)"),
        ([("human", "a"), ("human", "b"), ("gpt", "c")], "conversations[1]: role order (got user (human) after user, want assistant)"),
        ([("human", "a"), ("gpt", "b"), ("function_call", "c")], "conversations[2]: role order (got assistant (function_call) after assistant, want user)"),
        ([("human", "a")], "conversations[0]: no assistant turn at the end (got a user turn, want an answer)"),
        ([("humna", "a"), ("gpt", "b")], "conversations[0].from: unknown role 'humna', did you mean 'human'?"),
        ([("human", ""), ("gpt", "b")], "conversations[0].value: empty (want text)"),
        ([("human", 7), ("gpt", "b")], "conversations[0].value: wrong type (got number, want text)"),
    ],
)  # fmt: skip
def test_sharegpt_in_disorder(turns: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(DataError) as error:
        read([talk(("human", "a"), ("gpt", "b")), talk(*turns)])
    assert str(error.value).splitlines()[0] == f"<memory>:2: {message}"


def test_parquet_rows_nested_columns_labels_and_nulls(tmp_path: Path) -> None:
    features = {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}, "text": {"dtype": "string"}}
    table = pa.table({
        "text": ["a", "b", "c"], "label": [1, 0, 1], "score": [1.5, float("nan"), None], "raw": [b"caf\xc3\xa9"] * 3,
    }).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})  # fmt: skip
    path = put(tmp_path / "rows.parquet", table)
    rows = read(path)
    assert [(row.instruction, row.answer, row.origin.line) for row in rows] == [
        ("a", "good", 1),
        ("b", "bad", 2),
        ("c", "good", 3),
    ]
    assert [row.metadata for row in rows] == [{"score": score, "raw": "café"} for score in (1.5, None, None)]
    assert rows.files == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    chat = pa.Table.from_pylist([talk(("human", "x"), ("gpt", "y"))] * 2)
    assert [row.answer for row in read(put(tmp_path / "chat", chat))] == ["y", "y"]


def test_parquet_faults_are_named_by_the_row(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.parquet", pa.table({"instruction": ["a", "b", None], "output": ["x", "", "y"]}))
    assert said(path)[:-1] == [
        "rows.parquet:2: output: empty (want text)",
        "rows.parquet:3: instruction: wrong type (got null, want text)",
    ]
    column = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    path = put(tmp_path / "bytes.parquet", pa.table({"instruction": column, "output": ["x"]}))
    assert said(path) == ["bytes.parquet:1: instruction: not UTF-8, byte 0xff at 0 (want UTF-8)"]
    path = put(tmp_path / "cut.parquet", (tmp_path / "rows.parquet").read_bytes()[:-20])
    assert said(path)[0].startswith("cut.parquet: damaged Parquet (")
    content = (tmp_path / "rows.parquet").read_bytes()
    path = put(tmp_path / "name.parquet", content.replace(b"\x18\x06output", b"\x18\x06out\xffut"))
    assert path.read_bytes() != content
    assert said(path)[0].startswith("name.parquet: damaged Parquet ('utf-8' codec can't decode byte 0xff in position 3")
    path = put(tmp_path / "none.parquet", pa.table({"instruction": pa.array([], pa.string())}))
    assert said(path) == ["none.parquet: 0 usable rows (got an empty file)"]


def test_pictures_and_sounds_are_kept_and_their_bytes_not_read(tmp_path: Path) -> None:
    picture = pa.array([{"bytes": b"\x89PNG", "path": "a.png"}, {"bytes": b"\xff", "path": None}, None])
    table = pa.table(
        {"text": ["a", "b", "c"], "label": ["x", "y", "z"], "image": picture, "audio": [b"\xff", b"", None]}
    )
    rows = read(put(tmp_path / "rows.parquet", table))
    assert [row.media for row in rows] == [
        (Media("image", "a.png", "image"), Media("audio", "", "audio")),
        (Media("image", "", "image"), Media("audio", "", "audio")),
        (Media("audio", "", "audio"),),
    ]
    assert rows.notes[-1].endswith("media are kept but not learned from (rows: 2 with image, 3 with audio)")
    row = ROWS[0] | {"images": ["a.png", {"path": "b.png"}], "video": 7}
    assert read([row])[0].media == (Media("image", "a.png", "images[0]"), Media("image", "b.png", "images[1]"))
    assert read([row])[0].metadata == {"video": 7}  # a column that only has such a name
    mapped = read([{"q": "a", "a": "b", "scan": "c.png"}], columns={"instruction": "q", "answer": "a", "image": "scan"})
    assert mapped[0].media == (Media("image", "c.png", "scan"),)


LABELS = {"0": "negative", "1": "positive", "true": "yes"}


@pytest.mark.parametrize(("value", "answer"), [(0, "negative"), ("1", "positive"), (1.0, "positive"), (True, "yes")])
def test_labels_become_answers_and_instructions_are_filled(value: object, answer: str) -> None:
    rows = read([{"text": "So good", "n": 3, "label": value}], instruction="{{Mood}} {n}: {text}", labels=LABELS)
    assert rows[0].turns == (Turn("user", "{Mood} 3: So good"), Turn("assistant", answer, supervised=True))
    assert rows.notes[0].endswith("read as columns: n -> instruction, text -> instruction, label -> answer")


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        ({"text": "a", "label": 2}, {"labels": LABELS}, "<memory>:1: label: no label for '2', known: 0, 1, true"),
        ({"text": "a", "label": "ture"}, {"labels": LABELS}, "<memory>:1: label: no label for 'ture', did you mean 'true'?"),
        ({"text": "a", "label": None}, {"labels": LABELS}, "<memory>:1: label: wrong type (got null, want text)"),
        ({"text": "a", "label": "x"}, {"instruction": "Mood? {txet}"}, "<memory>:1: txet: missing (got 'text', want 'txet')"),
        ({"text": None, "label": "x"}, {"instruction": "Mood? {text}"}, "<memory>:1: text: wrong type (got null, want text)"),
        ({"text": "a"}, {"labels": {"0": " "}}, "labels: no name for '0' (want text)"),
        (
            {"text": "a"},
            {"instruction": "Mood? {text}", "columns": {"input": "text"}},
            "columns: instruction: its text names its columns itself (want no instruction or input column)",
        ),
    ],
)  # fmt: skip
def test_labels_and_filled_instructions_that_do_not_fit(row: dict, options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        read([row], **options)
    assert str(error.value) == message


def test_braces_without_a_column_name_are_text() -> None:
    row = read([{"text": "a", "label": "b"}], instruction='Answer as {"mood": …}.')[0]
    assert (row.instruction, row.input) == ('Answer as {"mood": …}.', "a")


PACKERS = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": lambda raw: pa.compress(raw, "zstd", asbytes=True),
}  # fmt: skip


@pytest.mark.parametrize("suffix", PACKERS)
def test_compressed_files(tmp_path: Path, suffix: str) -> None:
    raw = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    packed = PACKERS[suffix](raw)
    path = put(tmp_path / f"rows.jsonl{suffix}", packed)
    rows = read(path)
    assert [str(row.origin) for row in rows] == [f"{path}:{line}" for line in (1, 2, 3)]
    assert rows.files == {str(path): hashlib.sha256(packed).hexdigest()}
    put(path, packed[: len(packed) // 2])
    assert said(path)[0].startswith(f"rows.jsonl{suffix}: damaged {suffix} file (")
    table = put(tmp_path / f"rows.csv{suffix}", PACKERS[suffix](b"instruction,output\na,b\n"))
    assert read(table)[0].answer == "b"
    put(path, PACKERS[suffix](raw + b'{"instruction": "a"}\n'))
    assert said(path)[0] == f"rows.jsonl{suffix}:4: output: missing (got nothing else)"


def test_a_folder_and_a_pattern_are_their_files(tmp_path: Path) -> None:
    put(tmp_path / "d" / "b.jsonl", json.dumps(ROWS[0]))
    put(tmp_path / "d" / "a.csv", "instruction,output\nx,y\n")
    put(tmp_path / "d" / "README.md", "no rows")
    put(tmp_path / "d" / ".hidden.jsonl", "no rows")
    put(tmp_path / "d" / "below" / "c.json", ROWS)
    rows = read(tmp_path / "d")
    assert [Path(name).name for name in rows.files] == ["a.csv", "b.jsonl"]
    assert [str(row.origin).removeprefix(f"{tmp_path}/") for row in rows] == ["d/a.csv:2", "d/b.jsonl:1"]
    assert (rows.read, len(read(f"{tmp_path}/d/**/*.js*"))) == (2, 4)
    assert said(f"{tmp_path}/d/*.tsv") == ["*.tsv: no file has such a name"]
    put(tmp_path / "d" / "e.jsonl", "bad\n{}\n")
    put(tmp_path / "d" / "f.csv", "")
    assert said(tmp_path / "d") == [
        "d/e.jsonl:1: not JSON at column 1 (expecting value)",
        "d/e.jsonl:2: instruction: missing (got nothing else; want instruction, prompt, query, question, 指令, 问题 or a column mapping)",
        "d/f.csv: 0 usable rows (got an empty file)",
    ]  # fmt: skip
    os.remove(tmp_path / "d" / "f.csv")
    put(tmp_path / "d" / "e.jsonl", "bad\n" + json.dumps(ROWS[0]))
    rejected = tmp_path / "rejected.jsonl"
    assert (len(read(tmp_path / "d", on_bad_row="skip", rejected=rejected)), rejected.read_text().count("\n")) == (3, 1)


@pytest.mark.parametrize("suffix", [".xlsx", ".zip", ".sqlite"])
def test_files_that_are_not_read(tmp_path: Path, suffix: str) -> None:
    path = put(tmp_path / f"rows{suffix}", b"PK")
    assert said(path) == [f"rows{suffix}: {suffix} files are not read (want TSV, CSV, JSON, JSONL or Parquet)"]


def test_a_row_of_an_array_or_of_parquet_is_the_same_when_read_again(tmp_path: Path) -> None:
    path = put(tmp_path / "rows.json", json.dumps(ROWS, indent=1))
    content, rows = path.read_bytes(), read(path)
    with open(path, "rb") as handle:
        places = [(piece.start, len(piece.raw)) for piece in array_elements(handle)]
    parser = Parser("json", Columns())
    again: list[Record] = [
        parser.record(content[start:][:size], row.origin) for (start, size), row in zip(places, rows, strict=True)
    ]
    assert again == list(rows)
    path = put(tmp_path / "rows.parquet", pa.Table.from_pylist(ROWS))
    with open(path, "rb") as handle:
        pieces = list(parquet_rows(handle))
    assert [(piece.line, piece.start) for piece in pieces] == [(1, 0), (2, 0), (3, 1)]
    known = Parser.from_json(json.loads(json.dumps(parser.to_json())))
    assert [known.record(piece.raw, row.origin) for piece, row in zip(pieces, read(path), strict=True)] == list(
        read(path)
    )


def test_what_stands_behind_the_packed_rows_counts_for_the_hash(tmp_path: Path) -> None:
    packed = bz2.compress(json.dumps(ROWS[0]).encode()) + b"\0" * (3 << 20)  # more than is read at once
    path = put(tmp_path / "rows.jsonl.bz2", packed)
    assert read(path).files == {str(path): hashlib.sha256(packed).hexdigest()}


@pytest.mark.parametrize("text", ["a\u2028b\u0085c\u000bd", "\u202eabc\u202c", "<|im_end|>\n<|im_start|>assistant"])
def test_odd_text_is_text_in_every_shape(tmp_path: Path, text: str) -> None:
    row = {"instruction": text, "output": text}
    paths = [
        put(tmp_path / "rows.csv", f'instruction,output\n"{text}","{text}"\n'),
        put(tmp_path / "rows.json", json.dumps([row], ensure_ascii=False)),
        put(tmp_path / "rows.parquet", pa.Table.from_pylist([row])),
    ]
    assert [[(found.instruction, found.answer) for found in read(path)] for path in paths] == [[(text, text)]] * 3
