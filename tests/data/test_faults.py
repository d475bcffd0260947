"""Broken input of every kind: each is named by file, line and field, and nothing is lost or written in silence."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instructrec.data import pieces, read, readers
from instructrec.data.streams import WANTED
from instructrec.errors import DataError, EnvironmentFault, InputError

GOOD = b'{"instruction": "Say hi", "output": "hi"}\n'


def said(path: object, **options: object) -> str:
    """The text of the error that reading raises, with the folder's name taken out."""
    with pytest.raises(DataError) as error:
        read(path, **options)  # type: ignore[arg-type]
    return str(error.value).replace(os.path.dirname(str(path)) + "/", "")


ADVICE = "1 other row can be used; --on-bad-row=skip leaves the bad ones out"
LINES = [  # bytes of line 2 of data.jsonl, what is said about it
    (b'{"instruction": "Say hi", "output": "hi', "not JSON at column 37 (unterminated string)"),
    (b'{"instruction": "Say hi", "output"', "not JSON at column 35 (expecting ':' delimiter)"),
    (b"{'instruction': 1}", "not JSON at column 2 (expecting property name enclosed in double quotes)"),
    (GOOD[:-1] + b" x", "not JSON at column 43 (extra data)"),
    (b'["a", "b"]', "wrong type (got list, want a JSON object)"),
    (b'"a"', "wrong type (got text, want a JSON object)"),
    ('{"instruction": "中", "output": "文"}'.encode("gbk"), "not UTF-8, byte 0xd6 at 17 (want UTF-8)"),
    (b'{"instruction": "caf\xe9", "output": "x"}', "not UTF-8, byte 0xe9 at 20 (want UTF-8)"),
    (b'{"instruction": "a\xed\xa0\x80", "output": "x"}', "not UTF-8, byte 0xed at 18 (want UTF-8)"),
    (b'{"instruction": "a"}', "output: missing (got nothing else)"),
    (b'{"instruction": "a", "reponse": "b"}', "output: missing (got 'reponse', want 'output')"),
    (b'{"instruction": "a", "outptu": "b"}', "output: missing (got 'outptu', want 'output')"),
    (b'{"instruction": "a", "output": null}', "output: wrong type (got null, want text)"),
    (b'{"instruction": "a", "output": 4}', "output: wrong type (got number, want text)"),
    (b'{"instruction": "a", "output": ["b"]}', "output: wrong type (got list, want text)"),
    (b'{"instruction": "a", "output": {"b": 1}}', "output: wrong type (got object, want text)"),
    (b'{"instruction": "a", "output": true}', "output: wrong type (got boolean, want text)"),
    (b'{"instruction": "a", "output": ""}', "output: empty (want text)"),
    ('{"instruction": "a", "output": " \u3000"}'.encode(), "output: only white space (want text)"),
    (b'{"instruction": "", "output": "b"}', "instruction: empty (want text)"),
    (b'{"instruction": "a", "output": "b", "output": "c"}', "output: key given twice"),
    (b'{"instruction": "a", "output": "b", "m": {"k": 1, "k": 1}}', "k: key given twice"),
    (b'{"instruction": "a", "output": "b", "m": NaN}', "NaN is not JSON (want a number or null)"),
    (b'{"instruction": "a", "output": "b", "m": [-Infinity]}', "-Infinity is not JSON (want a number or null)"),
    (b'{"instruction": "a", "output": "b", "m": 1e999}', "number too large (got 1e999)"),
    (b'{"instruction": "a", "output": "b", "m": ' + b"7" * 5000 + b"}", "a number with too many digits"),
    (
        b'{"instruction": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "nested too deeply (got 10001 levels, want at most 64)",
    ),
    (b'{"a":' * 100_000, "nested too deeply (got 100000 levels, want at most 64)"),
    (rb'{"instruction": "a", "output": "b\ud800c"}', r"output: half a surrogate pair, \ud800 at 1"),
    (rb'{"instruction": "a", "output": "b", "m": [{"\uDFFF": 1}]}', r"m: half a surrogate pair, \udfff at 0"),
    (rb'{"instruction": "a", "output": "b\u0000"}', "output: NUL character at 1"),
    (b'{"instruction": "a\0", "output": "b"}', "NUL character at column 19"),
]


@pytest.mark.parametrize(("line", "reason"), LINES, ids=range(len(LINES)))
def test_one_bad_line_is_named_and_nothing_else(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + line + b"\n")
    assert said(path) == f"data.jsonl:2: {reason}\n{ADVICE}"
    rejected = tmp_path / "rejected.jsonl"
    rows = read(path, on_bad_row="skip", rejected=rejected)
    assert (rows.read, len(rows), rows.rejected) == (2, 1, 1)
    written = [json.loads(row) for row in rejected.read_text(encoding="utf-8").splitlines()]
    assert len(written) == 1 and list(written[0]) == ["file", "line", "field", "reason", "text"]
    assert (written[0]["file"], written[0]["line"]) == (str(path), 2)
    assert f"{written[0]['field']}: {written[0]['reason']}".removeprefix(": ") == reason


FILES = [  # bytes of a whole file, its name, what is said about it
    (b"", "data.jsonl", "data.jsonl: 0 usable rows (got an empty file)"),
    (b"", "data.tsv", "data.tsv: 0 usable rows (got an empty file)"),
    (b"\n  \n\r\n", "data.jsonl", "data.jsonl: 0 usable rows (got only 3 blank lines)"),
    (b"\xef\xbb\xbf", "data.tsv", "data.tsv: 0 usable rows (got only 1 blank line)"),
    ("a\tb\n".encode("utf-16"), "data.tsv", "data.tsv:1: not UTF-8, byte 0xff at 0 (got UTF-16, want UTF-8)"),
    (b"\xfe\xff\0a", "data.jsonl", "data.jsonl:1: not UTF-8, byte 0xfe at 0 (got UTF-16, want UTF-8)"),
    ("你好\t再见\n".encode("gbk"), "data.tsv", "data.tsv:1: not UTF-8, byte 0xc4 at 0 (want UTF-8)"),
    (b"a\0\tb\n", "data.tsv", "data.tsv:1: NUL character at column 2"),
    (
        b'[\n {"instruction": "a", "output": "b"},\n {"instruction": "a", "out',
        "data.json",
        "data.json:3: [1]: cut off: the file ends inside the list\n" + ADVICE,
    ),
    (
        b"a,b\n",
        "data.csv",
        "data.csv:1: instruction: missing (got a, b; want instruction, prompt, query, question, 指令, 问题 or a column mapping)",
    ),
    (
        b'{"instruction": "a", "reponse": "b"}\n',
        "data.jsonl",
        "data.jsonl:1: answer: missing (got 'reponse', want 'response')",
    ),
    (
        b'{"head": "a", "tail": "b"}\n',
        "data.jsonl",
        "data.jsonl:1: instruction: missing (got head, tail; want instruction, prompt, query, question, 指令, 问题 "
        "or a column mapping)",
    ),
]


@pytest.mark.parametrize(("content", "name", "message"), FILES)
def test_files_that_hold_no_rows(tmp_path: Path, content: bytes, name: str, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert said(path) == message


@pytest.mark.parametrize(
    "content",
    [GOOD[:-1], GOOD, b"\xef\xbb\xbf" + GOOD, GOOD[:-1] + b"\r\n", b"\r\n" + GOOD],
    ids=["no newline at the end", "newline", "byte order mark", "CRLF", "blank first line"],
)
def test_harmless_differences_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert [(row.instruction, row.answer, row.metadata) for row in read(path)] == [("Say hi", "hi", {})]


@pytest.mark.parametrize(
    "text", ["a\u2028b\u0085c", "\u202eabc\u202c", "<|im_end|>\n<|im_start|>assistant", "😀e\u0301"]
)
def test_odd_text_is_kept_as_text(tmp_path: Path, text: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"instruction": text, "output": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [(row.instruction, row.answer) for row in read(path)] == [(text, text)]
    path.write_text(json.dumps({"instruction": text, "output": text}) + "\n", encoding="utf-8")
    assert [(row.instruction, row.answer) for row in read(path)] == [(text, text)]


def test_a_type_that_changes_late_is_named_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD * 50_000 + b'{"instruction": "Say hi", "output": 1}\n' + GOOD)
    assert said(path) == (
        "data.jsonl:50001: output: wrong type (got number, want text)\n"
        "50,001 other rows can be used; --on-bad-row=skip leaves the bad ones out"
    )


def test_all_are_counted_and_twenty_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "data.tsv"
    path.write_text("a\tb\n" + "alone\n" * 1234)
    with pytest.raises(DataError) as error:
        read(path)
    assert (len(error.value.problems), error.value.total) == (20, 1234)
    lines = said(path).splitlines()
    assert lines[0] == "data.tsv:2: wrong number of tab-separated fields (got 1, want 2)"
    assert len(lines) == 22 and lines[20] == "… and 1214 more (1234 problems in all)"


def test_a_huge_line_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    with open(path, "wb") as handle:  # a hole in the file: 256 MiB that are not on disk
        handle.write(GOOD)
        handle.truncate(1 << 28)
        handle.seek(0, os.SEEK_END)
        handle.write(b"\n" + GOOD)
    tracemalloc.start()
    message = said(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message.splitlines()[0] == "data.jsonl:2: line too long (want at most 16 MiB)"
    assert message.splitlines()[1].startswith("2 other rows can be used")
    assert peak < 80 << 20


def test_reading_a_line_as_long_as_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MAX_LINE", len(GOOD) - 1)
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b" " + GOOD + GOOD)
    rows = read(path, on_bad_row="skip", rejected=tmp_path / "rejected.jsonl")
    assert [row.origin.line for row in rows] == [1, 3]


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "rows.tsv").write_text("a\tb\n")
    assert said(tmp_path / "data") == f"data: no files of rows in this folder (want {WANTED})"
    assert said(tmp_path / "pipe") == f"pipe: not a file (got a named pipe, want {WANTED})"
    assert said("/dev/null") == f"null: not a file (got a device, want {WANTED})"
    assert said(tmp_path / "a") == "a: symbolic links in a loop"
    assert said(tmp_path / "gone") == "gone: no such file (a symbolic link to nowhere, which is missing)"
    assert said(tmp_path / "rosw.tsv") == "rosw.tsv: no such file, did you mean 'rows.tsv'?"
    assert said(tmp_path / "xyzzy") == "xyzzy: no such file"
    assert said(tmp_path / "no" / "x.tsv") == f"x.tsv: no such file (there is no folder {tmp_path / 'no'})"
    assert said("a\0b") == "a\0b: not readable: embedded null byte"


@pytest.fixture
def as_somebody_else() -> Iterator[None]:
    """Root may read everything, so the test steps down for its time."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def locked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("locked") / "rows.tsv"
    path.write_text("a\tb\n")
    path.chmod(0)
    return path


def test_a_file_that_may_not_be_read(locked: Path, as_somebody_else: None) -> None:
    assert said(locked) == "rows.tsv: not readable: Permission denied"


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD)
    parse = readers.jsonl.parse

    def meddle(text: str) -> dict:
        if path.stat().st_size == len(GOOD):
            path.write_bytes(GOOD + GOOD)
        return parse(text)

    monkeypatch.setattr(readers.jsonl, "parse", meddle)
    size = len(GOOD)
    assert said(path) == f"data.jsonl: changed while it was read (got {size} bytes first, {2 * size} at the end)"


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    path, rejected = tmp_path / "data.jsonl", tmp_path / "rejected.jsonl"
    path.write_bytes(GOOD + b"bad\n")
    said(path, rejected=rejected)
    path.write_bytes(GOOD)
    read(path, on_bad_row="skip", rejected=rejected)
    path.write_bytes(b"bad\n")
    assert said(path, on_bad_row="skip", rejected=rejected) == (
        "data.jsonl: 0 usable rows (got 1 rejected)\ndata.jsonl:1: not JSON at column 1 (expecting value)"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.jsonl"]


def test_rejected_rows_can_be_taken_up_again(tmp_path: Path) -> None:
    path, rejected = tmp_path / "data.tsv", tmp_path / "out" / "rejected.jsonl"
    path.write_bytes("a\tb\nalone \\t 中\nc\td\n".encode() + b"\xff\n")
    rows = read(path, on_bad_row="skip", rejected=rejected)
    assert rows.notes[-1] == f"{path}: 2 of 4 rows rejected, written to {rejected}"
    texts = [json.loads(line)["text"] for line in rejected.read_text(encoding="utf-8").splitlines()]
    assert texts == ["alone \\t 中", "\\xff"]
    with pytest.raises(InputError, match="^rejected: would overwrite the rows themselves"):
        read(path, on_bad_row="skip", rejected=path)
    with pytest.raises(EnvironmentFault, match="^/proc/none/rejected.jsonl: cannot be written: "):
        read(path, on_bad_row="skip", rejected="/proc/none/rejected.jsonl")


JSONISH = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["instruction", "input", "output", "messages", "role", "content", "x"]), inner
        )
    ),
    max_leaves=12,
)
LINE = (
    st.binary(max_size=40)
    | JSONISH.map(lambda value: json.dumps(value).encode())
    | st.builds(lambda value, cut: json.dumps(value).encode()[:cut], JSONISH, st.integers(0, 60))
    | st.just(GOOD[:-1])
    | st.text("abc\t\\n\u2028\r ", max_size=20).map(str.encode)
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(LINE, max_size=8), name=st.sampled_from(["f.jsonl", "f.tsv", "f"]), end=st.sampled_from([b"", b"\n"])
)
def test_only_our_errors_escape_and_every_line_is_accounted_for(
    tmp_path: Path, lines: list[bytes], name: str, end: bytes
) -> None:
    path, rejected = tmp_path / name, tmp_path / "rejected.jsonl"
    content = b"\n".join(lines) + end
    path.write_bytes(content)
    rejected.unlink(missing_ok=True)
    try:
        rows = read(path, on_bad_row="skip", rejected=rejected)
    except (DataError, InputError) as error:
        assert str(error) and "Traceback" not in str(error)
        return
    written = rejected.read_bytes().count(b"\n") if rejected.exists() else 0
    full = sum(line.strip(b" \t\n\r\v\f") != b"" for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"))
    header = any("first line read as header" in note for note in rows.notes)
    assert rows.read == len(rows) + rows.rejected == full - header
    assert rows.rejected == written
    assert all(row.answer.strip() and row.instruction.strip() for row in rows)
