"""CSV: quoting by RFC 4180, headers, faults put down to the line on which a record begins; rows read from their place."""

from pathlib import Path

import pytest

from instructrec.data import pieces, read
from instructrec.data.columns import Columns
from instructrec.data.parsing import Parser
from instructrec.data.records import Origin
from instructrec.data.tables import table_of
from instructrec.errors import DataError

HEAD = "instruction,output,task\n"


def csv(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def said(path: Path, **options: object) -> list[str]:
    with pytest.raises(DataError) as error:
        read(path, **options)  # type: ignore[arg-type]
    return str(error.value).replace(str(path), path.name).splitlines()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_quotes_commas_and_lines_in_a_field(tmp_path: Path, end: str) -> None:
    rows = ['"Say ""hi"", please",hi,greet', f'"two{end}{end}lines","a,b",', 'plain,"",x', "last,one,"]
    path = csv(tmp_path, "\ufeff" + end.join([HEAD.strip(), *rows]))
    got = read(path, on_bad_row="skip")
    assert [(row.instruction, row.answer, row.task, row.origin.line) for row in got] == [
        ('Say "hi", please', "hi", "greet", 2),
        (f"two{end}{end}lines", "a,b", None, 3),
        ("last", "one", None, 7),
    ]
    assert (got.read, got.rejected) == (4, 1)
    assert got.notes[0] == (
        f"{path}: first line read as header: instruction -> instruction, output -> answer, task -> task"
    )


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        ('a,"b\nc,d,e\nf,g,h\n', ["rows.csv:2: a quote is never closed"]),
        (
            'a,"b\n"c",d,e\nf,g,h\n',
            ["rows.csv:2: text after a closing quote (want a quote in a field doubled)"],
        ),
        ('a,"b"c,d\nc,d,e\n', ["rows.csv:2: text after a closing quote (want a quote in a field doubled)"]),
        (
            'a,5" pipe,d\nc,d,e\n',
            ["rows.csv:2: a quote inside a field without quotes (want the field in quotes, and quotes doubled)"],
        ),
        ("a,b\nc,d,e\n", ["rows.csv:2: wrong number of comma-separated fields (got 2, want 3)"]),
        (
            '"a\n\nb",b\nc,d,e,f\ng,h,i\n',
            [
                "rows.csv:2: wrong number of comma-separated fields (got 2, want 3)",
                "rows.csv:5: wrong number of comma-separated fields (got 4, want 3)",
            ],
        ),
        ('a,b,c\n"a\nb",,\n', ["rows.csv:3: output: empty (want text)"]),
    ],
)
def test_a_fault_is_named_by_the_line_where_its_record_begins(tmp_path: Path, body: str, messages: list[str]) -> None:
    path = csv(tmp_path, HEAD + body)
    assert said(path)[:-1] == messages
    rows = read(path, on_bad_row="skip")
    assert rows.rejected == len(messages) and len(rows) >= 1


def test_an_odd_quote_costs_one_row_and_not_those_after_it(tmp_path: Path) -> None:
    path = csv(tmp_path, HEAD + 'a,"b,c\n' + "d,e,f\n" * 30_000)
    rows = read(path, on_bad_row="skip")
    assert (len(rows), rows.rejected) == (30_000, 1)
    assert rows.notes[-1] == f"{path}: 1 of 30,001 rows rejected"
    assert said(path)[0] == "rows.csv:2: a quote is not closed within 10,000 lines and 16 MiB"


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "review,mood\ngood,1\n",
            {},
            "rows.csv:1: instruction: missing (got review, mood; want instruction, prompt, query, question, 指令, 问题 "
            "or a column mapping)",
        ),
        ('instruction,"output\na,b\n', {}, "rows.csv:1: header: a quote is never closed"),
        ("instruction,output,output\na,b,c\n", {}, "rows.csv:1: header: column 'output' is there twice"),
        (
            "a,b\n",
            {"columns": {"messages": "1"}},
            "rows.csv:1: columns: messages and history need JSON or Parquet (got CSV)",
        ),
        (b"instruction,output\xff\na,b\n", {}, "rows.csv:1: not UTF-8, byte 0xff at 18 (want UTF-8)"),
        (b"\xff\xfea\0", {}, "rows.csv:1: not UTF-8, byte 0xff at 0 (got UTF-16, want UTF-8)"),
    ],
)
def test_files_refused_as_a_whole(tmp_path: Path, text: str | bytes, options: dict, message: str) -> None:
    assert said(csv(tmp_path, text), **options) == [message]


def test_semicolons_where_there_is_no_comma_in_the_header(tmp_path: Path) -> None:
    rows = read(csv(tmp_path, 'prompt;"answer"\n"a;b";c,d\n'))
    assert [(row.instruction, row.answer) for row in rows] == [("a;b", "c,d")]


def test_columns_by_number_need_no_header(tmp_path: Path) -> None:
    path = csv(tmp_path, "1,Where?,here\n2,When?,now\n")
    rows = read(path, columns={"instruction": "2", "answer": "3", "group": "1"})
    assert [(row.instruction, row.answer, row.group) for row in rows] == [
        ("Where?", "here", "1"),
        ("When?", "now", "2"),
    ]


def test_a_nameless_column_such_as_the_index_of_pandas(tmp_path: Path) -> None:
    rows = read(csv(tmp_path, ",text,label\n0,fine,good\n"))
    assert (rows[0].instruction, rows[0].answer, rows[0].metadata) == ("fine", "good", {"column 1": "0"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.csv", '\ufeffinstruction,output\r\n"a\r\nb",c\r\n\r\n"ü""",d\n'),
        ("rows.tsv", "\ufeffa\\tb\tc\r\n\nü\td"),
        ("rows.jsonl", '\ufeff{"instruction": "a", "output": "b"}\n\r\n{"instruction": "ü", "output": "b"}'),
    ],
)
def test_a_row_is_the_same_when_it_is_read_again_from_its_place(tmp_path: Path, name: str, text: str) -> None:
    path = csv(tmp_path, text, name)
    content = path.read_bytes()
    cut = pieces.csv_records if name.endswith("csv") else pieces.lines
    with open(path, "rb") as handle:
        places = [piece for piece in cut(handle) if piece.raw]
    records = read(path).records
    table = None
    if name != "rows.jsonl":
        table = table_of(places[0].raw.decode(), {}, sign="," if name.endswith("csv") else "\t")
        places = places[1:] if table.header else places
    parser = Parser(name.partition(".")[2], Columns(table.columns if table else {}), table)
    again = [parser.record(content[piece.start :][: len(piece.raw)], Origin(str(path), piece.line)) for piece in places]
    assert tuple(again) == records and len(records) == 2
    stored = Parser.from_json(parser.to_json())
    assert stored.record(places[0].raw, records[0].origin) == records[0]
