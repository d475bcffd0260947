"""TSV: escapes, headers, columns, and what becomes of the lines."""

import hashlib
from pathlib import Path

import pytest

from instructrec.data import read
from instructrec.data.tables import unescape
from instructrec.errors import DataError, InputError


def tsv(folder: Path, text: str, name: str = "rows.tsv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def notes(rows, path: Path) -> list[str]:
    return [note.replace(str(path), path.name) for note in rows.notes]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"a\tb", "a\tb"),
        (r"a\nb", "a\nb"),
        (r"C:\\new", r"C:\new"),
        (r"\\\n", "\\\n"),
        (r"\d+\r\"", r"\d+\r\""),
        ("ends in \\", "ends in \\"),
    ],
)
def test_three_escapes_and_no_other(typed: str, meant: str) -> None:
    assert unescape(typed) == meant


def test_plain_file_without_header(tmp_path: Path) -> None:
    path = tsv(tmp_path, 'Say "hi"\thi\r\n\r\nTwo\\nlines\t  a\\tb\u2028c\n')
    rows = read(path)
    assert [(row.instruction, row.answer) for row in rows] == [('Say "hi"', "hi"), ("Two\nlines", "  a\tb\u2028c")]
    assert [(str(row.origin), row.turns[-1].supervised) for row in rows] == [(f"{path}:1", True), (f"{path}:3", True)]
    assert (rows.read, rows.rejected) == (2, 0)
    assert rows.files == {str(path): hashlib.sha256(path.read_bytes()).hexdigest()}
    assert notes(rows, path) == [
        "rows.tsv: no header line: instruction -> instruction, answer -> answer",
        "rows.tsv: 1 blank line passed over",
    ]


def test_header_is_found_and_said(tmp_path: Path) -> None:
    path = tsv(tmp_path, "Question\tAnswer\tcontext\ttask\tlicence\nWho?\tAda\tAda was here.\tqa\tCC0\n")
    rows = read(path)
    row = rows[0]
    assert (row.instruction, row.input, row.answer, row.task) == ("Who?", "Ada was here.", "Ada", "qa")
    assert row.metadata == {"licence": "CC0"} and row.origin.line == 2
    assert notes(rows, path) == [
        "rows.tsv: first line read as header: Question -> instruction, context -> input, Answer -> answer, "
        "task -> task; kept as metadata: licence"
    ]


def test_header_in_chinese_and_after_a_byte_order_mark(tmp_path: Path) -> None:
    rows = read(tsv(tmp_path, "\ufeff指令\t回答\n翻译：house\t房子\n"))
    assert [(row.instruction, row.answer) for row in rows] == [("翻译：house", "房子")]


def test_a_first_row_that_merely_holds_the_word_is_no_header(tmp_path: Path) -> None:
    rows = read(tsv(tmp_path, "input\t输入法\nquestion\tquestion mark\n"))
    assert [row.answer for row in rows] == ["输入法", "question mark"]


def test_columns_by_number_and_by_name(tmp_path: Path) -> None:
    by_number = tsv(tmp_path, "7\thello\tbonjour\n8\tbye\tsalut\n", "a.tsv")
    rows = read(by_number, columns={"instruction": 2, "answer": "3"})
    assert [(row.instruction, row.answer, row.metadata) for row in rows] == [
        ("hello", "bonjour", {"column 1": "7"}),
        ("bye", "salut", {"column 1": "8"}),
    ]
    by_name = tsv(tmp_path, "en\tfr\nhello\tbonjour\n", "b.tsv")
    rows = read(by_name, columns={"instruction": "en", "answer": "fr"})
    assert [(row.instruction, row.answer) for row in rows] == [("hello", "bonjour")]
    with_header = tsv(tmp_path, "id\tinstruction\tanswer\n1\thello\tbonjour\n", "c.tsv")
    assert read(with_header, columns={"group": "1"})[0].group == "1"


def test_one_instruction_for_all_rows(tmp_path: Path) -> None:
    plain = read(tsv(tmp_path, "house\tmaison\n"), instruction="Translate.")
    assert (plain[0].instruction, plain[0].input, plain[0].answer) == ("Translate.", "house", "maison")
    mapped = read(
        tsv(tmp_path, "en\tfr\nhouse\tmaison\n"),
        instruction="Translate.",
        columns={"instruction": "en", "answer": "fr"},
    )
    assert (mapped[0].instruction, mapped[0].input) == ("Translate.", "house")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a\tb\nc\nd\te\tf\n",
            {},
            "rows.tsv:2: wrong number of tab-separated fields (got 1, want 2)\n"
            "rows.tsv:3: wrong number of tab-separated fields (got 3, want 2)\n"
            "1 other row can be used; --on-bad-row=skip leaves the bad ones out",
        ),
        ("a\tb\tc\n", {}, "rows.tsv:1: wrong number of tab-separated fields (got 3, want 2)"),
        ("instruction\treponse\nHi\tho\n", {}, "rows.tsv:1: answer: missing (got 'reponse', want 'response')"),
        ("answer\tanswer\tprompt\n", {}, "rows.tsv:1: header: column 'answer' is there twice"),
        (
            "en\tfr\nhi\tho\n",
            {"columns": {"instruction": "en", "answer": "fra"}},
            "rows.tsv:1: columns: answer: no column 'fra', did you mean 'fr'?",
        ),
        (
            "a\tb\n",
            {"columns": {"instruction": "1", "answer": "3"}},
            "rows.tsv:1: columns: answer: no such column (got 3, want 1 to 2)",
        ),
        (
            "a\tb\n",
            {"columns": {"messages": "1"}},
            "rows.tsv:1: columns: messages and history need JSON or Parquet (got TSV)",
        ),
        ("instruction\tanswer\n", {}, "rows.tsv: 0 usable rows (got only a header line)"),
        ("a\t \n", {}, "rows.tsv:1: answer: only white space (want text)"),
        ("\ta\n", {}, "rows.tsv:1: instruction: empty (want text)"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, options: dict, message: str) -> None:
    path = tsv(tmp_path, text)
    with pytest.raises(DataError) as error:
        read(path, **options)
    assert str(error.value).replace(str(path), "rows.tsv") == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "jsnol"}, "format: unknown 'jsnol', did you mean 'jsonl'?"),
        ({"on_bad_row": "ignore"}, "on_bad_row: unknown 'ignore', known: skip, stop"),
        ({"columns": {"awnser": "b"}}, "columns: unknown role 'awnser', did you mean 'answer'?"),
        (
            {"columns": {"answer": 1.5}},
            "columns: answer: not a column (got 1.5, want a name, or a number in TSV)",
        ),
        (
            {"columns": {"answer": "x", "input": "x"}},
            "columns: 'x' is given twice (got answer and input, want one role)",
        ),
        (
            {"columns": {"answer": "x", "messages": "m"}},
            "columns: messages hold instruction and answer already (got both, want one of them)",
        ),
        (
            {"columns": {"instruction": "x", "input": "m"}, "instruction": "Do."},
            "columns: instruction: given as a column and as a fixed text (want one of them)",
        ),
        ({"instruction": "  "}, "instruction: only white space (want text)"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(tsv(tmp_path, "a\tb\n"), **options)
    assert str(error.value) == message
