"""JSONL: alpaca, prompt/completion, messages; what is guessed is said; rows from Python take the same way."""

import json
from pathlib import Path

import pytest

from instructrec.data import Rows, Turn, read
from instructrec.errors import DataError, InputError


def jsonl(folder: Path, *rows: object, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def note(rows: Rows, path: Path) -> str:
    return rows.notes[0].replace(str(path), path.name)


def test_alpaca(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"instruction": "Add.", "input": "1 1", "output": "2", "source": "me", "licence": "CC0"},
        {"instruction": "Hi", "input": None, "output": "Ho", "system": "Be kind.", "history": [["a", "b"], ["c", "d"]]},
    )
    rows = read(path)
    assert rows[0].turns == (Turn("user", "Add.", input="1 1"), Turn("assistant", "2", supervised=True))
    assert rows[0].metadata == {"source": "me", "licence": "CC0"}
    assert rows[1].turns == (
        Turn("system", "Be kind."),
        Turn("user", "a"),
        Turn("assistant", "b", supervised=True),
        Turn("user", "c"),
        Turn("assistant", "d", supervised=True),
        Turn("user", "Hi"),
        Turn("assistant", "Ho", supervised=True),
    )
    assert note(rows, path) == (
        "rows.jsonl: read as alpaca: instruction -> instruction, input -> input, output -> answer, system -> system, "
        "history -> history; kept as metadata: source, licence"
    )


def test_prompt_completion_with_all_optional_columns(tmp_path: Path) -> None:
    row = {"prompt": "P", "completion": "C", "task": "t", "group": 3, "alternatives": ["c", "cc"], "system": ""}
    path = jsonl(tmp_path, row)
    rows = read(path)
    assert (rows[0].instruction, rows[0].answer, rows[0].system) == ("P", "C", "")
    assert (rows[0].task, rows[0].group, rows[0].answers) == ("t", "3", ("C", "c", "cc"))
    assert note(rows, path).startswith("rows.jsonl: read as prompt/completion: prompt -> instruction, completion -> ")


def test_messages_with_several_turns_and_turns_not_learned(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "weight": 1},
    ]
    path = jsonl(tmp_path, {"messages": messages, "task": "chat"}, {"messages": messages[1:3:1] + messages[3:]})
    rows = read(path)
    assert [turn.supervised for turn in rows[0].turns] == [False, False, False, False, True]
    assert (rows[0].system, rows[0].answer, rows[0].task) == ("S", "d", "chat")
    assert [turn.text for turn in rows[1].turns] == ["a", "b", "c", "d"]
    assert note(rows, path) == "rows.jsonl: read as messages: task -> task, messages -> messages"


def test_system_column_goes_before_the_messages() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = read([{"messages": talk, "system": "S"}, {"messages": [{"role": "system", "content": ""}, *talk]}])
    assert [row.system for row in rows] == ["S", ""]


@pytest.mark.parametrize(
    ("row", "instruction", "text", "answer"),
    [
        ({"text": "T", "label": "L"}, "T", "", "L"),
        ({"input": "I", "target": "L"}, "I", "", "L"),
        ({"query": "Q", "input": "I", "response": "R"}, "Q", "I", "R"),
        ({"instruction": "I", "context": "C", "response": "R"}, "I", "C", "R"),
        ({"Question": "Q", "Answer": "A"}, "Q", "", "A"),
    ],
)
def test_usual_names(row: dict, instruction: str, text: str, answer: str) -> None:
    record = read([row])[0]
    assert (record.instruction, record.input, record.answer) == (instruction, text, answer)


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"en": "house", "zh": "房子", "instruction": "ignored", "kind": "noun"})
    rows = read(path, columns={"input": "en", "answer": "zh", "task": "kind"}, instruction="Translate.")
    assert (rows[0].instruction, rows[0].input, rows[0].answer, rows[0].task) == ("Translate.", "house", "房子", "noun")
    assert note(rows, path) == (
        "rows.jsonl: read as columns: en -> input, zh -> answer, kind -> task; kept as metadata: instruction"
    )


def test_optional_columns_may_be_in_later_rows_only() -> None:
    rows = read([{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d", "input": "e", "task": "t"}])
    assert (rows[1].input, rows[1].task, rows[1].metadata) == ("e", "t", {})


def test_rows_from_python() -> None:
    rows = read([{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ""}], on_bad_row="skip")
    assert (rows.read, rows.rejected, str(rows[0].origin), rows.files) == (2, 1, "<memory>:1", {})
    assert rows.notes == (
        "<memory>: read as alpaca: instruction -> instruction, output -> answer",
        "<memory>: 1 of 2 rows rejected",
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a"], "<memory>:1: wrong type (got list, want a dict)"),
        ({1: "a"}, "<memory>:1: a key that is not text (got number)"),
        ({"instruction": "a", "output": "b", "x": float("nan")}, "<memory>:1: x: not a number that JSON has (got nan)"),
        ({"instruction": "a\0", "output": "b"}, "<memory>:1: instruction: NUL character at 1"),
    ],
)
def test_bad_rows_from_python(row: object, message: str) -> None:
    with pytest.raises(DataError) as error:
        read([row])  # type: ignore[list-item]
    assert str(error.value) == message


def test_a_row_that_holds_itself_is_refused() -> None:
    loop: dict = {"instruction": "a", "output": "b"}
    loop["self"] = loop
    with pytest.raises(DataError, match=r"^<memory>:1: self: nested too deeply \(want at most 64 levels\)$"):
        read([loop])


def test_neither_a_path_nor_rows() -> None:
    with pytest.raises(InputError, match=r"^read: neither a path nor a list of dicts \(got number\)$"):
        read(7)  # type: ignore[arg-type]


def user(text: object, **more: object) -> dict:
    return {"role": "user", "content": text, **more}


def assistant(text: object, **more: object) -> dict:
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("a"), user("b"), assistant("c")], "messages[1]: role order (got user after user, want assistant)"),
        ([assistant("a")], "messages[0]: role order (got assistant first, want user)"),
        (
            [user("a"), assistant("b"), assistant("c")],
            "messages[2]: role order (got assistant after assistant, want user)",
        ),
        ([user("a")], "messages[0]: no assistant turn at the end (got a user turn, want an answer)"),
        ([], "messages: no assistant turn at the end (got no turns, want an answer)"),
        (
            [user("a"), {"role": "system", "content": "b"}],
            "messages[1]: system turn not at the start (got it after user, want assistant)",
        ),
        (
            [{"role": "asistant", "content": "a"}],
            "messages[0].role: unknown role 'asistant', did you mean 'assistant'?",
        ),
        ([{"rol": "user", "content": "a"}], "messages[0].role: missing (got 'rol', want 'role')"),
        ([{"role": 3, "content": "a"}], "messages[0].role: wrong type (got number, want text)"),
        ([user(None), assistant("b")], "messages[0].content: wrong type (got null, want text)"),
        ([user("a"), assistant(" ")], "messages[1].content: only white space (want text)"),
        (
            [user("a"), assistant("b", weight=0.5)],
            "messages[1].weight: neither 0 nor 1 (got 0.5, want 0, 1, false or true)",
        ),
        (
            [user("a", loss=True), assistant("b")],
            "messages[0].loss: only assistant turns are learned (got True on user)",
        ),
        ([user("a"), assistant("b", loss=0)], "messages: every assistant turn is switched off (want one with loss)"),
        (["a"], "messages[0]: wrong type (got text, want an object with role and content)"),
        ("a", "messages: wrong type (got text, want a list of messages)"),
    ],
)
def test_messages_in_disorder(tmp_path: Path, messages: object, message: str) -> None:
    path = jsonl(tmp_path, {"messages": [user("ok"), assistant("ok")]}, {"messages": messages})
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).splitlines()[0].replace(str(path), "rows.jsonl") == f"rows.jsonl:2: {message}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"history": [["a"]]}, "history[0]: not a pair (got a list of 1, want [user, assistant])"),
        ({"history": ["a"]}, "history[0]: not a pair (got text, want [user, assistant])"),
        ({"history": {}}, "history: wrong type (got object, want a list of pairs)"),
        ({"history": [["a", ""]]}, "history[0][1]: empty (want text)"),
        ({"input": 5}, "input: wrong type (got number, want text)"),
        ({"task": True}, "task: wrong type (got boolean, want text)"),
        ({"alternatives": 5}, "alternatives: wrong type (got number, want a list of texts)"),
        ({"alternatives": ["a", 5]}, "alternatives[1]: wrong type (got number, want text)"),
    ],
)
def test_optional_columns_of_a_wrong_kind(row: dict, message: str) -> None:
    with pytest.raises(DataError) as error:
        read([{"instruction": "a", "output": "b", **row}])
    assert str(error.value) == f"<memory>:1: {message}"


def test_a_first_row_without_its_instruction_does_not_decide_for_all() -> None:
    rows = [{"input": "a", "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}]
    with pytest.raises(DataError) as error:
        read(rows)
    assert str(error.value) == (
        "<memory>:2: instruction: not in the rows before, which have 'input' as instruction (want a column mapping)\n"
        "1 other row can be used; --on-bad-row=skip leaves the bad ones out"
    )


def test_a_named_column_that_no_row_has() -> None:
    with pytest.raises(DataError) as error:
        read([{"instruction": "a", "output": "b", "category": "c"}], columns={"task": "catgory"})
    assert str(error.value) == "<memory>: columns: task: no row has 'catgory', did you mean 'category'?"


def test_messages_take_no_fixed_instruction() -> None:
    with pytest.raises(InputError, match="^instruction: rows of messages bring their own"):
        read([{"messages": [user("a"), assistant("b")]}], instruction="Do.")
