"""The one length limit and its three policies: nothing is cut but input, and every row is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from prompt_cases import chat, every_case, renderer, supervised_runs, tokenizer

from instructrec.data.records import Origin, Record, Turn
from instructrec.errors import DataError, InputError
from instructrec.prompts.lengths import fit
from instructrec.prompts.template import shorten_input

WORDS = "the house is red and the lamp is broken; 我的包裹还没有到 🙂 "


def row(line: int, words: int, answer: str = "ok") -> Record:
    return Record.of("Translate.", answer, input=(WORDS * words)[: 9 * words], origin=Origin("rows.tsv", line))


def length(kind: str, template: str, record: Record) -> tuple[int, int]:
    rendered = renderer(kind, template).render(record)
    return len(rendered.ids), rendered.prompt_end


@every_case
def test_stop_names_every_long_row(kind: str, template: str) -> None:
    records = [row(1, 1), row(2, 30), row(3, 2), row(4, 60)]
    limit = length(kind, template, records[2])[0]
    with pytest.raises(DataError) as caught:
        fit(records, renderer(kind, template), limit)
    expected = [
        f"rows.tsv:{record.origin.line}: length: {total:,} tokens ({before:,} before the answer), over max_length "
        f"{limit:,}; raise --max-length, or choose --on-long=trim-input or drop"
        for record in (records[1], records[3])
        for total, before in [length(kind, template, record)]
    ]
    assert str(caught.value).split("\n") == expected
    assert len(fit(records[::2], renderer(kind, template), limit).rendered) == 2  # exactly at the limit is not over it


@every_case
def test_drop_leaves_long_rows_out_and_counts_them(kind: str, template: str) -> None:
    records = [row(1, 1), row(2, 30), row(3, 2), row(4, 60)]
    limit = length(kind, template, records[2])[0]
    fitted = fit(records, renderer(kind, template), limit, "drop")
    assert (fitted.kept, fitted.dropped, fitted.trimmed) == ([0, 2], [1, 3], [])
    assert fitted.rendered == [renderer(kind, template).render(records[place]) for place in fitted.kept]
    assert len(fitted.kept) + len(fitted.dropped) == len(records)
    longest = length(kind, template, records[3])[0]
    assert fitted.longest == longest
    assert fitted.describe().endswith(f"longest {longest:,}; 0 inputs trimmed, 2 rows dropped")


@every_case
def test_trim_keeps_as_much_input_as_fits_and_the_whole_answer(kind: str, template: str) -> None:
    made = renderer(kind, template)
    answer = "It is on its way. 房子"
    records = [row(1, 1, answer), row(2, 12, answer)]
    full = supervised_runs(kind, made.render(records[1]))
    shortest = len(made.render(shorten_input(records[1], 0)).ids)
    for limit in range(shortest, len(made.render(records[1]).ids), 7):
        fitted = fit(records[1:], made, limit, "trim-input")
        assert (fitted.kept, fitted.dropped, fitted.trimmed) == ([0], [], [0])
        kept = fitted.rendered[0]
        assert len(kept.ids) <= limit
        assert supervised_runs(kind, kept) == full and answer in full[0]
        heads = [made.render(shorten_input(records[1], size)) for size in range(len(records[1].input) + 1)]
        assert kept.ids == [head for head in heads if len(head.ids) <= limit][-1].ids
    fitted = fit(records, made, len(made.render(records[1]).ids), "trim-input")
    assert (fitted.kept, fitted.trimmed) == ([0, 1], [])


def test_rows_that_stay_too_long_are_an_error_also_when_input_may_be_trimmed() -> None:
    made = renderer("qwen", "alpaca")
    records = [row(1, 3, "a long answer " * 9), Record.of("Translate. " * 20, "ok", origin=Origin("rows.tsv", 2))]
    (one, one_prompt), (two, two_prompt) = (length("qwen", "alpaca", record) for record in records)
    with pytest.raises(DataError) as caught:
        fit(records, made, 30, "trim-input")
    assert str(caught.value) == (
        f"rows.tsv:1: length: {one} tokens ({one_prompt} before the answer), over max_length 30, "
        "also with its input trimmed away\n"
        f"rows.tsv:2: length: {two} tokens ({two_prompt} before the answer), over max_length 30, "
        "and it has no input to trim"
    )


def test_only_the_input_of_the_last_user_turn_is_trimmed() -> None:
    turns = (
        Turn("user", "one", input="first " * 5),
        Turn("assistant", "two"),
        Turn("user", "three", input="end " * 40),
    )
    record = Record((*turns, Turn("assistant", "four", supervised=True)))
    made = renderer("llama3", "model")
    kept = fit([record], made, 90, "trim-input").rendered[0]
    text = tokenizer("llama3").decode(kept.ids)
    assert "first " * 4 + "first" in text and text.endswith("four<|eot_id|>")
    assert 0 < text.count("end") < 40


def test_a_row_in_which_nothing_is_learned_is_named() -> None:
    record = Record((Turn("user", "hi"), Turn("assistant", "yes")), origin=Origin("rows.jsonl", 7))
    for policy in ("stop", "drop", "trim-input"):
        with pytest.raises(DataError) as caught:
            fit([chat("a", "b"), record], renderer("gpt2", "plain"), 64, policy)
        assert str(caught.value) == "rows.jsonl:7: answer: no token of this row is supervised"


def test_a_row_that_the_template_refuses_is_named() -> None:
    record = Record((Turn("user", "a"), Turn("user", "b")), origin=Origin("rows.jsonl", 3))
    with pytest.raises(DataError) as caught:
        fit([record], renderer("gemma", "model"), 64)
    message = "prompt template: Conversation roles must alternate user/assistant/user/assistant/..."
    assert str(caught.value) == f"rows.jsonl:3: prompt: {message}"


def test_prompts_without_answers_are_kept() -> None:
    fitted = fit([chat("a"), chat("a", "b", "c")], renderer("gemma", "model"), 64)
    assert fitted.kept == [0, 1] and fitted.rendered[0].targets == 0


def test_earlier_answers_that_are_not_learned_are_said() -> None:
    fitted = fit([chat("a", "b", "c", "d", "e", "f"), chat("a", "b", "c", "d")], renderer("qwen", "model"), 99)
    assert fitted.skipped_turns == 3
    assert fitted.describe().endswith("; 3 earlier answers not trained on (the template shows them differently later)")


def test_quantiles_progress_and_an_unknown_policy() -> None:
    records = [row(line, line) for line in range(1, 22)]
    seen: list[int] = []

    def watch(given: Sequence[Record]) -> Iterator[Record]:
        for record in given:
            seen.append(record.origin.line)
            yield record

    made = renderer("gpt2", "alpaca")
    lengths = [len(made.render(record).ids) for record in records]
    fitted = fit(records, made, 10_000, track=watch)
    assert seen == list(range(1, 22))
    assert fitted.quantiles == {"median": lengths[10], "95%": lengths[19], "longest": lengths[20]}
    assert fit([], made, 10).quantiles == {} and fit([], made, 10).longest == 0
    with pytest.raises(InputError) as caught:
        fit(records, made, 10, "cut")
    assert str(caught.value) == "on_long: unknown policy (got 'cut', want stop, drop, trim-input)"
