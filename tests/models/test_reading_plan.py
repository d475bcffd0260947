"""The reading plan itself: what is refused and how, what is kept, who sees whom, and how rows are laid out."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reading_cases import Token, plans, row, sees

from instructrec.errors import InputError
from instructrec.models.reading import MOST_STROKES, ReadingPlan, cut, lay, parse_strokes, repeat
from instructrec.models.reading.attention import Tags, visible
from instructrec.models.reading.layout import passes_of
from instructrec.prompts.template import Rendered

TWICE: dict[str, Any] = {"strokes": (2,)}


# -- what is refused ------------------------------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"strokes": ()}, "strokes: got nothing, want numbers from 1 to 8"),
    ({"strokes": (0,)}, "strokes: got 0, want numbers from 1 to 8"),
    ({"strokes": (-1, 2)}, "strokes: got -1,2, want numbers from 1 to 8"),
    ({"strokes": (2, 9)}, "strokes: got 2,9, want numbers from 1 to 8"),
    ({"strokes": (2, 3, 2)}, "strokes: got 2,3,2, want each number once"),
    ({**TWICE, "prior": "frosen"}, "prior: got 'frosen', did you mean 'frozen'?"),
    ({**TWICE, "prior": "x"}, "prior: got 'x', known: frozen, tuned"),
    ({**TWICE, "stroke_adapters": "seperate"}, "stroke_adapters: got 'seperate', did you mean 'separate'?"),
    ({**TWICE, "memory": "last"}, "memory: got 'last', did you mean 'sink+last'?"),
    ({**TWICE, "direction": "both"}, "direction: got 'both', known: bidirectional, causal"),
    ({**TWICE, "mix": "gates"}, "mix: got 'gates', did you mean 'gated'?"),
    ({"slots": -1}, "slots: got -1, want 0 or more"),
    ({**TWICE, "deep": True, "consistency": -0.5}, "consistency: got -0.5, want 0 or more"),
    ({**TWICE, "deep": True, "consistency": float("inf")}, "consistency: got inf, want 0 or more"),
    ({**TWICE, "consistency": 1.0}, "consistency: 1 compares the answers after each reading (want deep)"),
    ({"consistency": 0.5}, "consistency: 0.5 compares the answers after each reading (want deep)"),
    ({"strokes": (3,), "mix": "gated"}, "strokes: mix=gated averages two readings (got 3, want 2)"),
    ({"strokes": (1, 2, 3), "mix": "gated"}, "strokes: mix=gated averages two readings (got 1,2,3, want 2)"),
    ({"prior": "frozen"}, "prior: frozen needs a second reading (want strokes of 2 or more)"),
    ({"stroke_adapters": "separate"}, "stroke_adapters: separate needs a second reading (want strokes of 2 or more)"),
    ({"deep": True}, "deep: True needs a second reading (want strokes of 2 or more)"),
    ({"memory": "sink+last"}, "memory: sink+last needs a second reading (want strokes of 2 or more)"),
    ({"direction": "bidirectional"}, "direction: bidirectional needs a second reading (want strokes of 2 or more)"),
    ({"mix": "gated"}, "mix: gated needs a second reading (want strokes of 2 or more)"),
    (
        {**TWICE, "stroke_adapters": "separate", "prior": "frozen"},
        "stroke_adapters: with prior=frozen and two strokes only one of them is tuned",
    ),
    (
        {"strokes": (1, 2), "mix": "gated", "memory": "sink+last", "slots": 2},
        "mix: gated averages two equal readings (want direction=bidirectional, prior=frozen or "
        "stroke_adapters=separate)",
    ),
    (
        {"strokes": (2, 3), "stroke_adapters": "separate"},
        "strokes: separate adapters need one number (got 2,3)",
    ),
]


@pytest.mark.parametrize(("values", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_plan_without_a_meaning_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ReadingPlan(**values)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


DIALS: list[tuple[dict[str, Any], int, str]] = [
    (TWICE, 0, "strokes: got 0, want a number from 1 to 8"),
    (TWICE, 9, "strokes: got 9, want a number from 1 to 8"),
    (
        {**TWICE, "mix": "gated", "direction": "bidirectional"}, 3,
        "strokes: mix=gated averages two readings (got 3, want 1 or 2)",
    ),
    (
        {"strokes": (3,), "stroke_adapters": "separate"}, 2,
        "strokes: each stroke has an adapter of its own (got 2, want 3)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "strokes", "message"), DIALS)
def test_a_dial_that_the_plan_has_not(values: dict[str, Any], strokes: int, message: str) -> None:
    plan = ReadingPlan(**values)
    with pytest.raises(InputError) as caught:
        plan.check_dial(strokes)
    assert str(caught.value) == message
    plan.check_dial(plan.most)


def test_strokes_are_parsed() -> None:
    assert (parse_strokes("2"), parse_strokes(3), parse_strokes("1,2, 3")) == ((2,), (3,), (1, 2, 3))
    for text in ("", "two", "1,,2", "2.0", "1;2"):
        with pytest.raises(ValueError):
            parse_strokes(text)


# -- what is kept ---------------------------------------------------------------------------------------------------


def test_every_plan_survives_its_json() -> None:
    made = [*plans(), ReadingPlan(strokes=(3, 1, 2), deep=True, consistency=0.3)]
    for plan in made:
        kept = json.loads(json.dumps(plan.to_json()))
        assert ReadingPlan.from_json(kept, "prompt.json") == plan
        assert set(kept) == {"strokes", "prior", "stroke_adapters", "deep", "slots", "memory", "direction", "mix"} | {
            "consistency"
        }
    assert ReadingPlan.from_json({"strokes": 2}, "prompt.json") == ReadingPlan(strokes=(2,))
    assert ReadingPlan.from_json({}, "prompt.json") == ReadingPlan()


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"stroke": 2}, "run/prompt.json: reading: unknown setting 'stroke', did you mean 'strokes'?"),
    (
        {"zz": 2},
        "run/prompt.json: reading: unknown setting 'zz', known: consistency, deep, direction, memory, mix, "
        "prior, slots, stroke_adapters, strokes",
    ),
    ({"strokes": [9]}, "run/prompt.json: reading: strokes: got 9, want numbers from 1 to 8"),
]


@pytest.mark.parametrize(("value", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_a_plan_that_was_changed_is_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ReadingPlan.from_json(value, "run/prompt.json")
    assert str(caught.value) == message


def test_a_plan_in_one_phrase() -> None:
    assert ReadingPlan().describe() == "once"
    assert ReadingPlan(slots=4).describe() == "once, 4 slots"
    assert ReadingPlan(strokes=(2,), deep=True, consistency=0.5).describe() == "2 times, deep, consistency=0.5"
    plan = ReadingPlan(
        strokes=(1, 2), prior="frozen", memory="sink+last", direction="bidirectional", deep=True, slots=2
    )
    assert plan.describe() == "1,2 times, prior=frozen, memory=sink+last, direction=bidirectional, deep, 2 slots"


def test_what_is_plain_and_what_is_one_pass() -> None:
    assert ReadingPlan().plain and not ReadingPlan(slots=1).plain and not ReadingPlan(strokes=(1, 2)).plain
    exact = [plan for plan in plans() if plan.sequence]
    assert exact == [ReadingPlan(), ReadingPlan(strokes=(2,)), ReadingPlan(strokes=(3,))]
    assert ReadingPlan(strokes=(1, 2), prior="frozen").one_pass(1)
    assert not ReadingPlan(strokes=(1, 2), prior="frozen").one_pass(2)
    assert not ReadingPlan(strokes=(1, 2), slots=3).one_pass(1)


def test_whose_weights_read_a_stroke() -> None:
    def weights(times: int, **values: Any) -> list[str]:
        plan = ReadingPlan(**values)
        return [plan.weights(stroke, times) for stroke in range(1, times + 1)]

    assert weights(3, strokes=(3,)) == ["", "", ""]
    assert weights(3, strokes=(3,), prior="frozen") == ["off", "", ""]
    assert weights(1, strokes=(1, 2), prior="frozen") == [""]
    assert weights(3, strokes=(3,), stroke_adapters="separate") == ["stroke_1", "stroke_2", ""]
    assert weights(3, strokes=(3,), stroke_adapters="separate", prior="frozen") == ["off", "stroke_2", ""]
    assert ReadingPlan(strokes=(3,), stroke_adapters="separate").adapters == ["stroke_1", "stroke_2"]
    assert ReadingPlan(strokes=(3,), stroke_adapters="separate", prior="frozen").adapters == ["stroke_2"]
    assert ReadingPlan(strokes=(3,), prior="frozen").adapters == []


# -- strokes drawn in training --------------------------------------------------------------------------------------


def test_a_single_number_is_always_drawn() -> None:
    assert {ReadingPlan(strokes=(2,)).draw(step, 50, 0) for step in range(50)} == {2}


def test_the_curriculum_opens_one_number_after_the_other() -> None:
    plan = ReadingPlan(strokes=(3, 1, 2))
    steps = 3000
    drawn = [plan.draw(step, steps, seed=5) for step in range(steps)]
    assert set(drawn[: steps // 6]) == {1}
    assert set(drawn[steps // 6 : steps // 3]) == {1, 2}
    assert set(drawn[steps // 3 :]) == {1, 2, 3}
    late = Counter(drawn[steps // 2 :])
    assert all(abs(count - 500) < 75 for count in late.values()), late  # even, by four standard deviations
    assert steps // 3 <= drawn.index(3) < steps // 3 + 30


def test_a_draw_is_the_same_each_time_and_another_with_another_seed() -> None:
    plan = ReadingPlan(strokes=(1, 2, 3))

    def drawn(seed: int) -> list[int]:
        return [plan.draw(step, 60, seed) for step in range(60)]

    backwards = [plan.draw(step, 60, 1) for step in reversed(range(60))][::-1]
    assert drawn(1) == drawn(1) == backwards  # a resumed run asks from the middle
    assert drawn(1) != drawn(2)
    assert plan.draw(0, 0, 1) == 1


# -- who sees whom --------------------------------------------------------------------------------------------------


def tokens_of(plan: ReadingPlan, size: int, answer: int) -> list[Token]:
    """Everything that one row of `size` tokens can hold: slots, each stroke, an answer after each."""
    tokens = [Token(place, 0, "slot") for place in range(plan.slots)]
    for stroke in range(1, plan.most + 1):
        first = plan.slots + (0 if plan.mix == "gated" else (stroke - 1) * size)
        tokens += [Token(first + place, stroke, "x") for place in range(size)]
        after = plan.slots + (size if plan.mix == "gated" else stroke * size)
        tokens += [Token(after + place, stroke, "a") for place in range(answer)]
    return tokens


def tags_of(tokens: list[Token], valid: list[bool]) -> Tags:
    return Tags(
        torch.tensor([[token.position for token in tokens]]),
        torch.tensor([[token.stroke for token in tokens]]),
        torch.tensor([[token.kind == "a" for token in tokens]]),
        torch.tensor([valid]),
    )


@pytest.mark.parametrize("window", [None, 5])
def test_who_sees_whom_token_by_token(window: int | None) -> None:
    draw, checked = random.Random(0), 0
    for plan, size in itertools.product(plans(), (6, 2)):
        tokens = tokens_of(plan, size, answer=3)
        draw.shuffle(tokens)  # what a token is decides, not where it stands
        valid = [draw.random() < 0.8 for _ in tokens]
        queries = [token for token in tokens if token.kind != "slot"]
        got = visible(plan, tags_of(queries, [True] * len(queries)), tags_of(tokens, valid), window)[0]
        wanted = [
            [ok and sees(plan, query, key, window) for key, ok in zip(tokens, valid, strict=True)] for query in queries
        ]
        assert got.tolist() == wanted, plan
        checked += got.numel()
    assert checked > 20_000


def test_who_sees_whom_in_words() -> None:
    """A few answers read off the definition by hand, so that two equal mistakes would show."""

    def seen(query: Token, key: Token, window: int | None = None, **values: Any) -> bool:
        plan = ReadingPlan(**{"strokes": (3,), **values})
        both = [
            bool(visible(plan, tags_of([query], [True]), tags_of([key], [True]), window)),
            sees(plan, query, key, window),
        ]
        assert both[0] == both[1]
        return both[0]

    early, late, again = Token(2, 1, "x"), Token(9, 1, "x"), Token(12, 2, "x")
    first, second, third = Token(10, 1, "a"), Token(20, 2, "a"), Token(30, 3, "a")
    assert seen(late, early) and not seen(early, late)
    assert seen(again, late) and not seen(late, again), "the second stroke sees all of the first"
    assert not seen(again, first), "no stroke sees an answer"
    assert not seen(second, first) and not seen(third, second), "answers do not see each other"
    assert seen(Token(21, 2, "a"), second) and not seen(second, Token(21, 2, "a"))
    assert seen(third, early) and seen(third, late)
    sink: dict[str, Any] = {"memory": "sink+last"}
    assert seen(third, early, **sink) and not seen(third, late, **sink) and not seen(third, again, **sink)
    assert seen(third, Token(23, 3, "x"), **sink) and seen(again, late, **sink), "strokes still see everything"
    assert not seen(third, Token(4, 1, "x"), **sink) and seen(third, Token(4, 1, "x"), **sink, slots=1)
    both: dict[str, Any] = {"direction": "bidirectional"}
    assert seen(again, Token(17, 2, "x"), **both) and not seen(early, late, **both)
    assert not seen(again, Token(21, 3, "x"), **both) and not seen(first, Token(11, 1, "a"), **both)
    gated: dict[str, Any] = {"strokes": (2,), "mix": "gated", "direction": "bidirectional"}
    assert not seen(Token(5, 2, "x"), early, **gated) and seen(Token(5, 2, "x"), Token(7, 2, "x"), **gated)
    assert seen(Token(10, 2, "a"), Token(0, 2, "x"), **gated) and not seen(Token(10, 2, "a"), early, **gated)
    assert seen(early, Token(0, 0, "slot"), slots=3) and seen(third, Token(2, 0, "slot"), slots=3, **sink)
    assert not seen(third, early, 16) and not seen(third, Token(2, 0, "slot"), 16, slots=3)
    assert seen(again, late, 4) and not seen(again, late, 3), "a window of 4 reaches 3 positions back"


# -- how rows are laid out ------------------------------------------------------------------------------------------


def test_where_a_row_is_cut() -> None:
    assert cut(row(7, 2, 4)) == 7
    assert cut(row(7, 0, 4)) == 6, "without a header, x lends its last token: the answer is predicted from a"
    assert cut(row(1, 0, 4)) == 0 and cut(row(0, 1, 4)) == 0 and cut(row(0, 0, 4)) == 0


def test_a_row_repeated() -> None:
    one = row(3, 1, 2)
    two = repeat(one, 3)
    assert two.ids == one.ids[:3] + one.ids[:3] + one.ids
    assert two.supervised == [False] * 10 + [True] * 2
    assert (two.instruction_end, two.prompt_end, two.origin) == (9, 10, one.origin)
    bare = repeat(row(3, 0, 2), 2)
    assert (len(bare.ids), bare.instruction_end, bare.prompt_end, bare.targets) == (7, 5, 5, 2)
    assert repeat(row(0, 1, 2), 4).ids == row(0, 1, 2).ids


PASSES: list[tuple[dict[str, Any], int, bool, list[str]]] = [
    ({"strokes": (2,)}, 2, False, [":1 2 a2"]),
    ({"strokes": (3,)}, 1, False, [":1 a1"]),
    ({"strokes": (2,)}, 2, True, [":1 2 a1 a2"]),
    ({"strokes": (3,), "prior": "frozen"}, 3, True, ["off:1", ":2 3 a1 a2 a3"]),
    ({"strokes": (1, 2), "prior": "frozen"}, 1, False, [":1 a1"]),
    ({"strokes": (3,), "stroke_adapters": "separate"}, 3, False, ["stroke_1:1", "stroke_2:2", ":3 a3"]),
    ({**TWICE, "mix": "gated", "direction": "bidirectional"}, 2, True, [":1", ":2", ":a1 a2"]),
    ({**TWICE, "mix": "gated", "prior": "frozen"}, 2, False, ["off:1", ":2", ":a2"]),
    ({**TWICE, "mix": "gated", "direction": "bidirectional"}, 1, False, [":1 a1"]),
]


@pytest.mark.parametrize(("values", "strokes", "deep", "wanted"), PASSES)
def test_what_goes_through_the_backbone_together(
    values: dict[str, Any], strokes: int, deep: bool, wanted: list[str]
) -> None:
    got = [
        f"{weights}:" + " ".join(("a" if unit.answer else "") + str(unit.stroke) for unit in units)
        for weights, units in passes_of(ReadingPlan(**values), strokes, deep)
    ]
    assert got == wanted


def test_positions_and_targets_of_a_batch() -> None:
    rows = [row(3, 1, 2), row(1, 2, 1)]
    laid = lay(rows, ReadingPlan(strokes=(2,), slots=2), 2, pad_id=0)
    (one,) = laid.passes
    assert one.tags.position.tolist() == [[2, 3, 4, 5, 6, 7, 8, 9, 10], [2, 3, 4, 5, 6, 0, 0, 0, 0]]
    assert one.tags.stroke.tolist() == [[1, 1, 1, 2, 2, 2, 2, 2, 2], [1, 2, 2, 2, 2, 0, 0, 0, 0]]
    assert one.tags.answer.tolist() == [[False] * 6 + [True] * 3, [False] * 2 + [True] * 3 + [False] * 4]
    assert one.tags.valid.tolist() == [[True] * 9, [True] * 5 + [False] * 4]
    assert one.ids.tolist() == [rows[0].ids[:3] + rows[0].ids, rows[1].ids[:1] + rows[1].ids + [0] * 4]
    assert (laid.positions.tolist(), laid.targets.tolist()) == ([6, 7, 12], [*rows[0].ids[4:], rows[1].ids[3]])
    assert (laid.owners.tolist(), laid.ends.tolist()) == ([0, 0, 1], [8, 13])
    gated = lay(rows, ReadingPlan(strokes=(2,), slots=2, mix="gated", direction="bidirectional"), 2, pad_id=0)
    assert [part.tags.position[0].tolist() for part in gated.passes] == [[2, 3, 4], [2, 3, 4], [5, 6, 7]]


def test_a_plan_knows_how_many_tokens_and_positions_it_takes() -> None:
    """Counted in the rows that `lay` makes."""
    checked = 0
    for plan in plans():
        for deep in (False, True):
            for size in (0, 5):
                laid = lay([row(size, 2, 3)], plan, plan.most, pad_id=0, deep=deep)
                seen = sum(int(one.tags.valid.sum()) for one in laid.passes)
                assert plan.tokens(size, 5, plan.most, deep) == seen, plan
                last = max(int(one.tags.position.max()) for one in laid.passes)
                assert plan.last_position(size, 5, plan.most) == last + 1, plan
                checked += 1
    assert checked > 200
    assert ReadingPlan(strokes=(2,), deep=True).tokens(10, 4, 2) == 28


@pytest.mark.parametrize("make", [lambda one: lay([one], ReadingPlan(strokes=(2,)), 2, pad_id=0)])
def test_a_row_without_an_answer_has_no_targets(make: Callable[[Rendered], Any]) -> None:
    one = row(4, 2, 0)
    laid = make(one)
    assert (laid.positions.tolist(), laid.targets.tolist(), laid.ends.tolist()) == ([], [], [9])
    assert MOST_STROKES == 8
