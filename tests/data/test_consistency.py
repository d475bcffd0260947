"""What `check` says about rows that are each well-formed."""

import time

import pytest

from instructrec.data import Record, read
from instructrec.data.consistency import Finding, examine
from instructrec.data.language import script_of, scripts_in
from instructrec.data.records import Origin


def record(line: int, instruction: str, answer: str, file: str = "rows.tsv", **more: str) -> Record:
    return Record.of(instruction, answer, origin=Origin(file, line), **more)  # type: ignore[arg-type]


def some(number: int) -> list[Record]:
    return [record(line, f"How much is {line} and {line}?", f"That is {2 * line}.") for line in range(1, number + 1)]


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, [finding.message for finding in findings]
    return findings[0]


def test_good_rows_give_no_findings() -> None:
    assert examine(some(30), some(30)[:0]) == []
    assert examine([]) == []


def test_duplicates_case_and_spacing_aside() -> None:
    found = only(
        examine([*some(4), record(5, " how much  is 2 AND 2?", "that is 4."), record(6, *("x", "That is 4."))])
    )
    assert (found.kind, found.count, found.examples) == ("duplicates", 1, (Origin("rows.tsv", 5),))
    assert found.message == "1 row repeated (same prompt and answer as an earlier row): rows.tsv:5"


def test_one_prompt_with_different_answers() -> None:
    found = only(examine([*some(4), record(9, "How much is 2 and 2?", "Four.")]))
    assert (found.kind, found.count, found.severity) == ("conflicts", 2, "warning")
    assert found.message == "1 prompt with different answers: 2 rows: rows.tsv:2, rows.tsv:9"
    other_system = record(9, "How much is 2 and 2?", "Four.", system="Answer in words.")
    other_input = record(10, "How much is 2 and 2?", "Four.", input="In words.")
    assert examine([*some(4), other_system, other_input]) == []


def test_answers_copied_from_the_input() -> None:
    copied = [
        record(7, "Translate.", "The house is big", input="The house is big."),
        record(8, "Say hi", "say hi"),
    ]
    fine = record(9, "Who was it?", "Ada", input="It was Ada.")
    found = only(examine([*some(4), *copied, fine]))
    assert (found.kind, found.count) == ("copied", 2)
    assert found.message == "2 rows whose answer is a copy of the prompt's text: rows.tsv:7, rows.tsv:8"


def test_answers_in_another_language_than_the_rest() -> None:
    stranger = record(41, "How much is 1 and 9?", "一共是十。")
    found = only(examine([*some(30), stranger]))
    assert found.message == "1 row answered in another script than rows like them: rows.tsv:41"
    assert found.kind == "language"


@pytest.mark.parametrize(
    "row",
    [
        record(41, "把它翻译成中文：The house is big and the garden is small", "房子很大"),  # asked in both
        record(41, "一加九是多少？", "一共是十。"),  # the prompt is in that script
        record(41, "Translate into Chinese: ten", "十", task="translate"),  # a task of its own
        record(41, "Which is larger, 1 or 9?", "9"),  # no letters
        record(41, "What is 上海?", "上海 is a city of many people"),
    ],
)
def test_answers_that_are_no_slip(row: Record) -> None:
    assert [finding for finding in examine([*some(30), row]) if finding.kind == "language"] == []


def test_a_name_out_of_the_prompt_is_no_other_language() -> None:
    chinese = [record(line, f"第{line}个问题是什么？", f"这是第{line}个答案。") for line in range(1, 31)]
    name = record(
        31, "这部作品由 WANI BOOKS 出版。" + "它讲述了一个很长的故事。" * 9 + "出版社是哪一家？", "wani books"
    )
    mixed = record(32, "怎么联系你们？", "请用WhatsApp联系customer service")
    assert examine([*chinese, name, mixed]) == []
    english = record(33, "怎么联系你们呢？", "Please write to us.")
    assert only(examine([*chinese, name, mixed, english])).examples == (Origin("rows.tsv", 33),)


def test_half_of_the_answers_are_no_minority() -> None:
    other = [record(line, f"Number {line} please", "第几号") for line in range(100, 110)]
    assert [finding.kind for finding in examine([*some(30), *other]) if finding.kind == "language"] == []


def test_overlap_names_both_sides() -> None:
    test = [record(line, f"HOW much is {line} and {line}?", "?1", "test.tsv") for line in (2, 50, 3)]
    found = only(examine(some(30), test))
    assert (found.kind, found.count) == ("overlap", 2)
    assert found.message == (
        "2 of 3 test prompts are in the training rows too: test.tsv:2 = rows.tsv:2, test.tsv:3 = rows.tsv:3"
    )
    assert [str(place) for place in found.examples] == ["test.tsv:2", "rows.tsv:2", "test.tsv:3", "rows.tsv:3"]


def test_long_and_wordless_rows_are_noted() -> None:
    found = examine([*some(30), record(40, "word " * 5000, "a"), record(41, "Draw a face", ":-)")])
    assert [(finding.kind, finding.severity) for finding in found] == [("long", "note"), ("wordless", "note")]
    assert found[0].message == "1 row with more than 20,000 characters in one turn: rows.tsv:40"
    assert found[1].message == "1 row whose answer has no letter and no digit: rows.tsv:41"


def test_many_are_counted_and_five_are_named() -> None:
    found = only(examine(some(8) + some(8)))
    assert found.count == 8 and len(found.examples) == 5
    assert found.message.endswith("rows.tsv:1, rows.tsv:2, rows.tsv:3, rows.tsv:4, rows.tsv:5, …")


def test_time_grows_with_the_rows_and_not_their_square() -> None:
    def seconds(number: int) -> float:
        rows = some(number)
        start = time.process_time()
        examine(rows, rows)
        return time.process_time() - start

    few, many = (min(seconds(number) for _ in range(3)) for number in (1000, 8000))  # others may use the processor too
    assert many < 8 * 4 * max(few, 0.01)


def test_rows_of_several_turns() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    more = [*talk, {"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    other = [{"role": "user", "content": "z"}, *more[1:]]
    assert examine(read([{"messages": more}, {"messages": other}])) == []
    assert only(examine(read([{"messages": more}, {"messages": more}]))).kind == "duplicates"


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello, Wörld!", "Latin"),
        ("Привет", "Cyrillic"),
        ("你好，世界", "Han"),
        ("请用WhatsApp联系", "Han"),
        ("東京へ行きます", "Kana"),
        ("東京大学附属病院へ", "Kana"),
        ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"),
        ("שלום", "Hebrew"),
        ("नमस्ते", "Devanagari"),
        ("สวัสดี", "Thai"),
        ("Ελλάδα", "Greek"),
        ("12:30 – 😀", None),
        ("42", None),
        ("", None),
    ],
)
def test_script_of(text: str, script: str | None) -> None:
    assert script_of(text) == script


def test_shares_of_scripts() -> None:
    assert scripts_in("Это a word") == {"Cyrillic": 3 / 8, "Latin": 5 / 8}
